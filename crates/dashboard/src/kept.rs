//! What outlives the daemon of sessions: a file for root alone, good until the host is started again.
//!
//! It holds no secret, only fingerprints, and it lies with what runs, not with the database: a copy of that, or one of
//! this file from before the last start of the host, brings no session back. Times are counted since that start, so
//! nobody's session grows longer when the clock is set.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::secret::{Fingerprint, from_hex, hex};

/// Most bytes of the file: all sessions there can be, and some room.
const MAX: u64 = 64 << 10;
/// Tells one start of the host from the next (random(4)).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Time since the host was started, also while it slept (`CLOCK_BOOTTIME`, clock_gettime(2)): the same for a daemon
/// and the next one.
pub(crate) fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

/// Sessions by the fingerprint of their cookie, and when a person last did something in them.
pub(crate) type Seen = HashMap<Fingerprint, Duration>;

/// The file.
#[derive(Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    boot: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// Of which start of the host the times are.
    boot: String,
    /// SHA-256 of each cookie, hexadecimal, and the second it was last used in.
    sessions: HashMap<String, u64>,
}

impl Kept {
    pub(crate) fn new(path: PathBuf) -> io::Result<Self> {
        let boot = fs::read_to_string(BOOT)?.trim().to_owned();
        Ok(Self { path, boot })
    }

    /// What a former daemon left. Nothing where there is no file, or one of another start of the host.
    pub(crate) fn read(&self, now: Duration) -> io::Result<Seen> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Seen::new()),
            file => file?,
        };
        if file.metadata()?.mode() & 0o077 != 0 {
            return Err(io::Error::other("it can be read by others than root"));
        }
        let mut text = String::new();
        file.take(MAX).read_to_string(&mut text)?;
        let content: Content = serde_json::from_str(&text)?;
        if content.boot != self.boot {
            return Ok(Seen::new());
        }
        let sessions = content.sessions.into_iter().filter_map(|(cookie, seen)| {
            let seen = Duration::from_secs(seen);
            Some((from_hex(&cookie)?, seen)).filter(|_| seen <= now)
        });
        Ok(sessions.collect())
    }

    /// Replaces the file, whole or not at all. Where that cannot be done it goes: no session that ended may come back.
    pub(crate) fn write(&self, sessions: impl Iterator<Item = (Fingerprint, Duration)>) {
        let content = Content {
            boot: self.boot.clone(),
            sessions: sessions
                .map(|(cookie, seen)| (hex(&cookie), seen.as_secs()))
                .collect(),
        };
        let Err(error) = self.replace(&content) else {
            return;
        };
        tracing::warn!(
            path = %self.path.display(), %error,
            "sessions of the dashboard cannot be kept: who is signed in signs in again when the daemon is started anew"
        );
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(
                path = %self.path.display(), %error,
                "an old list of sessions cannot be removed: remove it before the daemon is started anew"
            );
        }
    }

    fn replace(&self, content: &Content) -> io::Result<()> {
        let text = serde_json::to_vec(content)?;
        let beside = self.path.with_extension("new");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&text)?;
        fs::rename(&beside, &self.path)
    }
}
