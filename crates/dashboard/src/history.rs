//! What nodes used in the last hour and the last day: looked at every ten seconds, kept in memory, and gone with the
//! daemon.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use offshoot_model::EnvId;
use offshoot_model::view::EnvironmentView;
use offshoot_operations::SharedPlatform;
use tokio::time::{MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::chronicle::Chronicle;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// Points of a span: each is six pixels of a picture's width or less, and 16 bytes.
pub(crate) const POINTS: u32 = 360;
/// Most nodes whose past is kept: about 12 MB. Those that come later have none.
const NODES_MAX: usize = 1_000;

/// A span of time that ends now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    Hour,
    Day,
}

impl Span {
    /// Time from one point to the next.
    fn step(self) -> Duration {
        match self {
            Self::Hour => LOOK,
            Self::Day => Duration::from_secs(240),
        }
    }
}

/// What a node used around one point in time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    /// Steps since the beginning of the history.
    step: u32,
    /// Most memory, bytes.
    pub(crate) memory: f32,
    /// Mean processor time, percent of one processor; none before the second look.
    pub(crate) cpu: Option<f32>,
    /// Looks at the processor's counter that `cpu` is the mean of.
    looks: u16,
}

#[derive(Debug, Default)]
struct Ring(VecDeque<Point>);

impl Ring {
    fn add(&mut self, step: u32, memory: f32, cpu: Option<f32>) {
        if let Some(last) = self.0.back_mut().filter(|last| last.step == step) {
            last.memory = last.memory.max(memory);
            if let Some(cpu) = cpu {
                let looks = last.looks.saturating_add(1);
                let before = last.cpu.unwrap_or_default();
                last.cpu = Some(before + (cpu - before) / f32::from(looks));
                last.looks = looks;
            }
            return;
        }
        self.0.push_back(Point {
            step,
            memory,
            cpu,
            looks: u16::from(cpu.is_some()),
        });
        while self.0.len() > POINTS as usize {
            self.0.pop_front();
        }
    }
}

#[derive(Debug, Default)]
struct Series {
    hour: Ring,
    day: Ring,
    /// The processor's counter at the last look, microseconds.
    counter: Option<(Instant, u64)>,
}

/// The past of all nodes.
#[derive(Debug)]
pub(crate) struct History {
    begin: Instant,
    nodes: Mutex<HashMap<(EnvId, String), Series>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            begin: Instant::now(),
            nodes: Mutex::default(),
        }
    }

    fn step(&self, span: Span, now: Instant) -> u32 {
        let steps = now.duration_since(self.begin).as_secs() / span.step().as_secs();
        u32::try_from(steps).unwrap_or(u32::MAX)
    }

    /// Takes up what all nodes use now. What no longer exists is forgotten.
    pub(crate) fn look(&self, environments: &[EnvironmentView], now: Instant) {
        let (hour, day) = (self.step(Span::Hour, now), self.step(Span::Day, now));
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut there = HashSet::new();
        for environment in environments {
            for node in environment.layers.iter().flat_map(|layer| &layer.nodes) {
                let key = (environment.id.clone(), node.name.clone());
                there.insert(key.clone());
                let Some(memory) = node.memory_bytes else {
                    continue;
                };
                if nodes.len() >= NODES_MAX && !nodes.contains_key(&key) {
                    continue;
                }
                let series = nodes.entry(key).or_default();
                let cpu = node.cpu_us.and_then(|counter| {
                    let (at, before) = series.counter.replace((now, counter))?;
                    // A counter that went back belongs to a node that was started again.
                    let used = counter.checked_sub(before)?;
                    let span = now.duration_since(at).as_micros();
                    (span > 0).then(|| (used as f64 / span as f64 * 100.0) as f32)
                });
                series.hour.add(hour, memory as f32, cpu);
                series.day.add(day, memory as f32, cpu);
            }
        }
        nodes.retain(|key, _| there.contains(key));
    }

    /// The points of a node in a span, oldest first, each with its place from 0 (the beginning) to [`POINTS`] (now).
    pub(crate) fn points(
        &self,
        environment: &EnvId,
        node: &str,
        span: Span,
        now: Instant,
    ) -> Vec<(u32, Point)> {
        let step = self.step(span, now);
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(series) = nodes.get(&(environment.clone(), node.to_owned())) else {
            return Vec::new();
        };
        let ring = match span {
            Span::Hour => &series.hour,
            Span::Day => &series.day,
        };
        let place = |point: &Point| POINTS.checked_sub(step.checked_sub(point.step)?);
        ring.0
            .iter()
            .filter_map(|point| Some((place(point)?, *point)))
            .collect()
    }
}

/// Looks from time to time until `stop`.
pub(crate) async fn keep(
    (history, chronicle): (Arc<History>, Arc<Chronicle>),
    platform: SharedPlatform,
    stop: CancellationToken,
) {
    // processor time is told from the second look on, so the first may wait as well
    let mut looks = interval_at(tokio::time::Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        match platform.environments().await {
            Ok(all) => {
                history.look(&all, Instant::now());
                chronicle.look(&all, Timestamp::now());
            }
            Err(problem) => tracing::debug!(%problem, "what nodes use was not looked at"),
        }
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
