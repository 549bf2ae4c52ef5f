//! Paths inside a node.

/// An absolute path without `.`, `..`, empty parts or a final slash.
///
/// # Errors
/// A sentence.
pub(super) fn inside(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!(
            "{text:?} must be an absolute path, because it is inside the node"
        ));
    }
    if text.len() > 4000 || text.contains('\0') {
        return Err("the path is too long or contains a NUL byte".to_owned());
    }
    let parts: Vec<_> = text
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") {
        return Err(format!("{text:?} must not contain `..`"));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// As [`inside`], for something that is mounted there.
///
/// # Errors
/// A sentence.
pub(super) fn mount_target(text: &str) -> Result<String, String> {
    let path = inside(text)?;
    let kernel = ["/proc", "/sys", "/dev"];
    if path == "/" || kernel.contains(&path.as_str()) {
        return Err(format!("nothing can be mounted at {path}"));
    }
    if path.starts_with("/proc/") || path.starts_with("/sys/") {
        return Err("nothing can be mounted in /proc or /sys".to_owned());
    }
    if ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"].contains(&path.as_str()) {
        return Err(format!(
            "{path} is written by Offshoot; use extra_hosts or hostname"
        ));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(inside("/a//b/./c/").as_deref(), Ok("/a/b/c"));
        assert_eq!(inside("/").as_deref(), Ok("/"));
        for bad in ["a", "", "/a/../b", "/a\0"] {
            assert!(inside(bad).is_err(), "{bad:?}");
        }
        for bad in ["/", "/proc", "/sys/x", "/dev/", "/etc/hosts"] {
            assert!(mount_target(bad).is_err(), "{bad:?}");
        }
        assert_eq!(mount_target("/dev/shm").as_deref(), Ok("/dev/shm"));
    }
}
