//! Where images come from. Every source ends in the same: a configuration, and layers that can be read.

pub(crate) mod archive;
pub(crate) mod auth;
pub(crate) mod layout;
pub(crate) mod registry;

use std::io::{self, Read};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::oci::{Config, Digest};

/// An image whose content is on this machine.
#[derive(Debug)]
pub(crate) struct Local {
    /// Digest of the configuration: the image's id.
    pub(crate) id: Digest,
    pub(crate) config: Config,
    /// Lowest first; as many as the configuration has `diff_ids`.
    pub(crate) layers: Vec<LayerFile>,
}

/// A layer's bytes in a file.
#[derive(Debug, Clone)]
pub(crate) struct LayerFile {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    /// What the bytes must hash to; a docker-archive names none.
    pub(crate) digest: Option<Digest>,
}

/// Passes bytes on and hashes them.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    /// Reads what is left and gives the digest of everything.
    pub(crate) fn digest(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest::from_hash(&self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
