//! The system call filter of a node (seccomp(2), OCI runtime-spec config-linux, "Seccomp"), made from `data/seccomp.json`.

use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DATA: &str = include_str!("../data/seccomp.json");

/// errno(3).
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// Every `CLONE_NEW*` flag of clone(2): a new namespace needs `CAP_SYS_ADMIN`.
const CLONE_NAMESPACES: u32 = 0x7E02_0000;
/// socket(2): kernel crypto and virtual machine sockets, neither of which CRIU can dump.
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;
/// `IPPROTO_MPTCP`: CRIU cannot dump it, and who asks for it falls back to TCP.
const MPTCP: u32 = 262;

#[derive(Deserialize)]
struct Profile {
    allowed: Vec<String>,
    allowed_on: BTreeMap<String, Vec<String>>,
    absent: Vec<String>,
    personalities: Vec<u32>,
    with_capability: BTreeMap<String, Vec<String>>,
}

/// The filter for processes with `capabilities`.
///
/// # Errors
/// When the data built into this program is malformed, which its tests exclude.
pub(crate) fn filter(capabilities: &[&str]) -> serde_json::Result<Value> {
    let profile: Profile = serde_json::from_str(DATA)?;
    let mut names = profile.allowed;
    for (capability, extra) in profile.with_capability {
        if capabilities.contains(&capability.as_str()) {
            names.extend(extra);
        }
    }
    names.extend(
        profile
            .allowed_on
            .get(std::env::consts::ARCH)
            .cloned()
            .unwrap_or_default(),
    );
    names.sort();
    names.dedup();
    let mut rules = vec![
        json!({ "names": names, "action": "SCMP_ACT_ALLOW" }),
        json!({ "names": profile.absent, "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
    ];
    for value in profile.personalities {
        rules.push(json!({ "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [arg(0, "EQ", value)] }));
    }
    let families = [
        arg(0, "LT", AF_ALG),
        arg(0, "EQ", AF_ALG + 1),
        arg(0, "GT", AF_VSOCK),
    ];
    for family in families {
        rules.push(json!({ "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [family, arg(2, "NE", MPTCP)] }));
    }
    if !capabilities.contains(&"CAP_SYS_ADMIN") {
        let mask = json!({ "index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" });
        rules.push(json!({ "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [mask] }));
        // Its flags are in memory, where a filter cannot look; libraries fall back to clone.
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    let architectures: &[&str] = match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &[],
    };
    Ok(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures,
        "syscalls": rules,
    }))
}

fn arg(index: u32, op: &str, value: u32) -> Value {
    json!({ "index": index, "value": value, "op": format!("SCMP_CMP_{op}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(capabilities: &[&str]) -> Vec<String> {
        let filter = filter(capabilities).unwrap();
        serde_json::from_value(filter["syscalls"][0]["names"].clone()).unwrap()
    }

    #[test]
    fn capabilities_widen_the_filter_and_nothing_allows_what_cannot_be_cloned() {
        let plain = allowed(&[]);
        assert!(
            plain.contains(&"openat".into())
                && !plain.contains(&"mount".into())
                && !plain.contains(&"chroot".into())
        );
        assert!(allowed(&["CAP_SYS_CHROOT"]).contains(&"chroot".into()));
        let admin = allowed(&["CAP_SYS_ADMIN"]);
        assert!(admin.contains(&"mount".into()) && admin.contains(&"clone3".into()));
        assert!(
            !admin
                .iter()
                .any(|name| name.starts_with("io_") || name.starts_with("landlock"))
        );
    }
}
