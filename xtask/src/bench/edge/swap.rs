//! Swaps of two running environments under a steady load.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use offshoot_load::{Pinger, Rate, Target, percentile};
use offshoot_model::Operation;

use crate::instance::Instance;
use crate::interrupt;

const SIDES: [&str; 2] = ["swap-one", "swap-two"];
const DOMAIN: &str = "shop.example.test";
/// A request every half millisecond.
const RATE: Rate = Rate {
    interval: Duration::from_micros(500),
    connections: 16,
    timeout: Duration::from_secs(30),
};

/// nginx from the distribution's packages, that answers by itself.
const COMPOSE: &str = r#"name: swap
services:
  web:
    configs:
      - {source: conf, target: /etc/nginx/nginx.conf}
    x-offshoot:
      entry: 80
      packages:
        suite: bookworm
        packages: [nginx]
        config:
          entrypoint: [/usr/sbin/nginx, -g, "daemon off;"]
          exposed_ports: [80]
          stop_signal: SIGQUIT
configs:
  conf:
    content: |
      events { worker_connections 1024; }
      http { access_log off; keepalive_requests 1000000000;
      server { listen 80; location / { return 200 "here\n"; } } }
"#;

/// What came of it.
#[derive(Debug)]
pub(super) struct Swapped {
    pub(super) requests: usize,
    pub(super) failed: Vec<String>,
    pub(super) requests_per_s: f64,
    pub(super) p99_ms: f64,
    /// From telling the edge to its answer, of each swap.
    pub(super) switch_ms: Vec<f64>,
}

/// Asks at 2,000 requests per second until `requests` were made, and swaps meanwhile, evenly spread.
pub(super) fn measure(instance: &Instance, requests: u32, swaps: u32) -> anyhow::Result<Swapped> {
    let compose = instance.state.join("swap.yaml");
    fs::write(&compose, COMPOSE)?;
    let compose = compose
        .to_str()
        .context("the directory's path is not text")?;
    instance.ensure_absent(&SIDES)?;
    for name in SIDES {
        interrupt::check()?;
        instance.show_command(&["create", "-f", compose, "--name", name])?;
    }
    let [one, two] = SIDES;
    instance.show_command(&["domain", "add", one, DOMAIN])?;
    let target = Target {
        address: ([127, 0, 0, 1], instance.port).into(),
        host: DOMAIN.to_owned(),
        path: "/".to_owned(),
    };
    let pause = RATE.interval * requests / (swaps + 1);
    let began = Instant::now();
    let pinger = Pinger::start(&target, RATE)?;
    let swapped = (0..swaps).map(|_| {
        interrupt::pause(pause)?;
        let operation: Operation = instance.json(&["swap", one, two, "--warm-answers", "1"])?;
        let report = operation.swap.context("a swap tells of itself")?;
        let us = report.us.context("a swap tells how long it took")?;
        Ok(Duration::from_micros(us).as_secs_f64() * 1e3)
    });
    let switch_ms = swapped.collect::<anyhow::Result<Vec<_>>>();
    let rest = interrupt::pause(pause);
    let report = pinger.finish();
    let (switch_ms, ()) = (switch_ms?, rest?);
    let whole = report.whole();
    let all = report.latencies(began, Instant::now(), None);
    if all.is_empty() {
        bail!("no request was answered");
    }
    Ok(Swapped {
        requests: all.len() + report.failures.len(),
        failed: report.failures.into_iter().map(|(_, why)| why).collect(),
        requests_per_s: whole.per_second,
        p99_ms: percentile(&all, 99).unwrap_or_default().as_secs_f64() * 1e3,
        switch_ms,
    })
}
