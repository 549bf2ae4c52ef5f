//! `SRC` and `DST` as typed.

use offshoot_model::name::{LABEL_MAX, is_label};

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path on this host, as typed.
    Local(String),
    /// A path in a node.
    Remote(Remote),
    /// `-`: a tar archive on standard input or output.
    Stream,
}

/// A path in a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Environment, by name or id.
    pub(crate) environment: String,
    /// Node or layer.
    pub(crate) node: String,
    /// Absolute, without `/.` or `/` at its end; `/` for the root.
    pub(crate) path: String,
    /// How the path ended.
    pub(crate) ending: Ending,
}

/// What stood at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A name.
    Name,
    /// `/`: it must be a directory.
    Slash,
    /// `/.`: the content of a directory.
    Content,
}

impl Place {
    /// `-`, `ENV/NODE:PATH`, or else a local path. What begins with `/` or `.` is always local.
    pub(crate) fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        let remote = || {
            if text.starts_with(['/', '.']) {
                return None;
            }
            let (owner, path) = text.split_once(':')?;
            let (environment, node) = owner.split_once('/')?;
            if !is_label(environment, LABEL_MAX) || !is_label(node, LABEL_MAX) {
                return None;
            }
            let (path, ending) = ending(path);
            let path = format!("/{}", path.trim_start_matches('/'));
            Some(Remote {
                environment: environment.to_owned(),
                node: node.to_owned(),
                path,
                ending,
            })
        };
        remote().map_or_else(|| Self::Local(text.to_owned()), Self::Remote)
    }
}

/// Splits what a path ends in from it.
pub(crate) fn ending(path: &str) -> (&str, Ending) {
    let bare = path.trim_end_matches('/');
    match bare.strip_suffix('.') {
        Some(dir) if dir.is_empty() || dir.ends_with('/') => (ending(dir).0, Ending::Content),
        _ if bare.len() < path.len() => (bare, Ending::Slash),
        _ => (path, Ending::Name),
    }
}

impl Remote {
    /// The last name of the path; `None` for the root.
    pub(crate) fn name(&self) -> Option<&str> {
        self.path.rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// The directory that holds it.
    pub(crate) fn parent(&self) -> &str {
        match self.path.rsplit_once('/') {
            Some(("", _)) | None => "/",
            Some((parent, _)) => parent,
        }
    }

    /// As typed, for messages.
    pub(crate) fn shown(&self) -> String {
        format!("{}/{}:{}", self.environment, self.node, self.path)
    }
}

/// A place in a node, for tests.
#[cfg(test)]
pub(crate) fn remote(text: &str) -> Remote {
    match Place::parse(text) {
        Place::Remote(remote) => remote,
        other => panic!("{text:?} is {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_in_nodes() {
        let place = remote("shop/web-1:/etc/nginx");
        assert_eq!(
            (place.environment.as_str(), place.node.as_str()),
            ("shop", "web-1")
        );
        assert_eq!(
            (place.path.as_str(), place.ending),
            ("/etc/nginx", Ending::Name)
        );
        assert_eq!((place.parent(), place.name()), ("/etc", Some("nginx")));
        for (text, path, ending) in [
            ("shop/web:etc", "/etc", Ending::Name),
            ("shop/web:/etc/", "/etc", Ending::Slash),
            ("shop/web:/etc//", "/etc", Ending::Slash),
            ("shop/web:/etc/.", "/etc", Ending::Content),
            ("shop/web:/", "/", Ending::Slash),
            ("shop/web:", "/", Ending::Name),
            ("shop/web:.", "/", Ending::Content),
            ("shop/web:/.", "/", Ending::Content),
            ("shop/web:./", "/", Ending::Content),
            ("shop/web:/etc/./", "/etc", Ending::Content),
            ("shop/web:/etc/.//./", "/etc", Ending::Content),
            ("shop/web:/etc/a.", "/etc/a.", Ending::Name),
            ("shop/web:/a:b", "/a:b", Ending::Name),
            ("shop/web:/..", "/..", Ending::Name),
        ] {
            let place = remote(text);
            assert_eq!(
                (place.path.as_str(), place.ending),
                (path, ending),
                "{text}"
            );
        }
        assert_eq!(
            (remote("a/b:/x").parent(), remote("a/b:/").name()),
            ("/", None)
        );
    }

    #[test]
    fn places_here() {
        for text in [
            "a",
            "a/b",
            "./a/b:c",
            "/a/b:c",
            "../x/y:z",
            "web-1:/etc",
            "a/b/c:/d",
            "A/b:/c",
            "a:b/c",
            "",
        ] {
            assert_eq!(Place::parse(text), Place::Local(text.to_owned()), "{text}");
        }
        assert_eq!(Place::parse("-"), Place::Stream);
    }

    proptest! {
        #[test]
        fn every_remote_path_is_absolute(text in any::<String>(), path in any::<String>()) {
            for text in [text, format!("a/b:{path}")] {
                if let Place::Remote(place) = Place::parse(&text) {
                    prop_assert!(place.path.starts_with('/'));
                    prop_assert!(!place.path.ends_with("/.") || place.path.contains("/./"), "{:?}", place.path);
                    prop_assert!(place.parent().starts_with('/'));
                }
            }
        }
    }
}
