//! `image:` as a source.

use std::path::Path;

use offshoot_model::ImageSource;

use crate::diagnostic::Report;
use crate::field::At;

/// Decodes `image:`.
pub(super) fn decode(at: &At<'_>, report: &mut Report) -> Option<ImageSource> {
    let text = at.word(report)?.trim();
    let on_disk = |rest: &str, report: &mut Report| {
        let (path, tag) = split_tag(rest);
        if path.is_empty() {
            at.invalid(report, format!("{text:?} names no path"));
            return None;
        }
        let path = report.path_of(at.node.place, path);
        if !path.is_absolute() {
            at.invalid(
                report,
                format!("{} is not an absolute path", path.display()),
            );
            return None;
        }
        Some((display(&path), tag))
    };
    if let Some(rest) = text.strip_prefix("oci:") {
        return on_disk(rest, report).map(|(path, tag)| ImageSource::OciLayout { path, tag });
    }
    if let Some(rest) = text.strip_prefix("docker-archive:") {
        return on_disk(rest, report).map(|(path, tag)| ImageSource::DockerArchive { path, tag });
    }
    for scheme in [
        "oci-archive:",
        "dir:",
        "docker-daemon:",
        "containers-storage:",
        "docker://",
    ] {
        if text.starts_with(scheme) {
            let known = "a registry's reference, oci:DIRECTORY[:tag] or docker-archive:FILE[:tag]";
            at.unsupported(
                report,
                format!("images come from {known}, not from {scheme}"),
            );
            return None;
        }
    }
    at.parse(report, |text| normalise(text.trim()))
        .map(|reference| ImageSource::Registry { reference })
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// `PATH[:tag]`: what follows the last colon, unless it has a slash.
fn split_tag(text: &str) -> (&str, Option<String>) {
    match text.rsplit_once(':') {
        Some((path, tag)) if !tag.is_empty() && !tag.contains('/') => (path, Some(tag.to_owned())),
        _ => (text, None),
    }
}

/// A reference with host, repository and tag or digest, as Docker completes it: `nginx` is
/// `docker.io/library/nginx:latest` (distribution reference grammar).
///
/// # Errors
/// A sentence.
pub(super) fn normalise(text: &str) -> Result<String, String> {
    let bad = |why: &str| format!("{text:?} is not an image's reference: {why}");
    if text.len() > 500 {
        return Err(bad("it is too long"));
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        let valid = digest.split_once(':').is_some_and(|(algorithm, hex)| {
            let length = match algorithm {
                "sha256" => 64,
                "sha512" => 128,
                _ => 0,
            };
            hex.len() == length
                && hex
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if !valid {
            return Err(bad("the digest is not sha256: with 64 hexadecimal digits"));
        }
    }
    // A first part with a dot or a port, or `localhost`, is a host; otherwise it belongs to the repository.
    let (host, rest) = match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("docker.io", name),
    };
    let host = if host == "index.docker.io" {
        "docker.io"
    } else {
        host
    };
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    if !is_host(host) {
        return Err(bad("the host is malformed"));
    }
    if !repository.split('/').all(is_component) {
        return Err(bad(
            "a repository has lower-case letters, digits and . _ - between them",
        ));
    }
    let library = if host == "docker.io" && !repository.contains('/') {
        "library/"
    } else {
        ""
    };
    if let Some(tag) = tag {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let valid = tag.bytes().next().is_some_and(word)
            && tag.len() <= 128
            && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if !valid {
            return Err(bad("the tag is malformed"));
        }
    }
    let tag = match (tag, digest) {
        (Some(tag), _) => format!(":{tag}"),
        (None, None) => ":latest".to_owned(),
        (None, Some(_)) => String::new(),
    };
    let digest = digest
        .map(|digest| format!("@{digest}"))
        .unwrap_or_default();
    Ok(format!("{host}/{library}{repository}{tag}{digest}"))
}

fn is_host(host: &str) -> bool {
    let (name, port) = host
        .split_once(':')
        .map_or((host, None), |(name, port)| (name, Some(port)));
    let labels = name.split('.').all(|label| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    });
    labels && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Letters and digits with one `.`, one or two `_`, or any number of `-` between.
fn is_component(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        && !["..", "___", "._", "_.", "-.", ".-", "_-", "-_"]
            .iter()
            .any(|pair| text.contains(pair))
}

#[cfg(test)]
mod tests {
    use super::normalise;

    #[test]
    fn references_are_completed() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, expected) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("bitnami/redis", "docker.io/bitnami/redis:latest".to_owned()),
            ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("127.0.0.1:5000/x:y", "127.0.0.1:5000/x:y".to_owned()),
            (
                "docker.io/nginx",
                "docker.io/library/nginx:latest".to_owned(),
            ),
            (
                "index.docker.io/library/nginx",
                "docker.io/library/nginx:latest".to_owned(),
            ),
            (
                &format!("nginx@{digest}"),
                format!("docker.io/library/nginx@{digest}"),
            ),
            (
                &format!("r.io/nginx:1@{digest}"),
                format!("r.io/nginx:1@{digest}"),
            ),
        ] {
            assert_eq!(normalise(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "Nginx",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a:",
            "a:b:c",
            "a@sha256:12",
            "a b",
            "../a",
            "a.b:x/c",
            "ä",
        ] {
            assert!(normalise(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn completing_twice_changes_nothing(text in "[a-z0-9.:/@_-]{1,30}") {
            if let Ok(once) = normalise(&text) {
                proptest::prop_assert_eq!(normalise(&once), Ok(once.clone()));
            }
        }
    }
}
