//! Random texts that let somebody in.

use std::fs::File;
use std::io::{self, Read as _};

use sha2::{Digest as _, Sha256};

/// Random bytes in a secret: 256 bits.
const RANDOM: usize = 32;

/// What is kept of a secret: enough to recognise it, nothing to use it.
pub(crate) type Fingerprint = [u8; 32];

/// A secret as hexadecimal text. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// A new one, from the kernel (urandom(4)).
    pub(crate) fn random() -> io::Result<Self> {
        let mut bytes = [0; RANDOM];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(hex(&bytes)))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.0)
    }

    /// Another secret that follows from a secret text and tells nothing of it, nor of its fingerprint. The same for the
    /// same use of the same text.
    pub(crate) fn derived(text: &str, used_for: &str) -> Self {
        let digest = Sha256::new().chain_update(used_for).chain_update([0]);
        Self(hex(&digest.chain_update(text).finalize().into()))
    }
}

/// 32 bytes as hexadecimal text.
pub(crate) fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The 32 bytes of a hexadecimal text; `None` when it is none of that length.
pub(crate) fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// What would be kept of a text that claims to be a secret.
pub(crate) fn fingerprint(text: &str) -> Fingerprint {
    Sha256::digest(text.as_bytes()).into()
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}
