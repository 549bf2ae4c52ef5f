//! Custom domains: host names that people bring, and what a swap of them tells.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A host name with a path below which it leads to an environment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// Host name; in what the API answers in lower case and without a final dot.
    pub host: String,
    /// Path; `/` is everything.
    #[serde(default = "Domain::root")]
    pub path: String,
}

impl Domain {
    /// All of a host.
    pub fn of_host(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            path: Self::root(),
        }
    }

    /// As people type it: `shop.example.com`, `shop.example.com/api`. Nothing is judged yet.
    #[must_use]
    pub fn split(text: &str) -> Self {
        match text.find('/') {
            Some(at) => {
                let (host, path) = text.split_at(at);
                Self {
                    host: host.to_owned(),
                    path: path.to_owned(),
                }
            }
            None => Self::of_host(text),
        }
    }

    fn root() -> String {
        "/".to_owned()
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path == "/" { "" } else { &self.path };
        write!(f, "{}{path}", self.host)
    }
}

/// What a request without TLS gets at a domain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DomainHttps {
    /// The same as one with TLS.
    #[default]
    Offer,
    /// 308 to the same address with `https`.
    Redirect,
}

impl DomainHttps {
    fn is_offer(&self) -> bool {
        *self == Self::Offer
    }
}

impl fmt::Display for DomainHttps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Offer => "offer",
            Self::Redirect => "redirect",
        })
    }
}

/// `PUT /api/v1/domains/{domain}/https`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DomainHttpsRequest {
    /// What requests without TLS get.
    pub https: DomainHttps,
}

/// A custom domain of an environment as people see it, or its former default domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DomainView {
    /// Host name, in lower case, without a final dot.
    pub host: String,
    /// Path; `/` is everything.
    pub path: String,
    /// When it was added.
    #[schema(value_type = String)]
    pub added: Timestamp,
    /// What requests without TLS get.
    #[serde(default, skip_serializing_if = "DomainHttps::is_offer")]
    pub https: DomainHttps,
    /// For a former default domain, the address that its visitors are sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
}

impl DomainView {
    /// Host name and path.
    #[must_use]
    pub fn domain(&self) -> Domain {
        Domain {
            host: self.host.clone(),
            path: self.path.clone(),
        }
    }
}

/// What a swap is asked to see before it switches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Warm {
    /// Paths that are asked for, with each domain as `Host`, at every entry node that will get it; at most 32.
    pub paths: Vec<String>,
    /// Good answers (status below 500) that each must give one after the other, 1 to 100.
    pub answers: u32,
    /// Milliseconds in which all of them must have done so, 100 to 600000.
    pub timeout_ms: u64,
}

impl Default for Warm {
    fn default() -> Self {
        Self {
            paths: vec!["/".to_owned()],
            answers: 3,
            timeout_ms: 30_000,
        }
    }
}

/// A domain that changed hands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MovedDomain {
    /// Host name.
    pub host: String,
    /// Path.
    pub path: String,
    /// Name of the environment that had it.
    pub from: String,
    /// Name of the environment that has it.
    pub to: String,
}

/// What a swap did; kept with the operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SwapReport {
    /// Name of the other environment.
    pub with: String,
    /// Domains that change hands, once that is known.
    pub moved: Vec<MovedDomain>,
    /// The instant from which on the other side answers: when the edge said so. Absent while nothing is switched.
    #[schema(value_type = Option<String>)]
    pub switched: Option<Timestamp>,
    /// From telling the edge to its answer, microseconds.
    pub us: Option<u64>,
    /// Version of the edge's routes from which on the other side answers.
    pub version: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_typed_with_or_without_a_path() {
        for (text, host, path) in [
            ("shop.example.com", "shop.example.com", "/"),
            ("shop.example.com/", "shop.example.com", "/"),
            ("shop.example.com/a/b", "shop.example.com", "/a/b"),
            ("/a", "", "/a"),
        ] {
            let domain = Domain::split(text);
            assert_eq!((domain.host.as_str(), domain.path.as_str()), (host, path));
        }
        assert_eq!(Domain::split("a.test/").to_string(), "a.test");
        assert_eq!(Domain::split("a.test/b").to_string(), "a.test/b");
    }

    #[test]
    fn a_path_may_be_left_out_and_nothing_unknown_passes() {
        let read = |text| serde_json::from_str::<Domain>(text);
        assert_eq!(
            read(r#"{"host": "a.test"}"#).unwrap(),
            Domain::of_host("a.test")
        );
        assert!(read(r#"{"host": "a.test", "port": 1}"#).is_err());
        let warm: Warm = serde_json::from_str(r#"{"answers": 1}"#).unwrap();
        assert_eq!(
            (warm.paths.len(), warm.answers, warm.timeout_ms),
            (1, 1, 30_000)
        );
    }
}
