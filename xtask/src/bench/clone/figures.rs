//! What one clone is measured by, and what several of them come to.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bench::spread::Spread;

/// One clone. What cannot be measured of a way to clone is `None`.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Measured {
    /// Longest time without an answer for a client that asks every millisecond.
    pub(super) freeze_ms: f64,
    /// From the first node frozen to the last one thawed, as the operation tells it.
    pub(super) stood_still_ms: Option<f64>,
    /// From the command to the clone's first complete page.
    pub(super) first_answer_ms: f64,
    /// Answers of the parent per second, before the clone and while it was made.
    pub(super) answers_before: Option<f64>,
    pub(super) answers_during: Option<f64>,
    /// The second against the first.
    pub(super) parent_throughput_ratio: Option<f64>,
    /// Latency that 99 of 100 answers kept, before the clone and while it was made, without what waited in the freeze.
    pub(super) p99_before_ms: Option<f64>,
    pub(super) p99_during_ms: Option<f64>,
    /// The second against the first.
    pub(super) p99_ratio: Option<f64>,
    /// Writes to the bulk data per second, before the clone and while it was made.
    pub(super) writes_before: Option<f64>,
    pub(super) writes_during: Option<f64>,
    /// Memory copied, and of that in the freeze, bytes.
    pub(super) bytes_copied: Option<u64>,
    pub(super) bytes_copied_in_freeze: Option<u64>,
    /// What the clone's nodes use, as their control groups count it.
    pub(super) added_memory_mib: Option<f64>,
    /// What the pool has grown by.
    pub(super) added_disk_mib: Option<f64>,
}

/// Every figure by its name in [`Measured`]; those that nobody measured are not in it.
pub(super) fn spreads(measured: &[Measured]) -> anyhow::Result<BTreeMap<String, Spread>> {
    let mut columns = BTreeMap::<String, Vec<Option<f64>>>::new();
    for one in measured {
        if let serde_json::Value::Object(figures) = serde_json::to_value(one)? {
            for (name, value) in figures {
                columns.entry(name).or_default().push(value.as_f64());
            }
        }
    }
    Ok(columns
        .into_iter()
        .filter_map(|(name, all)| Some((name, Spread::of(all)?)))
        .collect())
}

/// Bytes.
pub(super) const MEBIBYTE: f64 = 1_048_576.0;

/// Mebibytes.
#[expect(clippy::cast_precision_loss, reason = "sizes for people")]
pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / MEBIBYTE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_its_spread() {
        let one = |freeze_ms, copied| Measured {
            freeze_ms,
            bytes_copied: copied,
            ..Measured::default()
        };
        let spreads = spreads(&[one(20.0, None), one(10.0, Some(5))]).unwrap();
        assert_eq!(spreads["freeze_ms"].median, 15.0);
        assert_eq!(spreads["bytes_copied"].all, [None, Some(5.0)]);
        assert!(!spreads.contains_key("p99_ratio"));
    }
}
