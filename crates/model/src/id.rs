//! Identifiers: short where a kernel object's name must hold one, UUID v7 elsewhere.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Identifies an environment for its whole life; a rename does not change it.
///
/// Eight characters of `a-z2-7` (40 random bits): short enough for a network interface's name
/// (`IFNAMSIZ` leaves 15 bytes), and part of the name of everything the environment owns on the host, so
/// that an orphan can be traced to its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvId(String);

/// Length of an [`EnvId`] in bytes.
pub const ENV_ID_LEN: usize = 8;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

impl EnvId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        let bytes = Uuid::new_v4().into_bytes();
        let text = bytes[8..16]
            .iter()
            .map(|b| char::from(ALPHABET[usize::from(b & 31)]))
            .collect();
        Self(text)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EnvId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() == ENV_ID_LEN && text.bytes().all(|b| ALPHABET.contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is not an environment id"))
        }
    }
}

impl TryFrom<String> for EnvId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<EnvId> for String {
    fn from(id: EnvId) -> Self {
        id.0
    }
}

impl fmt::Display for EnvId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identifies a node: `<environment id>.<layer>-<number>`, for instance `k3xq2mzd.web-1`.
///
/// The part after the dot is the node's name inside its environment and the same in every clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId {
    env: EnvId,
    name: String,
}

impl NodeId {
    /// The id of node `name` (as [`crate::environment::Node::name`]) of environment `env`.
    ///
    /// # Errors
    /// When `name` is not a DNS label (lower-case letters, digits, inner hyphens, at most 63 bytes).
    pub fn new(env: EnvId, name: &str) -> Result<Self, String> {
        if crate::name::is_label(name, crate::name::LABEL_MAX) {
            Ok(Self {
                env,
                name: name.to_owned(),
            })
        } else {
            Err(format!("{name:?} is not a node name"))
        }
    }

    /// The environment the node belongs to.
    #[must_use]
    pub fn env(&self) -> &EnvId {
        &self.env
    }

    /// The node's name inside its environment.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for NodeId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (env, name) = text
            .split_once('.')
            .ok_or_else(|| format!("{text:?} is not a node id"))?;
        Self::new(env.parse()?, name)
    }
}

impl TryFrom<String> for NodeId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.env, self.name)
    }
}

/// Identifies an operation: UUID v7, so that ids sort by the time they were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(Uuid);

impl OperationId {
    /// A new id, later than all before it.
    #[must_use]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for OperationId {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for OperationId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Uuid::parse_str(text)
            .map(Self)
            .map_err(|e| format!("{text:?} is not an operation id: {e}"))
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_a_round_trip() {
        let env = EnvId::random();
        assert_eq!(env.as_str().parse::<EnvId>().unwrap(), env);
        let node = NodeId::new(env, "web-1").unwrap();
        assert_eq!(node.to_string().parse::<NodeId>().unwrap(), node);
    }

    #[test]
    fn hostile_ids_are_refused() {
        for text in [
            "",
            "../../etc",
            "ABCDEFGH",
            "abcdefg",
            "abcdefghi",
            "abcdefg/",
            "abcdefg\n",
        ] {
            assert!(text.parse::<EnvId>().is_err(), "{text:?}");
        }
        for text in [
            "abcdefgh",
            "abcdefgh.",
            "abcdefgh.-a",
            "abcdefgh.a/b",
            "abcdefgh.A",
        ] {
            assert!(text.parse::<NodeId>().is_err(), "{text:?}");
        }
    }
}
