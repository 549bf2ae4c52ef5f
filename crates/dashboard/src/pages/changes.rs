//! Files that differ between two environments: a part of the page that compares them, and a page of its own. It is asked
//! for by itself, since it takes a look at every file.

use askama::Template;
use axum::extract::Query;
use axum::response::Response;
use offshoot_model::disk::{ChangeKind, ChangedBy, Changes, Disk, DiskChanges, FileChange};
use serde::Deserialize;

use super::{Mark, find, mark};
use crate::answer::{Failure, html};
use crate::context::{Context, Shell};
use crate::format::shortened;

/// Most names on a page, all disks together, and longest name: it shall stay small.
const NAMES_MAX: usize = 300;
const NAME_MAX: usize = 120;
const PART: &str = "changes";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    a: String,
    b: String,
}

#[derive(Template)]
#[template(path = "changes.html")]
struct Page {
    shell: Shell,
    part: Part,
}

#[derive(Template)]
#[template(path = "changes_part.html")]
struct Part {
    a: String,
    b: String,
    /// Where the rest of the comparison is.
    href: String,
    since_cut: bool,
    disks: Vec<Lines>,
}

struct Lines {
    title: String,
    counts: String,
    equal: bool,
    complete: bool,
    files: Vec<Line>,
    more: u64,
}

struct Line {
    path: String,
    mark: Mark,
    by: Option<String>,
}

/// What differs on the disks of `b` from those of `a`.
pub(super) async fn show(
    context: Context,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let (a, b) = (
        find(&context.web, &asked.a).await?.name,
        find(&context.web, &asked.b).await?.name,
    );
    let Changes { cut, disks, .. } = context.web.platform.changes(&b, Some(&a)).await?;
    let mut room = NAMES_MAX;
    let part = Part {
        href: super::compare::href(&a, &b),
        since_cut: cut.is_some(),
        disks: disks
            .into_iter()
            .map(|disk| lines(disk, &a, &b, &mut room))
            .collect(),
        a,
        b,
    };
    if context.wants(PART) {
        return html(&part);
    }
    html(&Page {
        shell: context.shell("Files that differ"),
        part,
    })
}

fn lines(disk: DiskChanges, a: &str, b: &str, room: &mut usize) -> Lines {
    let all = disk.added + disk.changed + disk.removed;
    let shown = disk.files.len().min(*room);
    *room -= shown;
    let counts = [
        (disk.added, format!("only in {b}")),
        (disk.changed, "changed".to_owned()),
        (disk.removed, format!("only in {a}")),
    ];
    let counts: Vec<_> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    Lines {
        title: match disk.disk {
            Disk::Node(node) => format!("Root file system of {node}"),
            Disk::Volume(volume) => format!("Volume {volume}"),
        },
        counts: counts.join(", "),
        equal: all == 0,
        complete: disk.complete,
        more: all.saturating_sub(shown as u64),
        files: disk
            .files
            .into_iter()
            .take(shown)
            .map(|file| line(file, a, b))
            .collect(),
    }
}

fn line(file: FileChange, a: &str, b: &str) -> Line {
    Line {
        path: shortened(&file.path, NAME_MAX),
        mark: match file.happened() {
            ChangeKind::Added => mark("added", "good"),
            ChangeKind::Changed => mark("changed", "warn"),
            ChangeKind::Removed => mark("removed", "bad"),
        },
        by: file.by.map(|by| match by {
            ChangedBy::This => format!("by {b}"),
            ChangedBy::Other => format!("by {a}"),
            ChangedBy::Both => "by both".to_owned(),
        }),
    }
}
