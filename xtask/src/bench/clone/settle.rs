//! What one more clone costs the host once it has settled: memory, and the processor time of the kernel's search for
//! equal pages.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use offshoot_load::Client;
use offshoot_model::EnvId;
use offshoot_model::view::EnvironmentView;
use serde::Serialize;

use super::figures::mib;
use super::ours::{CLONE, make_clone};
use crate::bench::spread::rounded;
use crate::instance::Instance;
use crate::interrupt::pause;
use crate::wordpress::Site;

/// Light use: a page of the clone, then one of the parent.
const PAUSE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(60);
/// Clock ticks a second in `/proc/<pid>/stat`: USER_HZ, the same on every x86 and ARM kernel, proc_pid_stat(5).
const TICKS: f64 = 100.0;

/// How it is measured, for the reader of the figures.
pub(super) const HOW: &str = "sum of Pss (smaps_rollup) over the processes in the control groups of both environments and those that \
     serve their nodes, after, minus the same of the parent before";

/// What one more clone came to.
#[derive(Debug, Serialize)]
pub(super) struct Settled {
    seconds: u64,
    how: &'static str,
    /// What the host has less by the clone.
    pub(super) added_memory_mib: f64,
    parent_before_mib: f64,
    parent_after_mib: f64,
    clone_after_mib: f64,
    /// By how much less the kernel thinks is available: noisy, as a check.
    available_less_mib: f64,
    /// Processor time of ksmd from before the clone to the end; 0 where there is none.
    pub(super) ksmd_seconds: f64,
    /// Requests that were answered meanwhile, by the clone and the parent.
    requests: u64,
}

impl Settled {
    /// For people.
    pub(super) fn line(&self, name: &str) -> String {
        format!(
            "{name}: one more clone adds {:.0} MiB of host memory after {} s of light use ({} requests); ksmd used {:.1} s of one processor meanwhile",
            self.added_memory_mib, self.seconds, self.requests, self.ksmd_seconds
        )
    }
}

/// Makes a clone, uses it lightly for that long, and measures; the clone stays.
pub(super) fn measure(instance: &Instance, site: &Site, seconds: u64) -> anyhow::Result<Settled> {
    let id = |name: &str| -> anyhow::Result<EnvId> {
        Ok(instance.json::<EnvironmentView>(&["show", name])?.id)
    };
    let parent = id(&site.environment)?;
    let parent_before = pss(instance, &parent)?;
    let (available, ksmd) = (available()?, ksmd_seconds());
    make_clone(instance, site)?;
    let requests = use_lightly(site, Duration::from_secs(seconds))?;
    let clone_after = pss(instance, &id(CLONE)?)?;
    let parent_after = pss(instance, &parent)?;
    Ok(Settled {
        seconds,
        how: HOW,
        added_memory_mib: rounded(mib(parent_after) + mib(clone_after) - mib(parent_before)),
        parent_before_mib: rounded(mib(parent_before)),
        parent_after_mib: rounded(mib(parent_after)),
        clone_after_mib: rounded(mib(clone_after)),
        available_less_mib: rounded(mib(available) - mib(self::available()?)),
        ksmd_seconds: rounded(ksmd_seconds() - ksmd),
        requests,
    })
}

/// Asks the clone and the parent in turns; how many answers there were.
fn use_lightly(site: &Site, time: Duration) -> anyhow::Result<u64> {
    let mut clients = [site.target_of(CLONE), site.target.clone()]
        .map(|target| (Client::new(&target, PATIENCE), target.path));
    let until = Instant::now() + time;
    let mut answered = 0;
    while Instant::now() < until {
        for (client, path) in &mut clients {
            pause(PAUSE)?;
            answered += u64::from(client.get(path)?.status == 200);
        }
    }
    Ok(answered)
}

/// Bytes of memory of all processes of an environment, pages shared with others in proportion.
fn pss(instance: &Instance, environment: &EnvId) -> anyhow::Result<u64> {
    let group = format!("/offshoot-{}/{}/", instance.label, environment.as_str());
    let run = format!("{}/envs/{}/", instance.run.display(), environment.as_str());
    let mut bytes = 0;
    for process in fs::read_dir("/proc").context("/proc")?.flatten() {
        let process = process.path();
        if belongs(&process, &group, &run) {
            // what has ended meanwhile has none
            let rollup = fs::read_to_string(process.join("smaps_rollup")).unwrap_or_default();
            bytes += field_kib(&rollup, "Pss:").unwrap_or(0) << 10;
        }
    }
    Ok(bytes)
}

/// Whether a process is in the environment's control group, or was started with a file of the environment's.
fn belongs(process: &Path, group: &str, run: &str) -> bool {
    let has = |file: &str, text: &str| {
        let content = fs::read(process.join(file)).unwrap_or_default();
        String::from_utf8_lossy(&content).contains(text)
    };
    has("cgroup", group) || has("cmdline", run)
}

/// Bytes of memory the kernel thinks are available.
pub(super) fn available() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let kib = field_kib(&text, "MemAvailable:").context("/proc/meminfo has no MemAvailable")?;
    Ok(kib << 10)
}

/// Processor time of the kernel thread that looks for equal pages.
fn ksmd_seconds() -> f64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .map(|process| process.path())
        .filter(|process| {
            fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == "ksmd")
        })
        .filter_map(|process| ticks(&fs::read_to_string(process.join("stat")).ok()?))
        .sum::<f64>()
        / TICKS
}

/// User and system time of a process in ticks: fields 14 and 15, proc_pid_stat(5).
fn ticks(stat: &str) -> Option<f64> {
    // the name in brackets, field 2, may hold anything
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut times = rest.split(' ').skip(11);
    let mut next = || times.next()?.parse::<f64>().ok();
    Some(next()? + next()?)
}

/// A field of `/proc/meminfo` or `smaps_rollup`, KiB.
fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        let rollup = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  9000 kB\nPss:   1234 kB\nPss_Dirty: 7 kB\n";
        assert_eq!(field_kib(rollup, "Pss:"), Some(1_234));
        assert_eq!(field_kib(rollup, "Swap:"), None);
        let stat = "37 (k) smd) S 2 0 0 0 -1 2129984 0 0 0 0 150 50 0 0 25 5 1 0 18 0";
        assert_eq!(ticks(stat), Some(200.0));
        assert!(available().unwrap() > 0);
    }

    #[test]
    fn processes_are_found_by_what_they_were_started_with() {
        let this = Path::new("/proc/self");
        let program = std::env::current_exe().unwrap();
        let program = program.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(belongs(this, "/offshoot-nobody/", &program));
        assert!(!belongs(this, "/offshoot-nobody/", "/run/nobody/envs/"));
    }
}
