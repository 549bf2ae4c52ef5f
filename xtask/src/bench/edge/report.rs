//! What was measured, as a table and as JSON.

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::servers::Which;
use crate::bench::machine::{Machine, version};
use crate::bench::spread::{Spread, rounded};
use crate::table;

/// Figures of one case: by name, each round's in order.
#[derive(Debug, Default)]
pub(super) struct Figures(BTreeMap<String, Vec<Option<f64>>>);

impl Figures {
    pub(super) fn add(&mut self, name: &str, value: f64) {
        self.0.entry(name.to_owned()).or_default().push(Some(value));
    }

    /// Every round's figure of the edge against another proxy's of the same round.
    fn against(&self, figure: &str, other: &str) -> Option<Spread> {
        let (ours, theirs) = (
            self.0.get(figure)?,
            self.0.get(&format!("{other}_{figure}"))?,
        );
        let ratios = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| Some(ours.as_ref()? / theirs.as_ref()?));
        Spread::of(ratios.collect())
    }

    fn spread(&self, figure: &str) -> Option<Spread> {
        Spread::of(self.0.get(figure)?.clone())
    }
}

/// What a figure of a proxy is called: the edge's have no prefix.
pub(super) fn figure(which: Which, name: &str) -> String {
    match which {
        Which::Edge => name.to_owned(),
        other => format!("{}_{name}", other.name()),
    }
}

/// One case.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) figures: Figures,
}

impl Run {
    fn json(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("name".to_owned(), json!(self.name));
        let mut put = |name: &str, spread: Spread| {
            fields.insert(name.to_owned(), json!(spread.median));
            fields.insert(format!("{name}_min"), json!(spread.min));
            fields.insert(format!("{name}_max"), json!(spread.max));
            fields.insert(format!("{name}_all"), json!(spread.all));
        };
        for name in self.figures.0.keys() {
            if let Some(spread) = self.figures.spread(name) {
                put(name, spread);
            }
        }
        for name in [
            "requests_per_s",
            "p99_ms",
            "cpu_us_per_request",
            "bytes_per_connection",
        ] {
            for other in ["nginx", "haproxy"] {
                if let Some(spread) = self.figures.against(name, other) {
                    put(&format!("{name}_vs_{other}"), spread);
                }
            }
        }
        Value::Object(fields)
    }

    /// A figure of the three, and the edge's against the others'.
    fn cells(&self, name: &str, decimals: usize) -> String {
        let all = [Which::Edge, Which::Nginx, Which::Haproxy].map(|which| {
            self.figures.spread(&figure(which, name)).map_or_else(
                || "-".to_owned(),
                |spread| format!("{:.decimals$}", spread.median),
            )
        });
        all.join(" / ")
    }

    fn ratio(&self, name: &str, other: &str) -> String {
        self.figures.against(name, other).map_or_else(
            || "-".to_owned(),
            |spread| {
                format!(
                    "{:.2} ({:.2}..{:.2})",
                    spread.median, spread.min, spread.max
                )
            },
        )
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Report {
    machine: Machine,
    programs: [(&'static str, String); 4],
    pub(super) runs: Vec<Run>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            machine: Machine::this(),
            programs: [
                ("nginx", version("/usr/sbin/nginx".as_ref(), "-v")),
                ("haproxy", version("/usr/sbin/haproxy".as_ref(), "-v")),
                ("wrk", version("wrk".as_ref(), "-v")),
                ("h2load", version("h2load".as_ref(), "--version")),
            ],
            runs: Vec::new(),
        }
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let compared: Vec<_> = self
            .runs
            .iter()
            .filter(|run| {
                run.figures.0.contains_key("requests_per_s")
                    && run.figures.0.contains_key("cpu_us_per_request")
            })
            .collect();
        let mut rows = vec![
            [
                "offshoot / nginx / haproxy",
                "requests/s",
                "vs nginx",
                "vs haproxy",
                "p99 ms",
                "vs nginx",
                "cpu us/request",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        rows.extend(compared.iter().map(|run| {
            vec![
                run.name.clone(),
                run.cells("requests_per_s", 0),
                run.ratio("requests_per_s", "nginx"),
                run.ratio("requests_per_s", "haproxy"),
                run.cells("p99_ms", 2),
                run.ratio("p99_ms", "nginx"),
                run.cells("cpu_us_per_request", 0),
            ]
        }));
        let mut text = if compared.is_empty() {
            String::new()
        } else {
            format!("\n{}", table::render(&rows))
        };
        for run in self
            .runs
            .iter()
            .filter(|run| !compared.iter().any(|other| other.name == run.name))
        {
            let figures = run.figures.0.keys().filter_map(|name| {
                let spread = run.figures.spread(name)?;
                Some(format!(
                    "{name} {} ({}..{})",
                    spread.median, spread.min, spread.max
                ))
            });
            text.push_str(&format!(
                "\n{}: {}\n",
                run.name,
                figures.collect::<Vec<_>>().join(", ")
            ));
        }
        let programs = self.programs.iter().map(|(_, version)| version.as_str());
        text.push_str(&format!(
            "\n{}\n{}\nMedians, in brackets the least and the most of the rounds.\n",
            self.machine,
            programs.collect::<Vec<_>>().join(", ")
        ));
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        let programs: BTreeMap<_, _> = self
            .programs
            .iter()
            .map(|(name, version)| (*name, version))
            .collect();
        let report = json!({
            "machine": self.machine,
            "programs": programs,
            "runs": self.runs.iter().map(Run::json).collect::<Vec<_>>(),
        });
        let mut text = serde_json::to_string_pretty(&report).context("the report")?;
        text.push('\n');
        Ok(text)
    }
}

/// For figures that are whole in nature.
pub(super) fn count(number: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let number = number as f64;
    rounded(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_set_against_those_of_the_same_round() {
        let mut run = Run {
            name: "http1".to_owned(),
            figures: Figures::default(),
        };
        for (ours, nginx, haproxy) in [
            (100.0, 200.0, 50.0),
            (300.0, 200.0, 100.0),
            (200.0, 100.0, 100.0),
        ] {
            run.figures
                .add(&figure(Which::Edge, "requests_per_s"), ours);
            run.figures
                .add(&figure(Which::Nginx, "requests_per_s"), nginx);
            run.figures
                .add(&figure(Which::Haproxy, "requests_per_s"), haproxy);
        }
        run.figures.add("cpu_us_per_request", 5.0);
        let json = run.json();
        assert_eq!(json["requests_per_s"], 200.0);
        assert_eq!(json["requests_per_s_vs_nginx"], 1.5);
        assert_eq!(json["requests_per_s_vs_nginx_all"], json!([0.5, 1.5, 2.0]));
        assert_eq!(json["requests_per_s_vs_haproxy"], 2.0);
        assert_eq!(json["haproxy_requests_per_s_min"], 50.0);
        let report = Report {
            runs: vec![run],
            ..Report::new()
        };
        let table = report.table();
        assert!(
            table.contains("200 / 200 / 100") && table.contains("1.50 (0.50..2.00)"),
            "{table}"
        );
    }
}
