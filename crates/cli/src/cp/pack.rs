//! Local files into a tar archive.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header, HeaderMode};

use super::{Copied, Links, Owners};

/// Writes `source` into an archive, under the name `name`; for a directory `.` as the name means its content.
///
/// # Errors
/// What cannot be read, with its path.
pub(super) fn pack<W: Write>(
    source: &Path,
    name: &Path,
    owners: Owners,
    links: Links,
    into: W,
) -> io::Result<(W, Copied)> {
    let mut packer = Packer {
        archive: Builder::new(into),
        owners,
        copied: Copied::default(),
    };
    // A link given as the source may be followed; those below it never are.
    let found = match links {
        Links::Follow => source.metadata(),
        Links::Copy => source.symlink_metadata(),
    };
    packer.all(
        source.to_owned(),
        name.to_owned(),
        found.map_err(|error| at(source, &error))?,
    )?;
    let archive = packer.archive.into_inner()?;
    Ok((archive, packer.copied))
}

struct Packer<W: Write> {
    archive: Builder<W>,
    owners: Owners,
    copied: Copied,
}

impl<W: Write> Packer<W> {
    /// Everything from `source` on down, directories before what is in them, without recursion.
    fn all(&mut self, source: PathBuf, name: PathBuf, found: Metadata) -> io::Result<()> {
        let mut waiting = vec![(source, name, found)];
        while let Some((path, name, found)) = waiting.pop() {
            self.one(&path, &name, &found)?;
            if !found.is_dir() {
                continue;
            }
            let mut inside = Vec::new();
            for child in std::fs::read_dir(&path).map_err(|error| at(&path, &error))? {
                let child = child.map_err(|error| at(&path, &error))?;
                match child.metadata() {
                    Ok(found) => inside.push((child.path(), name.join(child.file_name()), found)),
                    // Removed since the directory was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(at(&child.path(), &error)),
                }
            }
            inside.sort_unstable_by(|(a, ..), (b, ..)| b.cmp(a));
            waiting.extend(inside);
        }
        Ok(())
    }

    fn one(&mut self, path: &Path, name: &Path, found: &Metadata) -> io::Result<()> {
        let kind = found.file_type();
        let mut header = Header::new_gnu();
        header.set_metadata_in_mode(found, HeaderMode::Complete);
        if self.owners == Owners::Default {
            header.set_uid(0);
            header.set_gid(0);
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            self.archive
                .append_data(&mut header, name, io::empty())
                .map_err(|error| at(path, &error))?;
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            let target = std::fs::read_link(path).map_err(|error| at(path, &error))?;
            self.archive
                .append_link(&mut header, name, target)
                .map_err(|error| at(path, &error))?;
        } else if kind.is_file() {
            let file = open(path).map_err(|error| at(path, &error))?;
            // The size of the file that was opened: it may be another than was looked at.
            let opened = file.metadata().map_err(|error| at(path, &error))?;
            if !opened.is_file() {
                self.copied.skipped.push(format!(
                    "{} was left out: it changed meanwhile",
                    path.display()
                ));
                return Ok(());
            }
            let size = opened.len();
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            // A file that grows gives what it had; one that shrinks is filled up, as tar(1) does.
            let content = file.chain(io::repeat(0)).take(size);
            self.archive
                .append_data(&mut header, name, content)
                .map_err(|error| at(path, &error))?;
            self.copied.bytes += size;
        } else {
            let what = if kind.is_socket() {
                "a socket"
            } else {
                "a device or pipe"
            };
            self.copied
                .skipped
                .push(format!("{} was left out: it is {what}", path.display()));
            return Ok(());
        }
        self.copied.entries += 1;
        Ok(())
    }
}

/// Opens without waiting for the other end, should it have become a pipe (open(2)).
fn open(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    File::options().read(true).custom_flags(flags).open(path)
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(archive: &[u8]) -> Vec<(String, EntryType)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (
                entry.path().unwrap().display().to_string(),
                entry.header().entry_type(),
            )
        });
        entries.collect()
    }

    #[test]
    fn a_tree_with_everything() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        std::fs::create_dir_all(tree.join("sub/deep")).unwrap();
        std::fs::write(tree.join("sub/file"), "12345").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
        let (archive, copied) = pack(
            &tree,
            Path::new("new"),
            Owners::Default,
            Links::Copy,
            Vec::new(),
        )
        .unwrap();
        assert_eq!(
            names(&archive),
            [
                ("new".to_owned(), EntryType::Directory),
                ("new/link".to_owned(), EntryType::Symlink),
                ("new/sub".to_owned(), EntryType::Directory),
                ("new/sub/deep".to_owned(), EntryType::Directory),
                ("new/sub/file".to_owned(), EntryType::Regular),
            ]
        );
        assert_eq!(
            (copied.entries, copied.bytes, copied.skipped.len()),
            (5, 5, 1)
        );
        let mut archive = tar::Archive::new(&*archive);
        assert!(
            archive
                .entries()
                .unwrap()
                .all(|entry| entry.unwrap().header().uid().unwrap() == 0)
        );
    }

    #[test]
    fn the_content_of_a_directory() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a"), "").unwrap();
        let (archive, _) = pack(
            root.path(),
            Path::new("."),
            Owners::Keep,
            Links::Copy,
            Vec::new(),
        )
        .unwrap();
        let names: Vec<String> = names(&archive).into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [".", "./a"].map(|name| name.trim_start_matches("./").to_owned())
        );
    }

    #[test]
    fn only_a_link_given_by_name_is_followed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "x").unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink("file", &link).unwrap();
        let kind = |links| {
            let (archive, _) =
                pack(&link, Path::new("link"), Owners::Keep, links, Vec::new()).unwrap();
            names(&archive)[0].1
        };
        assert_eq!(kind(Links::Follow), EntryType::Regular);
        assert_eq!(kind(Links::Copy), EntryType::Symlink);
    }

    #[test]
    fn long_names_survive() {
        let root = tempfile::tempdir().unwrap();
        let long = "n".repeat(200);
        std::fs::create_dir(root.path().join(&long)).unwrap();
        std::fs::write(root.path().join(&long).join(&long), "x").unwrap();
        let (archive, _) = pack(
            root.path(),
            Path::new("r"),
            Owners::Keep,
            Links::Copy,
            Vec::new(),
        )
        .unwrap();
        assert!(
            names(&archive)
                .iter()
                .any(|(name, _)| name == &format!("r/{long}/{long}"))
        );
    }
}
