//! Facts and the journal of operations, in one SQLite file. The only crate that knows SQL.
//!
//! Things are kept as JSON documents of `offshoot-model` types, with columns beside them for what the database has
//! to judge: unique names, addresses, id ranges and ports. Those constraints are where two changes that happen at
//! once are put in order: a reservation either holds all it asked for or nothing.
//!
//! One connection, one writer; every call is short and blocks. A transaction is on the disk when the call returns
//! (WAL with `synchronous=FULL`), except [`Store::note_progress`].

mod certificates;
mod domains;
mod environments;
mod error;
mod events;
mod operations;
mod policies;
mod ports;
mod redirects;
mod schema;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use offshoot_model::certificate::Certificate;
use offshoot_model::domain::{DomainHttps, DomainView};
use offshoot_model::environment::PortBinding;
use offshoot_model::traffic::Policy;
use offshoot_model::view::Event;
use offshoot_model::{
    Domain, EnvId, EnvName, Environment, EnvironmentState, Hold, Operation, OperationId,
};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use serde_json::Value;

pub use domains::{DomainHolder, LastSwap};
pub use error::StoreError;
pub use ports::overlaps;
pub use redirects::RedirectedHost;
pub use schema::SCHEMA_VERSION;

/// How long another program (a backup, `sqlite3`) may hold the file before a call fails.
const BUSY: Duration = Duration::from_secs(5);
/// How long a daemon that is just ending may hold the lock.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// How much of the past is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Newest events kept; whoever resumes from an older one gets the oldest kept.
    pub events: u32,
    /// Newest ended operations kept, beside those that a clone's lineage names.
    pub operations: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            events: 5_000,
            operations: 1_000,
        }
    }
}

/// The database of one daemon.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    retention: Retention,
    path: PathBuf,
    /// Held for as long as the store is open, so that two daemons never share a state directory.
    _lock: File,
}

/// A transaction: all calls on it are kept together or not at all.
#[derive(Debug)]
pub struct Tx<'a> {
    sql: Transaction<'a>,
    retention: Retention,
}

impl Store {
    /// Opens the database at `path`, creating it (readable by root only) or bringing it to the current schema.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another daemon has it open, [`StoreError::Corrupt`] when it is damaged or no
    /// database, [`StoreError::Newer`] when a newer Offshoot wrote it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_keeping(path, Retention::default())
    }

    /// As [`Store::open`], keeping as much of the past as `retention` says.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_keeping(path: &Path, retention: Retention) -> Result<Self, StoreError> {
        let io = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let lock = lock_beside(path)?;
        // Created here because SQLite would create it readable by all; it holds secrets. The journal files beside
        // it take over its mode.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        let open = |source| StoreError::from_opening(path, source);
        let mut connection = Connection::open(path).map_err(open)?;
        connection.busy_timeout(BUSY).map_err(open)?;
        schema::check(&connection, path)?;
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(open)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(open)?;
        connection
            .pragma_update(None, "foreign_keys", true)
            .map_err(open)?;
        // Overwrites what is deleted where that costs no extra I/O: removed environments had secrets.
        connection
            .pragma_update(None, "secure_delete", "FAST")
            .map_err(open)?;
        schema::migrate(&mut connection, path)?;
        Ok(Self {
            connection: Mutex::new(connection),
            retention,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` in one transaction: kept when it answers `Ok`, taken back when it answers `Err` or panics.
    ///
    /// # Errors
    /// What `f` answers, or why the transaction could not be kept.
    pub fn update_in_one<R>(
        &self,
        f: impl FnOnce(&Tx<'_>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let mut connection = self.connection();
        let sql = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::sql("begin a change"))?;
        let tx = Tx {
            sql,
            retention: self.retention,
        };
        let answer = f(&tx)?;
        tx.sql.commit().map_err(StoreError::sql("keep a change"))?;
        Ok(answer)
    }

    /// Runs `f` on one consistent picture of the database; what `f` writes is not kept.
    ///
    /// # Errors
    /// What `f` answers.
    pub fn read<R>(
        &self,
        f: impl FnOnce(&Tx<'_>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let mut connection = self.connection();
        let sql = connection
            .transaction()
            .map_err(StoreError::sql("begin to read"))?;
        f(&Tx {
            sql,
            retention: self.retention,
        })
    }

    /// As [`Tx::update_operation`], but without waiting for the disk: for progress, which comes often and which
    /// nobody misses after a power cut. The file stays consistent (sqlite.org/pragma.html#pragma_synchronous).
    ///
    /// # Errors
    /// As [`Tx::update_operation`].
    pub fn note_progress(&self, operation: &Operation) -> Result<Event, StoreError> {
        let relax = |connection: &Connection, how: &str| {
            connection
                .pragma_update(None, "synchronous", how)
                .map_err(StoreError::sql("set the durability"))
        };
        let mut connection = self.connection();
        relax(&connection, "NORMAL")?;
        let result = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::sql("begin a change"))
            .and_then(|sql| {
                let tx = Tx {
                    sql,
                    retention: self.retention,
                };
                let event = tx.update_operation(operation)?;
                tx.sql.commit().map_err(StoreError::sql("keep a change"))?;
                Ok(event)
            });
        relax(&connection, "FULL")?;
        result
    }

    /// A panic in a transaction has rolled it back, so the connection is good to use.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the lock `<path>.lock` (flock(2)); the kernel gives it back when the daemon ends, however it ends.
fn lock_beside(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let io = |source: io::Error| StoreError::Open {
        path: name.clone(),
        source,
    };
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&name)
        .map_err(io)?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(io(source)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(StoreError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Calls of [`Tx`] as calls of [`Store`], each in a transaction of its own.
macro_rules! in_own_transaction {
    ($($how:ident $name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)+) => {
        impl Store {
            $(
                #[doc = concat!("[`Tx::", stringify!($name), "`] in a transaction of its own.")]
                ///
                /// # Errors
                #[doc = concat!("As [`Tx::", stringify!($name), "`].")]
                pub fn $name(&self, $($arg: $type),*) -> Result<$answer, StoreError> {
                    self.$how(|tx| tx.$name($($arg),*))
                }
            )+
        }
    };
}

in_own_transaction! {
    update_in_one reserve(environment: &Environment, ports: &[PortBinding], operation: &Operation, plan: &Value) -> Event;
    update_in_one update_environment(environment: &Environment) -> ();
    update_in_one rename(id: &EnvId, name: &EnvName) -> ();
    update_in_one set_state(id: &EnvId, state: EnvironmentState) -> ();
    update_in_one set_held(id: &EnvId, held: Hold) -> ();
    update_in_one remove_environment(id: &EnvId) -> ();
    read environment(id: &EnvId) -> Option<Environment>;
    read environment_by_name(name: &str) -> Option<Environment>;
    read find_environment(name_or_id: &str) -> Option<Environment>;
    read environments() -> Vec<Environment>;
    read children(id: &EnvId) -> Vec<Environment>;
    read used_outer_networks() -> Vec<ipnet::Ipv4Net>;
    read used_outer6_networks() -> Vec<ipnet::Ipv6Net>;
    read used_id_bases() -> Vec<u32>;
    read ports(id: &EnvId) -> Vec<PortBinding>;
    read all_ports() -> Vec<(EnvId, PortBinding)>;
    read node_restarts(id: &EnvId, node: &str) -> u32;
    update_in_one set_node_restarts(id: &EnvId, node: &str, restarts: u32) -> ();
    update_in_one add_domains(id: &EnvId, domains: &[Domain], by: OperationId, at: Timestamp) -> ();
    update_in_one take_domains_back(by: OperationId) -> ();
    update_in_one let_domain_leave(id: &EnvId, domain: &Domain, by: OperationId) -> ();
    update_in_one let_domains_stay(by: OperationId) -> ();
    update_in_one place_domains(places: &[(Domain, EnvId)]) -> ();
    read domains(id: &EnvId) -> Vec<DomainView>;
    read domain_holder(domain: &Domain) -> Option<DomainHolder>;
    update_in_one set_domain_https(domain: &Domain, https: DomainHttps) -> ();
    read certificates() -> Vec<Certificate>;
    update_in_one place_certificate(new: &Certificate) -> Vec<Certificate>;
    update_in_one take_certificate_back(id: &str, before: &[Certificate]) -> ();
    update_in_one forget_certificate_name(id: &str, name: &str) -> ();
    update_in_one give_certificate_name(certificate: &Certificate, name: &str) -> ();
    update_in_one update_certificate(certificate: &Certificate) -> ();
    read redirects() -> Vec<RedirectedHost>;
    update_in_one add_redirect(redirect: &RedirectedHost, by: OperationId) -> ();
    update_in_one remove_redirect(host: &str) -> ();
    update_in_one take_redirects_back(by: OperationId) -> ();
    read last_swap(one: &EnvId, other: &EnvId) -> Option<LastSwap>;
    read policy(id: &EnvId) -> Option<Policy<EnvId>>;
    read policies() -> Vec<(EnvId, Policy<EnvId>)>;
    update_in_one set_policy(id: &EnvId, policy: Option<&Policy<EnvId>>) -> ();
    update_in_one finish_with_domains_gone(operation: &Operation) -> Event;
    update_in_one finish_with_swap(operation: &Operation, swap: &LastSwap) -> Event;
    update_in_one record_operation(operation: &Operation, plan: &Value) -> Event;
    update_in_one update_operation(operation: &Operation) -> Event;
    update_in_one save_operation(operation: &Operation, plan: &Value) -> Event;
    update_in_one finish_with_state(operation: &Operation, id: &EnvId, state: EnvironmentState) -> Event;
    update_in_one finish_with_removal(operation: &Operation, id: &EnvId) -> Event;
    update_in_one request_cancel(id: OperationId) -> ();
    read cancel_requested(id: OperationId) -> bool;
    read operation(id: OperationId) -> Option<(Operation, Value)>;
    read operations(limit: usize) -> Vec<Operation>;
    read unfinished_operations() -> Vec<(Operation, Value)>;
    read events_after(seq: u64, limit: usize) -> Vec<Event>;
    read last_event() -> u64;
}
