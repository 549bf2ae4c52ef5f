//! Where everything lies in the pool.

use std::fmt;
use std::path::PathBuf;

use offshoot_model::{EnvId, NodeId, VolumeName};
use serde::{Deserialize, Serialize};

/// A subvolume of the pool by what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Subvolume {
    /// An image's root file system: the hexadecimal digits of its digest.
    Image(String),
    /// Something being made; anything of this kind found after a crash is removed.
    Staging(String),
    /// A node's root file system.
    Rootfs(NodeId),
    /// A volume of an environment.
    Volume(EnvId, VolumeName),
}

pub(crate) const IMAGES: &str = "images";
pub(crate) const STAGING: &str = "staging";
pub(crate) const ENVS: &str = "envs";
pub(crate) const NODES: &str = "nodes";
pub(crate) const VOLUMES: &str = "volumes";
/// Where the snapshots of a cut lie until they are put in their places: each in a directory of its own.
pub(crate) const CUT: &str = "cut";

impl Subvolume {
    /// Path below the pool's root: `images/<hex>`, `staging/<label>`, `envs/<env>/nodes/<node>`,
    /// `envs/<env>/volumes/<name>`.
    #[must_use]
    pub fn relative(&self) -> PathBuf {
        match self {
            Self::Image(hex) => [IMAGES, hex].iter().collect(),
            Self::Staging(label) => [STAGING, label].iter().collect(),
            Self::Rootfs(node) => [ENVS, node.env().as_str(), NODES, node.name()]
                .iter()
                .collect(),
            Self::Volume(env, name) => [ENVS, env.as_str(), VOLUMES, name.as_str()]
                .iter()
                .collect(),
        }
    }

    /// Whose it is.
    pub(crate) fn env(&self) -> Option<&EnvId> {
        match self {
            Self::Image(_) | Self::Staging(_) => None,
            Self::Rootfs(node) => Some(node.env()),
            Self::Volume(env, _) => Some(env),
        }
    }

    /// Whether the free texts in it are single, harmless path components. Ids and names are by their type.
    pub(crate) fn is_sane(&self) -> bool {
        let component = |text: &str| {
            !text.is_empty()
                && text.len() <= 200
                && !text.starts_with('.')
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        match self {
            Self::Image(text) | Self::Staging(text) => component(text),
            Self::Rootfs(_) | Self::Volume(..) => true,
        }
    }
}

impl fmt::Display for Subvolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.relative().display().fmt(f)
    }
}
