//! What tests of cuts have in common: the host, a place of their own, waiting, and a cut by hand.
//! Everything a test makes has the test's own name and goes away with it, on a panic too.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) use offshoot_checkpoint::Late;
use offshoot_checkpoint::{
    Criu, CutNode, CutReport, CutRequest, Foreign, Freezer, Insist, Isolate, Ladder, Lease, Plant,
    Twin,
};
use offshoot_model::clone::Rung;
use offshoot_sys::inject::Stopped;

pub(crate) use crate::containers::*;
use crate::net::Net;

/// Longest wait for a condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

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

pub(crate) fn set_freezer(cgroup: &Path, v1: &str, v2: &str) -> std::io::Result<()> {
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
