//! What one clone is measured by, and what several of them come to.

use std::collections::BTreeMap;

use serde::Serialize;

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

/// A figure of several clones.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// In the order they were measured; `None` where there was no figure.
    pub(super) all: Vec<Option<f64>>,
}

impl Spread {
    /// Of the figures that there are; `None` when there are none.
    pub(super) fn of(all: Vec<Option<f64>>) -> Option<Self> {
        let mut sorted: Vec<_> = all.iter().flatten().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(Self {
            median: rounded((lower + upper) / 2.0),
            min: rounded(min),
            max: rounded(max),
            all: all.into_iter().map(|value| value.map(rounded)).collect(),
        })
    }
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

/// For people: hundredths.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
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

    fn spread(values: &[f64]) -> Option<(f64, f64, f64)> {
        let spread = Spread::of(values.iter().copied().map(Some).collect())?;
        Some((spread.median, spread.min, spread.max))
    }

    #[test]
    fn medians_and_spreads() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[7.0]), Some((7.0, 7.0, 7.0)));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(spread(&[1.0, 9.0, 2.004, 4.0]), Some((3.0, 1.0, 9.0)));
        assert_eq!(Spread::of(vec![None]), None);
        let holes = Spread::of(vec![Some(2.0), None, Some(1.006)]).unwrap();
        assert_eq!(holes.median, 1.5);
        assert_eq!(holes.all, [Some(2.0), None, Some(1.01)]);
    }

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
