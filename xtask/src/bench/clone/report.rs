//! What was measured, as a table and as JSON.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::figures::{MEBIBYTE, Measured, spreads};
use super::settle::Settled;
use super::{compare, podman};
use crate::bench::machine::{Machine, version};
use crate::bench::spread::{Spread, rounded};
use crate::table;

/// What the freeze of the largest amount of memory is set against.
const REFERENCE: u64 = 256 << 20;

/// Who cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum By {
    Offshoot,
    PlainRuncCriu,
    Podman,
}

impl By {
    /// What names of runs begin with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Offshoot => "",
            Self::PlainRuncCriu => "plain-runc-criu-",
            Self::Podman => "podman-",
        }
    }
}

/// Several clones of the same.
#[derive(Debug)]
pub(super) struct Run {
    by: By,
    name: String,
    /// Bytes of bulk data in Redis.
    bytes: u64,
    figures: BTreeMap<String, Spread>,
    /// What one more clone came to, where that was asked for.
    pub(super) settled: Option<Settled>,
}

/// The whole benchmark.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) machine: Setting,
    /// Bytes of a value in Redis.
    pub(super) value: u32,
    /// Writes per second that were tried for.
    pub(super) writes: u32,
    pub(super) runs: Vec<Run>,
}

/// What it was measured on and beside what.
#[derive(Debug, Serialize)]
pub(super) struct Setting {
    #[serde(flatten)]
    machine: Machine,
    runc: String,
    criu: String,
    pub(super) podman: Option<String>,
}

impl Setting {
    /// This machine, and what is installed on it.
    pub(super) fn this() -> Self {
        Self {
            machine: Machine::this(),
            runc: version("runc".as_ref(), "--version"),
            criu: version(&compare::criu_dir().join("criu"), "--version"),
            podman: podman::version(),
        }
    }
}

impl Run {
    /// What several clones come to.
    pub(super) fn of(
        by: By,
        name: &str,
        bytes: u64,
        measured: &[Measured],
    ) -> anyhow::Result<Self> {
        Ok(Self {
            by,
            name: format!("{}{name}", by.prefix()),
            bytes,
            figures: spreads(measured)?,
            settled: None,
        })
    }

    /// The median of a figure.
    fn median(&self, figure: &str) -> Option<f64> {
        self.figures.get(figure).map(|spread| spread.median)
    }

    fn row(&self) -> Vec<String> {
        let number = |value: f64, decimals: usize| format!("{value:.decimals$}");
        let spread = |figure: &str, scale: f64, decimals: usize| {
            self.figures.get(figure).map_or_else(
                || "-".to_owned(),
                |found| {
                    let [median, min, max] = [found.median, found.min, found.max]
                        .map(|value| number(value * scale, decimals));
                    format!("{median} ({min}..{max})")
                },
            )
        };
        let medians = |figures: &[(&str, f64, usize)]| {
            let cells = figures.iter().map(|(figure, scale, decimals)| {
                self.median(figure)
                    .map_or_else(|| "-".to_owned(), |value| number(value * scale, *decimals))
            });
            cells.collect::<Vec<_>>().join(" / ")
        };
        vec![
            self.name.clone(),
            spread("freeze_ms", 1.0, 0),
            spread("stood_still_ms", 1.0, 0),
            spread("first_answer_ms", 1e-3, 2),
            medians(&[("parent_throughput_ratio", 100.0, 0)]),
            medians(&[
                ("p99_before_ms", 1.0, 1),
                ("p99_during_ms", 1.0, 1),
                ("p99_ratio", 1.0, 1),
            ]),
            medians(&[("writes_before", 1.0, 0), ("writes_during", 1.0, 0)]),
            medians(&[
                ("bytes_copied", 1.0 / MEBIBYTE, 0),
                ("bytes_copied_in_freeze", 1.0 / MEBIBYTE, 0),
            ]),
            medians(&[("added_disk_mib", 1.0, 1)]),
        ]
    }

    /// Every figure as `x` (the median), `x_min`, `x_max` and `x_all` (each clone's).
    fn json(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("name".to_owned(), json!(self.name));
        fields.insert("by".to_owned(), json!(self.by));
        fields.insert("bytes".to_owned(), json!(self.bytes));
        for (name, spread) in &self.figures {
            fields.insert(name.clone(), json!(spread.median));
            fields.insert(format!("{name}_min"), json!(spread.min));
            fields.insert(format!("{name}_max"), json!(spread.max));
            fields.insert(format!("{name}_all"), json!(spread.all));
        }
        fields.insert("settled".to_owned(), json!(self.settled));
        Value::Object(fields)
    }
}

/// How the freeze grows with memory.
#[derive(Debug, PartialEq, Serialize)]
struct Growth {
    of: String,
    against: String,
    ratio: f64,
}

impl Report {
    /// The freeze of the largest amount of memory against that of 256 MiB, or of the least above nothing, for each
    /// way to clone.
    fn growth(&self) -> Vec<Growth> {
        let ways = [By::Offshoot, By::PlainRuncCriu, By::Podman];
        let of_way = |by| {
            let runs = self.runs.iter().filter(|run| run.by == by && run.bytes > 0);
            let mut runs: Vec<_> = runs.collect();
            runs.sort_by_key(|run| run.bytes);
            let (least, most) = (*runs.first()?, *runs.last()?);
            let small = runs.iter().copied().find(|run| run.bytes == REFERENCE);
            let small = small.unwrap_or(least);
            let ratio = most.median("freeze_ms")? / small.median("freeze_ms")?;
            (small.bytes < most.bytes).then(|| Growth {
                of: most.name.clone(),
                against: small.name.clone(),
                ratio: rounded(ratio),
            })
        };
        ways.into_iter().filter_map(of_way).collect()
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let words = |words: [&str; 9]| words.map(str::to_owned).to_vec();
        let head = words([
            "",
            "freeze",
            "stood still",
            "first answer",
            "throughput",
            "p99",
            "writes/s",
            "copied",
            "disk",
        ]);
        let units = words([
            "",
            "ms",
            "ms",
            "s",
            "% of before",
            "ms before / during / ratio",
            "before / during",
            "MiB / in freeze",
            "MiB",
        ]);
        let rows = self.runs.iter().map(Run::row);
        let rows: Vec<_> = [head, units].into_iter().chain(rows).collect();
        let growth = self.growth().into_iter().map(|growth| {
            format!(
                "freeze of {} against {}: {:.2} times\n",
                growth.of, growth.against, growth.ratio
            )
        });
        let settled = self.runs.iter().filter_map(|run| {
            let settled = run.settled.as_ref()?;
            Some(format!("{}\n", settled.line(&run.name)))
        });
        let lines: String = growth.chain(settled).collect();
        let Setting {
            machine,
            runc,
            criu,
            podman,
        } = &self.machine;
        let podman = podman
            .as_ref()
            .map_or_else(String::new, |podman| format!(", {podman}"));
        format!(
            "\n{}\n{lines}{machine}, {runc}, CRIU {criu}{podman}\n\
             Medians (least..most) of {} clones. Values of {} bytes, {} writes per second tried for.\n\
             freeze: longest time without an answer for a client that asks every millisecond. stood still: as the operation tells\n\
             it. throughput: answers while the clone is made, against before. p99: latency, without what waited in the freeze.\n\
             disk: what the pool grew by. plain-runc-criu, podman: one Redis alone; the time its checkpoint holds it up, and\n\
             checkpoint and restore together until it answers.\n",
            table::render(&rows),
            self.clones(),
            self.value,
            self.writes,
        )
    }

    /// How many clones the figures come from, of every run.
    fn clones(&self) -> usize {
        let freezes = self
            .runs
            .iter()
            .filter_map(|run| run.figures.get("freeze_ms"));
        freezes.map(|spread| spread.all.len()).max().unwrap_or(0)
    }

    /// For programs.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        let report = json!({
            "machine": self.machine,
            "value_bytes": self.value,
            "writes_per_second": self.writes,
            "runs": self.runs.iter().map(Run::json).collect::<Vec<_>>(),
            "growth": self.growth(),
        });
        let mut text = serde_json::to_string_pretty(&report).context("the report")?;
        text.push('\n');
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(by: By, bytes: u64, freezes: &[f64]) -> Run {
        let measured: Vec<_> = freezes
            .iter()
            .map(|freeze_ms| Measured {
                freeze_ms: *freeze_ms,
                first_answer_ms: 900.0,
                parent_throughput_ratio: Some(0.9),
                bytes_copied: Some(3 << 20),
                ..Measured::default()
            })
            .collect();
        let name = format!("redis-{}", super::super::bulk::human(bytes));
        Run::of(by, &name, bytes, &measured).unwrap()
    }

    fn report(runs: Vec<Run>) -> Report {
        Report {
            machine: Setting::this(),
            value: 4_000,
            writes: 5_000,
            runs,
        }
    }

    #[test]
    fn the_json_has_every_figure_with_its_spread_and_every_clone() {
        let text = report(vec![run(By::Offshoot, 1 << 30, &[200.0, 100.0, 120.0])])
            .json()
            .unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let run = &json["runs"][0];
        assert_eq!(
            (&run["name"], &run["by"]),
            (&json!("redis-1GiB"), &json!("offshoot"))
        );
        assert_eq!(run["freeze_ms"], 120.0);
        assert_eq!(run["freeze_ms_min"], 100.0);
        assert_eq!(run["freeze_ms_max"], 200.0);
        assert_eq!(run["freeze_ms_all"], json!([200.0, 100.0, 120.0]));
        assert_eq!(run["first_answer_ms"], 900.0);
        assert_eq!(run["parent_throughput_ratio"], 0.9);
        assert_eq!(run.get("p99_ratio"), None);
        assert_eq!(json["writes_per_second"], 5_000);
    }

    #[test]
    fn the_freeze_is_set_against_that_of_256_mib() {
        let growth = report(vec![
            run(By::Offshoot, 0, &[5.0]),
            run(By::Offshoot, 64 << 20, &[80.0]),
            run(By::Offshoot, 256 << 20, &[100.0]),
            run(By::Offshoot, 4 << 30, &[125.0]),
            run(By::PlainRuncCriu, 64 << 20, &[100.0]),
            run(By::PlainRuncCriu, 1 << 30, &[900.0]),
            run(By::Podman, 1 << 30, &[900.0]),
        ])
        .growth();
        let told: Vec<_> = growth
            .iter()
            .map(|growth| (growth.of.as_str(), growth.against.as_str(), growth.ratio))
            .collect();
        assert_eq!(
            told,
            [
                ("redis-4GiB", "redis-256MiB", 1.25),
                (
                    "plain-runc-criu-redis-1GiB",
                    "plain-runc-criu-redis-64MiB",
                    9.0
                )
            ]
        );
    }

    #[test]
    fn the_table_has_a_line_for_each() {
        let table = report(vec![run(By::Offshoot, 1 << 30, &[200.0, 100.0, 120.4])]).table();
        let line = table
            .lines()
            .find(|line| line.contains("redis-1GiB"))
            .unwrap();
        let cells: Vec<_> = line.split("  ").filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells[1], "120 (100..200)");
        assert!(
            line.contains("0.90 (0.90..0.90)") && line.contains("- / - / -"),
            "{line}"
        );
        assert!(table.contains("of 3 clones"), "{table}");
    }
}
