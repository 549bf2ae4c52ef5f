//! The tables of the configuration file.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer};

use super::value::{self, BaseDomain, LoopbackAddr, is_loopback};

/// `[api]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Loopback TCP address to listen on beside the unix socket, with a token.
    pub listen: Option<LoopbackAddr>,
}

/// `[dashboard]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dashboard {
    /// Address to listen on; `None`, written `""`, is no dashboard.
    #[serde(deserialize_with = "value::address_or_empty")]
    pub listen: Option<SocketAddr>,
    /// Host name at which people reach it.
    pub host: Option<BaseDomain>,
    /// Certificate chain for TLS, a PEM file.
    #[serde(deserialize_with = "value::absolute_or_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key, a PEM file.
    #[serde(deserialize_with = "value::absolute_or_none")]
    pub key: Option<PathBuf>,
}

impl Default for Dashboard {
    fn default() -> Self {
        Self {
            listen: Some((Ipv4Addr::LOCALHOST, 9440).into()),
            host: None,
            certificate: None,
            key: None,
        }
    }
}

impl Dashboard {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.certificate.is_some() != self.key.is_some() {
            return Err("dashboard.certificate and dashboard.key go together: set both".to_owned());
        }
        let Some(listen) = self.listen else {
            return Ok(());
        };
        if is_loopback(listen.ip()) {
            return Ok(());
        }
        if self.certificate.is_none() {
            return Err(format!(
                "dashboard.listen: {listen} is not on loopback and needs TLS; set dashboard.certificate and \
                 dashboard.key, or listen on 127.0.0.1"
            ));
        }
        if self.host.is_none() {
            return Err(format!(
                "dashboard.listen: {listen} is not on loopback; set dashboard.host to the name in the certificate"
            ));
        }
        Ok(())
    }
}

/// `[edge]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Edge {
    /// Addresses at which people reach environments by name.
    pub listen: Vec<SocketAddr>,
    /// Addresses for HTTPS.
    pub listen_tls: Vec<SocketAddr>,
    /// Who signs certificates that are to be believed everywhere.
    pub acme: Option<Acme>,
    /// Whose connections begin with a PROXY header.
    pub proxy_from: Vec<IpNet>,
    /// Whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.
    pub trust: Vec<IpNet>,
    /// Where metrics are told.
    pub metrics: Option<SocketAddr>,
    /// What lines of the access log look like.
    pub access_log: LogFormat,
    /// Whether queries are logged.
    pub access_log_query: bool,
    /// Connections of one client at a time; 0: any number.
    pub client_connections: usize,
    /// Bytes of a request's body; 0: any number.
    pub body_bytes: u64,
    /// Bytes per second that a body must come with; 0: none.
    pub body_rate: u64,
    /// Seconds after which what lasts (WebSockets, event streams, gRPC calls, published TCP ports) ends once its way
    /// leads elsewhere, up to a day; 0: at once.
    #[serde(deserialize_with = "moved_seconds")]
    pub moved_seconds: u64,
}

fn moved_seconds<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    value::number(from, 0, 86_400)
}

/// What lines of the access log look like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// JSON objects.
    #[default]
    Json,
    /// As Apache and nginx write them.
    Combined,
}

/// `[edge.acme]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// URL of the server's directory (RFC 8555, 7.1.1).
    #[serde(default = "lets_encrypt", deserialize_with = "https_url")]
    pub directory: String,
    /// Where the server can write to about the account.
    #[serde(default)]
    pub email: Option<String>,
    /// Whether its terms of service are agreed to; without that there is no account.
    #[serde(deserialize_with = "agreed")]
    pub agree_to_terms: bool,
    /// Root of a private server's own HTTPS, PEM.
    #[serde(default, deserialize_with = "value::absolute_or_none")]
    pub ca_file: Option<PathBuf>,
}

/// letsencrypt.org/docs/acme-protocol-updates
fn lets_encrypt() -> String {
    "https://acme-v02.api.letsencrypt.org/directory".to_owned()
}

fn https_url<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    let rest = text.strip_prefix("https://").unwrap_or_default();
    if rest.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(serde::de::Error::custom(format!(
            "{text:?} is no address that begins with https://"
        )));
    }
    Ok(text)
}

fn agreed<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    match bool::deserialize(from)? {
        true => Ok(true),
        false => Err(serde::de::Error::custom(
            "read the server's terms of service and write true, or leave the table [edge.acme] out",
        )),
    }
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            listen: vec![
                (Ipv4Addr::LOCALHOST, 8080).into(),
                (Ipv6Addr::LOCALHOST, 8080).into(),
            ],
            listen_tls: Vec::new(),
            acme: None,
            proxy_from: Vec::new(),
            trust: Vec::new(),
            metrics: None,
            access_log: LogFormat::default(),
            access_log_query: false,
            client_connections: 4_096,
            body_bytes: 0,
            body_rate: 64,
            moved_seconds: 300,
        }
    }
}

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Each environment gets a /24 of it, by which the host reaches its nodes.
    pub outer_pool: Ipv4Net,
    /// As `outer_pool` for IPv6, a /64 each.
    pub outer_pool6: Ipv6Net,
    /// The /24 that nodes see.
    pub inner: Ipv4Net,
    /// The /64 that nodes see.
    pub inner6: Ipv6Net,
    /// Whether environments get IPv6.
    pub ipv6: Ipv6,
    /// What to do about `net.ipv4.ip_forward`.
    pub forwarding: Forwarding,
    /// Name servers for what is outside; the host's when empty.
    #[serde(deserialize_with = "name_servers")]
    pub dns: Vec<SocketAddr>,
}

/// Whether environments get IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6 {
    /// Where the host has it.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// What to do about the host's forwarding switch (ip-sysctl, `ip_forward`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    /// Leave it; `doctor` says what is lost while it is off.
    #[default]
    Leave,
    /// Turn it on when the daemon starts.
    Enable,
}

impl Default for Network {
    fn default() -> Self {
        let v4 = |a, b, c, d, length| Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length);
        // Unique local addresses (RFC 4193) of Offshoot's own: fd, then "ofsho" in ASCII.
        let v6 = |subnet, length| {
            Ipv6Net::new_assert(
                Ipv6Addr::new(0xfd6f, 0x6673, 0x686f, subnet, 0, 0, 0, 0),
                length,
            )
        };
        Self {
            outer_pool: v4(10, 208, 0, 0, 12),
            outer_pool6: v6(0, 49),
            inner: v4(10, 99, 0, 0, 24),
            inner6: v6(0xffff, 64),
            ipv6: Ipv6::default(),
            forwarding: Forwarding::default(),
            dns: Vec::new(),
        }
    }
}

impl Network {
    /// What the types cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self {
            outer_pool,
            outer_pool6,
            inner,
            inner6,
            ..
        } = self;
        for (key, net, trunc) in [
            ("outer_pool", outer_pool, outer_pool.trunc()),
            ("inner", inner, inner.trunc()),
        ] {
            if *net != trunc {
                return Err(format!("network.{key}: {net} has host bits; write {trunc}"));
            }
        }
        for (key, net, trunc) in [
            ("outer_pool6", outer_pool6, outer_pool6.trunc()),
            ("inner6", inner6, inner6.trunc()),
        ] {
            if *net != trunc {
                return Err(format!("network.{key}: {net} has host bits; write {trunc}"));
            }
        }
        if !(8..=24).contains(&outer_pool.prefix_len()) {
            return Err(format!(
                "network.outer_pool: {outer_pool} is not a /8 to /24"
            ));
        }
        if !(16..=64).contains(&outer_pool6.prefix_len()) {
            return Err(format!(
                "network.outer_pool6: {outer_pool6} is not a /16 to /64"
            ));
        }
        // Index n of the one pool goes with index n of the other.
        if 64 - outer_pool6.prefix_len() < 24 - outer_pool.prefix_len() {
            return Err(format!(
                "network.outer_pool6: {outer_pool6} has fewer /64 than {outer_pool} has /24"
            ));
        }
        if inner.prefix_len() != 24 {
            return Err(format!("network.inner: {inner} is not a /24"));
        }
        if inner6.prefix_len() != 64 {
            return Err(format!("network.inner6: {inner6} is not a /64"));
        }
        if outer_pool.contains(inner) || inner.contains(outer_pool) {
            return Err(format!(
                "network.inner: {inner} lies in network.outer_pool {outer_pool}"
            ));
        }
        if outer_pool6.contains(inner6) || inner6.contains(outer_pool6) {
            return Err(format!(
                "network.inner6: {inner6} lies in network.outer_pool6 {outer_pool6}"
            ));
        }
        Ok(())
    }
}

/// Name servers as `address` or `address:port`.
fn name_servers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SocketAddr>, D::Error> {
    const DNS_PORT: u16 = 53;
    let texts = Vec::<String>::deserialize(from)?;
    texts
        .iter()
        .map(|text| {
            let bare = text.parse().map(|ip| SocketAddr::new(ip, DNS_PORT));
            bare.or_else(|_| text.parse()).map_err(|_| {
                serde::de::Error::custom(format!(
                    "{text:?} is no address; write 9.9.9.9, 9.9.9.9:53 or [2620:fe::fe]:53"
                ))
            })
        })
        .collect()
}

/// `[ids]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ids {
    /// First host uid and gid given to an environment.
    pub base: u32,
    /// Ids of each environment.
    pub count: u32,
    /// Number of ranges: the most environments at a time.
    pub ranges: u32,
}

impl Default for Ids {
    /// Between systemd's containers (which end at 1879048191) and its foreign ids (from 2147352576 on), far above
    /// what useradd(8) gives out as subordinate ids (systemd.io/UIDS-GIDS).
    fn default() -> Self {
        Self {
            base: 0x7000_0000,
            count: 65_536,
            ranges: 4_000,
        }
    }
}

impl Ids {
    pub(super) fn check(&self) -> Result<(), String> {
        let Self {
            base,
            count,
            ranges,
        } = *self;
        if base < 65_536 {
            return Err(format!(
                "ids.base: {base} is below 65536, among the host's own users"
            ));
        }
        if count < 65_536 {
            return Err(format!(
                "ids.count: {count} is below 65536; images use ids up to 65535"
            ));
        }
        if ranges == 0 {
            return Err("ids.ranges: 0 leaves no environment".to_owned());
        }
        let end = u64::from(base) + u64::from(count) * u64::from(ranges);
        // 2^32 - 1 and 2^32 - 2 mean "no id" to the kernel.
        if end > u64::from(u32::MAX - 1) {
            return Err(format!(
                "ids: {ranges} ranges of {count} from {base} on end past the last id"
            ));
        }
        Ok(())
    }
}

/// `[pool]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// What holds the pool.
    pub backing: Backing,
    /// Size of the file in bytes, for `loop`.
    #[serde(deserialize_with = "value::size")]
    pub size: u64,
    /// The file, the block device, or the mounted btrfs.
    #[serde(deserialize_with = "value::absolute_or_none")]
    pub path: Option<PathBuf>,
}

/// What holds the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// A sparse file, through a loop device.
    #[default]
    Loop,
    /// A block device that belongs to Offshoot.
    Device,
    /// A directory on a btrfs that is mounted already.
    Mounted,
}

/// Smallest pool in bytes: what btrfs needs to be of use.
const POOL_MIN: u64 = 1 << 30;

impl Default for Pool {
    fn default() -> Self {
        Self {
            backing: Backing::default(),
            size: 64 << 30,
            path: None,
        }
    }
}

impl Pool {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.size < POOL_MIN {
            return Err("pool.size: less than 1g is of no use".to_owned());
        }
        match (self.backing, &self.path) {
            (Backing::Device, None) => {
                Err("pool.path: name the device, for instance /dev/vdb".to_owned())
            }
            (Backing::Mounted, None) => Err("pool.path: name the directory on a btrfs".to_owned()),
            _ => Ok(()),
        }
    }
}

/// `[images]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// Credentials of registries, in the form of Docker's config.json.
    #[serde(deserialize_with = "value::absolute_or_none")]
    pub auth_file: Option<PathBuf>,
    /// Registries (`host:port`) spoken to without TLS; those on loopback always may.
    pub insecure_registries: Vec<String>,
}

/// `[clone]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CloneBounds {
    /// Longest freeze of a parent before it is let go.
    #[serde(deserialize_with = "max_freeze")]
    pub max_freeze: Duration,
    /// How long a new environment or clone may take until its health checks pass.
    #[serde(deserialize_with = "ready_timeout")]
    pub ready_timeout: Duration,
    /// Whether equal memory of nodes may be kept once.
    pub share_memory: bool,
}

impl Default for CloneBounds {
    fn default() -> Self {
        Self {
            max_freeze: Duration::from_secs(5),
            ready_timeout: Duration::from_secs(120),
            share_memory: true,
        }
    }
}

fn max_freeze<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    value::duration(from, 10, 60_000)
}

fn ready_timeout<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    value::duration(from, 1_000, 3_600_000)
}
