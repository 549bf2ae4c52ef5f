//! Which route answers a host name and a path: the host by hash, the path by search in the host's sorted paths.

use std::collections::HashMap;
use std::sync::Arc;

use offshoot_edge_api::{PATH_MAX, normal_path};

/// What answers by host name and path. All names and paths that are put in are in normal form.
pub(crate) struct Hosts<T> {
    /// Names in full.
    exact: HashMap<String, Paths<T>>,
    /// Names without the `*.` that stood before them.
    wildcard: HashMap<String, Paths<T>>,
    count: usize,
}

/// The paths of a host name, sorted.
type Paths<T> = Vec<(String, Arc<T>)>;

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            count: 0,
        }
    }
}

/// What was found.
pub(crate) enum Found<'a, T> {
    /// It answers.
    Route(&'a Arc<T>),
    /// The host name is known, this path of it is not.
    NoPath,
    /// The host name is unknown.
    NoHost,
}

impl<T> Hosts<T> {
    /// Room for that many names.
    pub(crate) fn with_capacity(names: usize) -> Self {
        Self {
            exact: HashMap::with_capacity(names),
            ..Self::default()
        }
    }

    /// Puts a route in; `sort` has to follow before anything is looked up.
    pub(crate) fn insert(&mut self, pattern: String, path: String, route: Arc<T>) {
        let paths = match pattern.strip_prefix("*.") {
            Some(parent) => self.wildcard.entry(parent.to_owned()).or_default(),
            None => self.exact.entry(pattern).or_default(),
        };
        paths.push((path, route));
        self.count += 1;
    }

    /// Makes it ready for look-ups.
    pub(crate) fn sort(&mut self) {
        for paths in self.exact.values_mut().chain(self.wildcard.values_mut()) {
            paths.sort_by(|a, b| a.0.cmp(&b.0));
            paths.shrink_to_fit();
        }
    }

    /// What answers a request for a host name in normal form and a path as the client sent it. A name of its own goes
    /// before a wildcard and a longer wildcard before a shorter, whichever paths they have.
    pub(crate) fn find(&self, host: &str, path: &str) -> Found<'_, T> {
        let Some(paths) = self.paths(host) else {
            return Found::NoHost;
        };
        longest(paths, path).map_or(Found::NoPath, Found::Route)
    }

    fn paths(&self, host: &str) -> Option<&Paths<T>> {
        if let Some(paths) = self.exact.get(host) {
            return Some(paths);
        }
        if self.wildcard.is_empty() || host.starts_with('[') {
            return None;
        }
        // at most 127 labels
        let borders = host.match_indices('.');
        borders
            .filter_map(|(at, dot)| host.get(at + dot.len()..))
            .find_map(|parent| self.wildcard.get(parent))
    }

    /// Number of routes.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

/// The longest of sorted paths that the request's path begins with, at a border between segments.
fn longest<'a, T>(paths: &'a Paths<T>, path: &str) -> Option<&'a Arc<T>> {
    if let [(only, route)] = paths.as_slice()
        && only == "/"
    {
        return Some(route);
    }
    let path = normal_path(path);
    // no route's path is longer, so what follows cannot matter, but could be 64 KiB of segments
    let mut prefix = match path.get(..=PATH_MAX) {
        Some(begin) => begin.rsplit_once('/')?.0,
        None => path.as_str(),
    };
    loop {
        let wanted = if prefix.is_empty() { "/" } else { prefix };
        if let Ok(at) = paths.binary_search_by(|(path, _)| path.as_str().cmp(wanted)) {
            return paths.get(at).map(|(_, route)| route);
        }
        prefix = prefix.rsplit_once('/')?.0;
    }
}

#[cfg(test)]
mod tests {
    use offshoot_edge_api::covers;
    use proptest::prelude::*;

    use super::*;

    fn hosts(routes: &[(String, String)]) -> Hosts<usize> {
        let mut hosts = Hosts::default();
        for (at, (pattern, path)) in routes.iter().enumerate() {
            hosts.insert(pattern.clone(), path.clone(), Arc::new(at));
        }
        hosts.sort();
        hosts
    }

    fn find(hosts: &Hosts<usize>, host: &str, path: &str) -> Option<usize> {
        match hosts.find(host, path) {
            Found::Route(at) => Some(**at),
            Found::NoPath | Found::NoHost => None,
        }
    }

    /// All routes one after the other, by what the documents say.
    fn naive(routes: &[(String, String)], host: &str, path: &str) -> Option<usize> {
        let path = normal_path(path);
        let answers = |pattern: &str| match pattern.strip_prefix('*') {
            // the dot after the star is part of what has to follow a label
            Some(parent) => host.len() > parent.len() && host.ends_with(parent),
            None => host == pattern,
        };
        let rank = |pattern: &str| (!pattern.starts_with('*'), pattern.len());
        let best = routes
            .iter()
            .map(|(pattern, _)| pattern)
            .filter(|pattern| answers(pattern))
            .max_by_key(|pattern| rank(pattern))?;
        let of_host = routes.iter().enumerate().filter(|(_, (p, _))| p == best);
        of_host
            .filter(|(_, (_, prefix))| covers(prefix, &path))
            .max_by_key(|(_, (_, prefix))| prefix.len())
            .map(|(at, _)| at)
    }

    #[test]
    fn the_longest_whole_segments_answer() {
        let routes = [
            ("a.org", "/"),
            ("a.org", "/shop"),
            ("a.org", "/shop/cart"),
            ("*.a.org", "/only"),
            ("*.b.a.org", "/"),
        ];
        let hosts = hosts(&routes.map(|(host, path)| (host.to_owned(), path.to_owned())));
        for (host, path, answer) in [
            ("a.org", "/", Some(0)),
            ("a.org", "*", Some(0)),
            ("a.org", "/shopping", Some(0)),
            ("a.org", "/shop", Some(1)),
            ("a.org", "/shop/", Some(1)),
            ("a.org", "/shop/cart/x", Some(2)),
            ("a.org", "/shop/cart/../x", Some(1)),
            ("a.org", "/x/%2e%2e/shop/x", Some(1)),
            ("a.org", "//shop", Some(1)),
            ("x.a.org", "/only/x", Some(3)),
            ("y.x.a.org", "/only", Some(3)),
            ("x.b.a.org", "/only", Some(4)),
            ("b.a.org", "/only", Some(3)),
            ("xa.org", "/only", None),
        ] {
            assert_eq!(find(&hosts, host, path), answer, "{host} {path}");
        }
        let long = format!("/shop/{}", "x/".repeat(30_000));
        assert_eq!(find(&hosts, "a.org", &long), Some(1));
        let long = format!("/{}", "x".repeat(60_000));
        assert_eq!(find(&hosts, "a.org", &long), Some(0));
        assert!(matches!(hosts.find("x.a.org", "/other"), Found::NoPath));
        assert!(matches!(hosts.find("org", "/"), Found::NoHost));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn finds_what_a_naive_search_finds(
            routes in proptest::collection::btree_set(
                ("(\\*\\.)?(a|b)(\\.(a|b)){0,2}", "/|(/(a|b|ab)){1,3}"), 0..12),
            host in "(a|b|ab)(\\.(a|b)){0,3}",
            path in "(/(a|b|ab|\\.|\\.\\.|%61|%2e%2e|%2F)?){1,5}",
        ) {
            let routes: Vec<_> = routes.into_iter().collect();
            prop_assert_eq!(find(&hosts(&routes), &host, &path), naive(&routes, &host, &path));
        }
    }
}
