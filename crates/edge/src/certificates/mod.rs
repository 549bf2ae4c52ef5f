//! The certificates of the routes file, ready for handshakes.

mod validity;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use offshoot_edge_api::{Certificate, normal_pattern};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{Error, InconsistentKeys, ServerConfig};

/// HTTP/2 in ALPN (RFC 9113, 3.1).
pub(crate) const HTTP2: &[u8] = b"h2";
/// HTTP/1.1 in ALPN (RFC 7301, 6).
const HTTP1: &[u8] = b"http/1.1";
/// Largest file of a certificate or key, bytes.
const FILE_MAX: u64 = 1 << 20;
/// Sessions that clients may take up again, all certificates together. A session is bound to its server name.
const SESSIONS: usize = 4_096;

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
static SESSION_STORE: LazyLock<Arc<dyn StoresServerSessions>> =
    LazyLock::new(|| ServerSessionMemoryCache::new(SESSIONS));

/// Which certificate is shown to whom.
#[derive(Default)]
pub(crate) struct Certificates {
    exact: HashMap<String, Arc<ServerConfig>>,
    /// By the name after `*.`.
    wildcard: HashMap<String, Arc<ServerConfig>>,
    /// The first host of each, and when it or one that leads to its root expires.
    expiries: Vec<(String, Timestamp)>,
}

impl Certificates {
    /// Reads all of them.
    ///
    /// # Errors
    /// The first that cannot be used, with its file and why.
    pub(crate) fn load(entries: &[Certificate]) -> Result<Self, String> {
        let mut certificates = Self::default();
        let now = now();
        for entry in entries {
            certificates.add(entry, now)?;
        }
        Ok(certificates)
    }

    /// Reads those that can be used; says what is wrong with the others.
    pub(crate) fn load_usable(entries: &[Certificate]) -> (Self, Vec<String>) {
        let mut certificates = Self::default();
        let now = now();
        let left_out = entries
            .iter()
            .filter_map(|entry| certificates.add(entry, now).err())
            .collect();
        (certificates, left_out)
    }

    fn add(&mut self, entry: &Certificate, now: DateTime) -> Result<(), String> {
        let (config, until) = config(entry, now)?;
        let config = Arc::new(config);
        if let (Some(host), Ok(until)) = (entry.hosts.first(), until.to_zoned(TimeZone::UTC)) {
            self.expiries.push((host.clone(), until.timestamp()));
        }
        for host in entry.hosts.iter().filter_map(|host| normal_pattern(host)) {
            match host.strip_prefix("*.") {
                Some(parent) => self.wildcard.insert(parent.to_owned(), Arc::clone(&config)),
                None => self.exact.insert(host, Arc::clone(&config)),
            };
        }
        Ok(())
    }

    /// What a client gets that asks for a name in normal form: a name of its own before a wildcard, which stands for
    /// one label, as in the certificate itself.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<ServerConfig>> {
        let wildcard = || self.wildcard.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(wildcard).map(Arc::clone)
    }

    /// The first host of each certificate, and when it can no longer be used.
    pub(crate) fn expiries(&self) -> impl Iterator<Item = (&str, Timestamp)> {
        self.expiries
            .iter()
            .map(|(host, until)| (host.as_str(), *until))
    }

    /// Whether a client that was shown the certificate of `shown` may ask for `host` there: it is the same certificate,
    /// or `host` has none.
    pub(crate) fn are_one(&self, shown: &str, host: &str) -> bool {
        let Some(own) = self.find(host) else {
            return true;
        };
        self.find(shown)
            .is_some_and(|shown| Arc::ptr_eq(&shown, &own))
    }
}

fn now() -> DateTime {
    TimeZone::UTC.to_datetime(Timestamp::now())
}

fn config(entry: &Certificate, now: DateTime) -> Result<(ServerConfig, DateTime), String> {
    let (key, until) = certified_key(entry, now)?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|e| format!("TLS cannot be set up: {e}"))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    config.session_storage = Arc::clone(&SESSION_STORE);
    Ok((config, until))
}

/// Certificate and key, and when the first in the chain expires.
fn certified_key(entry: &Certificate, now: DateTime) -> Result<(CertifiedKey, DateTime), String> {
    let of_chain = |why: String| format!("certificate {}: {why}", entry.chain.display());
    let of_key = |why: String| format!("key {}: {why}", entry.key.display());
    let text = read(&entry.chain).map_err(|e| of_chain(format!("cannot be read: {e}")))?;
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| of_chain(format!("is not PEM: {e}")))?;
    if chain.is_empty() {
        return Err(of_chain("no certificate is in it".to_owned()));
    }
    let mut first = DateTime::MAX;
    for (at, certificate) in chain.iter().enumerate() {
        let until = validity::not_after(certificate)
            .ok_or_else(|| of_chain(format!("number {} in it is no certificate", at + 1)))?;
        if until < now {
            let number = at + 1;
            return Err(of_chain(format!(
                "number {number} in it expired at {until} UTC"
            )));
        }
        first = first.min(until);
    }
    let text = read(&entry.key).map_err(|e| of_key(format!("cannot be read: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|e| of_key(format!("is no private key in PEM: {e}")))?;
    let key = PROVIDER
        .key_provider
        .load_private_key(key)
        .map_err(|e| of_key(format!("cannot be used: {e}")))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok((certified, first)),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(of_key(format!(
            "is not the key of certificate {}",
            entry.chain.display()
        ))),
        Err(error) => Err(of_chain(format!("cannot be used: {error}"))),
    }
}

/// Reads a whole regular file: a pipe would keep the reload waiting.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut content = Vec::new();
    File::open(path)?
        .take(FILE_MAX + 1)
        .read_to_end(&mut content)?;
    if u64::try_from(content.len()).unwrap_or(u64::MAX) > FILE_MAX {
        return Err(io::Error::other(format!(
            "it is longer than {FILE_MAX} bytes"
        )));
    }
    Ok(content)
}
