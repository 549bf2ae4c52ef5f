//! Files of certificates and keys: in one directory, for root only, each replaced as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use offshoot_model::{Code, Fault, Problem};

use crate::Issued;

/// Largest file that is read, bytes.
const FILE_MAX: u64 = 1 << 20;

/// The directory.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Those in `dir`, which is made when something is kept.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The chain of a certificate, `<id>.pem`.
    #[must_use]
    pub fn chain(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.pem"))
    }

    /// Its key, `<id>.key`.
    #[must_use]
    pub fn key(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.key"))
    }

    /// Whether both files are there.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.chain(id).is_file() && self.key(id).is_file()
    }

    /// Keeps a certificate and its key, in place of what may be there.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn keep(&self, id: &str, issued: &Issued) -> Result<(), Problem> {
        // the chain last: where it is, its key is
        self.write(&self.key(id), issued.key.as_bytes())?;
        self.write(&self.chain(id), issued.chain.as_bytes())
    }

    /// The certificate and its key, when both are there.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn load(&self, id: &str) -> Result<Option<Issued>, Problem> {
        if !self.has(id) {
            return Ok(None);
        }
        Ok(Some(Issued {
            chain: self.read(&self.chain(id))?,
            key: self.read(&self.key(id))?,
        }))
    }

    /// Removes both files; those that are not there are fine.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove(&self, id: &str) -> Result<(), Problem> {
        for path in [self.chain(id), self.key(id)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the files of all certificates but those `known`, and what a crash left half written.
    ///
    /// # Errors
    /// When the directory cannot be read or a file not removed.
    pub fn sweep(&self, known: &dyn Fn(&str) -> bool) -> Result<(), Problem> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("read", &self.dir, &error)),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let part = |part: Option<&std::ffi::OsStr>| {
                part.and_then(|part| part.to_str()).map(str::to_owned)
            };
            let kept = match (part(path.file_stem()), part(path.extension()).as_deref()) {
                (Some(id), Some("pem" | "key")) => id == crate::authority::ROOT || known(&id),
                (_, Some("new")) => false,
                _ => true,
            };
            if !kept && let Err(error) = fs::remove_file(&path) {
                return Err(failed("remove", &path, &error));
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn read(&self, path: &Path) -> Result<String, Problem> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text))
            .map_err(|error| failed("read", path, &error))?;
        Ok(text)
    }

    /// Writes a file that only root can read, beside the old one, and puts it in its place.
    pub(crate) fn write(&self, path: &Path, content: &[u8]) -> Result<(), Problem> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let write = || {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.dir)?;
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error| failed("write", path, &error))
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Problem {
    Problem::new(
        Code::HostUnfit,
        Fault::Host,
        format!("cannot {what} {}", path.display()),
        "see that the state directory is there, can be written and has room",
    )
    .caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn issued(text: &str) -> Issued {
        Issued {
            chain: format!("chain {text}"),
            key: format!("key {text}"),
        }
    }

    #[test]
    fn files_are_root_s_alone_and_swept_by_id() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().join("certificates"));
        files.sweep(&|_| false).unwrap();
        assert!(files.load("a").unwrap().is_none());
        files.keep("a", &issued("one")).unwrap();
        files.keep("a", &issued("two")).unwrap();
        files.keep("b", &issued("b")).unwrap();
        assert_eq!(files.load("a").unwrap().unwrap().key, "key two");
        for path in [files.chain("a"), files.key("a")] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let mode = fs::metadata(&files.dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(files.path("c.key.new"), "half").unwrap();
        files.write(&files.path("acme.json"), b"{}").unwrap();
        files.sweep(&|id| id == "a").unwrap();
        assert!(files.has("a") && !files.has("b"));
        assert!(!files.path("c.key.new").exists() && files.path("acme.json").exists());
        files.remove("a").unwrap();
        files.remove("a").unwrap();
        assert!(!files.has("a"));
    }
}
