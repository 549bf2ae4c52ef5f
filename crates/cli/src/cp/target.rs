//! Where a copy goes and what it is called there, by the rules of `docker cp`.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use offshoot_model::{Code, Fault, Problem};

use super::Links;
use super::place::{Ending, Remote, ending};
use super::unpack::{Root, Target};

/// What is at a path of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    Directory,
    Other,
}

/// The local source of a copy.
#[derive(Debug)]
pub(super) struct LocalSource {
    pub(super) path: PathBuf,
    /// What it is called; `None` for the content of a directory.
    name: Option<OsString>,
    is_dir: bool,
}

impl LocalSource {
    /// Looks at what was typed.
    pub(super) fn look(text: &str, links: Links) -> Result<Self, Problem> {
        let unusable = |why: String| {
            Problem::new(
                Code::BadRequest,
                Fault::Request,
                format!("{text} cannot be copied: {why}"),
                "check the path",
            )
        };
        let (bare, end) = ending(text);
        let path = PathBuf::from(match (bare, end) {
            ("", Ending::Content) if text == "." => ".",
            ("", _) => "/",
            (bare, _) => bare,
        });
        // A slash at the end asks for the directory behind a link.
        let found = if links == Links::Follow || end != Ending::Name {
            path.metadata()
        } else {
            path.symlink_metadata()
        };
        let found = found.map_err(|error| unusable(error.to_string()))?;
        if end != Ending::Name && !found.is_dir() {
            return Err(unusable("it is no directory".to_owned()));
        }
        let path = if end == Ending::Name {
            path
        } else {
            path.canonicalize().map_err(|e| unusable(e.to_string()))?
        };
        let name = match end {
            Ending::Content => None,
            _ => match path.file_name() {
                Some(name) => Some(name.to_owned()),
                // `..`: its own name is only known after resolving it.
                None => path
                    .canonicalize()
                    .ok()
                    .and_then(|path| path.file_name().map(OsString::from)),
            },
        };
        Ok(Self {
            path,
            name,
            is_dir: found.is_dir(),
        })
    }
}

/// The directory of the node to unpack into, and the name to pack under, by the rules of `docker cp`.
pub(super) fn remote_target(
    source: &LocalSource,
    to: &Remote,
    there: There,
) -> Result<(String, PathBuf), Problem> {
    let refuse = |why: &str| {
        Problem::new(
            Code::BadRequest,
            Fault::Request,
            format!("{} cannot be the target: {why}", to.shown()),
            "choose another target path",
        )
    };
    let content = || PathBuf::from(".");
    let new_name = || {
        to.name()
            .map(PathBuf::from)
            .ok_or_else(|| refuse("it has no name"))
    };
    match there {
        There::Directory => Ok((
            to.path.clone(),
            source.name.as_ref().map_or_else(content, PathBuf::from),
        )),
        There::Nothing if !source.is_dir && to.ending != Ending::Name => {
            Err(refuse("there is no such directory"))
        }
        There::Other if source.is_dir => Err(refuse("it is a file and the source is a directory")),
        There::Other if to.ending != Ending::Name => Err(refuse("it is no directory")),
        There::Nothing | There::Other => Ok((to.parent().to_owned(), new_name()?)),
    }
}

/// Where on this host a copy goes, by the rules of `docker cp`.
pub(super) fn local_target(from: &Remote, to: &str, root: Root) -> io::Result<Target> {
    let (bare, end) = ending(to);
    let path = match (bare, end) {
        ("", Ending::Content) if to == "." => PathBuf::from("."),
        ("", _) if to.is_empty() => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the target is empty",
            ));
        }
        ("", _) => PathBuf::from("/"),
        (bare, _) => PathBuf::from(bare),
    };
    let open = |path: &Path| -> io::Result<std::os::fd::OwnedFd> {
        let file = File::open(path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        Ok(file.into())
    };
    let own_name = || match from.ending {
        Ending::Content => None,
        _ => from.name().map(OsString::from),
    };
    match path.metadata() {
        Ok(found) if found.is_dir() => Ok(Target {
            dir: open(&path)?,
            name: own_name(),
        }),
        Ok(_) if root == Root::Directory => Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            "the target is a file and the source is a directory",
        )),
        Ok(_) if end != Ending::Name => Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            "the target is no directory",
        )),
        // What a link leads to is overwritten, not the link.
        Ok(_) => named(&path.canonicalize()?, open),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match root {
            Root::Directory => {
                std::fs::create_dir(&path)?;
                Ok(Target {
                    dir: open(&path)?,
                    name: None,
                })
            }
            Root::Other if end != Ending::Name => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the target directory does not exist",
            )),
            Root::Other => named(&path, open),
        },
        Err(error) => Err(error),
    }
}

fn named(
    path: &Path,
    open: impl Fn(&Path) -> io::Result<std::os::fd::OwnedFd>,
) -> io::Result<Target> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the target has no name"))?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Ok(Target {
        dir: open(parent)?,
        name: Some(name.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cp::place::remote;

    fn source(name: Option<&str>, is_dir: bool) -> LocalSource {
        LocalSource {
            path: PathBuf::new(),
            name: name.map(OsString::from),
            is_dir,
        }
    }

    #[test]
    fn targets_in_a_node_follow_docker_s_rules() {
        let to = |text: &str, source: &LocalSource, there| {
            remote_target(source, &remote(text), there)
                .map(|(dir, name)| (dir, name.display().to_string()))
                .ok()
        };
        let file = source(Some("f"), false);
        let dir = source(Some("d"), true);
        let content = source(None, true);
        let some = |dir: &str, name: &str| Some((dir.to_owned(), name.to_owned()));
        assert_eq!(to("e/n:/srv", &file, There::Directory), some("/srv", "f"));
        assert_eq!(to("e/n:/srv/x", &file, There::Nothing), some("/srv", "x"));
        assert_eq!(to("e/n:/srv/x", &file, There::Other), some("/srv", "x"));
        assert_eq!(to("e/n:/srv/x/", &file, There::Nothing), None);
        assert_eq!(to("e/n:/srv", &dir, There::Directory), some("/srv", "d"));
        assert_eq!(
            to("e/n:/srv", &content, There::Directory),
            some("/srv", ".")
        );
        assert_eq!(to("e/n:/srv/x", &dir, There::Nothing), some("/srv", "x"));
        assert_eq!(
            to("e/n:/srv/x", &content, There::Nothing),
            some("/srv", "x")
        );
        assert_eq!(to("e/n:/srv/x", &dir, There::Other), None);
        assert_eq!(to("e/n:/", &file, There::Directory), some("/", "f"));
    }

    #[test]
    fn targets_here_follow_docker_s_rules() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let here = root.path().to_str().unwrap();
        let name = |from: &str, to: &str, kind| {
            local_target(&remote(from), to, kind)
                .ok()
                .map(|target| target.name.map(|n| n.display().to_string()))
        };
        let some = |name: &str| Some(Some(name.to_owned()));
        assert_eq!(name("e/n:/etc/hosts", here, Root::Other), some("hosts"));
        assert_eq!(
            name("e/n:/etc/hosts", &format!("{here}/new"), Root::Other),
            some("new")
        );
        assert_eq!(
            name("e/n:/etc/hosts", &format!("{here}/new/"), Root::Other),
            None
        );
        assert_eq!(
            name("e/n:/etc/hosts", &format!("{here}/file"), Root::Other),
            some("file")
        );
        assert_eq!(
            name("e/n:/etc", &format!("{here}/file"), Root::Directory),
            None
        );
        assert_eq!(name("e/n:/etc", here, Root::Directory), some("etc"));
        assert_eq!(name("e/n:/etc/.", here, Root::Directory), Some(None));
        assert_eq!(
            name("e/n:/etc", &format!("{here}/made"), Root::Directory),
            Some(None)
        );
        assert!(root.path().join("made").is_dir());
        assert_eq!(
            name("e/n:/etc", &format!("{here}/a/b"), Root::Directory),
            None
        );
    }

    #[test]
    fn sources_here() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("d")).unwrap();
        std::os::unix::fs::symlink("d", root.join("l")).unwrap();
        let look =
            |text: String, links| LocalSource::look(&text, links).map(|s| (s.name, s.is_dir));
        let here = root.display();
        let named = |name: &str, is_dir| (Some(OsString::from(name)), is_dir);
        assert_eq!(
            look(format!("{here}/d"), Links::Copy).unwrap(),
            named("d", true)
        );
        assert_eq!(
            look(format!("{here}/d/"), Links::Copy).unwrap(),
            named("d", true)
        );
        assert_eq!(
            look(format!("{here}/d/."), Links::Copy).unwrap(),
            (None, true)
        );
        assert!(look(format!("{here}/d/.."), Links::Copy).unwrap().1);
        assert_eq!(
            look(format!("{here}/l"), Links::Copy).unwrap(),
            named("l", false)
        );
        assert_eq!(
            look(format!("{here}/l"), Links::Follow).unwrap(),
            named("l", true)
        );
        assert!(look(format!("{here}/none"), Links::Copy).is_err());
    }
}
