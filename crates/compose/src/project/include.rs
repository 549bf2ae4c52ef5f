//! `include:`: other files' services, volumes, networks, configs and secrets, read with paths and variables of their own.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Reader;
use crate::diagnostic::{Place, Report, Variables};
use crate::yaml::{Key, Node, Value};

impl Reader<'_> {
    /// Brings in what `include:` names. Two different definitions of one name are an error.
    pub(super) fn include(
        &mut self,
        document: &mut Node,
        stack: &mut Vec<PathBuf>,
        variables: &Rc<Variables>,
    ) {
        for include in take_list(document, "include", self.report) {
            let Some(include) = self.include_entry(&include) else {
                continue;
            };
            let Some(first) = include.files.first().map(|(path, _)| path.clone()) else {
                continue;
            };
            let dir = include
                .dir
                .unwrap_or_else(|| first.parent().unwrap_or(Path::new("")).to_owned());
            let variables = self.variables(&include.env_files, &dir, variables);
            let Some(included) = self.set(&include.files, &dir, &variables, stack) else {
                continue;
            };
            self.import(document, included);
        }
    }

    fn import(&mut self, document: &mut Node, included: Node) {
        let (Value::Map(own), Value::Map(theirs)) = (&mut document.value, included.value) else {
            return;
        };
        for (section, theirs) in theirs {
            if !matches!(
                section.text.as_str(),
                "services" | "volumes" | "networks" | "configs" | "secrets"
            ) {
                continue;
            }
            let Some((_, own)) = own.iter_mut().find(|(key, _)| key.text == section.text) else {
                own.push((section, theirs));
                continue;
            };
            if own.value == Value::Null {
                own.value = Value::Map(Vec::new());
            }
            let (Value::Map(own), Value::Map(theirs)) = (&mut own.value, theirs.value) else {
                continue;
            };
            for (name, theirs) in theirs {
                match own.iter().find(|(key, _)| key.text == name.text) {
                    None => own.push((name, theirs)),
                    Some((_, known)) if same(known, &theirs) => {}
                    Some((key, _)) => {
                        let path = format!("{}.{}", section.text, name.text);
                        let other = self.report.show(name.place);
                        self.report.invalid(
                            key.place,
                            &path,
                            format!("is also defined in the included {other}"),
                        );
                    }
                }
            }
        }
    }

    fn include_entry(&mut self, node: &Node) -> Option<Include> {
        let mut include = Include {
            files: Vec::new(),
            dir: None,
            env_files: Vec::new(),
        };
        if let Some(text) = node.text() {
            include
                .files
                .push((self.report.path_of(node.place, text), Some(node.place)));
            return Some(include);
        }
        if !matches!(node.value, Value::Map(_)) {
            self.report.invalid(
                node.place,
                "include",
                "expected a path or a map with `path:`",
            );
            return None;
        }
        for (key, value) in node.entries() {
            match key.text.as_str() {
                "path" => {
                    let paths = texts(value).into_iter();
                    include.files = paths
                        .map(|(text, at)| (self.report.path_of(at, text), Some(at)))
                        .collect();
                }
                "project_directory" => {
                    include.dir = value
                        .text()
                        .map(|text| self.report.path_of(value.place, text))
                }
                "env_file" => {
                    let paths = texts(value).into_iter();
                    include.env_files = paths
                        .map(|(text, at)| (self.report.path_of(at, text), at))
                        .collect();
                }
                other => self.report.invalid(
                    key.place,
                    &format!("include.{other}"),
                    "is not a field of an include",
                ),
            }
        }
        if include.files.is_empty() {
            self.report.invalid(node.place, "include", "has no `path:`");
        }
        Some(include)
    }
}

struct Include {
    files: Vec<(PathBuf, Option<Place>)>,
    dir: Option<PathBuf>,
    env_files: Vec<(PathBuf, Place)>,
}

/// One text or a list of them.
fn texts(node: &Node) -> Vec<(&str, Place)> {
    match &node.value {
        Value::Scalar(text) => vec![(text, node.place)],
        Value::List(items) => items
            .iter()
            .filter_map(|item| Some((item.text()?, item.place)))
            .collect(),
        Value::Null | Value::Map(_) => Vec::new(),
    }
}

/// Takes a list out of a map.
fn take_list(document: &mut Node, name: &str, report: &mut Report) -> Vec<Node> {
    let Value::Map(entries) = &mut document.value else {
        return Vec::new();
    };
    let Some(at) = entries.iter().position(|(key, _)| key.text == name) else {
        return Vec::new();
    };
    let (Key { place, .. }, node) = entries.remove(at);
    match node.value {
        Value::List(items) => items,
        Value::Null => Vec::new(),
        Value::Scalar(_) | Value::Map(_) => {
            report.invalid(place, name, "expected a list");
            Vec::new()
        }
    }
}

/// Equal but for where they stand.
fn same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|((ka, a), (kb, b))| ka.text == kb.text && same(a, b))
        }
        (a, b) => a == b,
    }
}
