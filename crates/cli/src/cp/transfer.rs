//! The four ways of a copy.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::ACCEPT;
use indicatif::{ProgressBar, ProgressStyle};
use offshoot_model::{Code, Fault, Problem};
use tar::EntryType;

use super::place::{Ending, Remote, ending};
use super::unpack::{Root, Target, unpack};
use super::{Copied, Links, Owners, pack};
use crate::api::{Route, Upload, UploadWriter, download};
use crate::context::Context;
use crate::failure::Failure;

/// Most symbolic links followed to a target, as the kernel's own bound (path_resolution(7)).
const LINKS_MAX: u32 = 40;
/// Longest wait for the local side after an upload that was taken whole.
const READ_END: Duration = Duration::from_secs(60);
/// The same after one that broke.
const BROKEN_END: Duration = Duration::from_secs(1);

/// A file or directory of a node, as a tar archive on standard output.
pub(super) async fn to_stdout(context: &Context, from: &Remote) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::Usage(
            "a tar archive is not for the terminal; write it to a file or pipe".to_owned(),
        ));
    }
    let mut archive = download(get(context, from, &from.path).await?);
    blocking(move || {
        let mut stdout = io::stdout().lock();
        io::copy(&mut archive, &mut stdout)?;
        stdout.flush()
    })
    .await?
    .map_err(Failure::from)
}

/// A tar archive on standard input, unpacked into a directory of a node.
pub(super) async fn from_stdin(context: &Context, to: &Remote) -> Result<(), Failure> {
    let (mut writer, upload) = Upload::new();
    let reading = tokio::task::spawn_blocking(move || {
        io::copy(&mut io::stdin().lock(), &mut writer)?;
        writer.finish();
        Ok(())
    });
    send(context, to, &to.path, upload, reading).await
}

/// Out of a node onto this host.
pub(super) async fn out(
    context: &Context,
    from: &Remote,
    to: &str,
    owners: Owners,
) -> Result<Copied, Failure> {
    let archive = download(get(context, from, &from.path).await?);
    let bar = bar(context);
    let reader = bar.wrap_read(archive);
    let (source, target) = (from.clone(), to.to_owned());
    let copied =
        blocking(move || unpack(reader, owners, |root| local_target(&source, &target, root)))
            .await?;
    bar.finish_and_clear();
    copied.map_err(|error| {
        Failure::from(
            Problem::new(
                Code::BadRequest,
                Fault::Request,
                format!("{} could not be copied to {to}", from.shown()),
                "check the target and what is in the source, then try again",
            )
            .detail(error.to_string()),
        )
    })
}

/// From this host into a node.
pub(super) async fn into(
    context: &Context,
    from: &str,
    to: &Remote,
    owners: Owners,
    links: Links,
) -> Result<Copied, Failure> {
    let source = LocalSource::look(from, links)?;
    let (there, to) = &look(context, to).await?;
    let (directory, name) = remote_target(&source, to, *there)?;
    let (writer, upload) = Upload::new();
    let bar = bar(context);
    let writer = Counted {
        writer,
        bar: bar.clone(),
    };
    let path = source.path;
    let reading = tokio::task::spawn_blocking(move || {
        let (counted, copied) = pack::pack(&path, &name, owners, links, writer)?;
        counted.writer.finish();
        Ok(copied)
    });
    let outcome = send(context, to, &directory, upload, reading).await;
    bar.finish_and_clear();
    outcome
}

/// A writer that moves a bar. (indicatif's own keeps what it wraps.)
struct Counted {
    writer: UploadWriter,
    bar: ProgressBar,
}

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.writer.write(bytes)?;
        self.bar.inc(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// What is at a path of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    Directory,
    Other,
}

/// Looks by asking for the thing itself and reading no more than its first header. Answers the target as it is after
/// following symbolic links, as the copy into it does.
async fn look(context: &Context, at: &Remote) -> Result<(There, Remote), Failure> {
    let mut at = at.clone();
    for _ in 0..LINKS_MAX {
        let body = match get(context, &at, &at.path).await {
            Ok(body) => body,
            Err(problem) if problem.code == Code::NotFound => return Ok((There::Nothing, at)),
            Err(problem) => return Err(problem.into()),
        };
        let archive = download(body);
        let first = blocking(move || first_entry(archive)).await??;
        match first {
            Some((EntryType::Directory, _)) => return Ok((There::Directory, at)),
            Some((EntryType::Symlink, Some(link))) => at.path = followed(&at, &link),
            Some(_) => return Ok((There::Other, at)),
            None => {
                let what = format!("the daemon sent an empty archive for {}", at.shown());
                return Err(Problem::internal(what).into());
            }
        }
    }
    let next = "choose another target path";
    let what = format!("{} is behind too many symbolic links", at.shown());
    Err(Problem::new(Code::BadRequest, Fault::Environment, what, next).into())
}

/// Kind of the first entry of an archive and, for a link, where it leads.
fn first_entry(archive: impl Read) -> io::Result<Option<(EntryType, Option<String>)>> {
    let mut archive = tar::Archive::new(archive);
    let Some(entry) = archive.entries()?.next().transpose()? else {
        return Ok(None);
    };
    let link = entry
        .link_name()?
        .map(|link| link.to_string_lossy().into_owned());
    Ok(Some((entry.header().entry_type(), link)))
}

/// The path that a link at `at` leads to, by its text.
fn followed(at: &Remote, link: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let base = if link.starts_with('/') {
        ""
    } else {
        at.parent()
    };
    for part in base.split('/').chain(link.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The local source of a copy.
#[derive(Debug)]
struct LocalSource {
    path: PathBuf,
    /// What it is called; `None` for the content of a directory.
    name: Option<OsString>,
    is_dir: bool,
}

impl LocalSource {
    fn look(text: &str, links: Links) -> Result<Self, Problem> {
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
fn remote_target(
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
fn local_target(from: &Remote, to: &str, root: Root) -> io::Result<Target> {
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

async fn get(context: &Context, of: &Remote, path: &str) -> Result<hyper::body::Incoming, Problem> {
    let route = Route::node(&of.environment, &of.node)
        .then("files")
        .with("path", path);
    let headers = [(ACCEPT, "application/x-tar".to_owned())];
    Ok(context.client.stream(&route, &headers).await?.into_body())
}

/// Sends what `reading` writes, and tells the cause when either side fails: a local file that cannot be read makes
/// the upload fail too.
async fn send<T>(
    context: &Context,
    to: &Remote,
    directory: &str,
    upload: Upload,
    reading: tokio::task::JoinHandle<io::Result<T>>,
) -> Result<T, Failure> {
    let route = Route::node(&to.environment, &to.node)
        .then("files")
        .with("path", directory);
    let sent = upload.send(&context.client, &route).await;
    // A file here that cannot be read breaks the upload too, and looks from there as if the connection was lost.
    let lost = |problem: &Problem| problem.code == Code::DaemonUnreachable;
    if let Err(problem) = &sent
        && !lost(problem)
    {
        return Err(problem.clone().into());
    }
    // After a broken upload the reader may still wait on standard input, which nobody needs any more.
    let patience = if sent.is_ok() { READ_END } else { BROKEN_END };
    let read = match tokio::time::timeout(patience, reading).await {
        Ok(read) => read.map_err(|error| Problem::internal(error.to_string()))?,
        Err(_) => {
            sent?;
            return Err(
                Problem::internal("the daemon took an upload that was not finished").into(),
            );
        }
    };
    match read {
        Ok(value) => sent.map(|()| value).map_err(Failure::from),
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Err(match sent {
            Err(problem) => problem.into(),
            Ok(()) => error.into(),
        }),
        Err(error) => Err(Problem::new(
            Code::BadRequest,
            Fault::Request,
            format!("the copy to {} failed on this side", to.shown()),
            "check the source, then try again",
        )
        .detail(error.to_string())
        .into()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Problem::internal(error.to_string()))
}

fn bar(context: &Context) -> ProgressBar {
    if context.is_quiet() || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {binary_bytes} {binary_bytes_per_sec} {elapsed}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cp::place::Place;

    fn remote(text: &str) -> Remote {
        match Place::parse(text) {
            Place::Remote(remote) => remote,
            other => panic!("{other:?}"),
        }
    }

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
    fn links_are_followed_by_their_text() {
        let at = remote("e/n:/var/run");
        for (link, path) in [
            ("/run", "/run"),
            ("../run", "/run"),
            ("x/./y", "/var/x/y"),
            ("../../..", "/"),
            ("", "/var"),
        ] {
            assert_eq!(followed(&at, link), path, "{link}");
        }
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
