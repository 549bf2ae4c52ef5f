//! The routes file: which environment answers which host names and paths, and which published port; which
//! certificates the edge has.
//!
//! What an edge of an earlier version does not know is left out of the file as long as nobody uses it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use offshoot_model::id::EnvId;
use offshoot_model::traffic::Policy;
use serde::{Deserialize, Serialize};

use crate::error::EdgeError;
use crate::file;
use crate::names::{normal_origin, normal_pattern};
use crate::path::normal_prefix;

/// Largest routes file that is read, bytes: some 400,000 routes.
pub const ROUTES_FILE_MAX: u64 = 64 << 20;
/// Longest text that a route answers with, bytes.
pub const TEXT_MAX: usize = 4 << 10;

/// All routes of an instance; the edge switches from one such file to the next as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutesFile {
    /// Which state of the daemon's this is; the edge says which one it serves.
    pub version: u64,
    /// HTTP routes; a pair of host name and path occurs once.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Published ports; a pair of address and protocol occurs once.
    #[serde(default)]
    pub ports: Vec<PortRoute>,
    /// Certificates for HTTPS; a host name occurs once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<Certificate>,
    /// What happens with requests for some environments' domains; an environment occurs once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<Traffic>,
}

/// The policy of an environment: it is about all routes of it that are no redirects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Whose domains.
    pub environment: EnvId,
    /// What happens there.
    pub policy: Policy<EnvId>,
    /// Outer addresses of the entry nodes of every environment that the policy names; none: it is stopped.
    #[serde(default)]
    pub upstreams: BTreeMap<EnvId, Vec<SocketAddr>>,
}

/// A host name, a path, and who answers there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Host name; compared without regard to case, without a final dot. `*.example.org` stands for all names of one
    /// or more labels before `example.org`; a name of its own goes before it, and so does a longer one of its kind.
    pub host: String,
    /// The path from which on this route answers, whole segments: `/shop` answers `/shop` and `/shop/x`, not
    /// `/shopping`. Of several the longest answers. See [`crate::normal_prefix`] for what it may be.
    #[serde(default = "root", skip_serializing_if = "is_root")]
    pub path: String,
    /// The environment.
    pub environment: EnvId,
    /// Outer addresses of its entry nodes, asked in turn. Without any the answer is 503: stopped or not yet ready.
    #[serde(default)]
    pub upstreams: Vec<SocketAddr>,
    /// Where requests are sent instead; then there are no upstreams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// What the edge answers by itself, as plain text with status 200; then there are no upstreams and no redirect. At
    /// most [`TEXT_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What requests without TLS get.
    #[serde(default, skip_serializing_if = "Https::is_offer")]
    pub https: Https,
}

fn root() -> String {
    "/".to_owned()
}

fn is_root(path: &str) -> bool {
    path == "/"
}

impl Route {
    /// All paths of a host name, with and without TLS.
    #[must_use]
    pub fn new(host: String, environment: EnvId, upstreams: Vec<SocketAddr>) -> Self {
        Self {
            host,
            path: root(),
            environment,
            upstreams,
            redirect: None,
            text: None,
            https: Https::Offer,
        }
    }
}

/// Where clients are sent: the request's path and query stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// Scheme and authority: `https://new.example.org`.
    pub to: String,
    /// 301, 302, 307 or 308 (RFC 9110, 15.4).
    pub status: u16,
}

/// What a request without TLS gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Https {
    /// The same as one with TLS.
    #[default]
    Offer,
    /// 308 to the same address with `https`.
    Redirect,
}

impl Https {
    fn is_offer(&self) -> bool {
        *self == Self::Offer
    }
}

/// A certificate and the host names that it is shown for. The files are read at each reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Host names; `*.example.org` stands for one label before `example.org`, as it does in certificates (RFC 6125).
    pub hosts: Vec<String>,
    /// The certificate and those that lead to its root, PEM.
    pub chain: PathBuf,
    /// Its private key, PEM: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
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
    /// A path that no route can have.
    #[error(
        "route of environment {environment} for {host}: {path:?} is not a path that a route can have"
    )]
    Path {
        /// Whose route.
        environment: EnvId,
        /// Its host name.
        host: String,
        /// The path.
        path: String,
    },
    /// A redirect that leads nowhere, or a text that cannot be answered.
    #[error("route of environment {environment} for {host}: {why}")]
    Redirect {
        /// Whose route.
        environment: EnvId,
        /// Its host name.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// Two routes for one host name and path.
    #[error("{host}{path} is routed to both {first} and {second}")]
    HostTwice {
        /// The name.
        host: String,
        /// The path; empty for the root.
        path: String,
        /// One holder.
        first: EnvId,
        /// The other.
        second: EnvId,
    },
    /// A certificate for what is no host name, or for none.
    #[error("certificate {}: {why}", chain.display())]
    Certificate {
        /// Its file.
        chain: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A policy that cannot be carried out.
    #[error("policy of environment {environment}: {why}")]
    Policy {
        /// Whose policy.
        environment: EnvId,
        /// What is wrong.
        why: String,
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

    /// Whether everything is what it should be and nothing is there twice.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn check(&self) -> Result<(), RoutesError> {
        let mut places = HashMap::with_capacity(self.routes.len());
        for route in &self.routes {
            let place = route.check()?;
            if let Some(first) = places.insert(place.clone(), &route.environment) {
                let (host, path) = place;
                return Err(RoutesError::HostTwice {
                    host,
                    path: if is_root(&path) { String::new() } else { path },
                    first: first.clone(),
                    second: route.environment.clone(),
                });
            }
        }
        self.check_certificates()?;
        self.check_traffic()?;
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

    fn check_certificates(&self) -> Result<(), RoutesError> {
        let mut hosts = HashSet::new();
        for certificate in &self.certificates {
            let refuse = |why: String| RoutesError::Certificate {
                chain: certificate.chain.clone(),
                why,
            };
            if certificate.hosts.is_empty() {
                return Err(refuse("it is for no host name".to_owned()));
            }
            for host in &certificate.hosts {
                // clients name no addresses (RFC 6066, 3)
                let normal = normal_pattern(host)
                    .filter(|host| !host.starts_with('[') && host.parse::<IpAddr>().is_err())
                    .ok_or_else(|| refuse(format!("{host:?} is not a host name")))?;
                if !hosts.insert(normal) {
                    return Err(refuse(format!("{host} has another certificate already")));
                }
            }
        }
        Ok(())
    }

    fn check_traffic(&self) -> Result<(), RoutesError> {
        let mut owners = HashSet::new();
        for traffic in &self.traffic {
            let refuse = |why: String| RoutesError::Policy {
                environment: traffic.environment.clone(),
                why,
            };
            if !owners.insert(&traffic.environment) {
                return Err(refuse("there is another one".to_owned()));
            }
            traffic.policy.check().map_err(refuse)?;
            let known = |id: &&EnvId| traffic.upstreams.contains_key(*id);
            if let Some(id) = traffic.policy.environments().find(|id| !known(id)) {
                return Err(refuse(format!("nothing is said of where {id} answers")));
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

impl Route {
    /// Its host name and path in normal form.
    fn check(&self) -> Result<(String, String), RoutesError> {
        let host = normal_pattern(&self.host).ok_or_else(|| RoutesError::Host {
            environment: self.environment.clone(),
            host: self.host.clone(),
        })?;
        let path = normal_prefix(&self.path).ok_or_else(|| RoutesError::Path {
            environment: self.environment.clone(),
            host: host.clone(),
            path: self.path.clone(),
        })?;
        let of_redirect = self.redirect.as_ref().and_then(|to| self.wrong_with(to));
        match of_redirect.or_else(|| self.wrong_text()) {
            Some(why) => Err(RoutesError::Redirect {
                environment: self.environment.clone(),
                host,
                why,
            }),
            None => Ok((host, path)),
        }
    }

    fn wrong_text(&self) -> Option<String> {
        let text = self.text.as_ref()?;
        if !self.upstreams.is_empty() || self.redirect.is_some() {
            Some("it has a text beside a redirect or upstreams".to_owned())
        } else if text.len() > TEXT_MAX {
            Some(format!("its text is longer than {TEXT_MAX} bytes"))
        } else {
            None
        }
    }

    fn wrong_with(&self, redirect: &Redirect) -> Option<String> {
        let Redirect { to, status } = redirect;
        if normal_origin(to).is_none() {
            Some(format!(
                "{to:?} is not http:// or https:// with a host name and nothing after it"
            ))
        } else if !matches!(status, 301 | 302 | 307 | 308) {
            Some(format!("{status} is not 301, 302, 307 or 308"))
        } else if !self.upstreams.is_empty() {
            Some("it has both a redirect and upstreams".to_owned())
        } else {
            None
        }
    }
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
