//! What was measured, as a table and as JSON.

use std::fs;

use anyhow::Context;
use serde::Serialize;

use crate::commands::output;
use crate::table;

/// One clone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) freeze_ms: f64,
    pub(super) first_answer_ms: f64,
    pub(super) parent_throughput_ratio: Option<f64>,
    /// Bytes.
    pub(super) added_memory: Option<u64>,
    /// Bytes.
    pub(super) added_disk: Option<u64>,
    pub(super) bytes_copied: Option<u64>,
}

/// Several clones of the same: medians.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    name: String,
    freeze_ms: f64,
    freeze_ms_all: Vec<f64>,
    first_answer_ms: f64,
    first_answer_ms_all: Vec<f64>,
    parent_throughput_ratio: Option<f64>,
    added_memory_mib: Option<f64>,
    added_disk_mib: Option<f64>,
    bytes_copied: Option<u64>,
}

/// The whole benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) runs: Vec<Run>,
}

/// What it was measured on.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    processor: String,
    processors: usize,
    memory_mib: u64,
    kernel: String,
    runc: String,
    criu: String,
}

impl Machine {
    /// The machine at hand; what cannot be told is `unknown`.
    pub(super) fn this() -> Self {
        let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let field = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or_else(
                || "unknown".to_owned(),
                |(_, value)| value.trim().to_owned(),
            )
        };
        let version = |program: &std::path::Path| {
            output(std::process::Command::new(program).arg("--version"))
                .map_or_else(|_| "unknown".to_owned(), first)
        };
        let memory = field("/proc/meminfo", "MemTotal");
        Self {
            processor: field("/proc/cpuinfo", "model name"),
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_mib: memory
                .split(' ')
                .next()
                .and_then(|kib| kib.parse::<u64>().ok())
                .unwrap_or(0)
                >> 10,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            runc: version("runc".as_ref()),
            criu: version(&super::plain::criu_dir().join("criu")),
        }
    }
}

impl Run {
    /// Medians of what was measured.
    pub(super) fn of(name: &str, measured: &[Measured]) -> Self {
        let all = |of: fn(&Measured) -> f64| {
            measured
                .iter()
                .map(|one| rounded(of(one)))
                .collect::<Vec<_>>()
        };
        let some = |of: fn(&Measured) -> Option<f64>| {
            median(&measured.iter().filter_map(of).collect::<Vec<_>>())
        };
        let (freeze_ms_all, first_answer_ms_all) =
            (all(|one| one.freeze_ms), all(|one| one.first_answer_ms));
        let mut copied: Vec<_> = measured.iter().filter_map(|one| one.bytes_copied).collect();
        copied.sort_unstable();
        Self {
            name: name.to_owned(),
            freeze_ms: median(&freeze_ms_all).unwrap_or_default(),
            freeze_ms_all,
            first_answer_ms: median(&first_answer_ms_all).unwrap_or_default(),
            first_answer_ms_all,
            parent_throughput_ratio: some(|one| one.parent_throughput_ratio),
            added_memory_mib: some(|one| one.added_memory.map(mib)),
            added_disk_mib: some(|one| one.added_disk.map(mib)),
            bytes_copied: copied.get(copied.len() / 2).copied(),
        }
    }
}

impl Report {
    /// For people.
    pub(super) fn table(&self) -> String {
        let head = [
            "",
            "freeze",
            "first answer",
            "throughput",
            "memory",
            "disk",
            "copied",
        ]
        .map(str::to_owned)
        .to_vec();
        let number = |value: Option<f64>, unit: &str| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} {unit}"))
        };
        let rows = self.runs.iter().map(|run| {
            vec![
                run.name.clone(),
                format!("{:.1} ms", run.freeze_ms),
                format!("{:.0} ms", run.first_answer_ms),
                run.parent_throughput_ratio
                    .map_or_else(|| "-".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0)),
                number(run.added_memory_mib, "MiB"),
                number(run.added_disk_mib, "MiB"),
                number(run.bytes_copied.map(mib), "MiB"),
            ]
        });
        let machine = &self.machine;
        format!(
            "\n{}\n{} x {}, {} MiB, Linux {}, {}, CRIU {}\nMedians. freeze: longest time without an answer for a client that asks every millisecond. throughput: answers\nper second while the clone is made, against before. memory, disk: what the clone adds. plain-runc-criu: the time that\n`runc checkpoint --leave-running` holds Redis up, and checkpoint and `runc restore` together until Redis answers.\n",
            table::render(&std::iter::once(head).chain(rows).collect::<Vec<_>>()),
            machine.processors,
            machine.processor,
            machine.memory_mib,
            machine.kernel,
            machine.runc,
            machine.criu
        )
    }

    /// For programs.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        let mut text = serde_json::to_string_pretty(self).context("the report")?;
        text.push('\n');
        Ok(text)
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    let even = sorted.len().is_multiple_of(2);
    Some(rounded(if even {
        (upper + sorted.get(middle.wrapping_sub(1)).copied()?) / 2.0
    } else {
        upper
    }))
}

#[expect(clippy::cast_precision_loss, reason = "sizes for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn the_json_has_the_agreed_fields() {
        let measured = Measured {
            freeze_ms: 200.0,
            first_answer_ms: 900.0,
            parent_throughput_ratio: Some(0.9),
            added_memory: Some(1 << 20),
            added_disk: Some(2 << 20),
            bytes_copied: Some(5),
        };
        let run = serde_json::to_value(Run::of("redis-1GiB", &[measured])).unwrap();
        assert_eq!(run["name"], "redis-1GiB");
        assert_eq!(run["freeze_ms"], 200.0);
        assert_eq!(run["freeze_ms_all"], serde_json::json!([200.0]));
        assert_eq!(run["first_answer_ms"], 900.0);
        assert_eq!(run["parent_throughput_ratio"], 0.9);
        assert_eq!(run["added_memory_mib"], 1.0);
        assert_eq!(run["added_disk_mib"], 2.0);
        assert_eq!(run["bytes_copied"], 5);
    }
}
