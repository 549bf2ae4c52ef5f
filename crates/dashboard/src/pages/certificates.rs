//! Certificates for HTTPS: what there is, until when, how it is renewed; and how one comes and goes. A key goes in and never comes out.

use askama::Template;
use axum::extract::Query;
use axum::response::{IntoResponse as _, Response};
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use jiff::Timestamp;
use offshoot_model::certificate::{Certificate, CertificateKind, CertificateRequest};
use offshoot_model::{Code, Fault, Problem};
use offshoot_operations::Request as Change;
use serde::Deserialize;

use super::change::{begun, to};
use super::traffic::certificate_mark;
use super::{Mark, submit};
use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::{When, encode};

/// Element that holds the list.
const PART: &str = "certificates";
/// Most certificates that are listed: what one page holds.
const LISTED: usize = 100;

/// A certificate as it is shown.
struct Line {
    names: Vec<String>,
    /// The first name, as a value of a query.
    encoded: String,
    kind: &'static str,
    automatic: bool,
    issuer: String,
    mark: Mark,
    until: When,
    renewal: Option<When>,
    failures: u32,
    problem: Option<Problem>,
    /// Whether it can be renewed from here.
    renewable: bool,
}

fn line(of: &Certificate, now: Timestamp) -> Line {
    let first = of.names.first().map_or("", String::as_str);
    Line {
        encoded: encode(first),
        names: of.names.clone(),
        kind: kind(of.kind),
        automatic: of.automatic,
        issuer: of.issuer.clone(),
        mark: certificate_mark(of, now),
        until: When::new(of.not_after, now),
        renewal: of.renew_at.map(|at| When::new(at, now)),
        failures: of.failures,
        problem: of.problem.clone(),
        renewable: of.kind != CertificateKind::Uploaded,
    }
}

fn kind(kind: CertificateKind) -> &'static str {
    match kind {
        CertificateKind::Uploaded => "uploaded",
        CertificateKind::SelfSigned => "own authority",
        CertificateKind::Acme => "ACME",
    }
}

#[derive(Template)]
#[template(path = "certificates.html")]
struct Page {
    shell: Shell,
    part: Part,
}

#[derive(Template)]
#[template(path = "certificates_part.html")]
struct Part {
    csrf: String,
    served: bool,
    lines: Vec<Line>,
    more: usize,
}

/// All certificates, or what changes of their page where only that is wanted.
pub(super) async fn list(context: Context) -> Result<Response, Failure> {
    let now = Timestamp::now();
    let view = context.web.platform.certificates().await?;
    let shown = view.certificates.iter().take(LISTED);
    let part = Part {
        csrf: context.session.csrf().to_owned(),
        served: view.served,
        lines: shown.map(|one| line(one, now)).collect(),
        more: view.certificates.len().saturating_sub(LISTED),
    };
    if context.wants(PART) {
        return html(&part);
    }
    html(&Page {
        shell: context.shell("Certificates"),
        part,
    })
}

/// The root of the instance's own authority, for browsers to import.
pub(super) async fn root(context: Context) -> Result<Response, Failure> {
    let root = context.web.platform.certificate_root().await?;
    let kind = HeaderValue::from_static("application/x-pem-file");
    let name = HeaderValue::from_static("attachment; filename=\"offshoot-root.pem\"");
    Ok(([(CONTENT_TYPE, kind), (CONTENT_DISPOSITION, name)], root).into_response())
}

/// What was typed. The key is in no page and no message, so this has no `Debug`.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Typed {
    kind: String,
    domains: String,
    chain: String,
    key: String,
}

impl Typed {
    fn request(self) -> Result<CertificateRequest, Problem> {
        let domains = self.domains.split([',', ';']);
        let domains = domains.flat_map(str::split_whitespace);
        let domains: Vec<_> = domains.map(str::to_owned).collect();
        let bad = |what: &str, next: &str| {
            Err(Problem::new(Code::BadRequest, Fault::Request, what, next))
        };
        match self.kind.as_str() {
            "uploaded" if self.chain.trim().is_empty() || self.key.trim().is_empty() => bad(
                "a certificate that you bring is a chain and its key",
                "paste both, as PEM",
            ),
            "uploaded" => Ok(CertificateRequest::Uploaded {
                chain: self.chain,
                key: self.key,
                domains,
            }),
            "self-signed" | "acme" if domains.is_empty() => {
                bad("it is for no host name", "write at least one")
            }
            "self-signed" => Ok(CertificateRequest::SelfSigned { domains }),
            "acme" => Ok(CertificateRequest::Acme { domains }),
            _ => bad(
                "it is not said where it comes from",
                "choose one of those that are offered",
            ),
        }
    }
}

struct AddForm {
    csrf: String,
    kind: &'static str,
    domains: String,
    chain: String,
    /// Whether a key was sent that is not shown again.
    had_key: bool,
    problem: Option<Problem>,
}

#[derive(Template)]
#[template(path = "certificate_add.html")]
struct AddPage {
    shell: Shell,
    form: AddForm,
}

#[derive(Template)]
#[template(path = "certificate_add_part.html")]
struct AddPart {
    form: AddForm,
}

fn ask(context: &Context, typed: Typed, problem: Option<Problem>) -> Result<Response, Failure> {
    let form = AddForm {
        csrf: context.session.csrf().to_owned(),
        kind: match typed.kind.as_str() {
            "uploaded" => "uploaded",
            "self-signed" => "self-signed",
            _ => "acme",
        },
        domains: typed.domains,
        chain: typed.chain,
        had_key: !typed.key.is_empty(),
        problem,
    };
    if context.wants_part() {
        return html(&AddPart { form });
    }
    html(&AddPage {
        shell: context.shell("Add a certificate"),
        form,
    })
}

/// What a link may fill in.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    kind: String,
    domains: String,
}

/// The form, with what a link fills in.
pub(super) async fn add_form(
    context: Context,
    Query(Asked { kind, domains }): Query<Asked>,
) -> Result<Response, Failure> {
    let typed = Typed {
        kind,
        domains,
        ..Typed::default()
    };
    ask(&context, typed, None)
}

/// Takes the form. What is wrong with it is said in it, without the key.
pub(super) async fn add(context: Context, Form(typed): Form<Typed>) -> Result<Response, Failure> {
    let outcome = match typed.clone().request() {
        Ok(request) => submit(&context.web, Change::CertificateAdd(request)).await,
        Err(problem) => Err(problem.into()),
    };
    match outcome {
        Ok(operation) => Ok(to(&operation)),
        Err(failure) => ask(&context, typed, Some(failure.problem)),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct NameForm {
    name: String,
}

/// Renews a certificate now.
pub(super) async fn renew(
    context: Context,
    Form(NameForm { name }): Form<NameForm>,
) -> Result<Response, Failure> {
    let text = format!("The certificate of {name} is being renewed.");
    let operation = submit(&context.web, Change::CertificateRenew(name)).await?;
    begun(&context, &operation, text)
}

struct Question {
    csrf: String,
    name: String,
    value: String,
    wrong: Option<String>,
}

#[derive(Template)]
#[template(path = "certificate_remove.html")]
struct RemovePage {
    shell: Shell,
    question: Question,
}

#[derive(Template)]
#[template(path = "certificate_remove_part.html")]
struct RemovePart {
    question: Question,
}

fn ask_remove(
    context: &Context,
    name: String,
    value: String,
    wrong: Option<String>,
) -> Result<Response, Failure> {
    let question = Question {
        csrf: context.session.csrf().to_owned(),
        name,
        value,
        wrong,
    };
    if context.wants_part() {
        return html(&RemovePart { question });
    }
    html(&RemovePage {
        shell: context.shell(format!("Remove certificate of {}", question.name)),
        question,
    })
}

pub(super) async fn remove_form(
    context: Context,
    Query(NameForm { name }): Query<NameForm>,
) -> Result<Response, Failure> {
    ask_remove(&context, name, String::new(), None)
}

#[derive(Debug, Deserialize)]
pub(super) struct RemoveForm {
    name: String,
    typed: String,
}

/// Takes the certificate away from a host name that was typed.
pub(super) async fn remove(
    context: Context,
    Form(RemoveForm { name, typed }): Form<RemoveForm>,
) -> Result<Response, Failure> {
    if typed.trim() != name {
        let wrong = format!("That is not the name. Type {name} to remove its certificate");
        return ask_remove(&context, name, typed, Some(wrong));
    }
    match submit(&context.web, Change::CertificateRemove(name.clone())).await {
        Ok(operation) => Ok(to(&operation)),
        Err(failure) => {
            let Problem { what, next, .. } = failure.problem;
            ask_remove(&context, name, typed, Some(format!("{what}: {next}")))
        }
    }
}
