//! Domains of an environment: what leads to it, with what certificate, and how that is changed.

use askama::Template;
use axum::extract::{Path, Query};
use axum::response::Response;
use jiff::{SignedDuration, Timestamp};
use offshoot_model::certificate::{Certificate, CertificateKind, CertificatesView};
use offshoot_model::domain::{Domain, DomainHttps, DomainView};
use offshoot_model::view::{DomainAddRequest, EnvironmentView};
use offshoot_model::{Operation, Problem};
use offshoot_operations::Request as Change;
use serde::Deserialize;

use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::{When, encode, web_address};
use crate::pages::change::{begun, to};
use crate::pages::{Mark, find, mark, submit};

/// A certificate that ends within this time, and should have been renewed, is worth a look.
const ENDS_SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// Domains as they are shown.
pub(super) struct Domains {
    /// Whether HTTPS is served at all.
    pub(super) served: bool,
    pub(super) lines: Vec<Line>,
}

pub(super) struct Line {
    pub(super) domain: String,
    /// As a value of a query.
    pub(super) encoded: String,
    /// Where a browser finds it.
    pub(super) href: Option<String>,
    pub(super) kind: &'static str,
    /// For a former default domain, where its visitors are sent.
    pub(super) redirect: Option<String>,
    pub(super) certificate: Option<Shown>,
    /// Whether requests without TLS are sent to HTTPS; nothing where that cannot be chosen.
    pub(super) only_https: Option<bool>,
    pub(super) removable: bool,
}

/// A certificate's state.
pub(super) struct Shown {
    pub(super) mark: Mark,
    pub(super) until: When,
    pub(super) issuer: String,
    pub(super) problem: Option<Problem>,
}

pub(super) fn draw(
    environment: &EnvironmentView,
    certificates: &CertificatesView,
    now: Timestamp,
) -> Domains {
    let url = environment.url.as_deref().and_then(web_address);
    let shown = |host: &str| {
        let certificates = certificates.certificates.iter();
        let fits = certificates.filter(|one| one.names.iter().any(|name| covers(name, host)));
        // A certificate of the name itself goes before one of a wildcard.
        fits.max_by_key(|one| one.names.iter().any(|name| name == host))
            .map(|one| certificate(one, now))
    };
    let default = url.and_then(host_of).map(|host| Line {
        href: url.map(str::to_owned),
        kind: "default",
        redirect: None,
        certificate: shown(host),
        only_https: None,
        removable: false,
        encoded: encode(host),
        domain: host.to_owned(),
    });
    let custom = environment.domains.iter().map(|view| {
        let domain = view.domain().to_string();
        let is_former = view.redirect.is_some();
        Line {
            encoded: encode(&domain),
            href: url.and_then(|url| address(url, view)),
            kind: if is_former { "former name" } else { "custom" },
            redirect: view.redirect.clone(),
            certificate: shown(&view.host),
            only_https: (!is_former).then_some(view.https == DomainHttps::Redirect),
            removable: true,
            domain,
        }
    });
    Domains {
        served: certificates.served,
        lines: default.into_iter().chain(custom).collect(),
    }
}

/// The host of an address.
fn host_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    Some(
        authority
            .split_once(':')
            .map_or(authority, |(host, _)| host),
    )
}

/// Where a browser finds a domain: at the port that the environment's default domain has.
fn address(url: &str, domain: &DomainView) -> Option<String> {
    let (scheme, _) = url.split_once("://")?;
    let own = host_of(url)?;
    let (_, rest) = url.split_once(own)?;
    let port = rest.split(['/', '?', '#']).next().unwrap_or_default();
    (!domain.host.contains('*')).then(|| format!("{scheme}://{}{port}{}", domain.host, domain.path))
}

/// Whether a name of a certificate is one for this host: itself, or one label in place of its `*`.
fn covers(name: &str, host: &str) -> bool {
    name == host
        || name.strip_prefix("*.").is_some_and(|parent| {
            host.split_once('.')
                .is_some_and(|(label, rest)| label != "*" && rest == parent)
        })
}

/// How a certificate does.
pub(in crate::pages) fn certificate_mark(of: &Certificate, now: Timestamp) -> Mark {
    let left = of.not_after.duration_since(now);
    let kind = match of.kind {
        CertificateKind::Uploaded => "uploaded",
        CertificateKind::SelfSigned => "own authority",
        CertificateKind::Acme => "ACME",
    };
    if left <= SignedDuration::ZERO {
        mark("expired", "bad")
    } else if of.failures > 0 {
        mark("renewal fails", "warn")
    } else if left < ENDS_SOON && of.renew_at.is_none() {
        mark("ends soon", "warn")
    } else {
        mark(kind, "good")
    }
}

fn certificate(of: &Certificate, now: Timestamp) -> Shown {
    Shown {
        mark: certificate_mark(of, now),
        until: When::new(of.not_after, now),
        issuer: of.issuer.clone(),
        problem: of.problem.clone(),
    }
}

/// A question about domains.
struct Question {
    name: String,
    href: String,
    csrf: String,
    value: String,
    problem: Option<Problem>,
}

impl Question {
    fn new(context: &Context, name: String, value: String, problem: Option<Problem>) -> Self {
        Self {
            href: format!("/environments/{}", encode(&name)),
            csrf: context.session.csrf().to_owned(),
            name,
            value,
            problem,
        }
    }
}

#[derive(Template)]
#[template(path = "domain_add.html")]
struct AddPage {
    shell: Shell,
    question: Question,
}

#[derive(Template)]
#[template(path = "domain_add_part.html")]
struct AddPart {
    question: Question,
}

#[derive(Template)]
#[template(path = "domain_remove.html")]
struct RemovePage {
    shell: Shell,
    question: Question,
}

#[derive(Template)]
#[template(path = "domain_remove_part.html")]
struct RemovePart {
    question: Question,
}

fn ask_add(context: &Context, question: Question) -> Result<Response, Failure> {
    if context.wants_part() {
        return html(&AddPart { question });
    }
    let shell = context.shell(format!("Add domains to {}", question.name));
    html(&AddPage { shell, question })
}

pub(in crate::pages) async fn add_form(
    context: Context,
    Path(environment): Path<String>,
) -> Result<Response, Failure> {
    let found = find(&context.web, &environment).await?;
    ask_add(
        &context,
        Question::new(&context, found.name, String::new(), None),
    )
}

#[derive(Debug, Deserialize)]
pub(in crate::pages) struct DomainsForm {
    domains: String,
}

/// Adds what was typed, all in one step. What is wrong with it, and who has a taken one, is said in the form.
pub(in crate::pages) async fn add(
    context: Context,
    Path(environment): Path<String>,
    Form(DomainsForm { domains }): Form<DomainsForm>,
) -> Result<Response, Failure> {
    let found = find(&context.web, &environment).await?;
    let typed = domains.split([' ', ',', ';', '\n', '\r', '\t']);
    let typed = typed.filter(|domain| !domain.is_empty());
    let request = DomainAddRequest {
        domains: typed.map(Domain::split).collect(),
    };
    match submit(&context.web, Change::DomainAdd(found.name.clone(), request)).await {
        Ok(operation) => Ok(to(&operation)),
        Err(failure) => {
            let question = Question::new(&context, found.name, domains, Some(failure.problem));
            ask_add(&context, question)
        }
    }
}

#[derive(Debug, Deserialize)]
pub(in crate::pages) struct DomainForm {
    domain: String,
}

pub(in crate::pages) async fn remove_form(
    context: Context,
    Path(environment): Path<String>,
    Query(DomainForm { domain }): Query<DomainForm>,
) -> Result<Response, Failure> {
    let found = find(&context.web, &environment).await?;
    ask_remove(&context, Question::new(&context, found.name, domain, None))
}

fn ask_remove(context: &Context, question: Question) -> Result<Response, Failure> {
    if context.wants_part() {
        return html(&RemovePart { question });
    }
    let shell = context.shell(format!("Remove {}", question.value));
    html(&RemovePage { shell, question })
}

pub(in crate::pages) async fn remove(
    context: Context,
    Path(environment): Path<String>,
    Form(DomainForm { domain }): Form<DomainForm>,
) -> Result<Response, Failure> {
    let found = find(&context.web, &environment).await?;
    let change = Change::DomainRemove(found.name.clone(), domain.clone());
    match submit(&context.web, change).await {
        Ok(operation) => Ok(to(&operation)),
        Err(failure) => {
            let question = Question::new(&context, found.name, domain, Some(failure.problem));
            ask_remove(&context, question)
        }
    }
}

#[derive(Debug, Deserialize)]
pub(in crate::pages) struct HttpsForm {
    domain: String,
    https: DomainHttps,
}

/// Says what requests without TLS get at a domain.
pub(in crate::pages) async fn https(
    context: Context,
    Path(_): Path<String>,
    Form(HttpsForm { domain, https }): Form<HttpsForm>,
) -> Result<Response, Failure> {
    let text = match https {
        DomainHttps::Redirect => format!("{domain} is being sent to HTTPS."),
        DomainHttps::Offer => format!("{domain} is being served without TLS, too."),
    };
    let operation: Operation = submit(&context.web, Change::DomainHttps(domain, https)).await?;
    begun(&context, &operation, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_found_by_name_and_by_one_label() {
        for (name, host, fits) in [
            ("shop.test", "shop.test", true),
            ("*.shop.test", "www.shop.test", true),
            ("*.shop.test", "*.shop.test", true),
            ("*.shop.test", "a.www.shop.test", false),
            ("*.shop.test", "shop.test", false),
            ("*.test", "*.shop.test", false),
            ("other.test", "shop.test", false),
        ] {
            assert_eq!(covers(name, host), fits, "{name} for {host}");
        }
    }

    #[test]
    fn a_domain_is_found_at_the_port_of_the_default_one() {
        let view = |host: &str, path: &str| DomainView {
            host: host.to_owned(),
            path: path.to_owned(),
            added: Timestamp::UNIX_EPOCH,
            https: DomainHttps::Offer,
            redirect: None,
        };
        let url = "http://shop.localhost:8080/";
        assert_eq!(host_of(url), Some("shop.localhost"));
        assert_eq!(
            address(url, &view("shop.test", "/api")).as_deref(),
            Some("http://shop.test:8080/api")
        );
        assert_eq!(
            address("https://shop.localhost/", &view("shop.test", "/")).as_deref(),
            Some("https://shop.test/")
        );
        assert_eq!(address(url, &view("*.shop.test", "/")), None);
    }
}
