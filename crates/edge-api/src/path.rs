//! Paths of routes, and paths of requests as they are compared with them.

/// Longest path of a route, bytes.
pub const PATH_MAX: usize = 1_024;

/// A route's path in the form in which paths are compared: begins with `/`, does not end with one unless it is the
/// root, unreserved characters plain, other percent-encodings in upper case (RFC 3986, 6.2.2). `None` when it is not
/// a path that a request can be compared with: empty segments, dot segments and slashes in whatever writing,
/// characters that no path has (RFC 3986, 3.3), or more than [`PATH_MAX`] bytes.
#[must_use]
pub fn normal_prefix(text: &str) -> Option<String> {
    if text == "/" {
        return Some("/".to_owned());
    }
    if text.len() > PATH_MAX {
        return None;
    }
    let path = text.strip_suffix('/').unwrap_or(text).strip_prefix('/')?;
    let mut normal = Vec::with_capacity(text.len());
    for segment in path.split('/') {
        normal.push(b'/');
        let begin = normal.len();
        push_segment(&mut normal, segment.as_bytes(), Strict::Yes)?;
        if matches!(normal.get(begin..), Some(b"" | b"." | b"..")) {
            return None;
        }
    }
    String::from_utf8(normal).ok()
}

/// A request's path as it is compared with the paths of routes: unreserved characters plain, other
/// percent-encodings in upper case (RFC 3986, 6.2.2), empty segments taken out, then dot segments resolved (RFC 3986,
/// 5.2.4). What has no leading `/` (`*`, for instance) is the root. An encoded slash (`%2F`) is no border between
/// segments, and is none for the environment unless it wants it to be.
#[must_use]
pub fn normal_path(path: &str) -> String {
    let Some(path) = path.strip_prefix('/') else {
        return "/".to_owned();
    };
    let mut normal = Vec::with_capacity(path.len() + 1);
    // whether the path so far names a directory: `/a/` and `/a/.` do, `/a` does not
    let mut directory = true;
    for segment in path.split('/') {
        directory = true;
        let begin = normal.len();
        normal.push(b'/');
        // takes everything when it need not be strict
        let _ = push_segment(&mut normal, segment.as_bytes(), Strict::No);
        match normal.get(begin + 1..) {
            Some(b"" | b".") => normal.truncate(begin),
            Some(b"..") => {
                normal.truncate(begin);
                let parent = normal.iter().rposition(|byte| *byte == b'/');
                normal.truncate(parent.unwrap_or(0));
            }
            _ => directory = false,
        }
    }
    if directory {
        normal.push(b'/');
    }
    // ASCII by construction
    String::from_utf8(normal).unwrap_or_else(|_| "/".to_owned())
}

/// Whether a route with this path answers a request with that one, both in their normal forms: the same, or a border
/// between segments after it.
#[must_use]
pub fn covers(prefix: &str, path: &str) -> bool {
    prefix == "/"
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Strict {
    Yes,
    No,
}

/// Appends a segment in its normal form; when strict, `None` for what a path cannot have.
fn push_segment(out: &mut Vec<u8>, segment: &[u8], strict: Strict) -> Option<()> {
    let mut rest = segment;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            if is_path(byte) {
                out.push(byte);
            } else if strict == Strict::Yes {
                return None;
            } else {
                push_encoded(out, byte);
            }
            continue;
        }
        match encoded(after) {
            Some(byte) => {
                rest = after.get(2..).unwrap_or_default();
                if strict == Strict::Yes && (byte == b'/' || byte.is_ascii_control()) {
                    return None;
                }
                if is_unreserved(byte) {
                    out.push(byte);
                } else {
                    push_encoded(out, byte);
                }
            }
            None if strict == Strict::Yes => return None,
            // a percent sign that encodes nothing is one
            None => push_encoded(out, b'%'),
        }
    }
    Some(())
}

/// The byte that two hexadecimal digits stand for.
fn encoded(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| {
        let digit = char::from(*digits.get(at)?).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    Some(digit(0)? << 4 | digit(1)?)
}

fn push_encoded(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |value: u8| HEX.get(usize::from(value & 15)).copied().unwrap_or(b'0');
    out.extend([b'%', digit(byte >> 4), digit(byte)]);
}

/// RFC 3986, 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// `pchar` without percent-encodings: RFC 3986, 3.3.
fn is_path(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefixes_are_normalised_or_refused() {
        for (text, normal) in [
            ("/", "/"),
            ("/shop", "/shop"),
            ("/shop/", "/shop"),
            ("/a/b.c/..d", "/a/b.c/..d"),
            ("/%73hop/%c3%a4", "/shop/%C3%A4"),
            ("/.well-known/acme", "/.well-known/acme"),
        ] {
            assert_eq!(normal_prefix(text).as_deref(), Some(normal), "{text:?}");
        }
        for text in [
            "",
            "shop",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/a/../b",
            "/..",
            "/.",
            "/a/.",
            "/%2e%2E/b",
            "/.%2e",
            "/a%2fb",
            "/a%2Fb",
            "/a?b",
            "/a#b",
            "/a b",
            "/a\r\nb",
            "/a%0d",
            "/a%00",
            "/a%7f",
            "/a%",
            "/a%4",
            "/a%zz",
            "/ä",
            "/a\\b",
            "/a\"b",
        ] {
            assert_eq!(normal_prefix(text), None, "{text:?}");
        }
        assert!(normal_prefix(&format!("/{}", "a".repeat(PATH_MAX - 1))).is_some());
        assert!(normal_prefix(&format!("/{}", "a".repeat(PATH_MAX))).is_none());
    }

    #[test]
    fn requests_are_compared_by_what_they_mean() {
        for (text, normal) in [
            ("/", "/"),
            ("", "/"),
            ("*", "/"),
            ("/shop", "/shop"),
            ("/shop/", "/shop/"),
            ("//shop", "/shop"),
            ("/a/../shop", "/shop"),
            ("/a/%2e%2E/shop", "/shop"),
            ("/a/%2e./%73hop", "/shop"),
            ("/a//../shop", "/shop"),
            ("/../../shop/..", "/"),
            ("/shop/x/..", "/shop/"),
            ("/shop/.", "/shop/"),
            ("/shop/..%2fadmin", "/shop/..%2Fadmin"),
            ("/shop%2fx", "/shop%2Fx"),
            ("/100%", "/100%25"),
            ("/ä", "/%C3%A4"),
        ] {
            assert_eq!(normal_path(text), normal, "{text:?}");
        }
    }

    #[test]
    fn prefixes_end_at_borders() {
        for (prefix, path, answer) in [
            ("/", "/anything", true),
            ("/shop", "/shop", true),
            ("/shop", "/shop/", true),
            ("/shop", "/shop/x", true),
            ("/shop", "/shopping", false),
            ("/shop", "/Shop", false),
            ("/shop/x", "/shop", false),
        ] {
            assert_eq!(covers(prefix, path), answer, "{prefix} {path}");
        }
    }

    /// What a server makes of a path that decodes first and resolves then, with a list of segments.
    fn naive(path: &str) -> Vec<String> {
        let mut segments: Vec<String> = Vec::new();
        for segment in path.split('/') {
            let mut plain = segment.to_owned();
            for (encoded, character) in [("%2e", "."), ("%2E", "."), ("%61", "a"), ("%62", "b")] {
                plain = plain.replace(encoded, character);
            }
            match plain.as_str() {
                "" | "." => {}
                ".." => drop(segments.pop()),
                _ => segments.push(plain),
            }
        }
        segments
    }

    proptest! {
        #[test]
        fn paths_mean_what_a_naive_reading_says(path in "/(a|b|\\.|%2e|%2E|%61|%62|%2F|/){0,12}") {
            let normal = normal_path(&path);
            let segments: Vec<String> =
                normal.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect();
            prop_assert_eq!(segments, naive(&path));
        }

        #[test]
        fn normal_forms_stay(path in "(/|.){0,3}.{0,40}") {
            let normal = normal_path(&path);
            prop_assert!(normal.starts_with('/') && normal.is_ascii() && !normal.contains("//"));
            prop_assert_eq!(&normal_path(&normal), &normal);
            if let Some(prefix) = normal_prefix(&path) {
                prop_assert_eq!(normal_prefix(&prefix), Some(prefix.clone()));
                prop_assert!(covers(&prefix, &normal), "{} {}", prefix, normal);
            }
        }
    }
}
