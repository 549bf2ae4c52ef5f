//! Compose files in, [`Manifest`] out.
//!
//! The manifest of an environment is a Compose file (the Compose specification) with an `x-offshoot`
//! extension; `docs/manifest.md` tells people what is supported. This crate does everything between the text
//! and the fully decided form: variables, several files, `include`, `extends`, defaults, captured files.
//!
//! Two promises shape the code. Nothing is dropped silently: a field is used, or warned about, or refused, each
//! by file, line and name. And all mistakes are found in one go, so errors are collected, not returned at the
//! first.
//!
//! The way of a file: `yaml` (text to tree, bounded) → `interpolate` → `project` (`include`, `extends`, several files, by
//! the rules of `merge`) → `decode` (tree to model).

mod decode;
mod diagnostic;
mod disk;
mod dotenv;
mod field;
mod interpolate;
mod merge;
mod project;
mod shellwords;
mod source;
mod yaml;

use std::collections::BTreeMap;
use std::path::PathBuf;

use offshoot_model::Manifest;

pub use diagnostic::{ComposeError, Diagnostic, Kind};
pub use disk::DiskFiles;
pub use source::{FileData, FileError, FileSource};

/// What to read, and with which settings.
#[derive(Debug, Clone, Default)]
pub struct LoadRequest {
    /// Compose files, merged in this order (`-f`); at least one.
    pub files: Vec<PathBuf>,
    /// Directory that relative paths of these files start from; the first file's directory when empty.
    pub project_dir: PathBuf,
    /// Files with variables for interpolation (`--env-file`); when empty, `.env` of the project directory is
    /// read if it exists. Later files win.
    pub env_files: Vec<PathBuf>,
    /// Profiles that are switched on; `*` is all. When empty, `COMPOSE_PROFILES` counts.
    pub profiles: Vec<String>,
    /// The caller's environment variables; they win over `env_files`.
    pub environment: BTreeMap<String, String>,
}

/// What the files say.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The environment to make.
    pub manifest: Manifest,
    /// The top-level `name:`, not yet checked to be an environment's name.
    pub name: Option<String>,
    /// What was read but has no meaning here.
    pub warnings: Vec<Diagnostic>,
}

/// Reads Compose files into a manifest.
///
/// # Errors
/// All mistakes in the files, each with file, line and name (at most a hundred).
pub fn load(source: &dyn FileSource, request: &LoadRequest) -> Result<Loaded, ComposeError> {
    let mut report = diagnostic::Report::default();
    let project = project::read(source, request, &mut report);
    let decoded = decode::manifest(source, &project, &mut report);
    report.finish(|warnings| Loaded {
        manifest: decoded,
        name: project.name.clone(),
        warnings,
    })
}
