//! Real containers by hand: runc, a user namespace, an id-mapped root file system, a bridge in a namespace of its own.
//! Everything a test makes has the test's own name and goes away with it, on a panic too.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) use offshoot_checkpoint::Late;
use offshoot_checkpoint::{
    Container, Criu, CutNode, CutReport, CutRequest, Foreign, Freezer, Insist, Isolate, Ladder,
    Lease, Plant, Twin,
};
use offshoot_model::clone::Rung;
use offshoot_sys::inject::Stopped;
use offshoot_sys::mount;
use serde_json::json;

use crate::net::{Net, port_name};

/// Longest wait for a condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const IDS: u32 = 65536;

/// What the tests need of the host, or `None` with the reason printed.
pub(crate) fn host() -> Option<Criu> {
    for program in ["runc", "redis-server", "python3", "ip", "nsenter"] {
        let found = std::env::var("PATH")
            .unwrap_or_default()
            .split(':')
            .any(|d| Path::new(d).join(program).exists());
        if !found {
            println!("SKIPPED: {program} is not installed");
            return None;
        }
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: needs root");
        return None;
    }
    let (criu, info) = Criu::find(None);
    if criu.is_none() {
        println!("SKIPPED: no CRIU works here: {:?}", info.why);
    }
    criu
}

/// `time`, as many times longer as `OFFSHOOT_TEST_STRETCH` says: for emulated machines.
pub(crate) fn stretched(time: Duration) -> Duration {
    let told = std::env::var("OFFSHOOT_TEST_STRETCH");
    time * told.ok().and_then(|told| told.parse().ok()).unwrap_or(1)
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = stretched(PATIENCE);
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {patience:?} for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A folder, a runc root, a cgroup name: one per test.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) name: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new()
            .prefix("offshoot-ckpt-")
            .tempdir()
            .unwrap();
        fs::set_permissions(
            dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        Self {
            dir,
            name: format!("offshoot-ckpt-{}-{n}", std::process::id()),
        }
    }

    pub(crate) fn path(&self, inner: &str) -> PathBuf {
        let path = self.dir.path().join(inner);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub(crate) fn runc_root(&self) -> PathBuf {
        self.path("runc")
    }

    /// A folder in memory for the images, as the engine would give.
    pub(crate) fn images(&self, of: &str) -> PathBuf {
        let folder = Path::new("/dev/shm").join(&self.name);
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        folder.join(of)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new("/dev/shm").join(&self.name));
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        let mut roots: Vec<_> = hierarchies.map(|entry| entry.path()).collect();
        roots.push(root.to_owned()); // version 2
        for hierarchy in roots {
            let ours = hierarchy.join(&self.name);
            for node in fs::read_dir(&ours).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(node.path());
            }
            let _ = fs::remove_dir(ours);
        }
    }
}

/// Gets at a process's memory from here; nobody kills a test in that moment.
pub(crate) struct InProcess;

impl Plant for InProcess {
    fn plant(&self, pid: i32) -> Result<OwnedFd, Foreign> {
        Ok(Stopped::stop(pid, PATIENCE)?.watch_writes()?.into())
    }

    fn twin(&self, _: &str, _: i32, _: &Path) -> Result<Twin, Foreign> {
        Err("a twin needs somebody who keeps it".into())
    }
}

/// Freezes by writing to the cgroup.
#[derive(Default)]
pub(crate) struct ByHand(pub(crate) Vec<(String, PathBuf)>);

impl ByHand {
    pub(crate) fn of(nodes: &[&Node]) -> Self {
        let freezer = |node: &&Node| (node.id.clone(), node.container().freezer);
        Self(nodes.iter().map(freezer).collect())
    }
}

struct Frozen(PathBuf);

/// In the words of version 1, `FROZEN` or `THAWED`, whatever the version.
pub(crate) fn freezer_state(cgroup: &Path) -> String {
    let read = |file| fs::read_to_string(cgroup.join(file));
    if let Ok(state) = read("freezer.state") {
        return state.trim().to_owned();
    }
    match read("cgroup.events") {
        Ok(events) if events.contains("frozen 1") => "FROZEN".to_owned(),
        Ok(_) => "THAWED".to_owned(),
        Err(_) => String::new(),
    }
}

fn set_freezer(cgroup: &Path, v1: &str, v2: &str) -> std::io::Result<()> {
    match cgroup.join("freezer.state") {
        file if file.exists() => fs::write(file, v1),
        _ => fs::write(cgroup.join("cgroup.freeze"), v2),
    }
}

impl Freezer for ByHand {
    fn freeze(&self, node: &str, _max: Duration) -> Result<Box<dyn Lease>, Foreign> {
        let (_, cgroup) = self
            .0
            .iter()
            .find(|(n, _)| n == node)
            .ok_or("no such node")?;
        let lease = Frozen(cgroup.clone());
        let deadline = Instant::now() + stretched(Duration::from_secs(2));
        set_freezer(cgroup, "FROZEN", "1")?;
        while freezer_state(cgroup) != "FROZEN" {
            if Instant::now() > deadline {
                return Err("does not freeze".into());
            }
            std::thread::yield_now();
        }
        Ok(Box::new(lease))
    }
}

impl Lease for Frozen {
    fn end(self: Box<Self>) -> Result<(), Foreign> {
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = set_freezer(&self.0, "THAWED", "0");
    }
}

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

/// Cuts `nodes`, all live, and copies their root file systems in the cut.
pub(crate) fn cut(
    place: &Place,
    criu: &Criu,
    nodes: &[&Node],
    isolate: Option<&dyn Isolate>,
) -> CutReport {
    let freezer = ByHand::of(nodes);
    let request = CutRequest {
        isolate,
        ..request(criu, nodes_of(place, nodes), &freezer)
    };
    let (report, _tracking) = offshoot_checkpoint::cut(request, &|| snapshot(place, nodes))
        .unwrap_or_else(|e| panic!("{:?}", e.problem()));
    println!("{report:#?}");
    report
}

/// A cut of all of them alive, within the usual bound.
pub(crate) fn request<'a>(
    criu: &'a Criu,
    nodes: Vec<CutNode>,
    freezer: &'a dyn Freezer,
) -> CutRequest<'a> {
    CutRequest {
        criu,
        nodes,
        freezer,
        isolate: None,
        max_freeze: Duration::from_secs(5),
        insist: Insist::OnLive,
        plant: &InProcess,
        late: Late::Never,
        settle: &|| (),
        cancelled: &|| false,
    }
}

pub(crate) fn nodes_of(place: &Place, nodes: &[&Node]) -> Vec<CutNode> {
    nodes.iter().map(|node| cut_node(place, node)).collect()
}

pub(crate) fn cut_node(place: &Place, node: &Node) -> CutNode {
    CutNode {
        node: node.id.clone(),
        container: node.container(),
        images: place.images(&node.id),
        rung: Rung::Live,
        memory: Ladder::of_host().best(),
    }
}

pub(crate) fn snapshot(place: &Place, nodes: &[&Node]) -> Result<(), Foreign> {
    for node in nodes {
        let copy = place.path(&format!("rootfs/{}-clone", node.id));
        // taken a second time, it replaces the first
        let _ = fs::remove_dir_all(&copy);
        run(Command::new("cp").arg("-a").arg(&node.rootfs).arg(copy));
    }
    Ok(())
}

/// The clone of a node that was cut: another id range, another network, the copied disk.
pub(crate) fn clone_of<'a>(
    place: &Place,
    make: &Make<'a>,
    id: &'a str,
    base: u32,
    net: Option<(&'a Net, &'a str)>,
    criu: &Criu,
) -> Node {
    let images = place.images(make.id);
    offshoot_checkpoint::rewrite_ids(&images, base, IDS).unwrap();
    let rootfs = place.path(&format!("rootfs/{}-clone", make.id));
    let make = Make {
        id,
        base,
        args: make.args.clone(),
        rootfs,
        net,
        mounts: make.mounts.clone(),
    };
    let clone = Node::restore(place, &make, &images, criu);
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", clone.pid())).unwrap();
    assert!(
        cgroups
            .lines()
            .all(|line| line.ends_with(&format!("/{}/{}", place.name, id))),
        "the clone is in other cgroups than its own:\n{cgroups}"
    );
    clone
}
