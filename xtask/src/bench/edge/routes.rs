//! How long the edge takes for many routes, and what its clients notice of it.

use std::time::{Duration, Instant};

use anyhow::Context;
use offshoot_edge_api::{EdgeConfig, EdgeControl, RoutesFile};
use offshoot_load::{Pinger, Rate, Target};

use super::servers::{HOST, Server, Stage};
use crate::interrupt;

/// One reload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reloaded {
    /// Reading, checking and building, while the routes before are served.
    pub(super) load_ms: f64,
    /// The switch itself.
    pub(super) switch_ms: f64,
    /// The longest time without an answer for a client that asks every millisecond.
    pub(super) stall_ms: f64,
}

/// Loads that many routes, then `runs` times the same number of others.
pub(super) fn measure(
    stage: &Stage,
    server: &Server,
    count: usize,
    runs: u32,
) -> anyhow::Result<Vec<Reloaded>> {
    let control = server
        .control
        .as_ref()
        .context("the edge has a control socket")?;
    let path = EdgeConfig::read(&control.with_extension("json"))?.routes;
    let mut control = EdgeControl::connect(control)?;
    let mut reload = |version: u64| -> anyhow::Result<offshoot_edge_api::Reloaded> {
        let hosts = (0..count).map(|number| format!("v{version}-{number}.example.org"));
        let file = RoutesFile {
            version,
            ..stage.routes(hosts.chain([HOST.to_owned()]))
        };
        file.write_atomically(&path)?;
        Ok(control.reload()?)
    };
    reload(2)?;
    let target = Target {
        address: server.http,
        host: HOST.to_owned(),
        path: "/1k".to_owned(),
    };
    let mut all = Vec::new();
    for run in 0..runs {
        interrupt::check()?;
        let pinger = Pinger::start(&target, Rate::EVERY_MILLISECOND)?;
        interrupt::pause(Duration::from_millis(300))?;
        let from = Instant::now();
        let told = reload(u64::from(run) + 3)?;
        let to = Instant::now();
        let report = pinger.finish();
        if let Some((_, why)) = report.failures.first() {
            anyhow::bail!(
                "{} requests failed during a reload: {why}",
                report.failures.len()
            );
        }
        let ms = |us: u64| Duration::from_micros(us).as_secs_f64() * 1e3;
        all.push(Reloaded {
            load_ms: ms(told.load_us),
            switch_ms: ms(told.switch_us),
            stall_ms: report.window(from, to).longest_stall.as_secs_f64() * 1e3,
        });
    }
    Ok(all)
}
