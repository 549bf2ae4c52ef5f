//! From when on a new side is worse: what promotions and ramps ask for alike.

use clap::Args;
use offshoot_model::traffic::compare::Guard;
use offshoot_model::traffic::view::TrafficReport;

use crate::table::optional;

/// See the module.
#[derive(Debug, Args)]
pub(super) struct GuardArgs {
    /// It is worse when its share of errors is higher by more than this
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = percent)]
    errors: f64,
    /// It is worse when its p95 is more than so many times as long
    #[arg(long, value_name = "FACTOR", default_value = "2x", value_parser = times)]
    latency: f64,
    /// Requests that it must have before it is judged
    #[arg(long, value_name = "N", default_value_t = Guard::default().min_requests)]
    min: u64,
}

impl From<GuardArgs> for Guard {
    fn from(args: GuardArgs) -> Self {
        Self {
            errors_percent: args.errors,
            latency_factor: args.latency,
            min_requests: args.min,
        }
    }
}

/// `10%`, also without the sign.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').parse::<f64>();
    match number {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err(format!("{text:?} is not a share; write for instance 10%")),
    }
}

fn times(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('x').parse::<f64>();
    match number {
        Ok(factor) if factor >= 1.0 => Ok(factor),
        _ => Err(format!("{text:?} is not a factor; write for instance 2x")),
    }
}

/// What both sides answered, and until when the old one is kept.
pub(super) fn rows(report: &TrafficReport) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    for (name, figures) in [
        ("New side", &report.new_figures),
        ("Old side", &report.old_figures),
    ] {
        if let Some(figures) = figures {
            let p95 = optional(figures.p95_ms.map(|ms| format!("{ms} ms")));
            rows.push((
                name,
                format!(
                    "{} requests, {} errors, p95 {p95}",
                    figures.requests, figures.errors
                ),
            ));
        }
    }
    if let Some(until) = report.keep_until {
        rows.push(("Keep the old until", format!("{until:.0}")));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_factors_as_people_write_them() {
        assert_eq!(percent("10%"), Ok(10.0));
        assert_eq!(percent("0.5"), Ok(0.5));
        assert!(percent("101%").is_err() && percent("-1").is_err() && percent("ten").is_err());
        assert_eq!(times("1.5x"), Ok(1.5));
        assert!(times("0.5x").is_err() && times("NaN").is_err());
    }
}
