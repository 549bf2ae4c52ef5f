//! Every way to take memory, and what the bound on the freeze promises.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use offshoot_checkpoint::{
    Criu, CutError, CutNode, CutReport, CutRequest, Foreign, Freezer, Insist, Ladder, Lease,
};
use offshoot_model::Code;
use offshoot_model::clone::{Memory, MemoryWay, Rung};

use crate::failures::{counting, still_counts};
use crate::support::*;

/// Holds much more than another node, and says when it has it.
const LARGE: &str = "
import os, time
ballast = bytearray(os.urandom(1024)) * (600 << 10)
print('ready', flush=True)
while True: time.sleep(100)
";

/// Writes a page of its memory now and then and looks at others; its child looks at all that it inherited.
const WRITER: &str = r#"
import os, time
pages = 16 << 10
ballast = bytearray(os.urandom(1024)) * (4 * pages)
expected = bytearray(ballast[::4096])
child = os.fork()
while child == 0:
    assert ballast[::4096] == expected
    time.sleep(1)
n = 0
while True:
    n += 1
    at = n * 7 % pages
    ballast[at << 12] = expected[at] = n % 256
    at = n * 31 % pages
    assert ballast[at << 12] == expected[at] and ballast[(at << 12) + 1024] == ballast[(at << 12) + 2048]
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    with open("/data/new", "w") as f: f.write(str(n))
    os.rename("/data/new", "/data/count")
    time.sleep(0.02)
"#;

fn by(way: MemoryWay) -> Memory {
    Memory { way, why: None }
}

fn taken_by(place: &Place, criu: &Criu, node: &Node, way: MemoryWay) -> CutReport {
    let freezer = ByHand(vec![(node.id.clone(), node.container().freezer)]);
    let nodes = vec![CutNode {
        memory: by(way),
        ..cut_node(place, node)
    }];
    attempt(
        criu,
        nodes,
        &freezer,
        stretched(Duration::from_secs(5)),
        Insist::OnLive,
        || snapshot(place, &[node]),
    )
    .unwrap_or_else(|e| panic!("{:?}", e.problem()))
}

fn attempt(
    criu: &Criu,
    nodes: Vec<CutNode>,
    freezer: &dyn Freezer,
    max_freeze: Duration,
    insist: Insist,
    snapshot: impl Fn() -> Result<(), Foreign> + Sync,
) -> Result<CutReport, CutError> {
    let request = CutRequest {
        max_freeze,
        insist,
        ..request(criu, nodes, freezer)
    };
    offshoot_checkpoint::cut(request, &snapshot).map(|(report, _tracking)| report)
}

/// Where CRIU can copy ahead it does, and where it says no, all is copied in the freeze.
#[test]
fn a_node_whose_memory_criu_copies_ahead() {
    let Some(criu) = host() else { return };
    let place = Place::new();
    let make = Make::new(&place, "ahead-1", 400_000, &["python3", "-c", WRITER]);
    let node = Node::start(&place, &make);
    until("it writes", || node.number("data/count") > 10);
    let report = taken_by(&place, &criu, &node, MemoryWay::PreDump);
    let log = std::fs::read_to_string(place.images("ahead-1").join("dump.log"));
    println!("{report:#?}\n{}", log.unwrap_or_default());
    let taken = &report.nodes[0];
    let memory = taken.memory.as_ref().unwrap();
    let can = Ladder::of_host().ways()[1].1.is_none();
    if can {
        assert_eq!(memory, &by(MemoryWay::PreDump));
        assert!(taken.paused > Duration::ZERO, "{taken:?}");
        assert!(taken.frozen_bytes < taken.memory_bytes / 2, "{taken:?}");
        assert!(place.images("ahead-1").join("parent").is_symlink());
    } else {
        println!("SKIPPED: that CRIU copies ahead: this kernel does not track soft-dirty pages");
        assert_eq!(memory.way, MemoryWay::Dump);
        let why = memory.why.as_deref().unwrap();
        assert!(why.contains("CRIU could not copy ahead"), "{why}");
        assert!(!place.images("ahead-1").join("pre-1").exists(), "leftovers");
    }
    still_counts(&node, "the parent");
    let clone = clone_of(&place, &make, "ahead-2", 500_000, None, &criu);
    still_counts(&clone, "the clone");
}

#[test]
fn a_node_whose_memory_is_copied_in_the_freeze() {
    let Some(criu) = host() else { return };
    let place = Place::new();
    let (make, node) = counting(&place, "plain-1");
    let report = taken_by(&place, &criu, &node, MemoryWay::Dump);
    let taken = &report.nodes[0];
    assert_eq!(taken.memory, Some(by(MemoryWay::Dump)));
    assert_eq!(taken.frozen_bytes, taken.memory_bytes);
    let stages: Vec<_> = taken
        .stages
        .iter()
        .map(|stage| stage.what.as_str())
        .collect();
    assert_eq!(
        stages,
        [
            "CRIU: seizing processes",
            "CRIU: memory",
            "CRIU: everything else",
            "letting go"
        ]
    );
    still_counts(&node, "the parent");
    let clone = clone_of(&place, &make, "plain-2", 500_000, None, &criu);
    still_counts(&clone, "the clone");
}

/// As one that is linked statically is.
#[test]
fn a_criu_that_takes_nothing_between_itself_and_its_library() {
    let Some(criu) = host() else { return };
    let place = Place::new();
    let (make, node) = counting(&place, "static-1");
    let script = place.dir.path().join("criu");
    let text = format!(
        "#!/bin/sh\nunset LD_PRELOAD\nexec {} \"$@\"\n",
        criu.path().display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let best = Ladder::of_host().best().way;
    let report = taken_by(&place, &Criu::at(script), &node, best);
    let memory = report.nodes[0].memory.as_ref().unwrap();
    if best == MemoryWay::Tracked {
        assert_eq!(memory.way, MemoryWay::Dump);
        let why = memory.why.as_deref().unwrap();
        assert!(why.contains("could not be held before the freeze"), "{why}");
    } else {
        println!("SKIPPED: that it is held: this kernel does not track pages");
    }
    still_counts(&node, "the parent");
    let clone = clone_of(&place, &make, "static-2", 500_000, None, &criu);
    still_counts(&clone, "the clone");
}

/// Somebody who must not be asked.
struct Never;

impl Freezer for Never {
    fn freeze(&self, node: &str, _: Duration) -> Result<Box<dyn Lease>, Foreign> {
        panic!("{node} was frozen");
    }
}

#[test]
fn a_bound_that_cannot_be_kept_costs_the_largest_its_memory_or_touches_nothing() {
    let Some(criu) = host() else { return };
    let place = Place::new();
    let (_, small) = counting(&place, "small-1");
    let large = Make::new(&place, "large-1", 400_000, &["python3", "-c", LARGE]);
    let large = Node::start(&place, &large);
    until("it has its memory", || large.output().contains("ready"));
    // The memory of the large one alone takes longer than this, on any host, when all of it is copied in the freeze.
    let bound = Duration::from_millis(500);
    let cut_nodes = || {
        let node = |node: &Node, way| CutNode {
            memory: by(way),
            ..cut_node(&place, node)
        };
        let best = Ladder::of_host().best().way;
        vec![node(&small, best), node(&large, MemoryWay::Dump)]
    };
    let error = attempt(&criu, cut_nodes(), &Never, bound, Insist::OnLive, || {
        panic!("it came to the snapshot")
    })
    .unwrap_err();
    assert!(matches!(error, CutError::TooLong { .. }), "{error:?}");
    assert_eq!(error.problem().code, Code::FreezeTimeout);
    assert!(error.problem().next.contains("raise the bound"), "{error}");
    still_counts(&small, "after nothing was done");

    let freezer = ByHand(
        [&small, &large]
            .iter()
            .map(|node| (node.id.clone(), node.container().freezer))
            .collect(),
    );
    let report = attempt(&criu, cut_nodes(), &freezer, bound, Insist::No, || {
        snapshot(&place, &[&small, &large])
    })
    .unwrap();
    println!("{report:#?}");
    let [of_small, of_large] = report.nodes.as_slice() else {
        panic!("{report:?}")
    };
    assert_eq!((of_small.rung, of_large.rung), (Rung::Live, Rung::Disk));
    assert!(of_small.memory.is_some() && of_large.memory.is_none());
    let why = of_large.why.as_deref().unwrap();
    assert!(why.contains("longer than the bound"), "{why}");
    assert!(report.predicted <= bound, "{report:?}");
    still_counts(&small, "the small one");
    assert!(large.is_running());
}
