//! Real processes, tracked while they work.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use offshoot_sys::inject::{self, Stopped};

use super::*;
use crate::Container;
use crate::error::Foreign;

const BOUND: Duration = Duration::from_secs(10);

/// Does what shims do for a daemon.
#[derive(Default)]
struct InProcess(Mutex<Vec<inject::Twin>>);

impl Plant for InProcess {
    fn plant(&self, pid: i32) -> Result<OwnedFd, Foreign> {
        Ok(Stopped::stop(pid, BOUND)?.watch_writes()?.into())
    }

    fn twin(&self, _: &str, pid: i32, _: &Path) -> Result<Twin, Foreign> {
        let began = Instant::now();
        let twin = Stopped::stop_one(pid, BOUND)?.twin()?;
        let (line, _) = UnixStream::pair()?;
        let made = Twin {
            pid: twin.pid(),
            memory: twin.memory()?,
            line,
            held: began.elapsed(),
        };
        self.0.lock().unwrap().push(twin);
        Ok(made)
    }
}

/// Works on its memory without end, looks whether all is as it left it, and says so.
const WORKER: &str = "
import hashlib, os, select, mmap, random, sys, threading
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
r, w = os.pipe()
data = {}
large = {}
n = 0
def fill(area, n):
    for at in range(0, len(area), 4096): area[at:at+16] = b'%016d' % (n + at)
def check(area, n, size):
    for at in range(0, size, 4096):
        if area[at:at+16] != b'%016d' % (n + at): raise SystemExit('torn')
def read_directly(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    into = [memoryview(mmap.mmap(-1, 4 << 20, flags=private)) for i in range(2)]
    size = os.fstat(fd).st_size
    while True:
        at = random.randrange(0, 4 << 20, 65536)
        os.preadv(fd, [into[random.randrange(2)][at:at + 65536]], random.randrange(0, size, 65536))
if len(sys.argv) > 1: threading.Thread(target=read_directly, args=sys.argv[1:], daemon=True).start()
while True:
    for k in list(data):
        if data[k][0] != hashlib.sha256(data[k][1]).digest(): raise SystemExit('torn')
    for i in range(50):
        n += 1
        blob = os.urandom(20000 + n % 3000)
        data[n % 200] = (hashlib.sha256(blob).digest(), bytearray(blob))
    k = random.randrange(8)
    if k not in large:
        large[k] = (n, mmap.mmap(-1, random.randrange(1, 5) << 20, flags=private))
        fill(large[k][1], n)
    else:
        was, area = large[k]
        size = len(area)
        check(area, was, size)
        deed = random.randrange(4)
        if deed == 0:
            area.close()
            del large[k]
        elif deed == 1:
            area.resize(size + (1 << 20))
            check(area, was, size)
            fill(area, was)
        elif deed == 2:
            area.madvise(mmap.MADV_DONTNEED)
            if area[:] != bytes(size): raise SystemExit('not empty')
            fill(area, was)
        else:
            large[k] = (n, area)
            fill(area, n)
    select.select([r], [], [], 0.002)
    print(n, flush=True)
";

struct Worker(Child, BufReader<std::process::ChildStdout>);

impl Worker {
    fn start(args: &[&Path]) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", WORKER])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self(child, out)
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn works_on(&mut self) {
        for _ in 0..5 {
            let mut line = String::new();
            self.1.read_line(&mut line).unwrap();
            let ended = self.0.try_wait().unwrap();
            assert!(line.trim().parse::<u64>().is_ok(), "{line:?} {ended:?}");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_does_not_notice_that_it_is_copied() {
    if !Pagemap::is_supported() {
        println!("SKIPPED: this kernel has no PAGEMAP_SCAN (Linux 6.7)");
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut worker = Worker::start(&[]);
    worker.works_on();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        let mut tracked = Tracked::new(worker.pid(), dir.path(), &InProcess::default()).unwrap();
        assert!(tracked.writes.is_some());
        for _ in 0..3 {
            tracked.round(None, &|| true).unwrap();
            worker.works_on();
        }
        tracked.let_go().unwrap().undo();
        worker.works_on();
    }
}

/// Every page that there is, as the process has it, although most of them were taken from a twin that is older.
#[test]
fn what_is_taken_is_what_the_process_has() {
    if !Pagemap::is_supported() {
        println!("SKIPPED: this kernel has no PAGEMAP_SCAN (Linux 6.7)");
        return;
    }
    is_taken_as_it_is(&[]);
}

/// The same with a thread that has the disk write into its memory.
#[test]
fn what_the_disk_writes_is_taken_too() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("file");
    let mut noise = vec![0; 16 << 20];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut noise))
        .unwrap();
    fs::write(&path, &noise).unwrap();
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(&path);
    if !Pagemap::is_supported() || direct.is_err() {
        println!("SKIPPED: this kernel has no PAGEMAP_SCAN (Linux 6.7), or /var/tmp no O_DIRECT");
        return;
    }
    is_taken_as_it_is(&[&path]);
}

fn is_taken_as_it_is(args: &[&Path]) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut worker = Worker::start(args);
    for _ in 0..10 {
        worker.works_on();
    }
    let pid = worker.pid();
    let truth = File::open(format!("/proc/{pid}/mem")).unwrap();
    let container = Container {
        pid,
        freezer: PathBuf::new(),
        memory: PathBuf::new(),
        descriptors: Vec::new(),
        bundle: PathBuf::new(),
    };
    let begun = Instant::now();
    let mut of_twin = 0;
    while begun.elapsed() < Duration::from_secs(6) {
        let plant = InProcess::default();
        let twins = Twins {
            plant: &plant,
            node: "",
            container: &container,
            from: 1,
            held_max: BOUND,
            held: Cell::default(),
        };
        let mut tracked = Tracked::new(pid, dir.path(), &plant).unwrap();
        for _ in 0..3 {
            tracked.round(Some(&twins), &|| true).unwrap();
            worker.works_on();
        }
        assert!(tracked.twin.is_some());
        assert!(twins.held.get() > Duration::ZERO);
        assert_eq!(tracked.reads_directly, !args.is_empty());

        let stopped = Stopped::stop(pid, BOUND).unwrap();
        let areas = areas::of_running(pid).unwrap().areas;
        let taken = tracked.take(1, &areas).unwrap();
        assert!(taken.frozen < taken.all, "{taken:?}");
        let source = Source {
            copy: &tracked.file,
            twin: tracked.twin.as_ref().map(|twin| (twin, &tracked.left)),
        };
        let mut there = HashSet::new();
        for run in &tracked.runs {
            for at in (run.start..run.end()).step_by(PAGE as usize) {
                let (mut ours, mut theirs) = ([0; PAGE as usize], [0; PAGE as usize]);
                source.read(&mut ours, at).unwrap();
                truth.read_exact_at(&mut theirs, at).unwrap();
                assert!(ours == theirs, "{at:x} is not what it was");
                there.insert(at);
            }
        }
        for area in areas.iter().filter(|area| area.can_be_late) {
            for at in (area.range.start..area.range.end).step_by(PAGE as usize) {
                let mut theirs = [1; PAGE as usize];
                truth.read_exact_at(&mut theirs, at).unwrap();
                assert!(
                    there.contains(&at) || theirs == [0; PAGE as usize],
                    "{at:x} was forgotten"
                );
            }
        }
        of_twin += there.iter().filter(|at| tracked.left.contains(at)).count();
        drop(stopped);
        tracked.let_go().unwrap().undo();
        worker.works_on();
    }
    assert!(of_twin > 1000, "{of_twin}");
}

#[test]
fn no_process_is_held_up_longer_than_it_may() {
    let plant = InProcess::default();
    let container = Container {
        pid: 1,
        freezer: PathBuf::new(),
        memory: PathBuf::new(),
        descriptors: Vec::new(),
        bundle: PathBuf::new(),
    };
    let twins = Twins {
        plant: &plant,
        node: "",
        container: &container,
        from: 1,
        held_max: Duration::from_millis(100),
        held: Cell::default(),
    };
    let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = sleeper.id().cast_signed();
    // What it is said to have, not what it has.
    let small = twins.of(pid, 1 << 20, Path::new("/"));
    let large = twins.of(pid, 1 << 40, Path::new("/"));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(small.is_some());
    assert!(large.is_none());
}
