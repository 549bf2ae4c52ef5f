//! What is typed into fields, read and written. What is written is read as the same again.

use std::str::FromStr;

/// A whole number; nothing is `usual`.
pub(super) fn number<T: FromStr>(text: &str, usual: T) -> Result<T, String> {
    match text {
        "" => Ok(usual),
        text => text
            .parse()
            .map_err(|_| format!("{text:?} is not such a number")),
    }
}

/// Words between commas or spaces.
pub(super) fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace());
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A time: `1m30s`, `250ms`.
pub(super) fn time_text(ms: u64) -> String {
    let (minutes, seconds, rest) = (ms / 60_000, ms / 1_000 % 60, ms % 1_000);
    let mut text = String::new();
    for (many, unit) in [(minutes, "m"), (seconds, "s"), (rest, "ms")] {
        if many > 0 {
            text.push_str(&format!("{many}{unit}"));
        }
    }
    if text.is_empty() {
        "0".to_owned()
    } else {
        text
    }
}

/// A size in the largest unit that it is a whole number of: `10m`.
pub(super) fn bytes_text(bytes: u64) -> String {
    for (shift, unit) in [(30, "g"), (20, "m"), (10, "k")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// A share in percent with one decimal at most, in a thousand.
pub(super) fn permille(text: &str) -> Result<u32, String> {
    let bare = text.trim_end_matches('%').trim_end();
    let share = bare.parse::<f64>().ok();
    let share = share.filter(|share| (0.0..=1e6).contains(share));
    let share = share.ok_or_else(|| format!("{text:?} is no share in percent"))?;
    Ok((share * 10.0).round() as u32)
}

/// A share in a thousand, in percent.
pub(super) fn permille_text(permille: u32) -> String {
    (f64::from(permille) / 10.0).to_string()
}

/// Statuses: `200-299, 404`.
pub(super) fn statuses(text: &str) -> Result<Vec<(u16, u16)>, String> {
    let range = |word: &String| {
        let (from, to) = word.split_once('-').unwrap_or((word, word));
        from.parse().ok().zip(to.parse().ok())
    };
    let ranges: Option<Vec<_>> = words(text).iter().map(range).collect();
    ranges.ok_or_else(|| format!("{text:?} are no statuses"))
}

/// Statuses as they are typed.
pub(super) fn statuses_text(statuses: &[(u16, u16)]) -> String {
    let range = |(from, to): &(u16, u16)| match from == to {
        true => from.to_string(),
        false => format!("{from}-{to}"),
    };
    let ranges: Vec<_> = statuses.iter().map(range).collect();
    ranges.join(", ")
}

#[cfg(test)]
mod tests {
    use offshoot_model::quantity::{parse_bytes, parse_duration_ms};

    use super::*;

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for ms in [0, 1, 250, 1_000, 2_000, 60_000, 90_500, 600_000] {
            assert_eq!(parse_duration_ms(&time_text(ms)), Ok(ms));
        }
        for bytes in [0, 1, 1_000, 1 << 10, 5 << 20, 3 << 30, (1 << 20) + 1] {
            assert_eq!(parse_bytes(&bytes_text(bytes)), Ok(bytes));
        }
        for share in [1, 3, 125, 999, 1_000] {
            assert_eq!(permille(&permille_text(share)), Ok(share));
        }
        let ranges = vec![(200, 299), (404, 404)];
        assert_eq!(statuses_text(&ranges), "200-299, 404");
        assert_eq!(statuses(&statuses_text(&ranges)), Ok(ranges));
    }

    #[test]
    fn what_is_none_is_refused() {
        assert!(permille("NaN").is_err() && permille("1e99").is_err());
        assert!(statuses("200-").is_err() && statuses("70000").is_err());
        assert_eq!(number("", 7), Ok(7));
        assert!(number::<u32>("7.5", 7).is_err());
        assert_eq!(words(" a,b  c ,"), ["a", "b", "c"]);
    }
}
