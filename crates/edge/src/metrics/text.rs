//! The text format of Prometheus (exposition format 0.0.4), by hand: what is told is counted elsewhere already, and a
//! library would want to count it itself.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use offshoot_model::traffic::stats::{BUCKETS, Histogram, OwnerStats};

use super::Refused;
use crate::server::Edge;

/// Most owners of domains that are told of, those with the most requests first.
const OWNERS_MAX: usize = 1_000;
/// Buckets of the counters that make one here: each is four times as long as the one before.
const COARSE: usize = 10;

#[derive(Default)]
struct Page(String);

impl Page {
    fn about(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(
            self.0,
            "# HELP offshoot_edge_{name} {help}\n# TYPE offshoot_edge_{name} {kind}\n"
        );
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.0, "offshoot_edge_{name}");
        for (at, (label, value)) in labels.iter().enumerate() {
            let begin = if at == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{begin}{label}=\"{}\"", escape(value));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.about(name, kind, help);
        self.value(name, &[], value);
    }

    fn latency(&mut self, labels: [(&str, &str); 2], latency: &Histogram) {
        let (mut seen, mut sum) = (0, 0.0);
        for (bucket, count) in latency.counts().iter().enumerate() {
            seen += count;
            #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
            let times = *count as f64;
            sum += times * Histogram::longest(bucket).as_secs_f64();
            if bucket > 0 && bucket % COARSE == 0 && bucket + 1 < BUCKETS {
                let longest = Histogram::longest(bucket).as_secs_f64().to_string();
                let [environment, side] = labels;
                let labels = [environment, side, ("le", &longest)];
                self.value("domain_seconds_bucket", &labels, seen);
            }
        }
        let [environment, side] = labels;
        self.value(
            "domain_seconds_bucket",
            &[environment, side, ("le", "+Inf")],
            seen,
        );
        self.value("domain_seconds_sum", &labels, sum);
        self.value("domain_seconds_count", &labels, seen);
    }
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn now(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// Everything.
pub(super) async fn page(edge: &Edge) -> String {
    let mut page = Page::default();
    let status = edge.status().await;
    let counters = &edge.counters;
    page.single(
        "routes_version",
        "gauge",
        "Version of the routes that are served.",
        status.version,
    );
    page.single("routes", "gauge", "HTTP routes.", status.routes);
    page.single(
        "uptime_seconds",
        "gauge",
        "Seconds since the start.",
        status.uptime_seconds,
    );
    page.single(
        "connections",
        "gauge",
        "Client connections, HTTP and published TCP ports.",
        status.connections,
    );
    page.single(
        "connections_total",
        "counter",
        "Client connections since the start.",
        now(&counters.connections),
    );
    page.single(
        "requests_total",
        "counter",
        "Requests that ended.",
        status.requests,
    );
    page.single(
        "received_bytes_total",
        "counter",
        "Bytes of requests' bodies.",
        now(&counters.received),
    );
    page.single(
        "sent_bytes_total",
        "counter",
        "Bytes of answers' bodies.",
        now(&counters.sent),
    );
    page.single(
        "unreachable_total",
        "counter",
        "Connections to nodes that could not be made.",
        now(&counters.unreachable),
    );
    page.about(
        "refused_total",
        "counter",
        "What the edge refused, by reason.",
    );
    for why in Refused::ALL {
        page.value(
            "refused_total",
            &[("reason", why.name())],
            counters.refusals(why),
        );
    }
    page.about(
        "reloads_total",
        "counter",
        "Changes of routes, by what came of them.",
    );
    for (result, count) in [
        ("ok", &counters.reloads),
        ("failed", &counters.reloads_failed),
    ] {
        page.value("reloads_total", &[("result", result)], now(count));
    }
    page.about(
        "certificate_expiry_seconds",
        "gauge",
        "When a certificate expires, Unix time, by its first host.",
    );
    for (host, until) in edge.table.load().certificates.expiries() {
        page.value(
            "certificate_expiry_seconds",
            &[("host", host)],
            until.as_second(),
        );
    }
    let mut owners = edge.stats(&[]).owners;
    owners.sort_by_key(|owner| {
        std::cmp::Reverse(owner.sides.iter().map(|s| s.requests).sum::<u64>())
    });
    owners.truncate(OWNERS_MAX);
    domains(&mut page, &owners);
    page.0
}

/// What was counted at environments' domains: of those with a policy, and of those that somebody asked for.
fn domains(page: &mut Page, owners: &[OwnerStats]) {
    let named: Vec<(String, Vec<String>)> = owners
        .iter()
        .map(|owner| {
            let sides = owner.sides.iter().map(|side| side.environment.to_string());
            (owner.environment.to_string(), sides.collect())
        })
        .collect();
    let each = || {
        owners
            .iter()
            .zip(&named)
            .flat_map(|(owner, (environment, names))| {
                let sides = owner.sides.iter().zip(names);
                sides.map(move |(side, name)| {
                    (
                        [
                            ("environment", environment.as_str()),
                            ("side", name.as_str()),
                        ],
                        side,
                    )
                })
            })
    };
    page.about(
        "domain_requests_total",
        "counter",
        "Answers at an environment's domains, by who answered.",
    );
    for ([environment, by], side) in each() {
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"]
            .into_iter()
            .zip(side.classes);
        for (class, count) in classes {
            page.value(
                "domain_requests_total",
                &[environment, by, ("class", class)],
                count,
            );
        }
    }
    page.about(
        "domain_errors_total",
        "counter",
        "Requests without an answer, or with one of 500 and more.",
    );
    for (labels, side) in each() {
        page.value("domain_errors_total", &labels, side.errors);
    }
    page.about(
        "domain_seconds",
        "histogram",
        "From a request's header to its answer's last byte; the sum is up to 15 % too large.",
    );
    for (labels, side) in each() {
        page.latency(labels, &side.latency);
    }
    page.about("side_up", "gauge", "Whether a side that is checked is up.");
    for (labels, side) in each() {
        if let Some(health) = &side.health {
            page.value("side_up", &labels, u8::from(health.up));
        }
    }
    page.about(
        "domain_refused_total",
        "counter",
        "Requests that an environment's bounds refused.",
    );
    for (owner, (environment, _)) in owners.iter().zip(&named) {
        page.value(
            "domain_refused_total",
            &[("environment", environment)],
            owner.refused,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.value("x", &[("a", "q\"b\\n\n"), ("b", "")], 1);
        assert_eq!(page.0, "offshoot_edge_x{a=\"q\\\"b\\\\n\\n\",b=\"\"} 1\n");
    }

    #[test]
    fn histograms_add_up() {
        let mut latency = Histogram::default();
        for ms in [1, 1, 10, 100_000_000] {
            latency.add(Duration::from_millis(ms));
        }
        let mut page = Page::default();
        page.latency([("environment", "a"), ("side", "b")], &latency);
        let counts: Vec<_> = page
            .0
            .lines()
            .filter(|line| line.contains("_bucket"))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .collect();
        assert!(counts.is_sorted(), "{counts:?}");
        assert_eq!((counts[0], counts[2], *counts.last().unwrap()), (0, 2, 4));
        assert!(
            page.0
                .contains("domain_seconds_count{environment=\"a\",side=\"b\"} 4\n"),
            "{}",
            page.0
        );
    }
}
