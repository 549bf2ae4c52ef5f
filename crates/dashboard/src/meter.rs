//! What environments use now: processor time from two looks at its counter, disks from time to time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use offshoot_model::EnvId;
use offshoot_model::view::EnvironmentView;
use offshoot_operations::SharedPlatform;

/// Shortest time between two looks that are compared.
const SPAN: Duration = Duration::from_secs(1);
/// How long what disks hold counts as known, at least: finding out takes a look at all their files.
const DISK_TIME: Duration = Duration::from_secs(60);
/// So many times as long as it took to find out, too: a host with many files shall not look at them all the time.
const DISK_REST: u32 = 20;

struct Sample {
    at: Instant,
    cpu_us: u64,
    percent: Option<f64>,
}

struct Disk {
    /// Until when it counts as known.
    until: Instant,
    volumes: HashMap<String, u64>,
    /// What the root file systems of its nodes hold, where that is known.
    roots: Option<u64>,
}

/// A survey under way; one at a time.
struct Survey(Arc<Meter>);

impl Drop for Survey {
    fn drop(&mut self) {
        self.0.surveying.store(false, Ordering::Release);
    }
}

/// What was seen when pages were made.
#[derive(Default)]
pub(crate) struct Meter {
    nodes: Mutex<HashMap<(EnvId, String), Sample>>,
    disks: Mutex<HashMap<EnvId, Disk>>,
    surveying: AtomicBool,
}

impl Meter {
    /// Processor time of each node and of all, in percent of one processor; from the second look on.
    pub(crate) fn look(&self, environments: &[EnvironmentView], now: Instant) {
        let mut samples = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut there = HashSet::new();
        for environment in environments {
            for node in environment.layers.iter().flat_map(|layer| &layer.nodes) {
                let Some(cpu_us) = node.cpu_us else { continue };
                let key = (environment.id.clone(), node.name.clone());
                there.insert(key.clone());
                let fresh = Sample {
                    at: now,
                    cpu_us,
                    percent: None,
                };
                let sample = samples.entry(key).or_insert(fresh);
                let span = now.duration_since(sample.at);
                if span >= SPAN {
                    // A counter that went back belongs to a node that was started again.
                    let used = cpu_us.checked_sub(sample.cpu_us);
                    *sample = Sample {
                        at: now,
                        cpu_us,
                        percent: used.map(|used| used as f64 / span.as_micros() as f64 * 100.0),
                    };
                }
            }
        }
        samples.retain(|key, _| there.contains(key));
        let ids: HashSet<_> = environments.iter().map(|env| &env.id).collect();
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.retain(|id, _| ids.contains(id));
    }

    /// Processor time of a node at the last look, in percent of one processor.
    pub(crate) fn cpu(&self, environment: &EnvId, node: &str) -> Option<f64> {
        let samples = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        samples
            .get(&(environment.clone(), node.to_owned()))
            .and_then(|sample| sample.percent)
    }

    /// Bytes that only this volume holds, as last found out.
    pub(crate) fn volume(&self, environment: &EnvId, volume: &str) -> Option<u64> {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.get(environment)?.volumes.get(volume).copied()
    }

    /// Bytes that only this environment's volumes and root file systems hold, as last found out.
    pub(crate) fn disk(&self, environment: &EnvId) -> Option<u64> {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let disk = disks.get(environment)?;
        let volumes: u64 = disk.volumes.values().sum();
        Some(volumes.saturating_add(disk.roots.unwrap_or(0)))
    }

    /// Finds out what disks hold, where that is not known or was long ago; one environment after the other, behind
    /// whoever asks.
    pub(crate) fn survey(self: &Arc<Self>, platform: &SharedPlatform, all: &[EnvironmentView]) {
        let now = Instant::now();
        let due: Vec<EnvId> = {
            let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
            let known = |id: &EnvId| disks.get(id).is_some_and(|disk| now < disk.until);
            all.iter()
                .filter(|env| !known(&env.id))
                .map(|env| env.id.clone())
                .collect()
        };
        if due.is_empty() || self.surveying.swap(true, Ordering::AcqRel) {
            return;
        }
        let (survey, platform) = (Survey(Arc::clone(self)), Arc::clone(platform));
        tokio::spawn(async move {
            for id in due {
                let begun = Instant::now();
                // One that was removed meanwhile is not there to be measured.
                let Ok(environment) = platform.environment(id.as_str()).await else {
                    continue;
                };
                if let Ok(roots) = platform.root_bytes(id.as_str()).await {
                    survey.0.keep(&environment, roots, begun);
                }
            }
        });
    }

    fn keep(&self, environment: &EnvironmentView, roots: Option<u64>, begun: Instant) {
        let volumes = environment
            .volumes
            .iter()
            .filter(|volume| volume.shared_with.is_none())
            .filter_map(|volume| Some((volume.name.clone(), volume.exclusive_bytes?)))
            .collect();
        let now = Instant::now();
        let rest = now.duration_since(begun).saturating_mul(DISK_REST);
        let disk = Disk {
            until: now + rest.max(DISK_TIME),
            volumes,
            roots,
        };
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.insert(environment.id.clone(), disk);
    }
}
