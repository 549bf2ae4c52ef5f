//! The four ways of a copy.

use std::io::{self, IsTerminal as _, Read, Write as _};
use std::time::Duration;

use http::header::ACCEPT;
use indicatif::{ProgressBar, ProgressStyle};
use offshoot_model::{Code, Fault, Problem};
use tar::EntryType;

use super::place::Remote;
use super::target::{LocalSource, There, local_target, remote_target};
use super::unpack::unpack;
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
    use crate::cp::place::remote;

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
}
