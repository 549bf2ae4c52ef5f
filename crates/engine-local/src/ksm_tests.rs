//! The keeper, with a directory of its own in place of the kernel's.

use super::*;

struct Host {
    dir: tempfile::TempDir,
}

const FOUND: Settings = Settings {
    run: Run::Stands,
    pages_to_scan: 300,
    sleep_millisecs: 50,
    advisor_mode: None,
};

impl Host {
    fn new() -> Self {
        let host = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(host.dir.path().join("ksm")).unwrap();
        host.merger().set(&FOUND).unwrap();
        host.scans(7);
        host
    }

    fn merger(&self) -> Merger {
        Merger::at(&self.dir.path().join("ksm"))
    }

    fn note(&self) -> PathBuf {
        self.dir.path().join("note")
    }

    fn scans(&self, number: u64) {
        fs::write(self.dir.path().join("ksm/full_scans"), number.to_string()).unwrap();
    }

    fn keeper(&self) -> Keeper {
        Keeper::new(self.merger(), self.note())
    }

    fn now(&self) -> Settings {
        self.merger().settings().unwrap()
    }
}

fn at(pace: Pace) -> Settings {
    let (pages_to_scan, sleep_millisecs) = pace.helping();
    Settings {
        run: Run::Merges,
        pages_to_scan,
        sleep_millisecs,
        advisor_mode: None,
    }
}

fn one(pid: i32, is_coming: bool) -> BTreeMap<NodeId, Clone> {
    let pid = Some(pid);
    BTreeMap::from([("abcdefgh.web-1".parse().unwrap(), Clone { pid, is_coming })])
}

#[test]
fn it_runs_while_there_are_clones_and_is_put_back() {
    let host = Host::new();
    let mut keeper = host.keeper();
    keeper.look(BTreeMap::new()).unwrap();
    assert_eq!(host.now(), FOUND);
    keeper.look(one(5, false)).unwrap();
    assert_eq!(host.now(), at(Pace::Fast));
    host.scans(7 + FAST_SCANS);
    keeper.look(one(5, false)).unwrap();
    assert_eq!(host.now(), at(Pace::Slow));
    // Another process, whose memory still comes.
    keeper.look(one(6, true)).unwrap();
    host.scans(9 + FAST_SCANS);
    keeper.look(one(6, true)).unwrap();
    host.scans(7 + 2 * FAST_SCANS);
    keeper.look(one(6, false)).unwrap();
    assert_eq!(host.now(), at(Pace::Fast));
    keeper.look(BTreeMap::new()).unwrap();
    assert_eq!(host.now(), FOUND);
    assert!(!host.note().exists());
}

#[test]
fn it_rests_in_cuts() {
    let host = Host::new();
    let mut keeper = host.keeper();
    keeper.pause().unwrap();
    assert_eq!(host.now(), FOUND);
    keeper.resume();
    keeper.look(one(5, false)).unwrap();
    keeper.pause().unwrap();
    keeper.pause().unwrap();
    keeper.resume();
    keeper.look(one(6, false)).unwrap();
    assert_eq!(host.now(), at(Pace::Cut));
    keeper.resume();
    keeper.look(one(6, false)).unwrap();
    assert_eq!(host.now(), at(Pace::Fast));
    keeper.pause().unwrap();
    keeper.put_back().unwrap();
    assert_eq!(host.now(), FOUND);
}

#[test]
fn what_others_set_is_theirs() {
    let host = Host::new();
    for run in [Run::Merges, Run::Undone] {
        let theirs = Settings { run, ..FOUND };
        host.merger().set(&theirs).unwrap();
        let mut keeper = host.keeper();
        keeper.look(one(5, false)).unwrap();
        keeper.pause().unwrap();
        assert_eq!(host.now(), theirs);
    }
    // It is free again.
    host.merger().set(&FOUND).unwrap();
    let mut keeper = host.keeper();
    keeper.look(one(5, false)).unwrap();
    assert_eq!(host.now(), at(Pace::Fast));
    // Somebody stops it for good, until the last clone is gone.
    host.merger().set(&FOUND).unwrap();
    keeper.look(one(5, false)).unwrap();
    keeper.look(one(6, false)).unwrap();
    assert_eq!(host.now(), FOUND);
    keeper.look(BTreeMap::new()).unwrap();
    assert_eq!(host.now(), FOUND);
    keeper.look(one(7, false)).unwrap();
    assert_eq!(host.now(), at(Pace::Fast));
}

#[test]
fn a_daemon_that_was_killed_is_followed_by_one_that_puts_back() {
    let host = Host::new();
    for in_a_cut in [false, true] {
        let mut keeper = host.keeper();
        keeper.look(one(5, false)).unwrap();
        if in_a_cut {
            keeper.pause().unwrap();
        }
        drop(keeper);
        let mut next = host.keeper();
        next.look(one(5, false)).unwrap();
        assert_eq!(host.now(), at(Pace::Fast));
        drop(next);
        host.keeper().look(BTreeMap::new()).unwrap();
        assert_eq!(host.now(), FOUND);
        assert!(!host.note().exists());
    }
    // The host was started anew: the note is of another time.
    host.keeper().look(one(5, false)).unwrap();
    host.merger().set(&FOUND).unwrap();
    drop(host.keeper());
    assert!(!host.note().exists());
}

#[test]
fn daemons_of_one_host_follow_each_other() {
    let host = Host::new();
    let (mut first, mut second) = (host.keeper(), host.keeper());
    first.look(one(5, false)).unwrap();
    second.look(one(6, false)).unwrap();
    second.look(BTreeMap::new()).unwrap();
    assert_eq!(host.now(), at(Pace::Fast), "it is the first one's");
    first.look(BTreeMap::new()).unwrap();
    assert_eq!(host.now(), FOUND);
    second.look(one(6, false)).unwrap();
    assert_eq!(host.now(), at(Pace::Fast));
    drop(second); // killed
    first.look(BTreeMap::new()).unwrap();
    assert_eq!(host.now(), FOUND);
    assert!(!host.note().exists());
}

#[test]
fn a_daemon_that_ends_puts_back_also_in_a_cut_and_for_good() {
    let host = Host::new();
    let mut keeper = host.keeper();
    keeper.look(one(5, false)).unwrap();
    let state = State {
        keeper,
        ends: false,
    };
    let sharing = Sharing {
        shared: Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }),
    };
    let pause = sharing.pause();
    assert_eq!(host.now(), at(Pace::Cut));
    sharing.close();
    assert_eq!(host.now(), FOUND);
    drop(pause);
    drop(sharing.pause());
    assert_eq!(host.now(), FOUND);
    assert!(sharing.shared.lock().ends && !host.note().exists());
}
