//! Custom domains: added and removed as a whole, in use by the edge before an operation says that it is done.

use async_trait::async_trait;
use jiff::Timestamp;
use offshoot_edge_api::{normal_pattern, normal_prefix};
use offshoot_model::domain::{DomainHttps, DomainView};
use offshoot_model::{Code, Domain, EnvId, Environment, Fault, Problem};
use offshoot_store::{RedirectedHost, StoreError};
use serde::{Deserialize, Serialize};

use crate::saga::{Cx, Plan, Saga, Settle};
use crate::shared::{Change, Shared, store_problem};
use crate::submit::Draft;

/// Most domains of one request, and of one environment.
const MOST_AT_ONCE: usize = 64;
const MOST_OF_ONE: usize = 256;

/// Gives an environment domains.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Add {
    pub(crate) environment: EnvId,
    pub(crate) domains: Vec<Domain>,
}

/// Takes a domain away from an environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Remove {
    pub(crate) environment: EnvId,
    pub(crate) domain: Domain,
    /// Since when it leads on, when it is a former default domain and no custom one.
    #[serde(default)]
    pub(crate) redirect: Option<Timestamp>,
}

#[async_trait]
impl Saga for Add {
    fn steps(&self) -> &'static [&'static str] {
        &["record", "route"]
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.environment.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        match step {
            "record" => {
                let environment = cx.shared.by_id(&self.environment)?;
                cx.shared.may_have(&environment, &self.domains)?;
                cx.shared
                    .store
                    .add_domains(
                        &self.environment,
                        &self.domains,
                        cx.live.id(),
                        Timestamp::now(),
                    )
                    .map_err(store_problem)
            }
            _ => cx.expose(Change::None).await,
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        cx.shared
            .store
            .take_domains_back(cx.live.id())
            .map_err(store_problem)?;
        cx.expose(Change::None).await
    }
}

#[async_trait]
impl Saga for Remove {
    fn steps(&self) -> &'static [&'static str] {
        &["record", "route"]
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.environment.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        match step {
            "record" if self.redirect.is_some() => cx
                .shared
                .store
                .remove_redirect(&self.domain.host)
                .map_err(store_problem),
            "record" => cx
                .shared
                .store
                .let_domain_leave(&self.environment, &self.domain, cx.live.id())
                .map_err(store_problem),
            _ => cx.expose(Change::None).await,
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        cx.shared
            .store
            .let_domains_stay(cx.live.id())
            .map_err(store_problem)?;
        if let Some(added) = self.redirect {
            let redirect = RedirectedHost {
                host: self.domain.host.clone(),
                environment: self.environment.clone(),
                added,
            };
            cx.shared
                .store
                .add_redirect(&redirect, cx.live.id())
                .map_err(store_problem)?;
        }
        cx.expose(Change::None).await
    }

    fn on_success(&self) -> Settle {
        Settle::DomainsGone
    }
}

impl Shared {
    /// Custom domains of an environment as people see them, and former default domains that lead to it.
    pub(crate) fn domain_views(
        &self,
        environment: &Environment,
    ) -> Result<Vec<DomainView>, Problem> {
        let mut views = self.store.domains(&environment.id).map_err(store_problem)?;
        let redirects = self.store.redirects().map_err(store_problem)?;
        let of_it = |one: &RedirectedHost| one.environment == environment.id;
        views.extend(redirects.into_iter().filter(of_it).map(|one| DomainView {
            host: one.host,
            path: "/".to_owned(),
            added: one.added,
            https: DomainHttps::default(),
            redirect: Some(self.settings.host.url(environment.name.as_str())),
        }));
        Ok(views)
    }

    pub(crate) fn draft_domain_add(
        &self,
        environment: &str,
        domains: Vec<Domain>,
    ) -> Result<Draft, Problem> {
        let found = self.settled(environment, "given domains")?;
        if domains.is_empty() || domains.len() > MOST_AT_ONCE {
            return Err(Problem::new(
                Code::BadRequest,
                Fault::Request,
                format!("{} domains cannot be added at once", domains.len()),
                format!("name 1 to {MOST_AT_ONCE}"),
            ));
        }
        let mut normal = Vec::with_capacity(domains.len());
        for domain in &domains {
            let domain = parse(domain)?;
            if !normal.contains(&domain) {
                normal.push(domain);
            }
        }
        self.may_have(&found, &normal)?;
        Ok(Draft::on(
            &found,
            Plan::DomainAdd(Add {
                environment: found.id.clone(),
                domains: normal,
            }),
        ))
    }

    pub(crate) fn draft_domain_remove(
        &self,
        environment: &str,
        domain: &str,
    ) -> Result<Draft, Problem> {
        let found = self.settled(environment, "rid of a domain")?;
        let domain = parse(&Domain::split(domain))?;
        let has = self
            .store
            .domain_holder(&domain)
            .map_err(store_problem)?
            .is_some_and(|holder| holder.environment == found.id);
        let redirects = self.store.redirects().map_err(store_problem)?;
        let redirect = redirects
            .into_iter()
            .find(|one| one.environment == found.id && Domain::of_host(&one.host) == domain)
            .map(|one| one.added);
        if !has && redirect.is_none() {
            return Err(store_problem(StoreError::DomainUnknown {
                domain,
                environment: found.name,
            }));
        }
        Ok(Draft::on(
            &found,
            Plan::DomainRemove(Remove {
                environment: found.id.clone(),
                domain,
                redirect: redirect.filter(|_| !has),
            }),
        ))
    }

    /// Whether an environment may have these domains: they lead somewhere, are not too many, are free, and are not what
    /// belongs to another by its name.
    fn may_have(&self, environment: &Environment, domains: &[Domain]) -> Result<(), Problem> {
        let name = &environment.name;
        if environment.manifest.entry().is_none() {
            return Err(no_entry(environment));
        }
        let own = self.settings.host.domain(name.as_str());
        let suffix = format!(".{}", self.settings.host.base_domain);
        let mut more = 0;
        for domain in domains {
            if domain.host == own {
                return Err(invalid(
                    domain,
                    format!("is the default domain of {name}"),
                    "use it: it leads there without being added",
                ));
            }
            if domain.host.ends_with(&suffix) && !domain.host.ends_with(&format!(".{own}")) {
                return Err(invalid(
                    domain,
                    format!("lies below {suffix}, where environments have their default domains"),
                    format!("choose a name elsewhere, or one below {own}"),
                ));
            }
            match self.store.domain_holder(domain).map_err(store_problem)? {
                Some(holder) if holder.environment != environment.id => {
                    let holder = self.by_id(&holder.environment)?.name;
                    return Err(store_problem(StoreError::DomainTaken {
                        domain: domain.clone(),
                        holder,
                    }));
                }
                Some(_) => {}
                None => more += 1,
            }
        }
        let has = self
            .store
            .domains(&environment.id)
            .map_err(store_problem)?
            .len();
        if has + more > MOST_OF_ONE {
            return Err(Problem::new(
                Code::Exhausted,
                Fault::Request,
                format!("environment {name} has {has} custom domains; it can have {MOST_OF_ONE}"),
                format!("remove some: `offshoot domain ls {name}` shows them"),
            ));
        }
        Ok(())
    }
}

/// A problem for domains that would lead nowhere.
pub(crate) fn no_entry(environment: &Environment) -> Problem {
    let name = &environment.name;
    Problem::new(
        Code::WrongState,
        Fault::Request,
        format!("environment {name} has no entry: a domain would lead nowhere"),
        "give a layer `x-offshoot: {entry: PORT}` and create the environment again",
    )
}

/// A domain in the form in which domains are compared, or why it cannot be one.
pub(crate) fn parse(domain: &Domain) -> Result<Domain, Problem> {
    let next = "write a host name, for instance shop.example.com";
    let refuse = |why: &str, next: &str| Err(invalid(domain, why, next));
    if domain.path.starts_with("//") {
        return refuse("has a scheme: a domain is the same for all", next);
    }
    let Some(host) = normal_pattern(&domain.host) else {
        return refuse("is not a host name", next);
    };
    if domain.host.contains(':') && !host.starts_with('[') {
        return refuse(
            "has a port: a domain is the same on all ports",
            "leave the port out",
        );
    }
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    if address.is_ok() || domain.host.starts_with('[') {
        return refuse("is an address, not a host name", next);
    }
    let Some(path) = normal_prefix(&domain.path) else {
        return refuse(
            "has a path that no domain can have",
            "write it as it stands in addresses, for instance shop.example.com/shop: at most 1024 bytes, without empty segments, `.`, `..` and encoded slashes",
        );
    };
    Ok(Domain { host, path })
}

pub(crate) fn invalid(domain: &Domain, why: impl AsRef<str>, next: impl Into<String>) -> Problem {
    let text: String = domain.to_string().chars().take(300).collect();
    Problem::new(
        Code::DomainInvalid,
        Fault::Request,
        format!("{text:?} {}", why.as_ref()),
        next,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_normalised_and_everything_else_refused() {
        for (text, host) in [
            ("Shop.Example.COM.", "shop.example.com"),
            ("intranet", "intranet"),
            ("a_b.test/", "a_b.test"),
            ("*.Shop.test", "*.shop.test"),
        ] {
            assert_eq!(parse(&Domain::split(text)).unwrap(), Domain::of_host(host));
        }
        let below = Domain {
            path: "/b/~c".to_owned(),
            ..Domain::of_host("a.test")
        };
        assert_eq!(parse(&Domain::split("a.test/b/%7Ec/")).unwrap(), below);
        for (text, why) in [
            ("", "not a host name"),
            ("a..test", "not a host name"),
            ("a b", "not a host name"),
            ("http://a.test", "scheme"),
            ("a.test/b/../c", "path"),
            ("a.test/b?c", "path"),
            ("a.test/b%2fc", "path"),
            ("a.*.test", "not a host name"),
            ("*", "not a host name"),
            ("a.test:80", "port"),
            ("127.0.0.1", "address"),
            ("[::1]", "address"),
            ("a\u{e4}.test", "not a host name"),
            ("a\r\nb.test", "not a host name"),
        ] {
            let problem = parse(&Domain::split(text)).unwrap_err();
            assert_eq!(problem.code, Code::DomainInvalid);
            assert!(problem.what.contains(why), "{text:?}: {problem}");
        }
    }
}
