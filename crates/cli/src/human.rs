//! Numbers and times as people read them.

use jiff::Timestamp;

pub(crate) use offshoot_model::quantity::format_bytes as bytes;

/// How long ago `then` was: `3 minutes ago`.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second());
    if seconds < 1 {
        return "just now".to_owned();
    }
    format!("{} ago", span(seconds.unsigned_abs()))
}

/// How long it is until `then`: `in 3 minutes`; of what is past how long ago.
pub(crate) fn until(then: Timestamp, now: Timestamp) -> String {
    match then.as_second().checked_sub(now.as_second()) {
        Some(seconds) if seconds > 0 => format!("in {}", span(seconds.unsigned_abs())),
        _ => age(then, now),
    }
}

/// Seconds in the largest unit that fits: `3 minutes`.
pub(crate) fn span(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        86_400..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{}", plural(count))
}

/// `s` unless there is one.
pub(crate) fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// A duration in microseconds: `840 µs`, `12.3 ms`, `1.24 s`, `2 min 5 s`.
pub(crate) fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.2} s", us as f64 / 1e6),
        _ => format!("{} min {} s", us / 60_000_000, us / 1_000_000 % 60),
    }
}

/// A duration in milliseconds, always in that unit, as freezes are told.
pub(crate) fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

/// An amount of something counted: bytes as sizes, anything else with its unit.
pub(crate) fn amount(count: u64, unit: &str) -> String {
    if unit == "bytes" {
        bytes(count)
    } else {
        format!("{count} {unit}")
    }
}

/// The first part of a `sha256:` digest, as people use it.
pub(crate) fn short_digest(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..12).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let then: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let after = |seconds: i64| {
            age(
                then,
                Timestamp::from_second(then.as_second() + seconds).unwrap(),
            )
        };
        assert_eq!(after(-5), "just now");
        assert_eq!(after(0), "just now");
        assert_eq!(after(1), "1 second ago");
        assert_eq!(after(180), "3 minutes ago");
        assert_eq!(after(7_200), "2 hours ago");
        assert_eq!(after(86_400 * 10), "10 days ago");
        assert_eq!(after(86_400 * 21), "3 weeks ago");
        assert_eq!(after(86_400 * 100), "3 months ago");
        assert_eq!(after(86_400 * 800), "2 years ago");
    }

    #[test]
    fn durations() {
        assert_eq!(duration(840), "840 µs");
        assert_eq!(duration(12_345), "12.3 ms");
        assert_eq!(duration(123_456), "123 ms");
        assert_eq!(duration(1_240_000), "1.24 s");
        assert_eq!(duration(125_000_000), "2 min 5 s");
        assert_eq!(milliseconds(1_500), "1.5 ms");
    }

    #[test]
    fn digests_of_any_shape() {
        assert_eq!(short_digest("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_digest("sha256:ä"), "ä");
    }
}
