//! Images made up for tests, and a store to fetch them into.
#![allow(dead_code)]

pub mod servers;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use offshoot_images::{Images, ImagesConfig};
use offshoot_model::ProgressSink;
use offshoot_pool::{Backing, Pool, PoolConfig, PoolError, Subvolume};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A pool with an image store, gone when the test ends.
pub struct Store {
    pub images: Images,
    pub pool: Arc<Pool>,
    pub dir: TempDir,
}

impl Store {
    /// `None` where this machine cannot have a pool (said and counted).
    pub fn new() -> Option<Self> {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut ImagesConfig)) -> Option<Self> {
        let dir = tempfile::Builder::new()
            .prefix("offshoot-images-")
            .tempdir()
            .unwrap();
        let config = PoolConfig {
            mount: dir.path().join("pool"),
            backing: Backing::LoopFile {
                path: dir.path().join("pool.img"),
                size: 8 << 30,
            },
        };
        let pool = match Pool::open(&config) {
            Ok(pool) => Arc::new(pool),
            Err(
                e @ (PoolError::NoLoopDevices
                | PoolError::NoBtrfs
                | PoolError::ProgramMissing { .. }),
            ) => {
                println!("SKIPPED: {e}");
                return None;
            }
            Err(e) => panic!("{e}: {:?}", e.problem().details),
        };
        let mut config = ImagesConfig::new(dir.path().join("images"));
        change(&mut config);
        let images = Images::open(pool.clone(), config).unwrap();
        Some(Self { images, pool, dir })
    }

    pub fn read(&self, image: &Subvolume, path: &str) -> String {
        fs::read_to_string(self.pool.path(image).join(path)).unwrap()
    }

    /// Nothing but whole images is there.
    pub fn assert_clean(&self, images: usize) {
        let found = self.pool.list().unwrap();
        assert!(
            !found.iter().any(|s| matches!(s, Subvolume::Staging(_))),
            "{found:?}"
        );
        assert_eq!(found.len(), images, "{found:?}");
        assert_eq!(self.images.list().unwrap().len(), images);
    }

    pub fn blobs(&self) -> Vec<PathBuf> {
        fs::read_dir(self.dir.path().join("images/blobs"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect()
    }
}

/// The store of a test in another process.
pub fn open_again(dir: &Path) -> Images {
    let config = PoolConfig {
        mount: dir.join("pool"),
        backing: Backing::LoopFile {
            path: dir.join("pool.img"),
            size: 8 << 30,
        },
    };
    let pool = Arc::new(Pool::open(&config).unwrap());
    Images::open(pool, ImagesConfig::new(dir.join("images"))).unwrap()
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(e) = self.pool.close() {
            eprintln!("the test's pool is held: {e}");
            let _ = rustix::mount::unmount(self.pool.root(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Progress that is remembered, and cancelled when a test wants.
#[derive(Default)]
pub struct Watch {
    pub most: AtomicU64,
    pub reports: AtomicU64,
    pub cancelled: AtomicBool,
    pub cancel_at: Option<u64>,
}

impl ProgressSink for Watch {
    fn report(&self, done: u64, _total: u64, _unit: &str, _note: &str) {
        self.most.fetch_max(done, Ordering::Relaxed);
        self.reports.fetch_add(1, Ordering::Relaxed);
        if self.cancel_at.is_some_and(|at| done >= at) {
            self.cancelled.store(true, Ordering::Relaxed);
        }
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

pub fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// Files to a layer's archive.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[derive(Clone, Copy, PartialEq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An image as blobs.
pub struct MadeUp {
    pub config: Vec<u8>,
    /// Layers as a registry keeps them.
    pub layers: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
}

pub fn make_up(layers: &[(Vec<u8>, Packing)]) -> MadeUp {
    make_up_for("amd64", layers)
}

pub fn make_up_for(architecture: &str, layers: &[(Vec<u8>, Packing)]) -> MadeUp {
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Cmd": ["/bin/app"], "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|(l, _)| digest(l)).collect::<Vec<_>>()},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let packed: Vec<_> = layers
        .iter()
        .map(|(layer, packing)| match packing {
            Packing::Plain => layer.clone(),
            Packing::Gzip => {
                let mut gzip =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(layer).unwrap();
                gzip.finish().unwrap()
            }
            Packing::Zstd => zstd::encode_all(layer.as_slice(), 1).unwrap(),
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": packed.iter()
            .map(|l| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", l)).collect::<Vec<_>>(),
    });
    MadeUp {
        config,
        layers: packed,
        manifest: serde_json::to_vec(&manifest).unwrap(),
    }
}

pub fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

/// Writes an OCI layout with one entry per image, tagged.
pub fn write_layout(dir: &Path, images: &[(&str, &MadeUp)]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let mut entries = Vec::new();
    for (tag, image) in images {
        for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
            fs::write(blobs.join(digest(blob).trim_start_matches("sha256:")), blob).unwrap();
        }
        let mut entry = descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            &image.manifest,
        );
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
}

/// Bytes that do not compress.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}
