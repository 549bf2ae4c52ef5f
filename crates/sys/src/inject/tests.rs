//! Programs that speak for a test.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::pagemap::{Pagemap, Protect, Wanted, page};

const BOUND: Duration = Duration::from_secs(10);

/// A shell that answers every line with `answer`.
struct Echo(Child);

impl Echo {
    fn start(script: &str) -> Self {
        let mut echo = Self(
            Command::new("/bin/sh")
                .args(["-c", script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        assert_eq!(echo.ask("first"), "first");
        echo
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut answer = String::new();
        // one line is waiting at most, so nothing is lost with the reader
        BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap())
            .read_line(&mut answer)
            .unwrap();
        answer.trim().to_owned()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_speaks_for_us_and_notices_nothing() {
    let mut echo = Echo::start("while read -r line; do echo $line; done");
    for _ in 0..20 {
        let stopped = Stopped::stop(echo.pid(), BOUND).unwrap();
        let getpid = libc::SYS_getpid as u64;
        assert_eq!(
            stopped.call(getpid, [0; 6]).unwrap(),
            u64::from(echo.0.id())
        );
        assert_eq!(
            stopped
                .call(libc::SYS_close as u64, [9999, 0, 0, 0, 0, 0])
                .unwrap_err()
                .raw_os_error(),
            Some(libc::EBADF)
        );
        drop(stopped);
        assert_eq!(echo.ask("again"), "again");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", echo.pid())).unwrap();
    assert!(status.contains("TracerPid:\t0"));
}

#[test]
fn a_sleep_is_gone_on_with() {
    let began = Instant::now();
    let mut sleep = Command::new("/bin/sleep").arg("0.3").spawn().unwrap();
    let pid = sleep.id().cast_signed();
    while !fs::read_to_string(format!("/proc/{pid}/wchan"))
        .unwrap()
        .contains("nanosleep")
        && began.elapsed() < BOUND
    {
        std::thread::yield_now();
    }
    drop(Stopped::stop(pid, BOUND).unwrap());
    assert!(sleep.wait().unwrap().success());
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[test]
fn what_a_process_writes_is_seen() {
    if !Pagemap::is_supported() {
        println!("SKIPPED: this kernel has no PAGEMAP_SCAN (Linux 6.7)");
        return;
    }
    let mut echo = Echo::start("while read -r line; do x=$line$line; echo $line; done");
    let fds = || {
        fs::read_dir(format!("/proc/{}/fd", echo.pid()))
            .unwrap()
            .count()
    };
    let before = fds();
    let fd = Stopped::stop(echo.pid(), BOUND)
        .unwrap()
        .take_userfaultfd()
        .unwrap();
    assert_eq!(fds(), before);
    let uffd = Userfaultfd::new(fd, feature::WP_ASYNC | feature::WP_UNPOPULATED).unwrap();
    let maps = fs::read_to_string(format!("/proc/{}/maps", echo.pid())).unwrap();
    let heap = maps.lines().find(|line| line.ends_with("[heap]")).unwrap();
    let (start, rest) = heap.split_once('-').unwrap();
    let end = rest.split(' ').next().unwrap();
    let heap = u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap();
    uffd.register(heap.clone(), Watch::Written).unwrap();
    let pagemap = Pagemap::open(echo.pid()).unwrap();
    let wanted = Wanted {
        mask: page::WRITTEN,
        inverted: 0,
        any_of: page::PRESENT | page::SWAPPED,
        told: page::WRITTEN,
    };
    let written = |protect| {
        let mut pages = 0;
        pagemap
            .scan(heap.clone(), wanted, protect, |region| {
                pages += (region.end - region.start) / 4096;
            })
            .unwrap();
        pages
    };
    let all = written(Protect::Found);
    assert!(all > 0);
    assert_eq!(written(Protect::No), 0);
    assert_eq!(echo.ask("write"), "write");
    let some = written(Protect::Found);
    assert!(some > 0 && some <= all, "{some} of {all}");
    assert_eq!(written(Protect::No), 0);
    uffd.unregister(heap.clone()).unwrap();
    assert!(written(Protect::No) > 0);
}

#[test]
fn a_caught_process_gives_a_full_userfaultfd_and_goes_on() {
    let Ok(device) = fs::File::open(crate::uffd::DEVICE) else {
        println!("SKIPPED: needs /dev/userfaultfd");
        return;
    };
    let mut echo = Echo::start("while read -r line; do echo $line; done");
    let fds = || {
        let entries = fs::read_dir(format!("/proc/{}/fd", echo.pid())).unwrap();
        entries.count()
    };
    let before = fds();
    for _ in 0..20 {
        let mut caught = Caught::catch([echo.pid()]).unwrap();
        caught.wait(BOUND).unwrap();
        assert_eq!(caught.pids().collect::<Vec<_>>(), [echo.pid()]);
        let speaker = caught.speaker(echo.pid(), BOUND).unwrap();
        let fd = speaker.take_full_userfaultfd(device.as_fd()).unwrap();
        drop(speaker);
        let events = feature::EVENT_FORK | feature::EVENT_REMAP | feature::EVENT_UNMAP;
        Userfaultfd::new(fd, events | feature::EVENT_REMOVE).unwrap();
        assert!(caught.sequence_areas(echo.pid()).unwrap().len() <= 1);
        caught.release();
    }
    assert_eq!(fds(), before);
    assert_eq!(echo.ask("again"), "again");
}

#[test]
fn a_caught_process_that_is_not_released_is_killed() {
    use std::os::unix::process::ExitStatusExt;
    let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let mut caught = Caught::catch([child.id().cast_signed()]).unwrap();
    caught.wait(BOUND).unwrap();
    drop(caught);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn a_process_in_the_middle_of_its_program_speaks_too() {
    let mut child = Command::new("/bin/sh")
        .args(["-c", "while :; do :; done"])
        .spawn()
        .unwrap();
    let pid = child.id().cast_signed();
    for _ in 0..50 {
        let stopped = Stopped::stop(pid, BOUND).unwrap();
        let getpid = libc::SYS_getpid as u64;
        assert_eq!(stopped.call(getpid, [0; 6]).unwrap(), u64::from(child.id()));
    }
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_twin_keeps_what_was() {
    let mut echo = Echo::start("x=before; while read -r line; do x=$x$line; echo $line; done");
    let children = |pid: i32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let stopped = Stopped::stop_one(echo.pid(), BOUND).unwrap();
    let twin = stopped.twin().unwrap();
    drop(stopped);
    assert_eq!(echo.ask("word"), "word");
    twin.let_go_of_files().unwrap();
    assert_eq!(
        fs::read_dir(format!("/proc/{}/fd", twin.pid()))
            .unwrap()
            .count(),
        0
    );
    let heap = |pid| {
        let areas = memory::areas(pid).unwrap();
        let area = areas
            .into_iter()
            .find(|area| area.name == "[heap]")
            .unwrap();
        area.range
    };
    let read = |pid: i32| {
        let range = heap(twin.pid());
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        let file = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, range.start).unwrap();
        bytes
    };
    let has = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|part| part == text);
    assert!(has(&read(echo.pid()), b"beforefirstword"));
    assert!(has(&read(twin.pid()), b"beforefirst"));
    assert!(!has(&read(twin.pid()), b"firstword"));
    assert_eq!(children(echo.pid()).unwrap().trim(), twin.pid().to_string());
    // The shell, who waits for all of its children, does not see it.
    assert_eq!(echo.ask("again"), "again");
    drop(twin);
    assert_eq!(children(echo.pid()).unwrap(), "");
    assert_eq!(echo.ask("end"), "end");
}

#[test]
fn a_call_that_lasts_too_long_does_no_harm() {
    let mut echo = Echo::start("while read -r line; do echo $line; done");
    let stopped = Stopped::stop(echo.pid(), Duration::from_millis(50)).unwrap();
    let error = stopped.call(libc::SYS_pause as u64, [0; 6]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    drop(stopped);
    assert_eq!(echo.ask("again"), "again");
}
