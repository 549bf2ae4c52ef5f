//! A clone of WordPress by this project, seen from outside.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use offshoot_load::{Pinger, Rate, Writer, percentile};
use offshoot_model::view::{EnvironmentView, NodeView, PoolView};
use offshoot_model::{CloneReport, Operation, Rung};

use super::bulk::Bulk;
use super::figures::{Measured, mib};
use crate::commands::output;
use crate::demo::FirstAnswer;
use crate::instance::Instance;
use crate::interrupt::{check, pause};
use crate::wordpress::Site;

/// The clone's name.
pub(super) const CLONE: &str = "bench-clone";
const REDIS_PORT: u16 = 6379;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// A benchmark is to measure long freezes, not to cut them off.
const MAX_FREEZE: &str = "60s";
/// How long the parent is measured on its own before a clone, after it got warm.
const WARM_UP: Duration = Duration::from_millis(500);
const BEFORE: Duration = Duration::from_millis(2_500);

/// The node that Redis runs in.
pub(super) fn redis_node(view: &EnvironmentView, site: &Site) -> anyhow::Result<NodeView> {
    let layer = view.layers.iter().find(|layer| layer.name == site.cache);
    let node = layer.and_then(|layer| layer.nodes.first());
    node.cloned().context("the environment has no Redis node")
}

/// Where the host reaches that Redis.
pub(super) fn redis_address(instance: &Instance, site: &Site) -> anyhow::Result<SocketAddr> {
    let view: EnvironmentView = instance.json(&["show", &site.environment])?;
    let outer = redis_node(&view, site)?.outer;
    let ip = outer
        .parse()
        .with_context(|| format!("{outer:?} is no address"))?;
    Ok(SocketAddr::new(ip, REDIS_PORT))
}

/// Makes that many empty files on WordPress' volume.
pub(super) fn make_files(instance: &Instance, site: &Site, files: u64) -> anyhow::Result<()> {
    let script = format!(
        "rm -rf /srv/wordpress/wp-content/uploads/bench && mkdir /srv/wordpress/wp-content/uploads/bench && \
         cd /srv/wordpress/wp-content/uploads/bench && seq {files} | xargs -r -n 1000 touch"
    );
    instance.exec(&site.environment, &site.app, &["sh", "-c", &script])?;
    Ok(())
}

/// Makes the clone, all of it alive, or fails.
pub(super) fn make_clone(instance: &Instance, site: &Site) -> anyhow::Result<CloneReport> {
    let operation: Operation = instance.json(&[
        "clone",
        &site.environment,
        "--name",
        CLONE,
        "--max-freeze",
        MAX_FREEZE,
    ])?;
    let report = operation.report.context("the clone has no measurements")?;
    match report.nodes.iter().find(|node| node.rung != Rung::Live) {
        Some(node) => bail!(
            "{} was not cloned live: {}",
            node.node,
            node.why.as_deref().unwrap_or("no reason given")
        ),
        None => Ok(report),
    }
}

/// Clones the environment under load and leaves the clone.
pub(super) fn clone_once(
    instance: &Instance,
    site: &Site,
    redis: SocketAddr,
    bulk: Bulk,
) -> anyhow::Result<Measured> {
    check()?;
    let disk_before = pool_used(instance)?;
    let writer = bulk.overwrite(redis)?;
    let pinger = Pinger::start(&site.static_path()?, Rate::EVERY_MILLISECOND)?;
    pause(WARM_UP)?;
    let started = Instant::now();
    pause(BEFORE)?;
    let began = Instant::now();
    let answered = FirstAnswer::watch(site.target_of(CLONE));
    let report = make_clone(instance, site)?;
    let first_answer = answered.wait(ANSWER_TIMEOUT)?;
    let ended = Instant::now();
    let pings = pinger.finish();
    let writes = writer.map(Writer::finish).transpose();
    let writes = writes.context("writing to Redis while it was cloned")?;
    let clone: EnvironmentView = instance.json(&["show", CLONE])?;
    if let Some((_, why)) = pings.failures.first() {
        bail!(
            "{} pings of the parent failed; the first: {why}",
            pings.failures.len()
        );
    }
    let (before, during) = (pings.window(started, began), pings.window(began, ended));
    let p99 = |latencies: Vec<Duration>| percentile(&latencies, 99).map(ms);
    let p99_before = p99(pings.latencies(started, began, None));
    let p99_during = p99(pings.latencies(began, ended, Some(during.stall)));
    let memory = clone
        .layers
        .iter()
        .flat_map(|layer| &layer.nodes)
        .filter_map(|node| node.memory_bytes)
        .sum();
    Ok(Measured {
        freeze_ms: ms(during.longest_stall),
        stood_still_ms: Some(ms(Duration::from_micros(report.freeze_us))),
        first_answer_ms: ms(first_answer),
        answers_before: Some(before.per_second),
        answers_during: Some(during.per_second),
        parent_throughput_ratio: Some(during.per_second / before.per_second.max(1.0)),
        p99_before_ms: p99_before,
        p99_during_ms: p99_during,
        p99_ratio: p99_before
            .zip(p99_during)
            .map(|(before, during)| during / before),
        writes_before: writes.as_ref().map(|all| all.per_second(started, began)),
        writes_during: writes.as_ref().map(|all| all.per_second(began, ended)),
        bytes_copied: Some(report.memory_bytes),
        bytes_copied_in_freeze: Some(report.frozen_bytes),
        added_memory_mib: Some(mib(memory)),
        added_disk_mib: Some(mib(pool_used(instance)?.saturating_sub(disk_before))),
    })
}

/// Bytes of the pool that are used.
fn pool_used(instance: &Instance) -> anyhow::Result<u64> {
    // the pool counts what is written out
    output(Command::new("sync").arg("-f").arg(&instance.state))?;
    Ok(instance.json::<PoolView>(&["pool", "status"])?.used)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
