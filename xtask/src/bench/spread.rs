//! A figure that was measured several times.

/// A figure of several runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// In the order they were measured; `None` where there was no figure.
    pub(crate) all: Vec<Option<f64>>,
}

impl Spread {
    /// Of the figures that there are; `None` when there are none.
    pub(crate) fn of(all: Vec<Option<f64>>) -> Option<Self> {
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

/// For people: hundredths.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
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
}
