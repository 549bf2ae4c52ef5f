//! Of the control groups, on trees of ordinary files.

use super::*;

fn node() -> NodeId {
    "abcdefgh.web-1".parse().unwrap()
}

fn tree(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    dir
}

#[test]
fn hierarchies_are_recognised() {
    let v2 = tree(&["cgroup.controllers", "cgroup.procs"]);
    assert!(matches!(
        Hierarchies::at(v2.path()).unwrap(),
        Hierarchies::V2 { .. }
    ));
    let hybrid = tree(&[
        "freezer/cgroup.procs",
        "memory/cgroup.procs",
        "unified/cgroup.procs",
        "x/y",
    ]);
    std::os::unix::fs::symlink("memory", hybrid.path().join("alias")).unwrap();
    let Hierarchies::V1 { roots, freezer } = Hierarchies::at(hybrid.path()).unwrap() else {
        panic!("v1")
    };
    assert_eq!((roots.len(), freezer), (3, hybrid.path().join("freezer")));
    let neither = tree(&["memory/cgroup.procs"]);
    assert!(Hierarchies::at(neither.path()).is_err());
}

#[test]
fn freezers_of_both_versions_are_written_and_read() {
    for (marker, file, frozen, thawed) in [
        (
            "freezer/cgroup.procs",
            "freezer/offshoot-os/abcdefgh/web-1/freezer.state",
            "FROZEN",
            "THAWED",
        ),
        (
            "cgroup.controllers",
            "offshoot-os/abcdefgh/web-1/cgroup.freeze",
            "1",
            "0",
        ),
    ] {
        let dir = tree(&[
            marker,
            file,
            &file.replace("cgroup.freeze", "cgroup.events"),
        ]);
        let cgroup = NodeCgroup::new(Hierarchies::at(dir.path()).unwrap(), "os", &node());
        fs::write(
            cgroup.freezer().join("cgroup.events"),
            "populated 1\nfrozen 1\n",
        )
        .unwrap();
        cgroup
            .freeze(&cgroup.freezer(), Duration::from_secs(1))
            .unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), frozen);
        assert!(cgroup.is_frozen());
        cgroup.thaw().unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), thawed);
    }
}

#[test]
fn a_freezer_that_never_stands_is_thawed_again() {
    let dir = tree(&[
        "cgroup.controllers",
        "offshoot-os/abcdefgh/web-1/cgroup.freeze",
    ]);
    let cgroup = NodeCgroup::new(Hierarchies::at(dir.path()).unwrap(), "os", &node());
    fs::write(
        cgroup.freezer().join("cgroup.events"),
        "populated 1\nfrozen 0\n",
    )
    .unwrap();
    let error = cgroup
        .freeze(&cgroup.freezer(), Duration::from_millis(5))
        .unwrap_err();
    assert!(matches!(error, RuntimeError::Timeout { .. }), "{error}");
    assert_eq!(
        fs::read_to_string(cgroup.freezer().join("cgroup.freeze")).unwrap(),
        "0"
    );
}

#[test]
fn guests_are_limited_as_their_node_is() {
    let node_dir = "offshoot-os/abcdefgh/web-1";
    let limit = format!("{node_dir}/pids.max");
    for (marker, file) in [
        ("cgroup.controllers", limit.clone()),
        ("freezer/cgroup.procs", format!("freezer/{limit}")),
    ] {
        let dir = tree(&[marker, &file]);
        fs::write(dir.path().join(&file), "20\n").unwrap();
        let cgroup = NodeCgroup::new(Hierarchies::at(dir.path()).unwrap(), "os", &node());
        let me = std::process::id().to_string();
        fs::write(cgroup.freezer().join("cgroup.procs"), me).unwrap();
        assert_eq!(cgroup.move_guests(i32::MAX).unwrap().len(), 1);
        let limits = fs::read_to_string(cgroup.guest_freezer().join("pids.max"));
        assert_eq!(limits.is_ok(), marker == "cgroup.controllers");
    }
}

#[test]
fn oom_kills_are_read() {
    let dir = tree(&[
        "cgroup.controllers",
        "offshoot-os/abcdefgh/web-1/memory.events",
    ]);
    let cgroup = NodeCgroup::new(Hierarchies::at(dir.path()).unwrap(), "os", &node());
    assert_eq!(cgroup.oom_kills(), 0);
    fs::write(
        cgroup.freezer().join("memory.events"),
        "low 0\noom 2\noom_kill 3\noom_group_kill 0\n",
    )
    .unwrap();
    assert_eq!(cgroup.oom_kills(), 3);
}

#[test]
fn this_process_descends_from_its_parent_and_not_from_a_stranger() {
    let me = std::process::id().cast_signed();
    assert!(descends_from(me, process::identity(me).unwrap().parent));
    assert!(!descends_from(me, i32::MAX));
}

#[test]
fn a_parent_that_ends_meanwhile_makes_nobody_of_a_guest_and_no_guest_of_a_process() {
    let below = |main: i32| {
        // 5 is the child of 4, which ends when it is asked about; then 5 is the child of 2.
        let mut ended = false;
        is_below(5, main, |pid| match pid {
            5 => Some(if ended { 2 } else { 4 }),
            4 => {
                ended = true;
                None
            }
            2 => Some(1),
            _ => None,
        })
    };
    assert!(below(2));
    assert!(!below(9));
    assert!(is_below(5, 9, |_| None), "it ended itself");
    assert!(!is_below(5, 9, |pid| (pid == 5).then_some(4)), "bounded");
}
