//! What a node sees of the host, prepared in the shim's own mount namespace: all of it vanishes with the shim.

use std::fs::{self, Permissions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use offshoot_runtime::config::Layout;
use offshoot_runtime::{Access, NodeSpec, Result, RuntimeError, Start};
use offshoot_sys::mount::{self, Writes};

/// Room for device nodes and mount points, in bytes; captured files come on top. Processes inside can write to it through /dev.
const BASE_SIZE: u64 = 4 << 20;
/// Directories kept in the shim's view of the host; anything mounted deeper is let go unless it is needed.
const KEPT: &[&str] = &[
    "/", "/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/nix", "/opt", "/proc", "/run",
    "/sbin", "/sys", "/tmp", "/usr", "/var",
];
/// Character devices of every container (OCI runtime-spec, config-linux "Default Devices"): name, major, minor (the kernel's
/// Documentation/admin-guide/devices.txt).
const DEVICES: &[(&str, u64, u64)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Links of every container's /dev.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes the layout.
pub(crate) fn prepare(spec: &NodeSpec, layout: &Layout) -> Result<()> {
    // Empty and hidden by what follows, for the sake of `runc exec`: started outside of this mount namespace, it changes into the
    // directory that the container was given as its root.
    make_dir(&layout.rootfs)?;
    let files: u64 = layout
        .files
        .iter()
        .map(|(file, _)| file.content.as_bytes().len() as u64 + 4096)
        .sum();
    mount::tmpfs(&layout.base, BASE_SIZE + files)
        .map_err(|e| RuntimeError::io("mount", &layout.base, e))?;
    let userns = mount::user_namespace(spec.id_base, spec.id_count)
        .map_err(|e| RuntimeError::doing("make a user namespace", e))?;
    show(
        &spec.rootfs,
        &layout.rootfs,
        userns.as_fd(),
        Writes::Allowed,
    )?;
    for (bind, target) in spec.binds.iter().zip(&layout.binds) {
        let writes = match bind.access {
            Access::ReadWrite => Writes::Allowed,
            Access::ReadOnly => Writes::Refused,
        };
        show(&bind.source, target, userns.as_fd(), writes)?;
    }
    devices(spec, &layout.dev)?;
    captured_files(spec, layout)
}

/// Shows `source` at `target` with shifted owners.
fn show(source: &Path, target: &Path, userns: BorrowedFd<'_>, writes: Writes) -> Result<()> {
    let metadata = fs::metadata(source).map_err(|e| RuntimeError::io("look at", source, e))?;
    if metadata.is_dir() {
        make_dir(target)?;
    } else {
        target.parent().map_or(Ok(()), make_dir)?;
        fs::write(target, "").map_err(|e| RuntimeError::io("make", target, e))?;
    }
    let tree = mount::open_tree(source).map_err(|e| RuntimeError::io("open", source, e))?;
    mount::map_ids(tree.as_fd(), userns, writes)
        .map_err(|e| RuntimeError::io("shift the owners of", source, e))?;
    mount::place(tree.as_fd(), target).map_err(|e| RuntimeError::io("mount", target, e))
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| RuntimeError::io("make", path, e))
}

/// Device nodes are made here because a user namespace's root may not, and one mount of a directory replaces one per node.
fn devices(spec: &NodeSpec, dev: &Path) -> Result<()> {
    let failed = |e: std::io::Error| RuntimeError::io("fill", dev, e);
    let own = |path: &Path, gid: u32| {
        chown(path, Some(spec.id_base), Some(spec.id_base + gid)).map_err(failed)
    };
    make_dir(dev)?;
    own(dev, 0)?;
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        mount::character_device(&path, *major, *minor, 0o666).map_err(failed)?;
        // Group tty, by long convention 5.
        own(
            &path,
            if *name == "tty" {
                5.min(spec.id_count - 1)
            } else {
                0
            },
        )?;
    }
    for (name, target) in LINKS {
        symlink(target, dev.join(name)).map_err(failed)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        let path = dev.join(name);
        make_dir(&path)?;
        own(&path, 0)?;
    }
    // runc gives a tmpfs the mode of the directory it covers.
    fs::set_permissions(dev.join("shm"), Permissions::from_mode(0o1777)).map_err(failed)
}

/// Writes captured files and makes them unchangeable for everyone inside.
fn captured_files(spec: &NodeSpec, layout: &Layout) -> Result<()> {
    let Some(dir) = layout.files.first().and_then(|(_, path)| path.parent()) else {
        return Ok(());
    };
    make_dir(dir)?;
    for (file, path) in &layout.files {
        let write = || -> std::io::Result<()> {
            fs::write(path, file.content.as_bytes())?;
            chown(
                path,
                Some(spec.id_base + file.uid),
                Some(spec.id_base + file.gid),
            )?;
            fs::set_permissions(path, Permissions::from_mode(file.mode & 0o7777))
        };
        write().map_err(|e| RuntimeError::io("write", path, e))?;
    }
    let close = || -> std::io::Result<()> {
        let tree = mount::open_tree(dir)?;
        mount::restrict(tree.as_fd(), Writes::Refused)?;
        mount::place(tree.as_fd(), dir)
    };
    close().map_err(|e| RuntimeError::io("mount", dir, e))
}

/// Whether the images of a restore are still to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Images {
    Needed,
    Done,
}

/// Lets go of every mount the node has no use for. A mount namespace holds all it was copied with: without this a running node would
/// keep alive what others unmount, such as another daemon's pool or the memory file system that held its own images.
pub(crate) fn forget_others(spec: &NodeSpec, layout: &Layout, images: Images) {
    let needed = needed_paths(spec, images);
    let mounts = mount::mount_points().unwrap_or_default();
    for point in mounts.iter().rev() {
        if !is_needed(point, &needed, &layout.base) {
            // Gone with its parent, or already.
            let _ = mount::detach(point);
        }
    }
}

fn needed_paths(spec: &NodeSpec, images: Images) -> Vec<PathBuf> {
    let mut needed = vec![
        spec.run_dir.clone(),
        spec.log_dir.clone(),
        spec.tools.runc.clone(),
        spec.tools.shim.clone(),
    ];
    needed.extend(spec.tools.criu_dir.clone());
    needed.extend(spec.link.as_ref().map(|link| link.router_dir.clone()));
    if let (Start::Restore { images }, Images::Needed) = (&spec.start, images) {
        needed.push(images.clone());
    }
    // Links on the way lead to the mounts that really hold them.
    let resolved: Vec<PathBuf> = needed
        .iter()
        .filter_map(|path| fs::canonicalize(path).ok())
        .collect();
    needed.extend(resolved);
    needed
}

fn is_needed(point: &Path, needed: &[PathBuf], base: &Path) -> bool {
    let system = ["/proc", "/sys", "/dev", "/usr"]
        .iter()
        .any(|dir| point.starts_with(dir));
    system
        || KEPT.iter().any(|kept| point == Path::new(kept))
        || point.starts_with(base)
        || needed.iter().any(|path| path.starts_with(point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_needed_mounts_are_kept() {
        let needed = [
            PathBuf::from("/var/lib/offshoot/envs/a/logs"),
            PathBuf::from("/srv/run/x"),
        ];
        let base = Path::new("/srv/run/x/mnt");
        for kept in [
            "/",
            "/proc/sys/fs/binfmt_misc",
            "/var",
            "/var/lib",
            "/srv",
            "/srv/run/x/mnt/rootfs",
            "/sys/fs/cgroup/memory",
        ] {
            assert!(is_needed(Path::new(kept), &needed, base), "{kept}");
        }
        for gone in [
            "/var/lib/offshoot/pool",
            "/home",
            "/srv/other",
            "/tmp/test/pool",
            "/mnt",
        ] {
            assert!(!is_needed(Path::new(gone), &needed, base), "{gone}");
        }
    }
}
