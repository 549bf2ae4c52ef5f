//! Host names: of requests, of routes and certificates, of redirects.

/// Longest host name, bytes (RFC 1035, 2.3.4, without the final dot).
const NAME_MAX: usize = 253;

/// A host name in the form in which names are compared: lower case, without port and final dot. `None` when it
/// cannot be a host name (RFC 1123 with underscores, or an IP literal as in RFC 3986).
#[must_use]
pub fn normal_host(text: &str) -> Option<String> {
    let name = match text.strip_prefix('[') {
        Some(rest) => {
            let (literal, port) = rest.split_once(']')?;
            literal.parse::<std::net::Ipv6Addr>().ok()?;
            if !(port.is_empty() || port.strip_prefix(':').is_some_and(is_port)) {
                return None;
            }
            return Some(format!("[{}]", literal.to_ascii_lowercase()));
        }
        None => match text.split_once(':') {
            Some((name, port)) if is_port(port) => name,
            Some(_) => return None,
            None => text,
        },
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
    (name.len() <= NAME_MAX && name.split('.').all(label)).then(|| name.to_ascii_lowercase())
}

/// The port of an authority may be empty (RFC 3986, 3.2.3).
fn is_port(text: &str) -> bool {
    text.is_empty() || (text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok())
}

/// The host name of a route or a certificate in its normal form: that of [`normal_host`], or `*.` and a name, which
/// stands for all names of one or more labels before it. `None` for any other use of `*`.
#[must_use]
pub fn normal_pattern(text: &str) -> Option<String> {
    let Some(parent) = text.strip_prefix("*.") else {
        return normal_host(text);
    };
    let parent = normal_host(parent).filter(|parent| !parent.starts_with('['))?;
    // one label and a dot have to fit before it
    (parent.len() <= NAME_MAX - 2).then(|| format!("*.{parent}"))
}

/// Scheme and authority of `http://` and `https://` addresses without path, query, fragment and user, in normal
/// form; `None` for anything else.
#[must_use]
pub fn normal_origin(text: &str) -> Option<String> {
    let (scheme, authority) = text.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    if !matches!(scheme.as_str(), "http" | "https") {
        return None;
    }
    let host = normal_host(authority)?;
    // a colon within the brackets of an IPv6 address is none before a port
    let port = authority
        .rsplit_once(':')
        .map(|(_, port)| port)
        .filter(|port| !port.is_empty() && !port.ends_with(']'));
    Some(match port {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_names_are_normalised_or_refused() {
        for (text, normal) in [
            ("Shop.LocalHost", "shop.localhost"),
            ("shop.localhost.", "shop.localhost"),
            ("shop.localhost:8080", "shop.localhost"),
            ("shop.localhost.:8080", "shop.localhost"),
            ("shop.localhost:", "shop.localhost"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(normal_host(text).as_deref(), Some(normal), "{text:?}");
        }
        for text in [
            "", ".", "a..b", "a b", "a/b", "a:b", "a:1:2", "<x>", "[::1", "[x]", "[::1]x",
            "a\r\nb", "a:99999", "ä",
        ] {
            assert_eq!(normal_host(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_a_whole_first_label_may_be_any() {
        assert_eq!(
            normal_pattern("*.Example.org.").as_deref(),
            Some("*.example.org")
        );
        assert_eq!(
            normal_pattern("Example.org").as_deref(),
            Some("example.org")
        );
        for text in [
            "*", "*.", "*.*.org", "a.*.org", "*a.org", "a*.org", "**.org", "*.[::1]", "*..org",
        ] {
            assert_eq!(normal_pattern(text), None, "{text:?}");
        }
        let long = format!("{}.{0}.{0}.{}", "a".repeat(63), "b".repeat(61));
        assert!(normal_host(&long).is_some() && normal_pattern(&format!("*.{long}")).is_none());
    }

    #[test]
    fn origins_have_scheme_and_authority_and_nothing_else() {
        for (text, normal) in [
            ("https://New.example.org", "https://new.example.org"),
            ("HTTP://a.org:8080", "http://a.org:8080"),
            ("https://a.org.:", "https://a.org"),
            ("https://[::1]:8443", "https://[::1]:8443"),
            ("https://[::1]", "https://[::1]"),
        ] {
            assert_eq!(normal_origin(text).as_deref(), Some(normal), "{text:?}");
        }
        for text in [
            "",
            "a.org",
            "//a.org",
            "ftp://a.org",
            "https://",
            "https://a.org/",
            "https://a.org/x",
            "https://a.org?x",
            "https://a.org#x",
            "https://u@a.org",
            "https://a.org\r\nx: y",
            "https://*.a.org",
            "javascript://a.org",
            "https://a.org:99999",
            "https://a.org:8080:1",
        ] {
            assert_eq!(normal_origin(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn normalising_is_idempotent(text in ".{0,40}") {
            if let Some(once) = normal_host(&text) {
                prop_assert_eq!(normal_host(&once), Some(once));
            }
        }
    }
}
