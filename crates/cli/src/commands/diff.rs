//! `diff`: which files differ between two environments.

use clap::Args;
use offshoot_model::disk::{ChangeKind, ChangedBy, Changes, Disk, DiskChanges, FileChange};

use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::table::Grid;
use crate::term::{Paint, safe};

/// Show which files differ from those of another environment.
///
/// Root file systems are compared by node, volumes by name. No content is read: a file differs when its type, size, time,
/// owner or mode does. Between a clone and its parent it also says whose change it was, and only what was changed since
/// the cut is looked at; otherwise every file is, for at most ten seconds. At most 500 files of each disk are named; all
/// are counted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot diff upgrade             what differs from its parent\n  \
    offshoot diff upgrade shop        from another environment\n  \
    offshoot diff shop                no clone: from the images of its nodes\n  \
    offshoot diff upgrade -o json")]
pub(crate) struct DiffArgs {
    /// Environment, by name or id
    #[arg(value_name = "ENV")]
    environment: String,
    /// Another one [default: its parent; the images of its nodes when it has none]
    #[arg(value_name = "OTHER")]
    other: Option<String>,
}

pub(crate) async fn run(context: &Context, args: DiffArgs) -> Result<(), Failure> {
    let mut route = Route::environment(&args.environment).then("changes");
    if let Some(other) = &args.other {
        route = route.with("with", other);
    }
    let changes: Changes = context.client.get(&route).await?;
    context.answer(&changes, || {
        summary(&args.environment, &changes, context.out_paint)
    })
}

fn summary(environment: &str, changes: &Changes, paint: Paint) -> String {
    let with = changes.with.as_deref().unwrap_or("the images of its nodes");
    let mut out = match changes.cut {
        Some(cut) => format!("{environment} beside {with}, one until {cut:.3}\n"),
        None => format!("{environment} beside {with}\n"),
    };
    for disk in &changes.disks {
        out.push('\n');
        out.push_str(&title(disk, environment, with));
        if disk.files.is_empty() {
            continue;
        }
        let mut grid = Grid::new(&["CHANGE", "BY", "PATH"], paint);
        for file in &disk.files {
            grid.row(row(file, environment, with));
        }
        out.push_str(&grid.render());
        let all = disk.added + disk.changed + disk.removed;
        let more = all.saturating_sub(disk.files.len() as u64);
        if more > 0 {
            out.push_str(&format!("and {more} more\n"));
        }
    }
    out
}

fn title(disk: &DiskChanges, environment: &str, with: &str) -> String {
    let name = match &disk.disk {
        Disk::Node(node) => format!("node {node}"),
        Disk::Volume(volume) => format!("volume {volume}"),
    };
    let counts = format!(
        "{} only in {environment}, {} changed, {} only in {with}",
        disk.added, disk.changed, disk.removed
    );
    let part = if disk.complete {
        ""
    } else {
        ", of what was looked at"
    };
    format!("{name}: {counts}{part}\n")
}

fn row(file: &FileChange, environment: &str, with: &str) -> [String; 3] {
    let kind = match file.happened() {
        ChangeKind::Added => "added",
        ChangeKind::Changed => "changed",
        ChangeKind::Removed => "removed",
    };
    let by = match file.by {
        Some(ChangedBy::This) => environment,
        Some(ChangedBy::Other) => with,
        Some(ChangedBy::Both) => "both",
        None => "-",
    };
    [
        kind.to_owned(),
        by.to_owned(),
        safe(&file.path).into_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_differ_for_people() {
        let file = |path: &str, kind, by| FileChange {
            path: path.to_owned(),
            kind,
            by,
        };
        let disk = |disk, files: Vec<FileChange>| DiskChanges {
            disk,
            added: files.len() as u64,
            changed: 0,
            removed: 0,
            files,
            complete: true,
        };
        let changes = Changes {
            with: Some("shop".to_owned()),
            cut: Some("2026-03-01T11:56:59Z".parse().unwrap()),
            disks: vec![
                DiskChanges {
                    added: 41,
                    complete: false,
                    ..disk(
                        Disk::Node("web-1".to_owned()),
                        vec![
                            file(
                                "srv/\u{1b}[2Jcache/",
                                ChangeKind::Added,
                                Some(ChangedBy::This),
                            ),
                            file("etc/passwd", ChangeKind::Changed, Some(ChangedBy::Both)),
                        ],
                    )
                },
                disk(Disk::Volume("data".to_owned()), Vec::new()),
            ],
        };
        insta::assert_snapshot!(summary("upgrade", &changes, Paint::Plain), @r"
        upgrade beside shop, one until 2026-03-01T11:56:59.000Z

        node web-1: 41 only in upgrade, 0 changed, 0 only in shop, of what was looked at
        CHANGE    BY        PATH
        added     upgrade   srv/?[2Jcache/
        changed   both      etc/passwd
        and 39 more

        volume data: 0 only in upgrade, 0 changed, 0 only in shop
        ");
    }
}
