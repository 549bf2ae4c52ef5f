//! Programs that the daemon runs, and where they are.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use offshoot_model::{Code, Fault, Problem};
use serde::Deserialize;

use super::{DEFAULT_CRIU_DIR, value};

/// Where packages put the programs that only the daemon starts: Debian's place, and that of the FHS (4.7).
const HELPERS: [&str; 2] = ["/usr/lib/offshoot", "/usr/libexec/offshoot"];

/// `[tools]`: absolute paths; each is looked for when absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tools {
    /// runc; else in PATH.
    #[serde(deserialize_with = "value::absolute_or_none")]
    pub runc: Option<PathBuf>,
    /// Directory with `criu`, put first in PATH for runc; else the one that setup.sh made, else PATH alone.
    #[serde(deserialize_with = "value::absolute_or_none")]
    pub criu_dir: Option<PathBuf>,
    /// offshoot-shim; else beside the daemon, where packages put it (`HELPERS`), or in PATH.
    #[serde(deserialize_with = "value::absolute_or_none")]
    pub shim: Option<PathBuf>,
    /// offshoot-edge; else found as the shim is.
    #[serde(deserialize_with = "value::absolute_or_none")]
    pub edge: Option<PathBuf>,
}

/// A program is not where it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{program} is missing: looked for {looked_for}")]
pub struct ToolMissing {
    /// Its name.
    pub program: &'static str,
    /// Where it was looked for.
    pub looked_for: String,
}

impl ToolMissing {
    /// The error as people see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem::new(
            Code::HostUnfit,
            Fault::Host,
            self.to_string(),
            "install it (packaging/setup.sh does), or name it under [tools] in the configuration",
        )
    }
}

impl Tools {
    /// Where runc is.
    ///
    /// # Errors
    /// When it is nowhere.
    pub fn find_runc(&self) -> Result<PathBuf, ToolMissing> {
        find("runc", self.runc.as_deref(), &path_dirs())
    }

    /// Where offshoot-shim is.
    ///
    /// # Errors
    /// When it is nowhere.
    pub fn find_shim(&self) -> Result<PathBuf, ToolMissing> {
        find("offshoot-shim", self.shim.as_deref(), &own_dirs())
    }

    /// Where offshoot-edge is.
    ///
    /// # Errors
    /// When it is nowhere.
    pub fn find_edge(&self) -> Result<PathBuf, ToolMissing> {
        find("offshoot-edge", self.edge.as_deref(), &own_dirs())
    }

    /// Directory to put before PATH so that runc finds CRIU; `None` when PATH alone has to do.
    #[must_use]
    pub fn find_criu_dir(&self) -> Option<PathBuf> {
        let own = Path::new(DEFAULT_CRIU_DIR);
        self.criu_dir
            .clone()
            .or_else(|| is_program(&own.join("criu")).then(|| own.to_owned()))
    }
}

fn find(
    program: &'static str,
    configured: Option<&Path>,
    dirs: &[PathBuf],
) -> Result<PathBuf, ToolMissing> {
    let candidates = match configured {
        Some(path) => vec![path.to_owned()],
        None => dirs.iter().map(|dir| dir.join(program)).collect(),
    };
    let looked_for = candidates
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ");
    candidates
        .into_iter()
        .find(|path| is_program(path))
        .ok_or(ToolMissing {
            program,
            looked_for,
        })
}

/// PATH, and where administrators' programs are should PATH lack it. Relative entries are left out: the daemon is
/// root and may have been started anywhere.
fn path_dirs() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .collect();
    for usual in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
        if !dirs.iter().any(|dir| dir == Path::new(usual)) {
            dirs.push(usual.into());
        }
    }
    dirs
}

/// The daemon's own directory, those of packages, then PATH.
fn own_dirs() -> Vec<PathBuf> {
    let own = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned));
    let packaged = HELPERS.map(PathBuf::from);
    own.into_iter().chain(packaged).chain(path_dirs()).collect()
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_are_looked_for_beside_the_daemon_then_where_packages_put_them_then_in_path() {
        let dirs = own_dirs();
        let beside = std::env::current_exe().unwrap();
        assert_eq!(dirs[0], beside.parent().unwrap());
        assert_eq!(dirs[1..3], HELPERS.map(PathBuf::from));
        assert_eq!(dirs[3..], path_dirs());
    }

    #[test]
    fn programs_are_found_or_it_is_said_where_they_were_looked_for() {
        let dirs = [PathBuf::from("/nonexistent"), PathBuf::from("/bin")];
        assert_eq!(find("sh", None, &dirs), Ok(PathBuf::from("/bin/sh")));
        assert_eq!(
            find("sh", Some(Path::new("/bin/ls")), &dirs),
            Ok(PathBuf::from("/bin/ls"))
        );
        let missing = find("no-such-thing", None, &dirs).unwrap_err();
        assert!(
            missing
                .to_string()
                .contains("/nonexistent/no-such-thing, /bin/no-such-thing"),
            "{missing}"
        );
        assert!(
            find("sh", Some(Path::new("/etc/passwd")), &dirs).is_err(),
            "not executable"
        );
    }
}
