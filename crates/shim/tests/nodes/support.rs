//! A node with a busybox root file system, removed when the test ends however it ends.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use offshoot_model::EnvId;
use offshoot_model::NodeId;
use offshoot_runtime::cgroup::{Hierarchies, NodeCgroup};
use offshoot_runtime::*;

pub(crate) const LONG: Duration = Duration::from_secs(30);
/// [`LONG`], stretched on an emulated machine (`packaging/test-in-vm.sh` says how much).
fn patience() -> Duration {
    let told = std::env::var("OFFSHOOT_TEST_STRETCH");
    let told = told.ok().and_then(|text| text.parse().ok());
    LONG * told.unwrap_or(1u32).clamp(1, 100)
}

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] = &[
    "sh", "sleep", "cat", "ls", "id", "mount", "stat", "touch", "echo", "ps", "kill", "dd", "stty",
    "tty", "env", "true", "chown", "hostname", "mknod", "grep", "ip", "head", "seq", "yes", "su",
    "pwd", "mkdir", "rm", "readlink", "sort", "nproc", "df", "test",
];
static NEXT: AtomicU32 = AtomicU32::new(0);

/// What the tests need; says what is missing.
pub(crate) fn fit() -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "root"
    } else if !Path::new("/usr/bin/runc").exists() && !Path::new("/usr/sbin/runc").exists() {
        "runc"
    } else if !Path::new(BUSYBOX).exists() {
        "busybox-static"
    } else {
        return true;
    };
    println!("SKIPPED: needs {missing}");
    false
}

pub(crate) struct TestNode {
    pub(crate) spec: NodeSpec,
    pub(crate) dir: PathBuf,
}

impl TestNode {
    /// A node that runs `script` with sh.
    pub(crate) fn new(script: &str) -> Self {
        let dir = std::env::temp_dir().join(format!(
            "offshoot-node-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        let rootfs = dir.join("rootfs");
        for sub in ["bin", "etc", "tmp", "proc", "sys", "dev", "root"] {
            fs::create_dir_all(rootfs.join(sub)).unwrap();
        }
        fs::set_permissions(&dir, Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(rootfs.join("tmp"), Permissions::from_mode(0o1777)).unwrap();
        fs::copy(BUSYBOX, rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        )
        .unwrap();
        fs::write(
            rootfs.join("etc/group"),
            "root:x:0:\napp:x:1000:\nextra:x:2000:app\n",
        )
        .unwrap();
        let node = NodeId::new(EnvId::random(), "web-1").unwrap();
        let runc = ["/usr/bin/runc", "/usr/sbin/runc"]
            .map(PathBuf::from)
            .into_iter()
            .find(|p| p.exists());
        let spec = NodeSpec {
            run_dir: dir
                .join("run/envs")
                .join(node.env().as_str())
                .join("nodes/web-1"),
            log_dir: dir.join("log"),
            node,
            instance: format!("t{}", std::process::id() % 100_000),
            rootfs,
            binds: Vec::new(),
            files: Vec::new(),
            tmpfs: Vec::new(),
            process: ProcessSpec {
                args: vec!["/bin/sh".into(), "-c".into(), script.into()],
                env: vec!["PATH=/bin".into(), "HOME=/root".into()],
                cwd: "/".into(),
                user: UserSpec::default(),
            },
            hostname: "web-1.test".into(),
            id_base: 200_000,
            id_count: 65_536,
            limits: Default::default(),
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            sysctls: Default::default(),
            ulimits: Default::default(),
            no_new_privileges: true,
            read_only: false,
            init: false,
            link: None,
            start: Start::Fresh,
            share_memory: false,
            hold_jobs: false,
            tools: Tools {
                runc: runc.unwrap_or_default(),
                criu_dir: None,
                criu_kernel: None,
                shim: env!("CARGO_BIN_EXE_offshoot-shim").into(),
            },
        };
        Self { spec, dir }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut NodeSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    pub(crate) fn start(&self) -> NodeClient {
        ensure_node(&self.spec).unwrap_or_else(|e| {
            let log = fs::read_to_string(self.spec.run_dir.join("shim.log")).unwrap_or_default();
            panic!("{:#?}\n{log}\n{}", e.problem(), self.log())
        })
    }

    pub(crate) fn remove(&self) {
        ensure_node_removed(
            &self.spec.run_dir,
            &self.spec.node,
            &self.spec.instance,
            &self.spec.tools,
        )
        .unwrap();
    }

    /// Everything printed so far.
    pub(crate) fn log(&self) -> String {
        let lines = read_logs(&self.spec.log_dir, LogQuery::default()).unwrap();
        lines.map(|l| l.unwrap().line + "\n").collect()
    }

    pub(crate) fn wait_log(&self, text: &str) -> String {
        wait_for(&format!("{text:?} in the log"), || {
            Some(self.log()).filter(|log| log.contains(text))
        })
    }

    pub(crate) fn cgroup(&self) -> NodeCgroup {
        NodeCgroup::new(
            Hierarchies::of_host().unwrap(),
            &self.spec.instance,
            &self.spec.node,
        )
    }

    /// Runs to the end and gives the exit record and what was printed.
    pub(crate) fn run(&self) -> (ExitRecord, String) {
        let record = self
            .start()
            .wait(patience())
            .unwrap()
            .expect("the node ended");
        (record, self.log())
    }

    pub(crate) fn exec(&self, script: &str) -> Finished {
        let what = ExecSpec {
            args: ["/bin/sh", "-c", script].map(String::from).to_vec(),
            ..Default::default()
        };
        exec(&self.spec, &what)
            .unwrap()
            .finish(patience(), 1 << 20)
            .unwrap()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let removed = ensure_node_removed(
            &self.spec.run_dir,
            &self.spec.node,
            &self.spec.instance,
            &self.spec.tools,
        );
        let _ = fs::remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            removed.unwrap();
            assert!(!self.cgroup().exists(), "cgroups are left");
        }
    }
}

/// Lets a node run the host's programs: with its /usr, and the links that their loader is found by.
pub(crate) fn bind_usr(spec: &mut NodeSpec) {
    for dir in ["lib", "lib64"] {
        symlink(format!("usr/{dir}"), spec.rootfs.join(dir)).unwrap();
    }
    spec.binds.push(Bind {
        source: "/usr".into(),
        target: "/usr".into(),
        access: Access::ReadOnly,
    });
}

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "no {what} within {:?}",
            patience()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn alive(pid: i32) -> bool {
    offshoot_sys::process::identity(pid).is_ok_and(|id| id.state != 'Z')
}

/// A temporary file system that goes with the test.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn tmpfs(at: PathBuf) -> Self {
        Self::tmpfs_of(at, 64 << 20)
    }

    pub(crate) fn tmpfs_of(at: PathBuf, bytes: u64) -> Self {
        fs::create_dir_all(&at).unwrap();
        let mounted = Self(at);
        offshoot_sys::mount::tmpfs(&mounted.0, bytes).unwrap();
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = offshoot_sys::mount::detach(&self.0);
        let _ = fs::remove_dir(&self.0);
    }
}
