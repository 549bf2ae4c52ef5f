//! Directories of the daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use offshoot_model::{Code, Fault, Problem};

/// Makes a directory that every user may pass through but not list: a node's root is an ordinary user of the host.
pub(crate) fn ensure_passable(dir: &Path) -> Result<(), Problem> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o711)))
        .map_err(|e| {
            Problem::new(
                Code::HostUnfit,
                Fault::Host,
                format!("{} cannot be made", dir.display()),
                "check the directory's file system, or set another one in the configuration",
            )
            .caused_by(&e)
        })
}
