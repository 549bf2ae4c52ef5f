//! The routes file: which environment answers which host name and which published port.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use offshoot_model::id::EnvId;
use serde::{Deserialize, Serialize};

use crate::error::EdgeError;
use crate::file;

/// Largest routes file that is read, bytes: some 400,000 routes.
pub const ROUTES_FILE_MAX: u64 = 64 << 20;

/// All routes of an instance; the edge switches from one such file to the next as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutesFile {
    /// Which state of the daemon's this is; the edge says which one it serves.
    pub version: u64,
    /// HTTP routes; a host name occurs once.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Published ports; a pair of address and protocol occurs once.
    #[serde(default)]
    pub ports: Vec<PortRoute>,
}

/// A host name and who answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Host name; compared without regard to case, without a final dot.
    pub host: String,
    /// The environment.
    pub environment: EnvId,
    /// Outer addresses of its entry nodes, asked in turn. Without any the answer is 503: stopped or not yet ready.
    pub upstreams: Vec<SocketAddr>,
}

/// A published port and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRoute {
    /// Address on the host.
    pub listen: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The environment.
    pub environment: EnvId,
    /// Outer addresses of the layer's nodes, asked in turn.
    pub upstreams: Vec<SocketAddr>,
}

/// Transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Why a routes file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RoutesError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not JSON of the right shape.
    #[error("{} is not a routes file: {source}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A host name that cannot be one.
    #[error("route of environment {environment}: {host:?} is not a host name")]
    Host {
        /// Whose route.
        environment: EnvId,
        /// The name.
        host: String,
    },
    /// Two routes for one host name.
    #[error("{host} is routed to both {first} and {second}")]
    HostTwice {
        /// The name.
        host: String,
        /// One holder.
        first: EnvId,
        /// The other.
        second: EnvId,
    },
    /// Two published ports at one address.
    #[error("{listen}/{protocol} is published by both {first} and {second}")]
    PortTwice {
        /// The address.
        listen: SocketAddr,
        /// The transport.
        protocol: Protocol,
        /// One holder.
        first: EnvId,
        /// The other.
        second: EnvId,
    },
}

impl RoutesFile {
    /// Reads and checks a routes file; one that does not exist has no routes and version 0.
    ///
    /// # Errors
    /// When it cannot be read, is no routes file or contradicts itself.
    pub fn read(path: &Path) -> Result<Self, RoutesError> {
        let content = match file::read(path, ROUTES_FILE_MAX) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(RoutesError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let routes: Self =
            serde_json::from_slice(&content).map_err(|source| RoutesError::Shape {
                path: path.to_owned(),
                source,
            })?;
        routes.check()?;
        Ok(routes)
    }

    /// Whether every host name is one and nothing is routed twice.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn check(&self) -> Result<(), RoutesError> {
        let mut hosts = HashMap::with_capacity(self.routes.len());
        for route in &self.routes {
            let host = normal_host(&route.host).ok_or_else(|| RoutesError::Host {
                environment: route.environment.clone(),
                host: route.host.clone(),
            })?;
            if let Some(first) = hosts.insert(host.clone(), &route.environment) {
                return Err(RoutesError::HostTwice {
                    host,
                    first: first.clone(),
                    second: route.environment.clone(),
                });
            }
        }
        let mut ports = HashMap::with_capacity(self.ports.len());
        for port in &self.ports {
            if let Some(first) = ports.insert((port.listen, port.protocol), &port.environment) {
                return Err(RoutesError::PortTwice {
                    listen: port.listen,
                    protocol: port.protocol,
                    first: first.clone(),
                    second: port.environment.clone(),
                });
            }
        }
        Ok(())
    }

    /// Replaces the file at `path` in one step: readers see the old routes or these, also after a crash.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_atomically(&self, path: &Path) -> Result<(), EdgeError> {
        let content =
            serde_json::to_vec(self).map_err(|e| EdgeError::file("write", path)(e.into()))?;
        file::replace(path, &content).map_err(EdgeError::file("write", path))
    }
}

/// A host name in the form in which names are compared: lower case, without port and final dot. `None` when it
/// cannot be a host name (RFC 1123 with underscores, or an IP literal as in RFC 3986).
#[must_use]
pub fn normal_host(text: &str) -> Option<String> {
    let name = match text.strip_prefix('[') {
        Some(rest) => {
            let (literal, port) = rest.split_once(']')?;
            literal.parse::<std::net::Ipv6Addr>().ok()?;
            if !(port.is_empty() || port.strip_prefix(':').is_some_and(is_port)) {
                return None;
            }
            return Some(format!("[{}]", literal.to_ascii_lowercase()));
        }
        None => match text.split_once(':') {
            Some((name, port)) if is_port(port) => name,
            Some(_) => return None,
            None => text,
        },
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
    (name.len() <= 253 && name.split('.').all(label)).then(|| name.to_ascii_lowercase())
}

/// The port of an authority may be empty (RFC 3986, 3.2.3).
fn is_port(text: &str) -> bool {
    text.is_empty() || (text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env(text: &str) -> EnvId {
        text.parse().unwrap()
    }

    fn route(host: &str, environment: &str) -> Route {
        Route {
            host: host.into(),
            environment: env(environment),
            upstreams: vec!["10.0.0.1:80".parse().unwrap()],
        }
    }

    #[test]
    fn the_contract_s_example_is_read() {
        let text = r#"{"version": 7, "routes":[{"host":"shop.localhost","environment":"k3xq2mzd","upstreams":["10.208.0.10:80"]}],
            "ports":[{"listen":"127.0.0.1:8081","protocol":"tcp","environment":"k3xq2mzd","upstreams":["10.208.0.11:5432"]}]}"#;
        let routes: RoutesFile = serde_json::from_str(text).unwrap();
        assert_eq!(routes.version, 7);
        assert_eq!(routes.ports[0].protocol, Protocol::Tcp);
        routes.check().unwrap();
    }

    #[test]
    fn host_names_are_normalised_or_refused() {
        for (text, normal) in [
            ("Shop.LocalHost", "shop.localhost"),
            ("shop.localhost.", "shop.localhost"),
            ("shop.localhost:8080", "shop.localhost"),
            ("shop.localhost.:8080", "shop.localhost"),
            ("shop.localhost:", "shop.localhost"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(normal_host(text).as_deref(), Some(normal), "{text:?}");
        }
        for text in [
            "", ".", "a..b", "a b", "a/b", "a:b", "a:1:2", "<x>", "[::1", "[x]", "[::1]x",
            "a\r\nb", "a:99999", "ä",
        ] {
            assert_eq!(normal_host(text), None, "{text:?}");
        }
    }

    #[test]
    fn contradictions_are_named() {
        let twice = RoutesFile {
            routes: vec![
                route("a.localhost", "aaaaaaaa"),
                route("A.localhost.", "bbbbbbbb"),
            ],
            ..RoutesFile::default()
        };
        let message = twice.check().unwrap_err().to_string();
        assert_eq!(
            message,
            "a.localhost is routed to both aaaaaaaa and bbbbbbbb"
        );
        let port = |environment| PortRoute {
            listen: "127.0.0.1:1".parse().unwrap(),
            protocol: Protocol::Udp,
            environment: env(environment),
            upstreams: vec![],
        };
        let twice = RoutesFile {
            ports: vec![port("aaaaaaaa"), port("bbbbbbbb")],
            ..RoutesFile::default()
        };
        assert_eq!(
            twice.check().unwrap_err().to_string(),
            "127.0.0.1:1/udp is published by both aaaaaaaa and bbbbbbbb"
        );
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("routes.json");
        assert_eq!(RoutesFile::read(&path).unwrap(), RoutesFile::default());
        let routes = RoutesFile {
            version: 3,
            routes: vec![route("a.localhost", "aaaaaaaa")],
            ports: vec![],
        };
        routes.write_atomically(&path).unwrap();
        assert_eq!(RoutesFile::read(&path).unwrap(), routes);
        std::fs::write(&path, b"{\"version\":").unwrap();
        assert!(matches!(
            RoutesFile::read(&path),
            Err(RoutesError::Shape { .. })
        ));
    }

    proptest! {
        #[test]
        fn normalising_is_idempotent(text in ".{0,40}") {
            if let Some(once) = normal_host(&text) {
                prop_assert_eq!(normal_host(&once), Some(once));
            }
        }
    }
}
