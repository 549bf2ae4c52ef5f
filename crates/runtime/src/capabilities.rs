//! Which capabilities a node's processes may have: Docker's default set, changed by `cap_add` and `cap_drop`.

use crate::error::{Result, RuntimeError};

/// All capabilities (capabilities(7), Linux 5.9 and later), in the kernel's order.
const ALL: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a Docker container has.
const DEFAULT: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The set after `drop` and `add`, in the kernel's order. As in Docker, what is both dropped and added by name is added; `ALL` is
/// understood in both. They hold over the node's own namespaces only.
///
/// # Errors
/// When a name is no capability.
pub(crate) fn resolve(add: &[String], drop: &[String]) -> Result<Vec<&'static str>> {
    let parse = |names: &[String]| -> Result<(bool, Vec<&'static str>)> {
        let mut all = false;
        let mut parsed = Vec::new();
        for name in names {
            let upper = name.to_ascii_uppercase();
            if upper == "ALL" {
                all = true;
                continue;
            }
            let full = if upper.starts_with("CAP_") {
                upper
            } else {
                format!("CAP_{upper}")
            };
            let known = ALL.iter().find(|known| **known == full);
            parsed.push(
                *known
                    .ok_or_else(|| RuntimeError::spec(format!("{name:?} is not a capability")))?,
            );
        }
        Ok((all, parsed))
    };
    let (add_all, added) = parse(add)?;
    let (drop_all, dropped) = parse(drop)?;
    let base = if add_all {
        ALL
    } else if drop_all {
        &[]
    } else {
        DEFAULT
    };
    let keep =
        |name: &&str| added.contains(name) || (base.contains(name) && !dropped.contains(name));
    Ok(ALL.iter().copied().filter(keep).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        resolve(&own(add), &own(drop)).unwrap()
    }

    #[test]
    fn sets_are_made_as_docker_makes_them() {
        assert_eq!(set(&[], &[]).len(), 14);
        assert!(set(&["NET_ADMIN"], &[]).contains(&"CAP_NET_ADMIN"));
        assert_eq!(set(&["cap_net_admin"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert_eq!(set(&["ALL"], &["SYS_ADMIN"]).len(), ALL.len() - 1);
        assert!(!set(&[], &["CHOWN"]).contains(&"CAP_CHOWN"));
        assert!(resolve(&["NONSENSE".into()], &[]).is_err());
    }
}
