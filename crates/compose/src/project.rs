//! From files to one tree: `.env`, `include`, `extends`, several files.

mod extends;
mod include;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::LoadRequest;
use crate::diagnostic::{Place, Report, Variables};
use crate::dotenv::{self, Format};
use crate::interpolate::Interpolator;
use crate::merge::{apply_resets, merge, normalise};
use crate::source::{FileError, FileSource};
use crate::yaml::{self, Node, Value};

/// Largest Compose or variable file in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most files read in one run, `include` and `extends` counted.
const MAX_FILES: usize = 100;
/// Longest chain of `include` or `extends`.
const MAX_CHAIN: usize = 20;
/// Most bytes that variables may add in one run.
const MAX_INTERPOLATED: usize = 16 << 20;

/// The merged tree and what it is read with.
#[derive(Debug)]
pub(crate) struct Project {
    /// The merged file; null when nothing could be read.
    pub(crate) root: Node,
    /// Top-level `name:`.
    pub(crate) name: Option<String>,
    /// Profiles that are on.
    pub(crate) profiles: Vec<String>,
}

/// Reads everything that `request` names.
pub(crate) fn read(source: &dyn FileSource, request: &LoadRequest, report: &mut Report) -> Project {
    let empty = || Node::new(Place::default(), Value::Null);
    let Some(first) = request.files.first() else {
        report.invalid(Place::default(), "", "name a Compose file");
        return Project {
            root: empty(),
            name: None,
            profiles: Vec::new(),
        };
    };
    let dir = match request.project_dir.as_os_str().is_empty() {
        true => first.parent().unwrap_or(Path::new("")).to_owned(),
        false => request.project_dir.clone(),
    };
    let mut reader = Reader {
        source,
        report,
        files: 0,
        extended: HashMap::new(),
        interpolated: 0,
        root: dir.clone(),
    };
    let environment = Rc::new(request.environment.clone());
    let explicit: Vec<_> = request
        .env_files
        .iter()
        .map(|path| (path.clone(), Place::default()))
        .collect();
    let variables = reader.variables(&explicit, &dir, &environment);
    let files: Vec<_> = request
        .files
        .iter()
        .map(|path| (path.clone(), None))
        .collect();
    let mut root = reader
        .set(&files, &dir, &variables, &mut Vec::new())
        .unwrap_or_else(empty);
    apply_resets(&mut root);
    let name = root.get("name").and_then(Node::text).map(str::to_owned);
    let mut profiles = request.profiles.clone();
    if profiles.is_empty() {
        let listed = variables
            .get("COMPOSE_PROFILES")
            .map(String::as_str)
            .unwrap_or_default();
        profiles = listed
            .split(',')
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .map(str::to_owned)
            .collect();
    }
    Project {
        root,
        name,
        profiles,
    }
}

struct Reader<'a> {
    source: &'a dyn FileSource,
    report: &'a mut Report,
    files: usize,
    /// Files that `extends` named, read once.
    extended: HashMap<PathBuf, Rc<Node>>,
    interpolated: usize,
    /// The project's directory, for showing paths.
    root: PathBuf,
}

impl Reader<'_> {
    /// Files merged in their order, each read with what it includes. A file's place is where it was named.
    fn set(
        &mut self,
        files: &[(PathBuf, Option<Place>)],
        dir: &Path,
        variables: &Rc<Variables>,
        stack: &mut Vec<PathBuf>,
    ) -> Option<Node> {
        let mut merged: Option<Node> = None;
        for (path, place) in files {
            if stack.contains(path) {
                self.report.invalid(
                    place.unwrap_or_default(),
                    "include",
                    format!("{} includes itself", path.display()),
                );
                continue;
            }
            if stack.len() >= MAX_CHAIN {
                self.report.invalid(
                    place.unwrap_or_default(),
                    "include",
                    "the chain of includes is too long",
                );
                continue;
            }
            stack.push(path.clone());
            for mut document in self.documents(path, dir, variables, *place) {
                self.include(&mut document, stack, variables);
                self.extend(&mut document, path, merged.as_ref());
                merged = Some(match merged.take() {
                    None => document,
                    Some(base) => merge(base, document, &mut Vec::new()),
                });
            }
            stack.pop();
        }
        merged
    }

    /// The documents of one file: parsed, variables replaced, short forms of services written out.
    fn documents(
        &mut self,
        path: &Path,
        dir: &Path,
        variables: &Rc<Variables>,
        named: Option<Place>,
    ) -> Vec<Node> {
        let Some((text, file)) = self.text(path, dir, variables, named) else {
            return Vec::new();
        };
        let documents = match yaml::parse(&text, file) {
            Ok(documents) => documents,
            Err(error) => {
                self.report.invalid(
                    Place {
                        file,
                        line: error.line,
                    },
                    "",
                    error.message,
                );
                return Vec::new();
            }
        };
        let start = Place { file, line: 1 };
        if documents
            .iter()
            .all(|document| document.value == Value::Null)
        {
            self.report.invalid(start, "", "the file is empty");
        }
        let mut out = Vec::new();
        for mut document in documents {
            if document.value == Value::Null {
                continue;
            }
            self.interpolate(&mut document, "", variables);
            let Value::Map(entries) = &mut document.value else {
                self.report.invalid(
                    document.place,
                    "",
                    "a Compose file is a map with `services:`",
                );
                continue;
            };
            for (_, services) in entries.iter_mut().filter(|(key, _)| key.text == "services") {
                let Value::Map(services) = &mut services.value else {
                    continue;
                };
                for (name, service) in services {
                    normalise(service, &format!("services.{}", name.text), self.report);
                }
            }
            out.push(document);
        }
        out
    }

    /// The text of a file, entered in the report's table.
    fn text(
        &mut self,
        path: &Path,
        dir: &Path,
        variables: &Rc<Variables>,
        named: Option<Place>,
    ) -> Option<(String, u16)> {
        let shown = match named {
            None => path,
            Some(_) => path.strip_prefix(&self.root).unwrap_or(path),
        };
        self.files += 1;
        if self.files > MAX_FILES {
            self.report.invalid(
                named.unwrap_or_default(),
                "",
                format!("more than {MAX_FILES} files"),
            );
            return None;
        }
        let file = self.report.add_file(shown, dir, variables);
        let start = Place { file, line: 0 };
        let bytes = match self.source.read(path, MAX_FILE) {
            Ok(data) => data.bytes,
            Err(error) => {
                match named {
                    None => self.report.invalid(start, "", format!("the file {error}")),
                    Some(place) => {
                        self.report
                            .invalid(place, "", format!("{} {error}", path.display()))
                    }
                }
                return None;
            }
        };
        match String::from_utf8(bytes) {
            Ok(text) => Some((text, file)),
            Err(error) => {
                let bytes = error.as_bytes();
                let end = error.utf8_error().valid_up_to();
                let line = bytes.iter().take(end).filter(|b| **b == b'\n').count() + 1;
                let line = u32::try_from(line).unwrap_or(u32::MAX);
                self.report
                    .invalid(Place { file, line }, "", "the file is not UTF-8 text");
                None
            }
        }
    }

    /// Variables of `files`, under those of the `outer` environment.
    fn variables(
        &mut self,
        files: &[(PathBuf, Place)],
        dir: &Path,
        outer: &Rc<Variables>,
    ) -> Rc<Variables> {
        let standard = [(dir.join(".env"), Place::default())];
        let optional = files.is_empty();
        let mut variables = Variables::new();
        for (path, place) in if optional { &standard } else { files } {
            if optional && self.source.read(path, MAX_FILE) == Err(FileError::Missing) {
                continue;
            }
            let named = (*place != Place::default()).then_some(*place);
            let Some((text, file)) = self.text(path, dir, outer, named) else {
                continue;
            };
            let lookup = |name: &str| outer.get(name).or_else(|| variables.get(name)).cloned();
            match dotenv::parse(&text, Format::Dotenv, &lookup) {
                Ok(read) => variables.extend(read),
                Err((line, message)) => self.report.invalid(Place { file, line }, "", message),
            }
        }
        variables.extend(
            outer
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        Rc::new(variables)
    }

    fn interpolate(&mut self, node: &mut Node, path: &str, variables: &Variables) {
        match &mut node.value {
            Value::Null => {}
            Value::Scalar(text) if !text.contains('$') => {}
            Value::Scalar(text) => {
                let lookup = |name: &str| variables.get(name).cloned();
                let mut interpolator = Interpolator {
                    lookup: &lookup,
                    unset: Vec::new(),
                };
                match interpolator.replace(text) {
                    Ok(replaced) => {
                        self.interpolated += replaced.len();
                        if self.interpolated > MAX_INTERPOLATED {
                            self.report.invalid(
                                node.place,
                                path,
                                "variables make the manifest too large",
                            );
                            return;
                        }
                        *text = replaced;
                    }
                    Err(message) => self.report.invalid(node.place, path, message),
                }
                for name in interpolator.unset {
                    let message = format!(
                        "the variable {name} is not set and becomes empty; ${{{name}:-}} says it may"
                    );
                    self.report.warn(node.place, path, message);
                }
            }
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.interpolate(item, &format!("{path}[{index}]"), variables);
                }
            }
            Value::Map(entries) => {
                for (key, value) in entries {
                    let path = if path.is_empty() {
                        key.text.clone()
                    } else {
                        format!("{path}.{}", key.text)
                    };
                    self.interpolate(value, &path, variables);
                }
            }
        }
    }
}
