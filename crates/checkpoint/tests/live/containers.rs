//! Containers by hand: runc, a user namespace, an id-mapped root file system, a bridge in a namespace of its own.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use offshoot_checkpoint::{Container, Criu};
use offshoot_sys::mount;
use serde_json::json;

use crate::net::{Net, port_name};
use crate::support::{Place, freezer_state, run, set_freezer};

/// How many user and group ids a container has.
pub(crate) const IDS: u32 = 65536;

/// How a container is made.
pub(crate) struct Make<'a> {
    pub(crate) id: &'a str,
    pub(crate) base: u32,
    pub(crate) args: Vec<String>,
    pub(crate) rootfs: PathBuf,
    /// Network and address, for instance `10.9.0.2`.
    pub(crate) net: Option<(&'a Net, &'a str)>,
    pub(crate) mounts: Vec<serde_json::Value>,
}

impl<'a> Make<'a> {
    pub(crate) fn new(place: &Place, id: &'a str, base: u32, args: &[&str]) -> Self {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        Self {
            id,
            base,
            args,
            rootfs: new_rootfs(place, id),
            net: None,
            mounts: Vec::new(),
        }
    }

    pub(crate) fn net(mut self, net: &'a Net, address: &'a str) -> Self {
        self.net = Some((net, address));
        self
    }
}

/// A root file system that borrows the host's /usr.
pub(crate) fn new_rootfs(place: &Place, id: &str) -> PathBuf {
    let rootfs = place.path(&format!("rootfs/{id}"));
    for dir in [
        "usr", "proc", "sys", "dev", "data", "etc", "run", "tmp", "var/tmp",
    ] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    for (link, to) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        std::os::unix::fs::symlink(to, rootfs.join(link)).unwrap();
    }
    for open in ["data", "tmp"] {
        fs::set_permissions(
            rootfs.join(open),
            std::os::unix::fs::PermissionsExt::from_mode(0o1777),
        )
        .unwrap();
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\nweb:x:500:500::/data:/bin/sh\n",
    )
    .unwrap();
    rootfs
}

/// A container of a test. Deleted with everything in it when dropped.
pub(crate) struct Node {
    pub(crate) id: String,
    runc_root: PathBuf,
    pub(crate) rootfs: PathBuf,
    output: Arc<Mutex<String>>,
    _stdin: std::io::PipeWriter,
}

impl Node {
    pub(crate) fn start(place: &Place, make: &Make<'_>) -> Self {
        Self::launch(place, make, None)
    }

    pub(crate) fn restore(place: &Place, make: &Make<'_>, images: &Path, criu: &Criu) -> Self {
        Self::launch(place, make, Some((images, criu)))
    }

    fn launch(place: &Place, make: &Make<'_>, images: Option<(&Path, &Criu)>) -> Self {
        let bundle = place.path(&format!("bundles/{}", make.id));
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(
            bundle.join("config.json"),
            serde_json::to_vec_pretty(&config(place, make)).unwrap(),
        )
        .unwrap();
        let (stdin, stdin_ours) = std::io::pipe().unwrap();
        let (mut output_ours, stdout) = std::io::pipe().unwrap();
        let stderr = stdout.try_clone().unwrap();
        let log = place.path(&format!("{}.runc.log", make.id));
        let mut runc = Command::new("runc");
        runc.arg("--root")
            .arg(place.runc_root())
            .arg("--log")
            .arg(&log);
        match images {
            None => runc.args(["run", "-d"]),
            Some((images, criu)) => {
                let path = std::env::var("PATH").unwrap();
                runc.env(
                    "PATH",
                    format!("{}:{path}", criu.path().parent().unwrap().display()),
                );
                let work = place.path(&format!("{}.restore", make.id));
                runc.args([
                    "restore",
                    "-d",
                    "--tcp-established",
                    "--file-locks",
                    "--ext-unix-sk",
                    "--empty-ns",
                    "network",
                ]);
                runc.args(["--manage-cgroups-mode", "ignore"]);
                runc.arg("--image-path")
                    .arg(images)
                    .arg("--work-path")
                    .arg(work)
            }
        };
        runc.arg("-b")
            .arg(&bundle)
            .arg(make.id)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr);
        let rootfs = make.rootfs.clone();
        let base = make.base;
        // In a mount namespace of its own that ends with the thread: the id-mapped mount lives on in the container only.
        let status = std::thread::spawn(move || {
            mount::own_mount_namespace().unwrap();
            let userns = mount::user_namespace(base, IDS).unwrap();
            let tree = mount::open_tree(&rootfs).unwrap();
            mount::map_ids(tree.as_fd(), userns.as_fd(), mount::Writes::Allowed).unwrap();
            mount::place(tree.as_fd(), &bundle.join("rootfs")).unwrap();
            let status = runc.status().unwrap();
            drop(runc);
            status
        })
        .join()
        .unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&output);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output_ours.read(&mut buffer) {
                sink.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        let node = Self {
            id: make.id.to_owned(),
            runc_root: place.runc_root(),
            rootfs: make.rootfs.clone(),
            output,
            _stdin: stdin_ours,
        };
        assert!(
            status.success(),
            "runc of {}: {status}\n{}\n{}\n{:?}",
            make.id,
            fs::read_to_string(log).unwrap_or_default(),
            node.output(),
            offshoot_checkpoint::errors_in(
                &place
                    .path(&format!("{}.restore", make.id))
                    .join("restore.log")
            ),
        );
        node
    }

    pub(crate) fn container(&self) -> Container {
        Container::of_runc(&self.runc_root, &self.id).unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.container().pid
    }

    pub(crate) fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// A file below the node's root, as text; empty when it is not there.
    pub(crate) fn read(&self, inner: &str) -> String {
        fs::read_to_string(self.rootfs.join(inner)).unwrap_or_default()
    }

    pub(crate) fn number(&self, inner: &str) -> u64 {
        self.read(inner).trim().parse().unwrap_or(0)
    }

    pub(crate) fn exec(&self, args: &[&str]) -> String {
        let output = run(Command::new("runc")
            .arg("--root")
            .arg(&self.runc_root)
            .arg("exec")
            .arg(&self.id)
            .args(args));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(crate) fn is_running(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid())).is_ok_and(|s| !s.contains(") Z"))
            && freezer_state(&self.container().freezer) == "THAWED"
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- output of {}:\n{}", self.id, self.output());
        }
        if let Ok(container) = Container::of_runc(&self.runc_root, &self.id) {
            let _ = set_freezer(&container.freezer, "THAWED", "0");
        }
        let _ = Command::new("runc")
            .arg("--root")
            .arg(&self.runc_root)
            .args(["delete", "-f", &self.id])
            .status();
    }
}

/// The /usr that containers get: the host's, or another one with software the host lacks.
pub(crate) fn usr() -> PathBuf {
    std::env::var_os("OFFSHOOT_TEST_USR").map_or_else(|| PathBuf::from("/usr"), PathBuf::from)
}

fn config(place: &Place, make: &Make<'_>) -> serde_json::Value {
    let caps = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT"
    ]);
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]}),
        json!({"destination": "/usr", "type": "bind", "source": usr(), "options": ["rbind", "ro"]}),
    ];
    mounts.extend(make.mounts.iter().cloned());
    let mapping = json!([{"containerID": 0, "hostID": make.base, "size": IDS}]);
    let namespaces: Vec<_> = ["pid", "ipc", "uts", "mount", "network", "user"]
        .iter()
        .map(|n| json!({"type": n}))
        .collect();
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": make.args, "cwd": "/", "noNewPrivileges": true,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE=1"],
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps}
        },
        "root": {"path": "rootfs"},
        "hostname": "node",
        "mounts": mounts,
        "linux": {
            "uidMappings": mapping, "gidMappings": mapping, "namespaces": namespaces,
            "cgroupsPath": format!("/{}/{}", place.name, make.id),
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys"]
        }
    });
    if let Some((net, address)) = make.net {
        let port = port_name(address);
        let hook = place.path(&format!("bundles/{}/hook.sh", make.id));
        let script = format!(
            "#!/bin/sh\nset -e\npid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')\n\
             n() {{ nsenter -t $pid -n \"$@\"; }}\n\
             nsenter -t {holder} -n ip link add {port} type veth peer name eth0 netns $pid\n\
             nsenter -t {holder} -n ip link set {port} master br0 up\n\
             nsenter -t {holder} -n ip link set dev {port} type bridge_slave isolated on\n\
             n ip link set lo up\nn ip link set eth0 address 02:00:00:00:00:{last:02x}\n\
             n ip addr add {address}/24 dev eth0\nn ip link set eth0 up\n",
            holder = net.pid(),
            last = address.rsplit('.').next().unwrap().parse::<u8>().unwrap(),
        );
        fs::write(&hook, script).unwrap();
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", hook]}]});
    }
    config
}
