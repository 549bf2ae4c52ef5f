//! Files of nodes: directories with what is in them, and downloads.

use std::io::{self, Read};

use askama::Template;
use axum::body::Body;
use axum::extract::{Path, Query};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use jiff::Timestamp;
use offshoot_model::disk::{FileEntry, FileKind};
use offshoot_model::manifest::Mount;
use offshoot_model::{Code, Manifest};
use offshoot_operations::ByteStream;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::find;
use crate::answer::{Failure, html};
use crate::context::{Context, Shell};
use crate::format::{When, bytes, encode};
use crate::live;

/// Most entries on a page: it shall stay small. The rest is counted.
const SHOWN: usize = 150;
/// Bytes in a piece of a download, and pieces under way.
const PIECE: usize = 64 << 10;
const IN_FLIGHT: usize = 4;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    node: String,
    /// Absolute, inside the node; its root when empty.
    path: String,
    /// How many entries are passed over.
    from: usize,
}

#[derive(Template)]
#[template(path = "files.html")]
struct Page {
    shell: Shell,
    name: String,
    href: String,
    nodes: Vec<(String, bool)>,
    /// From the root down: name and address of each directory.
    trail: Vec<(String, String)>,
    archive: String,
    entries: Vec<Entry>,
    volumes: Vec<(String, String)>,
    next: Option<String>,
    more: u64,
}

struct Entry {
    name: String,
    /// Where a directory is shown.
    open: Option<String>,
    download: Option<String>,
    /// What it is, in a word; where a link leads.
    note: String,
    size: String,
    mode: String,
    owner: String,
    modified: When,
}

/// A directory.
pub(super) async fn show(
    context: Context,
    Path(environment): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let platform = &context.web.platform;
    let found = find(&context.web, &environment).await?;
    let all = || found.layers.iter().flat_map(|layer| &layer.nodes);
    let node = if asked.node.is_empty() {
        let first = all().next().map(|node| node.name.clone());
        first.unwrap_or_default()
    } else {
        asked.node
    };
    let nodes = all()
        .map(|known| (known.name.clone(), known.name == node))
        .collect();
    let path = if asked.path.is_empty() {
        "/".to_owned()
    } else {
        asked.path
    };
    let directory = platform.list(&found.name, &node, &path).await?;
    let manifest = match platform.manifest(&found.name).await {
        Ok(manifest) => manifest,
        Err(problem) if problem.code == Code::EnvironmentUnknown => Manifest::default(),
        Err(problem) => return Err(problem.into()),
    };
    let href = format!("/environments/{}", encode(&found.name));
    let at = |path: &str| format!("{href}/files?node={}&path={}", encode(&node), encode(path));
    let shown = directory.entries.iter().skip(asked.from).take(SHOWN);
    let now = Timestamp::now();
    let entries: Vec<_> = shown
        .map(|entry| line(entry, &path, &href, &node, now))
        .collect();
    let end = asked.from.saturating_add(entries.len());
    let left = directory.entries.len().saturating_sub(end);
    let layer = found
        .layers
        .iter()
        .find(|layer| layer.nodes.iter().any(|known| known.name == node));
    html(&Page {
        shell: context.shell(format!("Files of {node}")),
        trail: trail(&path)
            .into_iter()
            .map(|(name, path)| (name, at(&path)))
            .collect(),
        archive: download(&href, &node, &path),
        volumes: layer
            .map(|layer| volumes(&manifest, &layer.name))
            .unwrap_or_default()
            .into_iter()
            .map(|target| {
                let address = at(&target);
                (target, address)
            })
            .collect(),
        next: (left > 0).then(|| format!("{}&from={end}", at(&path))),
        more: left as u64 + directory.left_out,
        name: found.name,
        href,
        nodes,
        entries,
    })
}

/// Where volumes are mounted in a layer's nodes.
fn volumes(manifest: &Manifest, layer: &str) -> Vec<String> {
    let mounts = manifest
        .layers
        .iter()
        .filter(|known| known.name.as_str() == layer)
        .flat_map(|layer| &layer.mounts);
    mounts
        .filter_map(|mount| match mount {
            Mount::Volume { target, .. } => Some(target.clone()),
            Mount::File { .. } | Mount::Tmpfs { .. } => None,
        })
        .collect()
}

fn download(href: &str, node: &str, path: &str) -> String {
    format!(
        "{href}/files/download?node={}&path={}",
        encode(node),
        encode(path)
    )
}

/// All directories from the root to `path`, with their paths.
fn trail(path: &str) -> Vec<(String, String)> {
    let mut trail = vec![("/".to_owned(), "/".to_owned())];
    let mut at = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        at.push('/');
        at.push_str(name);
        trail.push((name.to_owned(), at.clone()));
    }
    trail
}

fn line(entry: &FileEntry, path: &str, href: &str, node: &str, now: Timestamp) -> Entry {
    let inside = format!("{}/{}", path.trim_end_matches('/'), entry.name);
    // A name that is not UTF-8 is shown and leads nowhere.
    let named = !entry.name.contains(char::REPLACEMENT_CHARACTER);
    let open = format!(
        "{href}/files?node={}&path={}",
        encode(node),
        encode(&inside)
    );
    let is = |kind| named && entry.kind == kind;
    Entry {
        open: is(FileKind::Directory).then_some(open),
        download: is(FileKind::File).then(|| download(href, node, &inside)),
        note: match (entry.kind, &entry.target) {
            (FileKind::Link, Some(target)) => format!("→ {target}"),
            (FileKind::Link, None) => "link".to_owned(),
            (FileKind::Other, _) => "socket, pipe or device".to_owned(),
            (FileKind::File | FileKind::Directory, _) => String::new(),
        },
        size: if entry.kind == FileKind::File {
            bytes(entry.size)
        } else {
            String::new()
        },
        mode: format!("{:04o}", entry.mode),
        owner: format!("{}:{}", entry.uid, entry.gid),
        modified: When::new(entry.modified, now),
        name: entry.name.clone(),
    }
}

/// A file as it is, or a directory as a tar archive.
pub(super) async fn fetch(
    context: Context,
    Path(environment): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let room = live::room(&context.web)?;
    let platform = &context.web.platform;
    let archive = platform
        .copy_out(&environment, &asked.node, &asked.path)
        .await?;
    let name = trail(&asked.path).pop().map(|(name, _)| name);
    let name = name.filter(|name| name != "/").unwrap_or(asked.node);
    let (first, pieces) = open(archive).await?;
    let (name, kind) = match first {
        Content::File => (name, "application/octet-stream"),
        Content::Archive => (format!("{name}.tar"), "application/x-tar"),
    };
    let pieces = ReceiverStream::new(pieces).map(move |piece| {
        let _held = &room;
        piece
    });
    // RFC 6266 with RFC 8187: whatever the name is, what stands in the header is plain.
    let name = format!("attachment; filename*=UTF-8''{}", encode(&name));
    let headers = [(CONTENT_TYPE, kind.to_owned()), (CONTENT_DISPOSITION, name)];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// What an archive turns out to be.
enum Content {
    /// One file: its content follows.
    File,
    /// Anything else: the archive follows.
    Archive,
}

type Pieces = mpsc::Receiver<io::Result<Bytes>>;

/// Looks at the beginning of an archive; a problem can still be the answer then.
async fn open(mut archive: ByteStream) -> Result<(Content, Pieces), Failure> {
    let first = archive.recv().await.transpose()?.unwrap_or_default();
    let (sender, pieces) = mpsc::channel(IN_FLIGHT);
    // The type of an entry is at byte 156 of its header; `L` is a long name, before the entry itself (tar(5)).
    let is_file = match first.get(156) {
        Some(b'0' | 0) => true,
        Some(b'L') => matches!(first.get(1024 + 156), Some(b'0' | 0)),
        _ => false,
    };
    let reader = Reader {
        piece: first,
        rest: archive,
    };
    tokio::task::spawn_blocking(move || {
        let done = if is_file {
            content(reader, &sender)
        } else {
            pass_on(reader, &sender)
        };
        if let Err(error) = done {
            // The download ends without its last piece: the browser says that it failed.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let content = if is_file {
        Content::File
    } else {
        Content::Archive
    };
    Ok((content, pieces))
}

fn content(reader: Reader, to: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    let mut entries = archive.entries()?;
    let file = entries.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    pass_on(file, to)
}

fn pass_on(mut from: impl Read, to: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let read = from.read(&mut buffer)?;
        let piece = buffer.get(..read).unwrap_or_default();
        // Nobody wants it any more, or it is over.
        if read == 0 || to.blocking_send(Ok(Bytes::copy_from_slice(piece))).is_err() {
            return Ok(());
        }
    }
}

/// A stream of pieces as something to read.
struct Reader {
    piece: Bytes,
    rest: ByteStream,
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.rest.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(problem)) => return Err(io::Error::other(problem.to_string())),
                None => return Ok(0),
            }
        }
        let taken = self.piece.split_to(self.piece.len().min(into.len()));
        if let Some(room) = into.get_mut(..taken.len()) {
            room.copy_from_slice(&taken);
        }
        Ok(taken.len())
    }
}
