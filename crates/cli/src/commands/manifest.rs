//! From Compose files on disk to a manifest: finding them, reading them, naming the environment.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use offshoot_compose::{DiskFiles, FileData, FileError, FileSource, LoadRequest};
use offshoot_model::name::{ENV_NAME_MAX, EnvName};
use offshoot_model::{Code, Fault, Manifest, Problem};

/// File names looked for when none is given, best first, as Compose does.
const DEFAULT_FILES: [&str; 4] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
];
/// The file that is merged on top of a default file when it is there.
const OVERRIDES: [&str; 4] = [
    "compose.override.yaml",
    "compose.override.yml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// A manifest that was read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) manifest: Manifest,
    pub(crate) name: String,
    pub(crate) warnings: Vec<String>,
}

/// Reads the files of `request`, or those found where Compose looks for them.
///
/// # Errors
/// No file, errors in the files, or a name that cannot be an environment's.
pub(crate) fn read(mut request: LoadRequest, name: Option<&str>) -> Result<Read, Problem> {
    if request.files.is_empty() {
        request.files = default_files(&request)?;
    }
    let project_dir = project_dir(&request);
    let loaded = offshoot_compose::load(&Disk, &request).map_err(|error| error.problem())?;
    let name = choose_name(name, loaded.name.as_deref(), &project_dir)?;
    Ok(Read {
        manifest: loaded.manifest,
        name,
        warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
    })
}

/// The disk, with `-` for standard input.
struct Disk;

impl FileSource for Disk {
    fn read(&self, path: &Path, max: u64) -> Result<FileData, FileError> {
        if path != Path::new("-") {
            return DiskFiles.read(path, max);
        }
        let mut bytes = Vec::new();
        std::io::stdin()
            .lock()
            .take(max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| FileError::Other(error.to_string()))?;
        if bytes.len() as u64 > max {
            return Err(FileError::TooLarge { max });
        }
        Ok(FileData { bytes, mode: 0o600 })
    }
}

fn default_files(request: &LoadRequest) -> Result<Vec<PathBuf>, Problem> {
    let here = std::env::current_dir().map_err(|error| {
        Problem::new(
            Code::ManifestInvalid,
            Fault::Host,
            format!("the current directory cannot be used: {error}"),
            "say which file with -f",
        )
    })?;
    if let Some(listed) = request
        .environment
        .get("COMPOSE_FILE")
        .filter(|listed| !listed.is_empty())
    {
        let separator = request
            .environment
            .get("COMPOSE_PATH_SEPARATOR")
            .map_or(":", String::as_str);
        return Ok(listed.split(separator).map(PathBuf::from).collect());
    }
    let start = if request.project_dir.as_os_str().is_empty() {
        here
    } else {
        here.join(&request.project_dir)
    };
    search(&start).ok_or_else(|| {
        Problem::new(
            Code::ManifestInvalid,
            Fault::Request,
            format!(
                "there is no {} in {} or a directory above",
                DEFAULT_FILES[0],
                start.display()
            ),
            "say which Compose file with -f FILE",
        )
    })
}

/// The default file in `start` or the nearest directory above, and its override.
fn search(start: &Path) -> Option<Vec<PathBuf>> {
    start.ancestors().find_map(|dir| {
        let first = |names: &[&str]| {
            names
                .iter()
                .map(|name| dir.join(name))
                .find(|path| path.is_file())
        };
        let file = first(&DEFAULT_FILES)?;
        Some(std::iter::once(file).chain(first(&OVERRIDES)).collect())
    })
}

fn project_dir(request: &LoadRequest) -> PathBuf {
    let dir = if request.project_dir.as_os_str().is_empty() {
        request
            .files
            .first()
            .and_then(|file| file.parent())
            .unwrap_or(Path::new(""))
            .to_owned()
    } else {
        request.project_dir.clone()
    };
    let dir = if dir.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        dir
    };
    std::fs::canonicalize(&dir).unwrap_or(dir)
}

/// `--name`, else the file's `name:`, else the directory's name made into one.
fn choose_name(
    given: Option<&str>,
    in_file: Option<&str>,
    project_dir: &Path,
) -> Result<String, Problem> {
    if let Some(name) = given.or(in_file) {
        let source = if given.is_some() {
            "--name"
        } else {
            "`name:` in the Compose file"
        };
        return name.parse::<EnvName>().map(String::from).map_err(|error| {
            Problem::new(
                Code::NameInvalid,
                Fault::Request,
                error.to_string(),
                format!("choose another name; this one came from {source}"),
            )
        });
    }
    let folder = project_dir
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let name = as_name(&folder);
    name.parse::<EnvName>().map(String::from).map_err(|_| {
        Problem::new(
            Code::NameInvalid,
            Fault::Request,
            format!("no environment name can be made from the directory's name {folder:?}"),
            "say the name with --name",
        )
    })
}

/// A name out of any text, as near as can be: lower case, anything that is not allowed becomes a hyphen.
fn as_name(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        let allowed = c.is_ascii_lowercase() || c.is_ascii_digit();
        match (allowed, name.ends_with('-')) {
            (true, _) => name.push(c),
            (false, false) if !name.is_empty() => name.push('-'),
            _ => {}
        }
        if name.len() >= ENV_NAME_MAX {
            break;
        }
    }
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_come_from_the_nearest_source() {
        let dir = Path::new("/srv/My_Shop 2");
        assert_eq!(choose_name(Some("a"), Some("b"), dir).unwrap(), "a");
        assert_eq!(choose_name(None, Some("b"), dir).unwrap(), "b");
        assert_eq!(choose_name(None, None, dir).unwrap(), "my-shop-2");
        assert_eq!(
            choose_name(Some("B"), None, dir).unwrap_err().code,
            Code::NameInvalid
        );
        assert_eq!(
            choose_name(None, None, Path::new("/")).unwrap_err().code,
            Code::NameInvalid
        );
    }

    #[test]
    fn the_file_is_searched_up_the_tree() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let file = root.path().join("a/compose.yml");
        std::fs::write(&file, "").unwrap();
        std::fs::write(root.path().join("compose.yaml"), "").unwrap();
        assert_eq!(search(&deep).unwrap(), std::slice::from_ref(&file));
        let over = root.path().join("a/compose.override.yaml");
        std::fs::write(&over, "").unwrap();
        assert_eq!(search(&deep).unwrap(), [file, over]);
    }

    proptest! {
        #[test]
        fn any_text_makes_a_name_or_nothing(text in any::<String>()) {
            let name = as_name(&text);
            prop_assert!(name.is_empty() || name.parse::<EnvName>().is_ok(), "{:?}", name);
        }
    }
}
