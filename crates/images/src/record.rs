//! What is known of each image: one small file each, written whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use offshoot_model::manifest::ImageConfig;
use offshoot_pool::Subvolume;
use serde::{Deserialize, Serialize};

use crate::ImageError;

/// An image in the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:<hex>`: of its configuration for OCI images, of its recipe and base for package images.
    pub id: String,
    /// Where it came from first, as a person wrote it.
    pub source: String,
    /// What runs in a node by default.
    pub config: ImageConfig,
    /// When it was made here.
    pub created: jiff::Timestamp,
    /// Bytes of its root file system.
    pub size: u64,
    /// Its root file system, read-only.
    pub subvolume: Subvolume,
}

/// An image and every source that led to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) image: Image,
    /// Keys of sources, so that a known one needs no network.
    pub(crate) sources: Vec<String>,
}

const SUFFIX: &str = ".json";
/// A record is small; anything larger is not one.
const RECORD_MAX: u64 = 16 << 20;

#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    /// Held while records are read to be changed.
    changing: Mutex<()>,
}

impl Records {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, ImageError> {
        fs::create_dir_all(&dir).map_err(ImageError::io("create", &dir))?;
        Ok(Self {
            dir,
            changing: Mutex::default(),
        })
    }

    /// Keeps others from changing records as long as the guard lives.
    pub(crate) fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, hex: &str) -> Result<Option<Record>, ImageError> {
        read(&self.path(hex))
    }

    pub(crate) fn put(&self, hex: &str, record: &Record) -> Result<(), ImageError> {
        let text =
            serde_json::to_vec_pretty(record).map_err(|e| ImageError::Internal(e.to_string()))?;
        write_atomically(&self.path(hex), &text)
    }

    pub(crate) fn remove(&self, hex: &str) -> Result<(), ImageError> {
        let path = self.path(hex);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", path)(e)),
            _ => sync_dir(&self.dir),
        }
    }

    /// All that can be read; a damaged one is as good as none (its image is then made again).
    pub(crate) fn all(&self) -> Result<Vec<(String, Record)>, ImageError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(ImageError::io("list", &self.dir))? {
            let entry = entry.map_err(ImageError::io("list", &self.dir))?;
            let name = entry.file_name();
            let Some(hex) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else {
                continue;
            };
            match read(&entry.path()) {
                Ok(Some(record)) => found.push((hex.to_owned(), record)),
                Ok(None) => {}
                Err(e) => tracing::warn!(record = hex, error = %e, "an image's record is damaged"),
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Removes half-written files of an interrupted daemon.
    pub(crate) fn clean_up(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(".new") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, hex: &str) -> PathBuf {
        self.dir.join(format!("{hex}{SUFFIX}"))
    }
}

fn read(path: &Path) -> Result<Option<Record>, ImageError> {
    use io::Read as _;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ImageError::io("open", path)(e)),
    };
    let mut text = Vec::new();
    file.take(RECORD_MAX)
        .read_to_end(&mut text)
        .map_err(ImageError::io("read", path))?;
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        ImageError::io("understand", path)(io::Error::new(io::ErrorKind::InvalidData, e))
    })
}

/// Writes a file so that after a crash either the old or the new content is there.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), ImageError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    File::create(&new)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .map_err(ImageError::io("write", &new))?;
    fs::rename(&new, path).map_err(ImageError::io("write", path))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

fn sync_dir(dir: &Path) -> Result<(), ImageError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(ImageError::io("sync", dir))
}
