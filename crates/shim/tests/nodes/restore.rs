//! A node that goes on where another was, in its own mounts, cgroup and network namespace.

use crate::support::*;
use offshoot_runtime::runc::Runc;
use offshoot_runtime::*;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a working criu is.
pub(crate) fn criu_dir() -> Option<PathBuf> {
    let own = std::env::var_os("OFFSHOOT_CRIU_DIR").map(PathBuf::from);
    let dirs = own
        .into_iter()
        .chain(["/opt/offshoot/criu/bin", "/usr/sbin", "/usr/bin"].map(PathBuf::from));
    let works = |dir: &PathBuf| {
        Command::new(dir.join("criu"))
            .arg("check")
            .output()
            .is_ok_and(|out| out.status.success())
    };
    let found = dirs.into_iter().find(works);
    if found.is_none() {
        println!("SKIPPED: needs a criu that works on this kernel");
    }
    found
}

/// Takes images with runc's own checkpoint and leaves the node running.
pub(crate) fn checkpoint(node: &TestNode, images: &Path) {
    let runc = Runc::new(&node.spec.tools, &node.spec.run_dir);
    let mut command = runc.command([
        "checkpoint",
        "--leave-running",
        "--tcp-established",
        "--ext-unix-sk",
        "--file-locks",
    ]);
    command
        .arg("--empty-ns")
        .arg("network")
        .arg("--image-path")
        .arg(images)
        .arg("--work-path")
        .arg(images);
    command.arg(node.spec.node.to_string());
    // Needs no iptables this way. Not in the file that runc names to CRIU: before 4.2.1 it crashes at it there.
    let config = images.with_extension("conf");
    std::fs::write(&config, "network-lock skip\n").unwrap();
    command.env("CRIU_CONFIG_FILE", &config);
    std::fs::create_dir(images).unwrap();
    std::fs::set_permissions(images, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    if let Err(error) = runc.run(command, LONG) {
        panic!(
            "{error:?}\n{:#?}",
            runc::criu_errors(&images.join("dump.log"))
        );
    }
}

/// A node that is what `parent` is, with a copy of its disk, and is brought back from `images`.
pub(crate) fn clone_from(parent: &TestNode, images: PathBuf) -> TestNode {
    TestNode::new("").with(|spec| {
        std::fs::remove_dir_all(&spec.rootfs).unwrap();
        copy_tree(&parent.spec.rootfs, &spec.rootfs);
        let own = spec.clone();
        *spec = NodeSpec {
            node: own.node,
            run_dir: own.run_dir,
            log_dir: own.log_dir,
            rootfs: own.rootfs,
            hostname: "clone.test".into(),
            start: Start::Restore { images },
            ..parent.spec.clone()
        };
    })
}

fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("/bin/cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_restored_node_goes_on_beside_its_parent() {
    let Some(criu) = criu_dir().filter(|_| fit()) else {
        return;
    };
    let parent = TestNode::new(
        "hostname > /tmp/first; i=0; while true; do i=$((i+1)); echo count $i $(cat /etc/app.conf); sleep 0.02; done",
    )
    .with(|spec| {
        spec.tools.criu_dir = Some(criu.clone());
        spec.tmpfs.push(Tmpfs { target: "/scratch".into(), size: Some(1 << 20), mode: None });
        spec.files.push(NodeFile { place: FilePlace::Mount, ..NodeFile::etc("/etc/app.conf", "captured".into()) });
        spec.files.push(NodeFile::etc("/etc/hosts", "127.0.0.1 localhost\n".into()));
        let volume = spec.rootfs.with_file_name("volume");
        std::fs::create_dir(&volume).unwrap();
        spec.binds.push(Bind { source: volume, target: "/data".into(), access: Access::ReadWrite });
        // Equal: runc (written in Go, which raises the soft limit when it starts) sometimes hands a session the hard one.
        spec.ulimits.insert("nofile".into(), offshoot_model::manifest::Ulimit { soft: 500, hard: 500 });
        spec.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
        spec.init = true;
    });
    let running = parent.start();
    parent.wait_log("count 5 captured");
    assert!(
        parent
            .exec("echo kept > /scratch/x; echo kept > /dev/shm/y; echo kept > /data/z")
            .status
            == 0
    );
    let memory = Mounted::tmpfs(parent.dir.join("memory"));
    let images = memory.0.join("images");
    let started = std::time::Instant::now();
    checkpoint(&parent, &images);
    println!("checkpoint took {:?}", started.elapsed());
    let clone = clone_from(&parent, images.clone()).with(|spec| {
        let volume = spec.rootfs.with_file_name("volume");
        copy_tree(&spec.binds[0].source, &volume);
        spec.binds[0].source = volume;
    });
    let started = std::time::Instant::now();
    let client = clone.start();
    println!("restore took {:?}", started.elapsed());
    wait_for("lines of the clone", || {
        (clone.log().lines().count() > 5).then_some(())
    });
    let first = clone.log().lines().next().unwrap().to_owned();
    assert!(
        first.starts_with("count ") && first != "count 1 captured",
        "{first}"
    );
    let seen = clone.exec("hostname; cat /scratch/x /dev/shm/y /data/z /tmp/first; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /sys/class/net/lo/operstate; ulimit -n");
    assert_eq!(
        seen.output.lines().collect::<Vec<_>>(),
        [
            "clone.test",
            "kept",
            "kept",
            "kept",
            "web-1.test",
            "80",
            "unknown",
            "500"
        ]
    );
    assert_eq!(
        clone.exec("hostname clone2").status,
        1,
        "no right to set the host name inside"
    );
    let shim = client.status().unwrap().shim.unwrap();
    let mounts = std::fs::read_to_string(format!("/proc/{shim}/mountinfo")).unwrap();
    assert!(
        !mounts.contains(&memory.0.display().to_string()),
        "the images are held after the restore"
    );
    // Every process in its own node's cgroups, in every hierarchy.
    let main = |node: &TestNode| observe(&node.spec.run_dir).unwrap().pid.unwrap();
    for (node, other) in [(&clone, &parent), (&parent, &clone)] {
        let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", main(node))).unwrap();
        let other = other.spec.node.env().as_str();
        assert!(
            cgroups.contains(node.spec.node.env().as_str()) && !cgroups.contains(other),
            "{cgroups}"
        );
        assert!(!node.cgroup().processes().is_empty());
    }
    let record = client.stop(15, LONG).unwrap();
    assert_eq!(record.status, 143);
    assert_eq!(running.status().unwrap().state, RunState::Running);
    assert_eq!(parent.exec("hostname").output, "web-1.test\n");
    // A clone of the clone's disk and images again, over the first one's remains.
    clone.start();
    wait_for("the clone running again", || {
        clone.exec("true").status.eq(&0).then_some(())
    });
}

#[test]
fn a_failed_restore_says_why_and_leaves_nothing() {
    let Some(criu) = criu_dir().filter(|_| fit()) else {
        return;
    };
    let node = TestNode::new("sleep 1000").with(|spec| {
        let images = spec.rootfs.with_file_name("images");
        std::fs::create_dir(&images).unwrap();
        std::fs::write(
            images.join("descriptors.json"),
            "[\"pipe:[1]\",\"pipe:[2]\",\"pipe:[3]\"]",
        )
        .unwrap();
        spec.tools.criu_dir = Some(criu);
        spec.start = Start::Restore { images };
    });
    let problem = ensure_node(&node.spec).unwrap_err().problem();
    assert_eq!(problem.code, offshoot_model::Code::RestoreFailed);
    assert!(
        problem.details.iter().any(|line| line.contains("Error (")),
        "{problem:#?}"
    );
    assert!(!node.spec.run_dir.exists() && !node.cgroup().exists());
}

#[test]
fn a_restore_whose_criu_is_killed_fails_soon() {
    let Some(criu) = criu_dir().filter(|_| fit()) else {
        return;
    };
    let parent = TestNode::new("sleep 1000").with(|spec| spec.tools.criu_dir = Some(criu.clone()));
    parent.start();
    let images = parent.dir.join("images");
    checkpoint(&parent, &images);
    // The first one is asked for its version. The second dies when it was told what to do, and a process of its own still holds the line.
    let mock = parent.dir.join("mock");
    std::fs::create_dir(&mock).unwrap();
    let script = format!(
        "#!/bin/sh\n[ ! -e {mark} ] || {{ head -c 1 <&3; sleep 1000 & kill -9 $$; }}\n: >{mark}\nexec {criu} \"$@\"\n",
        mark = mock.join("mark").display(),
        criu = criu.join("criu").display(),
    );
    let program = mock.join("criu");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let clone = TestNode::new("sleep 1000").with(|spec| {
        spec.tools.criu_dir = Some(mock);
        spec.start = Start::Restore { images };
    });
    let began = std::time::Instant::now();
    let problem = ensure_node(&clone.spec).unwrap_err().problem();
    assert_eq!(problem.code, offshoot_model::Code::RestoreFailed);
    assert!(problem.to_string().contains("was killed"), "{problem:#?}");
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    assert!(!clone.spec.run_dir.exists() && !clone.cgroup().exists());
}
