//! What can go wrong with the database.

use std::path::{Path, PathBuf};

use offshoot_model::environment::PortBinding;
use offshoot_model::{Code, Domain, EnvName, Fault, OperationId, Problem};
use rusqlite::ErrorCode;

/// Why a call on the store failed. Nothing of the call was kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another environment has the name.
    #[error("an environment named {name} exists already")]
    NameTaken {
        /// The name.
        name: EnvName,
    },
    /// Another environment, or another port of the same one, has the host port.
    #[error("port {} of {} is taken by environment {holder}", port_number(.binding), .binding.port.host_ip)]
    PortTaken {
        /// What was asked for.
        binding: Box<PortBinding>,
        /// Name of the environment that has it.
        holder: EnvName,
    },
    /// Another environment has the outer network; plan again with what is used now.
    #[error("the outer network {network} is taken by environment {holder}")]
    OuterTaken {
        /// The network.
        network: String,
        /// Name of the environment that has it.
        holder: EnvName,
    },
    /// Another environment has ids in the range; plan again with what is used now.
    #[error("ids from {base} on are taken by environment {holder}")]
    IdRangeTaken {
        /// First id asked for.
        base: u32,
        /// Name of the environment that has one of them.
        holder: EnvName,
    },
    /// Another environment has the domain, or it is just being removed.
    #[error("the domain {domain} belongs to environment {holder}")]
    DomainTaken {
        /// The domain.
        domain: Domain,
        /// Name of the environment that has it.
        holder: EnvName,
    },
    /// The environment has no such domain.
    #[error("environment {environment} has no domain {domain}")]
    DomainUnknown {
        /// The domain.
        domain: Domain,
        /// The environment's name.
        environment: EnvName,
    },
    /// A domain that was to be moved is not there any more.
    #[error("the domain {domain} was removed meanwhile")]
    DomainsChanged {
        /// The domain.
        domain: Domain,
    },
    /// No such environment.
    #[error("there is no environment {environment}")]
    EnvironmentUnknown {
        /// Name or id.
        environment: String,
    },
    /// No such operation.
    #[error("there is no operation {id}")]
    OperationUnknown {
        /// The id.
        id: OperationId,
    },
    /// Something that should have been decided before was not.
    #[error("{what}")]
    Undecided {
        /// What it is.
        what: String,
    },
    /// Another daemon has the database open.
    #[error("another daemon uses {}", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged or no database of ours.
    #[error("the database {} is damaged: {detail}", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// A newer Offshoot wrote the file.
    #[error("the database {} has schema {found}; this version knows schemas up to {known}", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema known here.
        known: i64,
    },
    /// The file could not be opened.
    #[error("cannot open {}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A document in the database is not what it should be, or cannot be made.
    #[error("cannot {what}")]
    Document {
        /// What was done with which document.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// SQLite could not do something.
    #[error("the database cannot {what}")]
    Sql {
        /// What.
        what: &'static str,
        /// Why.
        source: rusqlite::Error,
    },
}

fn port_number(binding: &PortBinding) -> u16 {
    binding.port.host_port.unwrap_or_default()
}

impl StoreError {
    /// For `map_err` on SQLite's errors: what was being done, an infinitive.
    pub(crate) fn sql(what: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |source| Self::Sql { what, source }
    }

    /// Tells damage from other errors while opening.
    pub(crate) fn from_opening(path: &Path, source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::Corrupt {
                path: path.to_owned(),
                detail: source.to_string(),
            },
            _ => Self::Sql {
                what: "be opened",
                source,
            },
        }
    }

    /// The error as people see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let what = self.to_string();
        match self {
            Self::NameTaken { .. } => Problem::new(
                Code::NameTaken,
                Fault::Request,
                what,
                "choose another name, or rename or remove that environment",
            ),
            Self::PortTaken { holder, .. } => Problem::new(
                Code::PortInUse,
                Fault::Request,
                what,
                format!("publish another port, leave the host port out to have one chosen, or remove {holder}"),
            ),
            Self::OuterTaken { .. } => Problem::new(
                Code::Exhausted,
                Fault::Host,
                what,
                "try again; if it stays, give network.outer_pool a larger network in the configuration",
            ),
            Self::IdRangeTaken { .. } => Problem::new(
                Code::Exhausted,
                Fault::Host,
                what,
                "try again; if it stays, raise ids.ranges in the configuration",
            ),
            Self::DomainTaken { domain, holder } => Problem::new(
                Code::DomainTaken,
                Fault::Request,
                what,
                format!("remove it there first (`offshoot domain rm {holder} {domain}`), or exchange domains with `offshoot swap`"),
            ),
            Self::DomainUnknown { environment, .. } => Problem::new(
                Code::DomainUnknown,
                Fault::Request,
                what,
                format!("see `offshoot domain ls {environment}` for those it has"),
            ),
            Self::DomainsChanged { .. } => {
                Problem::new(Code::WrongState, Fault::Request, what, "look at `offshoot domain ls` and ask again")
            }
            Self::EnvironmentUnknown { .. } => {
                Problem::new(Code::EnvironmentUnknown, Fault::Request, what, "see `offshoot ls` for what there is")
            }
            Self::OperationUnknown { .. } => {
                Problem::new(Code::OperationUnknown, Fault::Request, what, "see `offshoot op ls` for what there is")
            }
            Self::InUse { .. } => Problem::new(
                Code::HostUnfit,
                Fault::Host,
                what,
                "stop the other daemon, or give this one another state_dir, run_dir and instance",
            ),
            Self::Corrupt { .. } => Problem::new(
                Code::HostUnfit,
                Fault::Host,
                what,
                "put a backup in its place; without one, move it aside and create the environments again",
            ),
            Self::Newer { .. } => Problem::new(
                Code::HostUnfit,
                Fault::Host,
                what,
                "install the version of Offshoot that last ran here, or a newer one",
            ),
            Self::Open { source, .. } => {
                Problem::new(Code::HostUnfit, Fault::Host, what, "make the state directory writable for root")
                    .caused_by(source)
            }
            Self::Sql { source, .. } if is_host_trouble(source) => Problem::new(
                Code::HostUnfit,
                Fault::Host,
                what,
                "look after the disk that holds the state directory: it is full, read-only or failing",
            )
            .caused_by(source),
            Self::Sql { source, .. } => Problem::internal(what).caused_by(source),
            Self::Document { source, .. } => Problem::internal(what).caused_by(source),
            Self::Undecided { .. } => Problem::internal(what),
        }
    }
}

fn is_host_trouble(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::CannotOpen
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
        )
    )
}
