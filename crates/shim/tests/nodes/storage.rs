//! Volumes, files, temporary file systems, owners.

use crate::support::*;
use offshoot_runtime::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn volume(spec: &mut NodeSpec, name: &str, target: &str, access: Access) -> std::path::PathBuf {
    let source = spec.rootfs.with_file_name(name);
    fs::create_dir_all(&source).unwrap();
    spec.binds.push(Bind {
        source: source.clone(),
        target: target.into(),
        access,
    });
    source
}

#[test]
fn owners_on_disk_are_unshifted() {
    if !fit() {
        return;
    }
    let mut data = Default::default();
    let node = TestNode::new("touch /root/mine /data/mine; chown 1000:2000 /data/mine; stat -c '%u:%g' /data/before /data/mine /bin/busybox; echo $$ > /proc/self/oom_score_adj; cat /proc/self/uid_map; sleep 1000")
        .with(|spec| {
            data = volume(spec, "volume", "/data", Access::ReadWrite);
            fs::write(data.join("before"), "").unwrap();
            std::os::unix::fs::chown(data.join("before"), Some(33), Some(44)).unwrap();
        });
    let client = node.start();
    let log = node.wait_log("200000");
    let lines: Vec<&str> = log
        .lines()
        .filter(|l| l.contains(':') && l.len() < 12)
        .collect();
    assert_eq!(lines, ["33:44", "1000:2000", "0:0"], "{log}");
    let owner = |path: std::path::PathBuf| fs::metadata(path).map(|m| (m.uid(), m.gid())).unwrap();
    assert_eq!(owner(data.join("mine")), (1000, 2000));
    assert_eq!(owner(node.spec.rootfs.join("root/mine")), (0, 0));
    // While for the host the process is nobody.
    let pid = client.status().unwrap().pid.unwrap();
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), 200_000);
    assert!(
        !node.spec.run_dir.join("mnt/dev").exists(),
        "mounts stay in the shim's namespace"
    );
}

#[test]
fn volumes_files_and_tmpfs_are_where_they_should_be() {
    if !fit() {
        return;
    }
    let mut read_only = Default::default();
    let node = TestNode::new("sleep 1000").with(|spec| {
        volume(spec, "a", "/data", Access::ReadWrite);
        read_only = volume(spec, "b", "/data/inner/deep", Access::ReadOnly);
        fs::write(read_only.join("x"), "from b").unwrap();
        fs::create_dir(spec.rootfs.join("scratch")).unwrap();
        spec.tmpfs.push(Tmpfs {
            target: "/scratch".into(),
            size: Some(1 << 20),
            mode: Some(0o700),
        });
        let secret = NodeFile {
            target: "/run/secrets/key".into(),
            content: b"\x00\xffkey".to_vec().into(),
            mode: 0o400,
            uid: 1000,
            gid: 2000,
            place: FilePlace::Mount,
        };
        spec.files.push(secret);
        spec.files.push(NodeFile::etc(
            "/etc/hosts",
            "127.0.0.1 localhost\n10.1.1.1 other\n".into(),
        ));
        spec.files.push(NodeFile::etc(
            "/data/etc/below",
            "mounted over a volume\n".into(),
        ));
        // Where a link leads out, the link is replaced, not followed.
        std::os::unix::fs::symlink(
            "/../../../../etc/passwd",
            spec.rootfs.join("etc/resolv.conf"),
        )
        .unwrap();
        spec.files.push(NodeFile::etc(
            "/etc/resolv.conf",
            "nameserver 10.208.0.1\n".into(),
        ));
    });
    node.start();
    let say = |script: &str| node.exec(script).output;
    assert_eq!(
        say("cat /data/inner/deep/x; touch /data/inner/deep/y 2>&1"),
        "from btouch: /data/inner/deep/y: Read-only file system\n"
    );
    assert_eq!(
        say("stat -c '%a %u %g %s' /run/secrets/key"),
        "400 1000 2000 5\n"
    );
    assert!(say("echo no > /run/secrets/key; rm -f /run/secrets/key; mount -o remount,rw /run/secrets/key").lines().count() >= 2);
    assert_eq!(say("stat -c %s /run/secrets/key"), "5\n");
    assert_eq!(
        say("cat /etc/hosts | head -n1; cat /etc/resolv.conf /data/etc/below"),
        "127.0.0.1 localhost\nnameserver 10.208.0.1\nmounted over a volume\n"
    );
    assert!(
        say("dd if=/dev/zero of=/scratch/big bs=65536 count=64 2>&1").contains("No space left")
    );
    assert_eq!(
        say("stat -c '%a %u' /scratch; stat -c %a /dev/shm"),
        "700 0\n1777\n"
    );
    assert_eq!(
        say("su -s /bin/sh app -c 'cat /run/secrets/key | busybox wc -c; ls /scratch 2>&1'"),
        "5\nls: can't open '/scratch': Permission denied\n"
    );
    assert!(read_only.join("x").exists() && !read_only.join("y").exists());
    // Which mounts there are is a promise: each costs time in a freeze.
    let mounts = say(
        "cut -d' ' -f5 /proc/self/mountinfo 2>/dev/null || busybox cut -d' ' -f5 /proc/self/mountinfo",
    );
    let mut mounts: Vec<&str> = mounts.lines().collect();
    mounts.sort_unstable();
    assert_eq!(
        mounts,
        [
            "/",
            "/data",
            "/data/etc/below",
            "/data/inner/deep",
            "/dev",
            "/dev/mqueue",
            "/dev/pts",
            "/dev/shm",
            "/proc",
            "/run/secrets/key",
            "/scratch",
            "/sys"
        ]
    );
}

#[test]
fn a_read_only_root_is_read_only() {
    if !fit() {
        return;
    }
    let node = TestNode::new(
        "touch /x; echo hi > /etc/hosts; cat /etc/hosts; touch /dev/shm/ok && echo shm",
    )
    .with(|spec| {
        spec.read_only = true;
        spec.files.push(NodeFile::etc("/etc/hosts", "one\n".into()));
    });
    let (_, log) = node.run();
    assert!(
        log.contains("touch: /x: Read-only") && log.contains("\none\n") && log.contains("shm"),
        "{log}"
    );
}

#[test]
fn a_node_holds_no_foreign_mounts() {
    if !fit() {
        return;
    }
    let name = format!("offshoot-node-foreign-{}", std::process::id());
    let mounted = Mounted::tmpfs(std::env::temp_dir().join(name));
    let node = TestNode::new("sleep 1000");
    let shim = node.start().status().unwrap().shim.unwrap();
    let seen = fs::read_to_string(format!("/proc/{shim}/mountinfo")).unwrap();
    assert!(!seen.contains(&mounted.0.display().to_string()));
    assert!(seen.contains(&node.spec.run_dir.join("mnt/rootfs").display().to_string()));
    let own = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !own.contains(&node.spec.run_dir.display().to_string()),
        "mounts leaked out of the shim"
    );
    let mode = |name: &str| {
        fs::metadata(node.spec.run_dir.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("spec.json"), mode("control.sock")), (0o600, 0o600));
}
