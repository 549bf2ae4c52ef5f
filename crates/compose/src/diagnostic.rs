//! Where something is wrong, and the collection of all that is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use offshoot_model::{Code, Fault, Problem};

/// Most errors that are kept; a file with more is not read by a person anyway.
const MAX_ERRORS: usize = 100;
/// Most warnings that are kept.
const MAX_WARNINGS: usize = 200;

/// Most characters of a message or path: what was wrong may be a megabyte long.
const MAX_TEXT: usize = 600;

/// A place in a file: which of the files read, and the line (0 when there is none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    /// Index into [`Report::files`].
    pub(crate) file: u16,
    /// Line, counted from 1.
    pub(crate) line: u32,
}

/// Whether a thing is wrong or merely not done here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nobody could make sense of it.
    Invalid,
    /// The Compose specification knows it, Offshoot does not do it.
    Unsupported,
    /// It is ignored, and nothing breaks.
    Ignored,
}

/// One sentence about one place of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether it is wrong, unsupported or ignored.
    pub kind: Kind,
    /// The file as the person named it.
    pub file: String,
    /// Line, counted from 1; 0 when the whole file is meant.
    pub line: u32,
    /// Where in the manifest, for instance `services.web.gpus`; may be empty.
    pub path: String,
    /// What is the matter and what to do instead, without a final full stop.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a manifest.
#[derive(Debug, Clone, thiserror::Error)]
pub struct ComposeError {
    /// The errors, by file and line.
    pub errors: Vec<Diagnostic>,
    /// How many more there were.
    pub more: usize,
    /// What was warned about on the way.
    pub warnings: Vec<Diagnostic>,
}

impl fmt::Display for ComposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errors.as_slice() {
            [only] if self.more == 0 => write!(f, "the manifest has an error: {only}"),
            errors => write!(f, "the manifest has {} errors", errors.len() + self.more),
        }
    }
}

impl ComposeError {
    /// As a person sees it: every error is one line of the details.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let (code, next) = if self
            .errors
            .iter()
            .all(|error| error.kind == Kind::Unsupported)
        {
            (
                Code::ManifestUnsupported,
                "change the named fields; docs/manifest.md lists what is supported",
            )
        } else {
            (
                Code::ManifestInvalid,
                "correct the named lines and try again",
            )
        };
        let what = match self.errors.len() + self.more {
            1 => "the manifest has an error".to_owned(),
            count => format!("the manifest has {count} errors"),
        };
        let mut problem = Problem::new(code, Fault::Request, what, next);
        problem.details = self.errors.iter().map(ToString::to_string).collect();
        if self.more > 0 {
            problem.details.push(format!("and {} more", self.more));
        }
        problem
    }
}

/// Variables by name.
pub(crate) type Variables = BTreeMap<String, String>;

/// A file that was read, and what its relative paths and variables mean.
#[derive(Debug, Clone)]
struct ReadFile {
    /// As shown to people.
    shown: String,
    /// Base of relative paths.
    dir: PathBuf,
    /// Variables for interpolation and for `environment` entries without a value.
    variables: Rc<Variables>,
}

/// `path` without `.` and, by its text, without `..`.
pub(crate) fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(out.components().next_back(), Some(Component::Normal(_))) =>
            {
                out.pop();
            }
            Component::ParentDir
                if matches!(out.components().next_back(), Some(Component::RootDir)) => {}
            part => out.push(part),
        }
    }
    out
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Errors and warnings of one run, and the table of files that [`Place`] points into.
#[derive(Debug, Default)]
pub(crate) struct Report {
    files: Vec<ReadFile>,
    errors: Vec<Diagnostic>,
    more: usize,
    warnings: Vec<Diagnostic>,
}

impl Report {
    /// Enters a file and answers its index.
    pub(crate) fn add_file(&mut self, shown: &Path, dir: &Path, variables: &Rc<Variables>) -> u16 {
        let variables = Rc::clone(variables);
        self.files.push(ReadFile {
            shown: shown.display().to_string(),
            dir: dir.to_owned(),
            variables,
        });
        u16::try_from(self.files.len() - 1).unwrap_or(u16::MAX)
    }

    /// The path that `text`, written at `place`, means.
    pub(crate) fn path_of(&self, place: Place, text: &str) -> PathBuf {
        let Some(file) = self.files.get(usize::from(place.file)) else {
            return PathBuf::from(text);
        };
        let home = || file.variables.get("HOME");
        match (text.strip_prefix("~/"), home()) {
            (Some(rest), Some(home)) => Path::new(home).join(rest),
            _ => normal(&file.dir.join(text)),
        }
    }

    /// Variables that count at `place`.
    pub(crate) fn variables_of(&self, place: Place) -> Rc<Variables> {
        self.files
            .get(usize::from(place.file))
            .map(|file| Rc::clone(&file.variables))
            .unwrap_or_default()
    }

    /// `file:line` of a place.
    pub(crate) fn show(&self, place: Place) -> String {
        let file = self
            .files
            .get(usize::from(place.file))
            .map_or("", |file| file.shown.as_str());
        format!("{file}:{}", place.line)
    }

    pub(crate) fn invalid(&mut self, place: Place, path: &str, message: impl Into<String>) {
        self.error(Kind::Invalid, place, path, message.into());
    }

    pub(crate) fn unsupported(&mut self, place: Place, path: &str, message: impl Into<String>) {
        self.error(Kind::Unsupported, place, path, message.into());
    }

    fn error(&mut self, kind: Kind, place: Place, path: &str, message: String) {
        let error = self.diagnostic(kind, place, path, &message);
        if self.errors.contains(&error) {
            return;
        }
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn warn(&mut self, place: Place, path: &str, message: impl Into<String>) {
        let warning = self.diagnostic(Kind::Ignored, place, path, &message.into());
        if self.warnings.len() < MAX_WARNINGS && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn diagnostic(&self, kind: Kind, place: Place, path: &str, message: &str) -> Diagnostic {
        let file = self
            .files
            .get(usize::from(place.file))
            .map_or_else(String::new, |file| file.shown.clone());
        Diagnostic {
            kind,
            file,
            line: place.line,
            path: clip(path),
            message: clip(message),
        }
    }

    /// The value, when nothing was wrong.
    pub(crate) fn finish<T>(
        self,
        value: impl FnOnce(Vec<Diagnostic>) -> T,
    ) -> Result<T, ComposeError> {
        let Self {
            mut errors,
            more,
            mut warnings,
            files,
        } = self;
        let order = |d: &Diagnostic| (files.iter().position(|file| file.shown == d.file), d.line);
        errors.sort_by_key(order);
        warnings.sort_by_key(order);
        if errors.is_empty() {
            Ok(value(warnings))
        } else {
            Err(ComposeError {
                errors,
                more,
                warnings,
            })
        }
    }
}
