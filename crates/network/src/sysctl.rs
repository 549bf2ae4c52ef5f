//! Kernel settings of the calling thread's network namespace (/proc/sys/net follows the reading thread).

use std::io;

use crate::error::NetworkError;

/// Whether it is a failure when the kernel does not have a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Fails,
    IsFine,
}

/// Writes a setting; `name` is its path below /proc/sys/net.
pub(crate) fn set(name: &str, value: &str, missing: Missing) -> Result<(), NetworkError> {
    match std::fs::write(format!("/proc/sys/net/{name}"), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && missing == Missing::IsFine => {
            Ok(())
        }
        other => other.map_err(|e| NetworkError::io(format!("setting net/{name} to {value}"), e)),
    }
}

/// Reads a setting; `None` when the kernel does not have it.
pub(crate) fn get(name: &str) -> Result<Option<String>, NetworkError> {
    match std::fs::read_to_string(format!("/proc/sys/net/{name}")) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NetworkError::io(format!("reading net/{name}"), error)),
    }
}
