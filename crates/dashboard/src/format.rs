//! Numbers and times for people.

use jiff::{SignedDuration, Timestamp};

/// Bytes that a path segment or a query value may have as they are (RFC 3986, 2.3).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// A text as one segment of a path or one value of a query.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// An address that a link may lead to: of the web, whatever somebody named things.
pub(crate) fn web_address(url: &str) -> Option<&str> {
    (url.starts_with("http://") || url.starts_with("https://")).then_some(url)
}

/// An address without what every one has.
pub(crate) fn bare_address(url: &str) -> &str {
    let bare = url.split_once("://").map_or(url, |(_, bare)| bare);
    bare.strip_suffix('/').unwrap_or(bare)
}

/// A text of at most `most` characters; what is cut off stands as one of them.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept = text.chars().take(most.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// A text in pieces: commands stand between backticks, and are `true`.
pub(crate) fn ticks(text: &str) -> Vec<(bool, &str)> {
    let pieces = text.split('`').enumerate();
    pieces
        .map(|(index, piece)| (index % 2 == 1, piece))
        .filter(|(_, piece)| !piece.is_empty())
        .collect()
}

/// A size: `1.5 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    offshoot_model::quantity::format_bytes(bytes)
}

/// A span of time from microseconds to days, in at most two units' worth of digits.
pub(crate) fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        1_000_000..60_000_000 => format!("{:.1} s", us as f64 / 1e6),
        60_000_000..3_600_000_000 => {
            format!("{} min {} s", us / 60_000_000, us / 1_000_000 % 60)
        }
        _ => format!("{} h {} min", us / 3_600_000_000, us / 60_000_000 % 60),
    }
}

/// How long ago, in one unit.
pub(crate) fn age(span: SignedDuration) -> String {
    let seconds = span.as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        86_400..5_184_000 => format!("{} d", seconds / 86_400),
        5_184_000..63_072_000 => format!("{} mo", seconds / 2_628_000),
        _ => format!("{} y", seconds / 31_536_000),
    }
}

/// Processor time now, in percent of one processor.
pub(crate) fn percent(rate: f64) -> String {
    if rate < 10.0 {
        format!("{rate:.1} %")
    } else {
        format!("{rate:.0} %")
    }
}

/// An instant: for machines, for people without a script, and how long ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct When {
    pub(crate) iso: String,
    pub(crate) utc: String,
    pub(crate) age: String,
}

impl When {
    pub(crate) fn new(at: Timestamp, now: Timestamp) -> Self {
        Self {
            iso: at.to_string(),
            utc: at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
            age: age(now.duration_since(at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() {
        assert_eq!(duration(950), "950 µs");
        assert_eq!(duration(1_500), "1.5 ms");
        assert_eq!(duration(152_400), "152 ms");
        assert_eq!(duration(3_400_000), "3.4 s");
        assert_eq!(duration(65_000_000), "1 min 5 s");
        assert_eq!(duration(7_260_000_000), "2 h 1 min");
        assert_eq!(age(SignedDuration::from_secs(-5)), "0 s");
        assert_eq!(age(SignedDuration::from_hours(50)), "2 d");
        assert_eq!(percent(0.26), "0.3 %");
        assert_eq!(percent(140.2), "140 %");
    }

    #[test]
    fn commands_in_a_text() {
        let pieces = ticks("see `offshoot ls`, or `x");
        assert_eq!(
            pieces,
            [
                (false, "see "),
                (true, "offshoot ls"),
                (false, ", or "),
                (true, "x")
            ]
        );
    }

    #[test]
    fn what_is_hostile_is_no_link() {
        assert_eq!(web_address("javascript:alert(1)"), None);
        assert_eq!(encode("a/../b?c#\"é"), "a%2F..%2Fb%3Fc%23%22%C3%A9");
        assert_eq!(
            bare_address("http://shop.localhost:8080/"),
            "shop.localhost:8080"
        );
    }
}
