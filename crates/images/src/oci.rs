//! Documents of the OCI image-spec and of Docker's own older form, as far as a root file system and its start need them.
//!
//! Read leniently where the two differ and strictly where it matters: digests, sizes, platforms.

use std::collections::BTreeMap;

use offshoot_model::manifest::{HealthCheck, ImageConfig};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Largest manifest, index or configuration that is read.
pub(crate) const DOCUMENT_MAX: u64 = 8 << 20;
/// Most layers of an image (Docker's own bound is 127).
const LAYERS_MAX: usize = 512;

/// A sha256 digest: `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest(String);

impl Digest {
    /// Only sha256: it is what every registry uses, and a name from outside becomes a file name.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("sha256:") {
            Some(hex)
                if hex.len() == 64
                    && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) =>
            {
                Ok(Self(hex.to_owned()))
            }
            _ => Err(format!("{text:?} is not a sha256 digest")),
        }
    }

    pub(crate) fn of(content: &[u8]) -> Self {
        Self::from_hash(&Sha256::digest(content))
    }

    pub(crate) fn from_hash(hash: &[u8]) -> Self {
        Self(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The hexadecimal digits.
    pub(crate) fn hex(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// A pointer to content.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
}

/// What an image runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

/// A manifest or an index; which of them is told by what it has.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Document {
    #[serde(rename = "schemaVersion", default)]
    schema_version: u32,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// An image manifest, checked.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What a document turned out to be.
#[derive(Debug, Clone)]
pub(crate) enum Parsed {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

pub(crate) fn parse_document(content: &[u8]) -> Result<Parsed, String> {
    let document: Document = serde_json::from_slice(content)
        .map_err(|e| format!("its manifest is not understood: {e}"))?;
    if document.schema_version != 2 {
        return Err(format!(
            "its manifest has schema version {}, not 2",
            document.schema_version
        ));
    }
    match document.config {
        Some(config) => {
            if document.layers.len() > LAYERS_MAX {
                return Err(format!("it has {} layers", document.layers.len()));
            }
            for layer in &document.layers {
                Digest::parse(&layer.digest)?;
                if layer.media_type.contains("encrypted") {
                    return Err("its layers are encrypted".into());
                }
            }
            Digest::parse(&config.digest)?;
            Ok(Parsed::Manifest(Manifest {
                config,
                layers: document.layers,
            }))
        }
        None if !document.manifests.is_empty() => Ok(Parsed::Index(document.manifests)),
        None => Err("its manifest has neither a configuration nor other manifests".into()),
    }
}

/// The architecture of this machine in Go's words, which images use.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "x86" => "386",
        other => other,
    }
}

/// The entry of an index that runs on `wanted` (Linux).
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    wanted: &str,
) -> Result<&'a Descriptor, String> {
    let fits = |d: &&Descriptor| {
        d.platform
            .as_ref()
            .is_some_and(|p| p.os == "linux" && p.architecture == wanted)
    };
    let variant = |d: &Descriptor| d.platform.as_ref().and_then(|p| p.variant.clone());
    // The plain one first: a variant may need a newer processor (amd64/v3).
    let found = entries.iter().filter(fits).min_by_key(|d| variant(d));
    let only = match entries {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    found.or(only).ok_or_else(|| {
        let there: Vec<_> = entries
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .filter(|p| p.os != "unknown")
            .map(|p| format!("{}/{}", p.os, p.architecture))
            .collect();
        format!(
            "there is none for linux/{wanted}, only for {}",
            there.join(", ")
        )
    })
}

/// An image's configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) config: ImageConfig,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<RawProcess>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// Lists and maps of this part may be `null`: Go writes them so.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawProcess {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    healthcheck: Option<RawHealth>,
    shell: Option<Vec<String>>,
}

/// Docker's extension; times in nanoseconds, 0 for the default.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawHealth {
    test: Option<Vec<String>>,
    #[serde(default)]
    interval: i64,
    #[serde(default)]
    timeout: i64,
    #[serde(default)]
    start_period: i64,
    #[serde(default)]
    start_interval: i64,
    #[serde(default)]
    retries: i64,
}

pub(crate) fn parse_config(content: &[u8], layers: usize, wanted: &str) -> Result<Config, String> {
    let raw: RawConfig = serde_json::from_slice(content)
        .map_err(|e| format!("its configuration is not understood: {e}"))?;
    let wrong = |is: &str, wanted: &str| !is.is_empty() && is != wanted;
    if wrong(&raw.os, "linux") || wrong(&raw.architecture, wanted) {
        return Err(format!(
            "it is for {}/{}, and this machine is linux/{wanted}",
            raw.os, raw.architecture
        ));
    }
    let diff_ids = raw
        .rootfs
        .diff_ids
        .iter()
        .map(|id| Digest::parse(id))
        .collect::<Result<Vec<_>, _>>()?;
    if diff_ids.len() != layers {
        return Err(format!(
            "it has {layers} layers and its configuration names {}",
            diff_ids.len()
        ));
    }
    let process = raw.config.unwrap_or_default();
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let shell = process
        .shell
        .unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
    Ok(Config {
        diff_ids,
        config: ImageConfig {
            entrypoint: process.entrypoint.unwrap_or_default(),
            command: process.cmd.unwrap_or_default(),
            env: process.env.unwrap_or_default(),
            working_dir: filled(process.working_dir),
            user: filled(process.user),
            stop_signal: filled(process.stop_signal),
            exposed_ports: process
                .exposed_ports
                .unwrap_or_default()
                .into_keys()
                .filter_map(|port| match port.split_once('/') {
                    Some((port, "tcp")) => port.parse().ok(),
                    Some(_) => None,
                    None => port.parse().ok(),
                })
                .collect(),
            volumes: process.volumes.unwrap_or_default().into_keys().collect(),
            healthcheck: process.healthcheck.and_then(|raw| health(raw, &shell)),
        },
    })
}

/// Defaults are Docker's.
fn health(raw: RawHealth, shell: &[String]) -> Option<HealthCheck> {
    let test = raw.test.unwrap_or_default();
    let test = match test.split_first() {
        Some((kind, rest)) if kind == "CMD" => rest.to_vec(),
        Some((kind, rest)) if kind == "CMD-SHELL" => {
            let mut argv = shell.to_vec();
            argv.push(rest.join(" "));
            argv
        }
        Some((kind, _)) if kind == "NONE" => Vec::new(),
        _ => return None,
    };
    let ms = |nanos: i64, default: u64| match u64::try_from(nanos) {
        Ok(0) | Err(_) => default,
        Ok(nanos) => (nanos / 1_000_000).max(1),
    };
    Some(HealthCheck {
        test,
        interval_ms: ms(raw.interval, 30_000),
        timeout_ms: ms(raw.timeout, 30_000),
        retries: u32::try_from(raw.retries)
            .ok()
            .filter(|n| *n > 0)
            .unwrap_or(3),
        start_period_ms: ms(raw.start_period, 0),
        start_interval_ms: ms(raw.start_interval, 5_000),
    })
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
