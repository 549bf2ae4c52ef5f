//! Certificates of an ACME server (RFC 8555), proven by HTTP (8.3). The protocol is the library's; the account is kept in
//! a file.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount,
    NewOrder, OrderStatus, RetryPolicy,
};
use offshoot_model::{Code, Fault, Problem};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::time::timeout;

use crate::{Authority, Files, Issued, Order, Proof};

/// Longest wait for the server to take an account and an order.
const ORDER: Duration = Duration::from_secs(90);
/// Longest wait for it to have looked at the proofs, and for a certificate.
const VERDICT: Duration = Duration::from_secs(180);

/// Which server, and who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    /// URL of its directory.
    pub directory: String,
    /// Where it can write to about the account.
    pub email: Option<String>,
    /// Root that its own HTTPS is checked against, PEM; those of the host when absent.
    pub ca_file: Option<PathBuf>,
}

/// An ACME server. Its terms of service were agreed to by whoever configured it.
#[derive(Debug)]
pub struct Acme {
    config: AcmeConfig,
    files: Files,
}

impl Acme {
    /// The server; the account is kept beside these files.
    #[must_use]
    pub fn new(config: AcmeConfig, files: Files) -> Self {
        Self { config, files }
    }

    /// The account there; made when there is none yet.
    async fn account(&self) -> Result<Account, Problem> {
        let builder = match &self.config.ca_file {
            Some(file) => Account::builder_with_root(file),
            None => Account::builder(),
        };
        let builder = builder.map_err(|error| self.failed("cannot be spoken to", &error))?;
        // an account is one server's
        let server: String = self
            .config
            .directory
            .chars()
            .take(100)
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let path = self.files.path(&format!("acme-{server}.json"));
        if path.exists() {
            let kept: AccountCredentials =
                serde_json::from_str(&self.files.read(&path)?).map_err(|_| {
                    self.problem(
                        "has an account here that cannot be read",
                        "remove the file: another account is made",
                        vec![path.display().to_string()],
                    )
                })?;
            return builder
                .from_credentials(kept)
                .await
                .map_err(|error| self.failed("does not know our account", &error));
        }
        let contact = self
            .config
            .email
            .as_ref()
            .map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let wanted = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let (account, credentials) = builder
            .create(&wanted, self.config.directory.clone(), None)
            .await
            .map_err(|error| self.failed("gave no account", &error))?;
        let kept = serde_json::to_vec(&credentials)
            .map_err(|error| Problem::internal(format!("an account has no JSON: {error}")))?;
        self.files.write(&path, &kept)?;
        Ok(account)
    }

    async fn begin(&self, names: &[String]) -> Result<AcmeOrder, Problem> {
        let account = self.account().await?;
        let identifiers: Vec<Identifier> = names
            .iter()
            .map(|name| Identifier::Dns(name.clone()))
            .collect();
        let mut order = account
            .new_order(&NewOrder::new(&identifiers))
            .await
            .map_err(|error| self.failed("took no order", &error))?;
        let mut proofs = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let mut one = next.map_err(|error| self.failed("took no order", &error))?;
            if one.status == AuthorizationStatus::Valid {
                continue;
            }
            let host = one.identifier().to_string();
            let Some(challenge) = one.challenge(ChallengeType::Http01) else {
                let what = format!("does not take proofs by HTTP for {host}");
                return Err(self.problem(&what, "leave this name out", Vec::new()));
            };
            let token = challenge.token.clone();
            // it becomes part of a path, and is the server's (RFC 8555, 8.3: base64url)
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if token.is_empty() || token.len() > 256 || !token.chars().all(fits) {
                return Err(self.problem(
                    "sent a token that cannot be one",
                    "see that `edge.acme.directory` in the configuration is the URL of an ACME server's directory",
                    Vec::new(),
                ));
            }
            proofs.push(Proof {
                text: challenge.key_authorization().as_str().to_owned(),
                host,
                token,
            });
        }
        Ok(AcmeOrder {
            server: Self::new(self.config.clone(), self.files.clone()),
            order,
            proofs,
            names: names.to_vec(),
        })
    }

    fn problem(&self, what: &str, next: &str, details: Vec<String>) -> Problem {
        let mut problem = Problem::new(
            Code::AcmeFailed,
            Fault::Host,
            format!("the ACME server {} {what}", self.config.directory),
            next,
        );
        problem.details = details;
        problem
    }

    fn failed(&self, what: &str, error: &Error) -> Problem {
        let (next, details) = match error {
            Error::Api(told) => {
                let kind = told.r#type.clone().unwrap_or_default();
                let next = match kind.rsplit(':').next().unwrap_or_default() {
                    "accountDoesNotExist" => {
                        "remove the account's file, `certificates/acme-*.json` in the state directory: another is made"
                    }
                    "rateLimited" => "wait; the details say how long",
                    "connection" | "dns" | "unauthorized" | "incorrectResponse" => UNPROVEN,
                    _ => "correct what the details say, then ask again with `offshoot cert acme`",
                };
                let subs = told.subproblems.iter().map(|sub| format!("{sub:?}"));
                let details = std::iter::once(told.to_string()).chain(subs);
                (next, details.map(|text| clean(&text)).collect())
            }
            other => {
                let mut details = vec![clean(&other.to_string())];
                let mut cause = other.source();
                while let Some(error) = cause {
                    details.push(clean(&error.to_string()));
                    cause = error.source();
                }
                (
                    "see that the host reaches the server, and `edge.acme` in the configuration",
                    details,
                )
            }
        };
        self.problem(what, next, details)
    }

    fn late(&self, what: &str, bound: Duration) -> Problem {
        let what = format!("{what} within {} s", bound.as_secs());
        self.problem(&what, "try again later", Vec::new())
    }
}

const UNPROVEN: &str =
    "see that each name leads to this host, and port 80 there to an address of `edge.listen`";

/// What a server says goes to terminals.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(1_000)
        .collect()
}

#[async_trait]
impl Authority for Acme {
    async fn order(&self, names: &[String]) -> Result<Box<dyn Order>, Problem> {
        match timeout(ORDER, self.begin(names)).await {
            Ok(order) => Ok(Box::new(order?)),
            Err(_) => Err(self.late("took no order", ORDER)),
        }
    }
}

struct AcmeOrder {
    server: Acme,
    order: instant_acme::Order,
    proofs: Vec<Proof>,
    names: Vec<String>,
}

impl AcmeOrder {
    async fn be_validated(&mut self) -> Result<(), Problem> {
        let failed = |error: &Error| self.server.failed("is not content with the proofs", error);
        let mut authorizations = self.order.authorizations();
        while let Some(next) = authorizations.next().await {
            let mut one = next.map_err(|error| failed(&error))?;
            if one.status == AuthorizationStatus::Valid {
                continue;
            }
            if let Some(mut challenge) = one.challenge(ChallengeType::Http01) {
                challenge
                    .set_ready()
                    .await
                    .map_err(|error| failed(&error))?;
            }
        }
        let status = self.order.poll_ready(&patience()).await;
        match status {
            Ok(OrderStatus::Ready) => Ok(()),
            Err(Error::Timeout(_)) => Err(self.server.late("did not look at the proofs", VERDICT)),
            Err(Error::Api(_)) | Ok(_) => Err(self.verdict().await),
            Err(error) => Err(self.server.failed("is not content with the proofs", &error)),
        }
    }

    /// What it saw at each name.
    async fn verdict(&mut self) -> Problem {
        let mut details = Vec::new();
        let mut authorizations = self.order.authorizations();
        while let Some(Ok(mut one)) = authorizations.next().await {
            if one.refresh().await.is_err() {
                continue;
            }
            let host = one.identifier().to_string();
            for told in one
                .challenges
                .iter()
                .filter_map(|challenge| challenge.error.as_ref())
            {
                details.push(clean(&format!("{host}: {told}")));
            }
        }
        self.server
            .problem("is not content with the proofs", UNPROVEN, details)
    }

    async fn get(&mut self) -> Result<Issued, Problem> {
        let key = KeyPair::generate().map_err(|error| sign_failed(&error))?;
        let request = CertificateParams::new(self.names.as_slice()).and_then(|mut params| {
            params.distinguished_name = DistinguishedName::new();
            params.serialize_request(&key)
        });
        let request = request.map_err(|error| sign_failed(&error))?;
        let failed = |error: &Error| self.server.failed("gave no certificate", error);
        self.order
            .finalize_csr(request.der())
            .await
            .map_err(|error| failed(&error))?;
        let chain = self
            .order
            .poll_certificate(&patience())
            .await
            .map_err(|error| failed(&error))?;
        Ok(Issued {
            chain,
            key: key.serialize_pem(),
        })
    }
}

fn sign_failed(error: &rcgen::Error) -> Problem {
    Problem::internal("a key or a request could not be made").caused_by(error)
}

fn patience() -> RetryPolicy {
    RetryPolicy::new()
        .initial_delay(Duration::from_millis(250))
        .backoff(1.5)
        .timeout(VERDICT)
}

#[async_trait]
impl Order for AcmeOrder {
    fn proofs(&self) -> &[Proof] {
        &self.proofs
    }

    async fn validate(&mut self) -> Result<(), Problem> {
        match timeout(VERDICT, self.be_validated()).await {
            Ok(verdict) => verdict,
            Err(_) => Err(self.server.late("did not look at the proofs", VERDICT)),
        }
    }

    async fn finalise(&mut self) -> Result<Issued, Problem> {
        match timeout(VERDICT, self.get()).await {
            Ok(issued) => issued,
            Err(_) => Err(self.server.late("gave no certificate", VERDICT)),
        }
    }
}
