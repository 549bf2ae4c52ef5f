//! Where a suite's packages come from: what the host's own apt is told (sources.list(5)), in both of its forms.
//!
//! No address is built in. A suite that the host does not use itself is looked for where the host's own suite is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::ImageError;

/// One source of binary packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) uri: String,
    pub(crate) suite: String,
    pub(crate) components: Vec<String>,
    /// Keyring files, or a key itself (begins with `-----BEGIN`).
    pub(crate) signed_by: Option<String>,
    /// `trusted=yes`: the administrator decided to use the source unsigned.
    pub(crate) trusted: bool,
}

impl Source {
    /// What tells it from others, for ids: not how it is authenticated.
    pub(crate) fn identity(&self) -> String {
        format!(
            "{} {} {}",
            self.uri.trim_end_matches('/'),
            self.suite,
            self.components.join(" ")
        )
    }

    fn with_suite(&self, suite: String) -> Self {
        Self {
            suite,
            ..self.clone()
        }
    }
}

/// Largest file that is read.
const FILE_MAX: u64 = 1 << 20;

/// The sources of `suite` with its updates and security fixes, from this host's apt.
pub(crate) fn sources(suite: &str) -> Result<Vec<Source>, ImageError> {
    super::check_suite(suite)?;
    let mut all = Vec::new();
    let mut files = vec![Path::new("/etc/apt/sources.list").to_path_buf()];
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    let mut parts: Vec<_> = parts.map(|entry| entry.path()).collect();
    parts.sort();
    files.extend(parts);
    for path in files {
        if fs::metadata(&path).map_or(true, |meta| meta.len() > FILE_MAX) {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => all.extend(parse_lines(&text)),
            Some("sources") => all.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let own = os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned());
    let found = select(&all, suite, own.as_deref());
    if found.is_empty() {
        return Err(ImageError::Host {
            what: format!("this host's apt sources lead to no archive that could have {suite}"),
            next:
                "add a Debian archive to /etc/apt/sources.list.d, or use an image from a registry"
                    .into(),
        });
    }
    Ok(found)
}

/// What of `all` serves `suite`; `own` is the host's own suite.
fn select(all: &[Source], suite: &str, own: Option<&str>) -> Vec<Source> {
    let with =
        |name: &str| -> Vec<Source> { all.iter().filter(|s| s.suite == name).cloned().collect() };
    let group = |name: &str| -> [Vec<Source>; 3] {
        [
            with(name),
            with(&format!("{name}-updates")),
            with(&format!("{name}-security")),
        ]
    };
    let [main, updates, security] = group(suite);
    if !main.is_empty() {
        return unique([main, updates, security].concat());
    }
    let Some(own) = own else { return Vec::new() };
    let [main, updates, security] = group(own);
    // Suites that never settle have no updates of their own.
    let rolling = matches!(suite, "sid" | "unstable" | "experimental");
    let mut found: Vec<_> = main
        .iter()
        .map(|s| s.with_suite(suite.to_owned()))
        .collect();
    if !rolling {
        found.extend(
            updates
                .iter()
                .map(|s| s.with_suite(format!("{suite}-updates"))),
        );
        found.extend(
            security
                .iter()
                .map(|s| s.with_suite(format!("{suite}-security"))),
        );
    }
    unique(found)
}

fn unique(sources: Vec<Source>) -> Vec<Source> {
    let mut found: Vec<Source> = Vec::new();
    for source in sources {
        if !found
            .iter()
            .any(|known| known.identity() == source.identity())
        {
            found.push(source);
        }
    }
    found
}

/// Discs are not asked for.
fn usable(uri: &str) -> bool {
    uri.contains(":/")
        && !uri.starts_with("cdrom:")
        && !uri.contains(char::is_whitespace)
        && !uri.contains('"')
}

/// The form with one line per source: `deb [ options ] uri suite component...`.
fn parse_lines(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line
            .strip_prefix("deb")
            .filter(|rest| rest.starts_with([' ', '\t', '[']))
        else {
            continue;
        };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let options: BTreeMap<_, _> = options
            .split_whitespace()
            .filter_map(|option| option.split_once('='))
            .collect();
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        if usable(uri) {
            found.push(Source {
                uri: uri.to_owned(),
                suite: suite.to_owned(),
                components: words.map(str::to_owned).collect(),
                signed_by: options.get("signed-by").map(|path| (*path).to_owned()),
                trusted: options.get("trusted") == Some(&"yes"),
            });
        }
    }
    found
}

/// The form of paragraphs with fields (deb822(5)).
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    // An empty line ends the last paragraph too.
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            found.extend(paragraph(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            let more = match line.trim() {
                // How an empty line is written inside a value.
                "." => "",
                more => more,
            };
            if let Some(value) = fields.get_mut(&last) {
                value.push('\n');
                value.push_str(more);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            last = name.trim().to_ascii_lowercase();
            fields.insert(last.clone(), value.trim().to_owned());
        }
    }
    found
}

fn paragraph(fields: &BTreeMap<String, String>) -> Vec<Source> {
    let words = |name: &str| -> Vec<String> {
        fields
            .get(name)
            .map(|text| text.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default()
    };
    let is = |name: &str, value: &str| {
        fields
            .get(name)
            .is_some_and(|text| text.eq_ignore_ascii_case(value))
    };
    if !words("types").iter().any(|kind| kind == "deb") || is("enabled", "no") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for uri in words("uris").into_iter().filter(|uri| usable(uri)) {
        for suite in words("suites") {
            found.push(Source {
                uri: uri.clone(),
                suite,
                components: words("components"),
                signed_by: fields.get("signed-by").map(|text| text.trim().to_owned()),
                trusted: is("trusted", "yes"),
            });
        }
    }
    found
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
