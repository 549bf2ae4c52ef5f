//! From a request about certificates to an operation.

use jiff::Timestamp;
use offshoot_certificates::{Issued, check};
use offshoot_model::certificate::{Certificate, CertificateKind, CertificateRequest};
use offshoot_model::{Code, Domain, Fault, OperationId, Problem};

use super::{Forget, Install, subject};
use crate::domains::{invalid, parse};
use crate::saga::Plan;
use crate::shared::{Shared, store_problem};
use crate::submit::Draft;

/// Most names of one certificate that is ordered here (Let's Encrypt: 100).
const NAMES_MAX: usize = 64;

impl Shared {
    /// An uploaded certificate is checked and its files are written here: a key is never in the journal.
    pub(crate) fn draft_certificate(
        &self,
        id: OperationId,
        request: CertificateRequest,
    ) -> Result<Draft, Problem> {
        match request {
            CertificateRequest::Uploaded {
                chain,
                key,
                domains,
            } => {
                let issued = Issued { chain, key };
                let mut names = self.names(&domains)?;
                let checked = check(&issued, &names, Timestamp::now())?;
                if names.is_empty() {
                    names = checked.names;
                }
                self.settings.https.files.keep(&id.to_string(), &issued)?;
                self.draft_install(id, CertificateKind::Uploaded, names, None)
            }
            CertificateRequest::SelfSigned { domains } => {
                let names = self.some_names(&domains)?;
                self.draft_install(id, CertificateKind::SelfSigned, names, None)
            }
            CertificateRequest::Acme { domains } => {
                let names = self.some_names(&domains)?;
                self.draft_install(id, CertificateKind::Acme, names, None)
            }
        }
    }

    pub(crate) fn draft_certificate_renew(
        &self,
        id: OperationId,
        name: &str,
    ) -> Result<Draft, Problem> {
        let found = self.certificate_of(name)?;
        if found.kind == CertificateKind::Uploaded {
            return Err(Problem::new(
                Code::WrongState,
                Fault::Request,
                format!(
                    "the certificate of {name} was brought by a person and cannot be renewed here"
                ),
                "bring its successor with `offshoot cert add`",
            ));
        }
        self.draft_install(id, found.kind, found.names, Some(found.id))
    }

    pub(crate) fn draft_certificate_remove(&self, name: &str) -> Result<Draft, Problem> {
        let name = name_of(name)?;
        let before = self.certificate_of(&name)?;
        let plan = Plan::CertificateRemove(Forget::new(name.clone(), before));
        Ok(Draft::of_host(name, plan))
    }

    fn draft_install(
        &self,
        id: OperationId,
        kind: CertificateKind,
        names: Vec<String>,
        renews: Option<String>,
    ) -> Result<Draft, Problem> {
        if kind == CertificateKind::Acme {
            self.may_be_proven(&names)?;
        }
        let mut notices: Vec<String> = self.unserved_notice().into_iter().collect();
        for other in self.store.certificates().map_err(store_problem)? {
            let taken: Vec<&str> = other
                .names
                .iter()
                .filter(|name| names.contains(name))
                .map(String::as_str)
                .collect();
            if !taken.is_empty() && renews.as_ref() != Some(&other.id) && !other.automatic {
                notices.push(format!(
                    "{} has another certificate ({}), which this one replaces",
                    taken.join(", "),
                    other.kind
                ));
            }
        }
        let text = subject(&names);
        let plan = Plan::CertificateAdd(Install::new(id.to_string(), kind, names, renews));
        let mut draft = Draft::of_host(text, plan);
        draft.notices = notices;
        Ok(draft)
    }

    /// Whether an ACME server can be shown that these names lead here.
    fn may_be_proven(&self, names: &[String]) -> Result<(), Problem> {
        if self.settings.https.acme.is_none() {
            return Err(Problem::new(
                Code::WrongState,
                Fault::Request,
                "no ACME server is configured",
                "add the table [edge.acme] to the configuration and restart the daemon",
            ));
        }
        for name in names {
            if name.starts_with("*.") {
                return Err(invalid(
                    &Domain::of_host(name),
                    "is a wildcard, which cannot be proven by HTTP (RFC 8555, 8.3)",
                    "name each host, or bring a certificate with `offshoot cert add`",
                ));
            }
            if self.leads(name)?.is_none() {
                return Err(Problem::new(
                    Code::DomainUnknown,
                    Fault::Request,
                    format!("no environment has the domain {name}, so nobody can prove it"),
                    format!("add it first: `offshoot domain add ENV {name}`"),
                ));
            }
        }
        Ok(())
    }

    /// The certificate that is shown for exactly this name.
    fn certificate_of(&self, name: &str) -> Result<Certificate, Problem> {
        let name = name_of(name)?;
        let all = self.store.certificates().map_err(store_problem)?;
        all.into_iter()
            .find(|one| one.names.contains(&name))
            .ok_or_else(|| {
                Problem::new(
                    Code::CertificateUnknown,
                    Fault::Request,
                    format!("there is no certificate for {name}"),
                    "see `offshoot cert ls` for those that are there",
                )
            })
    }

    fn some_names(&self, domains: &[String]) -> Result<Vec<String>, Problem> {
        match domains.is_empty() {
            true => Err(too_many(0)),
            false => self.names(domains),
        }
    }

    fn names(&self, domains: &[String]) -> Result<Vec<String>, Problem> {
        if domains.len() > NAMES_MAX {
            return Err(too_many(domains.len()));
        }
        let mut names = Vec::with_capacity(domains.len());
        for domain in domains {
            let name = name_of(domain)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }
}

fn too_many(count: usize) -> Problem {
    Problem::new(
        Code::BadRequest,
        Fault::Request,
        format!("a certificate cannot be for {count} host names"),
        format!("name 1 to {NAMES_MAX}"),
    )
}

/// A host name in the form in which names are compared.
fn name_of(text: &str) -> Result<String, Problem> {
    let domain = parse(&Domain::split(text))?;
    if domain.path != "/" {
        return Err(invalid(
            &domain,
            "has a path: a certificate is for whole hosts",
            "leave the path out",
        ));
    }
    Ok(domain.host)
}
