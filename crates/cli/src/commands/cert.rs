//! `cert`: certificates for HTTPS.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use offshoot_model::certificate::{
    AuthorityView, Certificate, CertificateRequest, CertificatesView,
};
use offshoot_model::{Code, Fault, Operation, Problem};

use crate::api::Route;
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::follow::{Wait, complete_all};
use crate::human;
use crate::table::Grid;
use crate::term::Paint;

/// Largest file that is read, bytes.
const FILE_MAX: u64 = 1 << 20;

/// See and change the certificates for HTTPS.
///
/// A certificate belongs to host names: whichever environment has the domain is shown with it, also after a swap. A name
/// has one certificate; a new one takes its place. HTTPS is served where the configuration says so (`edge.listen_tls`).
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot cert add chain.pem key.pem\n  \
    offshoot cert acme shop.example.com\n  \
    offshoot cert self-signed shop.test\n  \
    offshoot cert ls")]
pub(crate) struct CertArgs {
    #[command(subcommand)]
    command: CertCommand,
}

#[derive(Debug, Subcommand)]
enum CertCommand {
    /// List certificates
    #[command(after_help = "Examples:\n  offshoot cert ls\n  offshoot cert ls -o json")]
    Ls,
    /// Use a certificate that you bring
    ///
    /// It is checked before anything changes: the key fits, no part of the chain is expired, and it is for the names.
    #[command(after_help = "Examples:\n  \
        offshoot cert add chain.pem key.pem\n  \
        offshoot cert add chain.pem key.pem shop.example.com www.example.com")]
    Add {
        /// The certificate and those that lead to its root, PEM
        #[arg(value_name = "CHAIN")]
        chain: PathBuf,
        /// Its private key, PEM without a password
        #[arg(value_name = "KEY")]
        key: PathBuf,
        /// Host names to show it for [default: all that it is for]
        #[arg(value_name = "DOMAIN")]
        domains: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Have the instance's own authority sign one
    ///
    /// Browsers believe it where its root was imported: see `offshoot cert ca`. It is renewed by itself.
    #[command(
        name = "self-signed",
        after_help = "Examples:\n  offshoot cert self-signed shop.test '*.shop.test'"
    )]
    SelfSigned {
        /// Host names, also *.shop.test
        #[arg(value_name = "DOMAIN", required = true)]
        domains: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Have the configured ACME server sign one (Let's Encrypt, for instance)
    ///
    /// Each name must lead to an environment here, and from the outside to this host's port 80. It is renewed by itself.
    #[command(after_help = "Examples:\n  offshoot cert acme shop.example.com www.example.com")]
    Acme {
        /// Host names; wildcards cannot be proven by HTTP
        #[arg(value_name = "DOMAIN", required = true)]
        domains: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take the certificates away from host names
    #[command(after_help = "Examples:\n  offshoot cert rm shop.example.com")]
    Rm {
        /// Host names, as `offshoot cert ls` shows them
        #[arg(value_name = "DOMAIN", required = true)]
        domains: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Renew certificates now
    #[command(after_help = "Examples:\n  offshoot cert renew shop.example.com")]
    Renew {
        /// Host names, as `offshoot cert ls` shows them
        #[arg(value_name = "DOMAIN", required = true)]
        domains: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Print the root of the instance's own authority, to be imported by browsers
    #[command(after_help = "Examples:\n  offshoot cert ca > offshoot-root.pem")]
    Ca,
}

pub(crate) async fn run(context: &Context, args: CertArgs) -> Result<(), Failure> {
    let all = Route::to("certificates");
    match args.command {
        CertCommand::Ls => {
            let view: CertificatesView = context.client.get(&all).await?;
            if context.is_quiet() && context.format == Format::Table {
                let names = view.certificates.iter().flat_map(|one| &one.names);
                return context.print(&names.map(|name| format!("{name}\n")).collect::<String>());
            }
            context.answer(&view, || list(&view, context.out_paint, Timestamp::now()))
        }
        CertCommand::Add {
            chain,
            key,
            domains,
            wait,
        } => {
            let request = CertificateRequest::Uploaded {
                chain: read(&chain)?,
                key: read(&key)?,
                domains,
            };
            let begun = context.client.post::<Operation>(&all, &request).await;
            // the daemon knows no names of files
            let begun = begun.map_err(|problem| match problem.code {
                Code::CertificateInvalid => problem
                    .detail(format!("certificate: {}", chain.display()))
                    .detail(format!("key: {}", key.display())),
                _ => problem,
            });
            complete_all(context, vec![begun], wait).await
        }
        CertCommand::SelfSigned { domains, wait } => {
            let request = CertificateRequest::SelfSigned { domains };
            let begun = context.client.post::<Operation>(&all, &request).await;
            complete_all(context, vec![begun], wait).await
        }
        CertCommand::Acme { domains, wait } => {
            let request = CertificateRequest::Acme { domains };
            let begun = context.client.post::<Operation>(&all, &request).await;
            complete_all(context, vec![begun], wait).await
        }
        CertCommand::Rm { domains, wait } => {
            let mut begun = Vec::new();
            for domain in &domains {
                let route = Route::to("certificates").then(domain);
                begun.push(context.client.delete::<Operation>(&route).await);
            }
            complete_all(context, begun, wait).await
        }
        CertCommand::Renew { domains, wait } => {
            let mut begun = Vec::new();
            for domain in &domains {
                let route = Route::to("certificates").then(domain).then("renew");
                begun.push(context.client.post_empty::<Operation>(&route).await);
            }
            complete_all(context, begun, wait).await
        }
        CertCommand::Ca => {
            let view: AuthorityView = context.client.get(&all.then("ca")).await?;
            context.answer(&view, || view.certificate.clone())
        }
    }
}

fn read(path: &Path) -> Result<String, Problem> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text))
        .map_err(|error| {
            Problem::new(
                Code::BadRequest,
                Fault::Request,
                format!("{} cannot be read", path.display()),
                "name a file in PEM that you may read",
            )
            .caused_by(&error)
        })?;
    Ok(text)
}

fn list(view: &CertificatesView, paint: Paint, now: Timestamp) -> String {
    let mut grid = Grid::new(&["NAME", "KIND", "ISSUER", "EXPIRES", "STATE"], paint);
    for one in &view.certificates {
        for (at, name) in one.names.iter().enumerate() {
            let of_first = |text: String| if at == 0 { text } else { String::new() };
            grid.row([
                name.clone(),
                of_first(kind(one)),
                of_first(one.issuer.clone()),
                of_first(human::until(one.not_after, now)),
                of_first(state(one, now)),
            ]);
        }
    }
    let mut text = grid.render();
    if !view.served {
        text.push_str("\nNothing serves them yet: set edge.listen_tls in the configuration.\n");
    }
    text
}

fn kind(one: &Certificate) -> String {
    match one.automatic {
        true => format!("{}, by itself", one.kind),
        false => one.kind.to_string(),
    }
}

fn state(one: &Certificate, now: Timestamp) -> String {
    if one.not_after <= now {
        return "expired: not shown".to_owned();
    }
    match (&one.problem, one.renew_at) {
        (Some(problem), _) => format!("renewal failed {} times: {problem}", one.failures),
        (None, Some(at)) => format!("renewed {}", human::until(at, now)),
        (None, None) => "bring its successor in time".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use offshoot_model::certificate::CertificateKind;

    use super::*;
    use crate::commands::fixtures;

    fn certificate(names: &[&str], kind: CertificateKind) -> Certificate {
        Certificate {
            id: "x".to_owned(),
            kind,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            automatic: false,
            issuer: "Example CA".to_owned(),
            added: fixtures::now(),
            not_before: fixtures::now(),
            not_after: fixtures::now() + jiff::SignedDuration::from_hours(24 * 90),
            renew_at: Some(fixtures::now() + jiff::SignedDuration::from_hours(24 * 60)),
            failures: 0,
            problem: None,
        }
    }

    #[test]
    fn certificates_for_people() {
        let mut failed = certificate(&["c.test"], CertificateKind::Acme);
        failed.failures = 2;
        failed.problem = Some(Problem::new(
            Code::AcmeFailed,
            Fault::Host,
            "the server refused",
            "",
        ));
        let mut old = certificate(&["d.test"], CertificateKind::Uploaded);
        old.not_after = fixtures::now() - jiff::SignedDuration::from_hours(1);
        let mut own = certificate(&["shop.localhost"], CertificateKind::SelfSigned);
        own.automatic = true;
        let view = CertificatesView {
            served: false,
            certificates: vec![
                certificate(&["a.test", "*.a.test"], CertificateKind::Acme),
                failed,
                old,
                own,
            ],
        };
        let text = list(&view, Paint::Plain, fixtures::now());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let starts = |at: usize, words: &[&str]| lines[at].starts_with(words);
        assert!(
            starts(1, &["a.test", "acme", "Example", "CA", "in", "3", "months"]),
            "{text}"
        );
        assert_eq!(lines[2], ["*.a.test"], "{text}");
        assert!(
            text.contains("renewal failed 2 times: the server refused"),
            "{text}"
        );
        assert!(text.contains("expired: not shown"), "{text}");
        assert!(text.contains("self-signed, by itself"), "{text}");
        assert!(
            text.ends_with("set edge.listen_tls in the configuration.\n"),
            "{text}"
        );
    }
}
