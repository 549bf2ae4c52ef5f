//! A registry (OCI distribution-spec): manifests and configurations into memory, layers into files.
//!
//! Whatever arrives is checked against its digest. A layer that broke off stays as a partial file and is continued,
//! also after a restart.

use std::io::SeekFrom;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol, SizedStream};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use offshoot_model::ProgressSink;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::{LayerFile, Local, auth};
use crate::job::until_cancelled;
use crate::locks::Locks;
use crate::oci::{self, DOCUMENT_MAX, Descriptor, Digest, Manifest, Parsed};
use crate::{ImageError, ImagesConfig};

/// Layers fetched at the same time.
const PARALLEL: usize = 3;
/// Attempts in a row that bring nothing before a layer is given up.
const FRUITLESS_MAX: u32 = 4;
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// Longest silence of a registry.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// A document is small: this is for its whole way.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(120);
/// Indexes may point to indexes, not without end.
const NESTING_MAX: usize = 4;
const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// An image as a registry describes it, before its layers are fetched.
pub(crate) struct Remote {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
    pub(crate) id: Digest,
    pub(crate) config: oci::Config,
    manifest: Manifest,
}

pub(crate) fn parse_reference(text: &str) -> Result<Reference, ImageError> {
    text.parse()
        .map_err(|e: oci_client::ParseError| ImageError::BadReference {
            reference: text.into(),
            why: e.to_string(),
        })
}

fn client(registry: &str, config: &ImagesConfig) -> Client {
    let plain = is_loopback(registry)
        || config
            .insecure_registries
            .iter()
            .any(|known| known == registry);
    Client::new(ClientConfig {
        protocol: if plain {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        },
        connect_timeout: Some(CONNECT_LIMIT),
        read_timeout: Some(SILENCE_LIMIT),
        user_agent: concat!("offshoot/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

/// Whether a registry's `host[:port]` is this machine, where TLS protects nothing.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Asks the registry what `text` is.
pub(crate) async fn resolve(
    text: &str,
    wanted: &str,
    config: &ImagesConfig,
    sink: &dyn ProgressSink,
) -> Result<Remote, ImageError> {
    let reference = parse_reference(text)?;
    let client = client(reference.resolve_registry(), config);
    let auth = auth::find(config.auth_file.as_deref(), reference.registry())?;
    let invalid = |why: String| ImageError::invalid(text, why);
    let unreachable = |why: String| ImageError::Unreachable {
        image: text.into(),
        why,
    };
    sink.report(0, 0, "bytes", text);
    let work = async {
        client
            .auth(&reference, &auth, RegistryOperation::Pull)
            .await
            .map_err(|e| explain(text, &e))?;
        let mut at = reference.clone();
        for _ in 0..NESTING_MAX {
            let (content, _) = client
                .pull_manifest_raw(&at, &auth, ACCEPTED)
                .await
                .map_err(|e| explain(text, &e))?;
            if content.len() as u64 > DOCUMENT_MAX {
                return Err(invalid(format!("its manifest has {} bytes", content.len())));
            }
            if let Some(digest) = at.digest()
                && Digest::parse(digest).map_err(invalid)? != Digest::of(&content)
            {
                return Err(invalid(format!(
                    "its manifest does not match the digest {digest}"
                )));
            }
            match oci::parse_document(&content).map_err(invalid)? {
                Parsed::Manifest(manifest) => {
                    let content = document(&client, &at, &manifest.config, text).await?;
                    let id = Digest::of(&content);
                    let config = oci::parse_config(&content, manifest.layers.len(), wanted)
                        .map_err(invalid)?;
                    return Ok((id, config, manifest));
                }
                Parsed::Index(entries) => {
                    let entry = oci::choose(&entries, wanted).map_err(invalid)?;
                    Digest::parse(&entry.digest).map_err(invalid)?;
                    at = reference.clone_with_digest(entry.digest.clone());
                }
            }
        }
        Err(invalid("its indexes are nested too deeply".into()))
    };
    let (id, parsed, manifest) = until_cancelled(sink, tokio::time::timeout(DOCUMENT_LIMIT, work))
        .await?
        .map_err(|_| {
            unreachable(format!(
                "the registry did not answer within {DOCUMENT_LIMIT:?}"
            ))
        })??;
    Ok(Remote {
        client,
        reference,
        auth,
        id,
        config: parsed,
        manifest,
    })
}

/// A small blob, whole and checked.
async fn document(
    client: &Client,
    at: &Reference,
    descriptor: &Descriptor,
    image: &str,
) -> Result<Vec<u8>, ImageError> {
    let invalid = |why: String| ImageError::invalid(image, why);
    let digest = Digest::parse(&descriptor.digest).map_err(invalid)?;
    let mut stream = client
        .pull_blob_stream(at, descriptor.digest.as_str())
        .await
        .map_err(|e| explain(image, &e))?
        .stream;
    let mut content = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| explain_io(image, &e))?;
        if (content.len() + chunk.len()) as u64 > DOCUMENT_MAX {
            return Err(invalid("its configuration is too large".into()));
        }
        content.extend_from_slice(&chunk);
    }
    if Digest::of(&content) == digest {
        Ok(content)
    } else {
        Err(invalid(
            "its configuration does not match its digest".into(),
        ))
    }
}

impl Remote {
    /// Bytes of all layers as the registry keeps them.
    pub(crate) fn size(&self) -> u64 {
        self.manifest
            .layers
            .iter()
            .fold(0, |sum, layer| sum.saturating_add(layer.size))
    }

    /// Fetches the layers that `blobs` does not have yet.
    pub(crate) async fn fetch(
        self,
        image: &str,
        blobs: &Path,
        locks: &Locks,
        sink: &dyn ProgressSink,
    ) -> Result<Local, ImageError> {
        let mut wanted: Vec<_> = Vec::new();
        for layer in &self.manifest.layers {
            if !wanted
                .iter()
                .any(|known: &&Descriptor| known.digest == layer.digest)
            {
                wanted.push(layer);
            }
        }
        let arrived: Vec<_> = wanted.iter().map(|_| AtomicU64::new(0)).collect();
        let total = wanted
            .iter()
            .map(|layer| layer.size)
            .fold(0, u64::saturating_add);
        let progress = |layer: usize, have: u64| {
            if let Some(layer) = arrived.get(layer) {
                layer.store(have, Ordering::Relaxed);
            }
            sink.report(
                arrived
                    .iter()
                    .map(|layer| layer.load(Ordering::Relaxed))
                    .sum(),
                total,
                "bytes",
                image,
            );
        };
        // A list, not a mapped iterator: rustc cannot tell that a future over the latter may move between threads.
        let mut fetches = Vec::with_capacity(wanted.len());
        for (number, layer) in wanted.into_iter().enumerate() {
            let progress = move |have| progress(number, have);
            fetches.push(
                Fetch {
                    remote: &self,
                    image,
                    blobs,
                    layer,
                    progress,
                    sink,
                }
                .run(locks),
            );
        }
        futures::stream::iter(fetches)
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await?;
        let layers = self
            .manifest
            .layers
            .iter()
            .map(|layer| {
                let digest =
                    Digest::parse(&layer.digest).map_err(|why| ImageError::invalid(image, why))?;
                let path = complete(blobs, &digest);
                Ok(LayerFile {
                    path,
                    offset: 0,
                    size: layer.size,
                    digest: Some(digest),
                })
            })
            .collect::<Result<_, ImageError>>()?;
        Ok(Local {
            id: self.id,
            config: self.config,
            layers,
        })
    }
}

/// Where a whole, checked layer lies.
pub(crate) fn complete(blobs: &Path, digest: &Digest) -> PathBuf {
    blobs.join(digest.hex())
}

/// One layer on its way.
struct Fetch<'a, P> {
    remote: &'a Remote,
    image: &'a str,
    blobs: &'a Path,
    layer: &'a Descriptor,
    /// Takes how many bytes of the layer are there.
    progress: P,
    sink: &'a dyn ProgressSink,
}

impl<P: Fn(u64)> Fetch<'_, P> {
    async fn run(self, locks: &Locks) -> Result<(), ImageError> {
        let digest = Digest::parse(&self.layer.digest)
            .map_err(|why| ImageError::invalid(self.image, why))?;
        // Another image being fetched may have the same layer.
        let lock = locks.get(&format!("blob {digest}"));
        let _held = until_cancelled(self.sink, lock.lock()).await?;
        let path = complete(self.blobs, &digest);
        if tokio::fs::metadata(&path)
            .await
            .is_ok_and(|meta| meta.len() == self.layer.size)
        {
            (self.progress)(self.layer.size);
            return Ok(());
        }
        let partial = self.blobs.join(format!("{}.part", digest.hex()));
        let mut fruitless = 0;
        let mut from_scratch = false;
        loop {
            let mut got = 0;
            match self.attempt(&partial, &mut got).await {
                Ok(found) if found == digest => break,
                Ok(_) => {
                    // A partial file of another try may have been bad: once more from nothing.
                    remove(&partial).await?;
                    if from_scratch {
                        let why =
                            format!("the content of layer {digest} does not match its digest");
                        return Err(ImageError::invalid(self.image, why));
                    }
                    from_scratch = true;
                }
                Err(e @ ImageError::Unreachable { .. }) => {
                    fruitless = if got > 0 { 0 } else { fruitless + 1 };
                    if fruitless >= FRUITLESS_MAX {
                        return Err(e);
                    }
                    tracing::debug!(layer = %digest, error = %e, "a download broke off; it is continued");
                    let pause = Duration::from_millis(200 << fruitless);
                    until_cancelled(self.sink, tokio::time::sleep(pause)).await?;
                }
                Err(e) => return Err(e),
            }
        }
        tokio::fs::rename(&partial, &path)
            .await
            .map_err(ImageError::io("rename", &partial))
    }

    /// Fetches from where the partial file ends; answers the digest of the whole. `got` counts what this attempt
    /// brought.
    async fn attempt(&self, partial: &Path, got: &mut u64) -> Result<Digest, ImageError> {
        let failed = |what: &'static str| ImageError::io(what, partial);
        let mut file = tokio::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(partial)
            .await
            .map_err(failed("open"))?;
        let mut hash = Sha256::new();
        let mut have = 0u64;
        let mut buffer = vec![0u8; 256 << 10];
        loop {
            let read = file.read(&mut buffer).await.map_err(failed("read"))?;
            if read == 0 {
                break;
            }
            hash.update(buffer.get(..read).unwrap_or_default());
            have += read as u64;
            if self.sink.cancelled() {
                return Err(ImageError::Cancelled);
            }
        }
        if have > self.layer.size {
            (have, hash) = (0, Sha256::new());
        }
        if have < self.layer.size {
            let client = &self.remote.client;
            let at = &self.remote.reference;
            let digest = self.layer.digest.as_str();
            let explain = |e: OciDistributionError| explain(self.image, &e);
            let answer = until_cancelled(self.sink, async {
                client
                    .store_auth_if_needed(at.resolve_registry(), &self.remote.auth)
                    .await;
                if have == 0 {
                    client
                        .pull_blob_stream(at, digest)
                        .await
                        .map(BlobResponse::Full)
                } else {
                    client
                        .pull_blob_stream_partial(at, digest, have, None)
                        .await
                }
            })
            .await?
            .map_err(explain)?;
            let stream = match answer {
                BlobResponse::Partial(stream) => stream,
                BlobResponse::Full(stream) => {
                    (have, hash) = (0, Sha256::new());
                    stream
                }
            };
            file.set_len(have).await.map_err(failed("truncate"))?;
            file.seek(SeekFrom::Start(have))
                .await
                .map_err(failed("write"))?;
            let result = self.receive(stream, &mut file, &mut hash, have, got).await;
            // What came is kept for the next attempt.
            file.flush().await.map_err(failed("write"))?;
            result?;
        }
        file.sync_all().await.map_err(failed("sync"))?;
        Ok(Digest::from_hash(&hash.finalize()))
    }

    async fn receive(
        &self,
        stream: SizedStream,
        file: &mut tokio::fs::File,
        hash: &mut Sha256,
        mut have: u64,
        got: &mut u64,
    ) -> Result<(), ImageError> {
        let mut stream = stream.stream;
        let unreachable = |why: String| ImageError::Unreachable {
            image: self.image.into(),
            why,
        };
        while let Some(chunk) = until_cancelled(self.sink, stream.next()).await? {
            let chunk = chunk.map_err(|e| explain_io(self.image, &e))?;
            have += chunk.len() as u64;
            if have > self.layer.size {
                let why = format!(
                    "layer {} is larger than its manifest says",
                    self.layer.digest
                );
                return Err(ImageError::invalid(self.image, why));
            }
            hash.update(&chunk);
            file.write_all(&chunk)
                .await
                .map_err(ImageError::io("write", self.blobs))?;
            *got += chunk.len() as u64;
            (self.progress)(have);
            // A fast registry never lets the wait above run into its time.
            if self.sink.cancelled() {
                return Err(ImageError::Cancelled);
            }
        }
        if have < self.layer.size {
            return Err(unreachable(format!(
                "it broke off after {have} of {} bytes",
                self.layer.size
            )));
        }
        Ok(())
    }
}

async fn remove(path: &Path) -> Result<(), ImageError> {
    match tokio::fs::remove_file(path).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(ImageError::io("remove", path)(e))
        }
        _ => Ok(()),
    }
}

fn explain_io(image: &str, error: &std::io::Error) -> ImageError {
    ImageError::Unreachable {
        image: image.into(),
        why: chain(error),
    }
}

/// The registry's and the network's words in ours.
fn explain(image: &str, error: &OciDistributionError) -> ImageError {
    let image = image.to_owned();
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => ImageError::NotFound {
            image,
            why: String::new(),
        },
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => ImageError::Denied {
            image,
            why: "it may also be that there is no such image".into(),
        },
        OciDistributionError::RegistryError { envelope, .. } => {
            let why = envelope
                .errors
                .iter()
                .map(|e| e.message.clone())
                .collect::<Vec<_>>()
                .join("; ");
            let is =
                |codes: &[OciErrorCode]| envelope.errors.iter().any(|e| codes.contains(&e.code));
            if is(&[
                OciErrorCode::ManifestUnknown,
                OciErrorCode::NameUnknown,
                OciErrorCode::BlobUnknown,
                OciErrorCode::NotFound,
            ]) {
                ImageError::NotFound { image, why }
            } else if is(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                ImageError::Denied { image, why }
            } else {
                ImageError::Unreachable { image, why }
            }
        }
        OciDistributionError::ServerError { code: 404, .. } => ImageError::NotFound {
            image,
            why: String::new(),
        },
        OciDistributionError::ServerError {
            code: 401 | 403,
            message,
            ..
        } => ImageError::Denied {
            image,
            why: message.chars().take(500).collect(),
        },
        OciDistributionError::DigestError(_)
        | OciDistributionError::ManifestParsingError(_)
        | OciDistributionError::VersionedParsingError(_)
        | OciDistributionError::ManifestEncodingError(_)
        | OciDistributionError::UnsupportedMediaTypeError(_)
        | OciDistributionError::UnsupportedSchemaVersionError(_) => ImageError::Invalid {
            image,
            why: chain(error),
        },
        other => ImageError::Unreachable {
            image,
            why: chain(other),
        },
    }
}

/// An error with its causes in one line: the interesting one ("connection refused") is the innermost.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text.chars().take(1000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_its_names() {
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.8.8.8",
            "[::1]:5000",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "docker.io",
            "localhost.example:5000",
            "10.0.0.1:5000",
            "[fe80::1]:5000",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
