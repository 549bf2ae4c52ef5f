//! A file written by `docker save`: a tar archive with `manifest.json`, configurations and layers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{LayerFile, Local};
use crate::ImageError;
use crate::job::Job;
use crate::oci::{self, DOCUMENT_MAX, Digest};
use crate::unpack::decompress;
use crate::unpack::tarball::{Kind, Tarball};

/// Most files in an archive.
const FILES_MAX: usize = 100_000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Reads the archive at `path`. A compressed one is first written out plain to `scratch`, because its parts are
/// needed in another order than they come in.
pub(crate) fn open(
    path: &Path,
    tag: Option<&str>,
    wanted: &str,
    image: &str,
    scratch: &Path,
    limit: u64,
    job: &Job,
) -> Result<Local, ImageError> {
    let invalid = |why: String| ImageError::invalid(image, why);
    let mut file = File::open(path).map_err(|e| ImageError::NotFound {
        image: image.into(),
        why: format!("{}: {e}", path.display()),
    })?;
    let mut start = [0u8; 6];
    let filled = file
        .read(&mut start)
        .map_err(ImageError::io("read", path))?;
    let plain = !start.get(..filled).is_some_and(is_compressed);
    let path: PathBuf = if plain {
        path.into()
    } else {
        file.seek(SeekFrom::Start(0))
            .map_err(ImageError::io("read", path))?;
        expand(file, path, scratch, limit, job).map_err(|e| match e {
            ImageError::Io { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                invalid(source.to_string())
            }
            other => other,
        })?;
        scratch.into()
    };
    let index = index(&path, job).map_err(|e| match e {
        Failure::Bad(why) => invalid(why),
        Failure::Other(e) => e,
    })?;
    let find = |name: &str| {
        index
            .get(name.trim_start_matches("./"))
            .copied()
            .ok_or_else(|| invalid(format!("it has no {name}")))
    };
    let read = |name: &str| -> Result<Vec<u8>, ImageError> {
        let (offset, size) = find(name)?;
        if size > DOCUMENT_MAX {
            return Err(invalid(format!("{name} has {size} bytes")));
        }
        let mut content = Vec::new();
        crate::unpack::section(&path, offset, size)
            .and_then(|mut section| section.read_to_end(&mut content))
            .map_err(ImageError::io("read", &path))?;
        Ok(content)
    };
    let entries: Vec<Entry> = serde_json::from_slice(&read("manifest.json")?)
        .map_err(|e| invalid(format!("its manifest.json is not understood: {e}")))?;
    let entry = choose(&entries, tag).map_err(|why| ImageError::NotFound {
        image: image.into(),
        why,
    })?;
    let config = read(&entry.config)?;
    let id = Digest::of(&config);
    let names = entry.layers.as_deref().unwrap_or_default();
    let config = oci::parse_config(&config, names.len(), wanted).map_err(invalid)?;
    let layers = names
        .iter()
        .map(|name| {
            find(name).map(|(offset, size)| LayerFile {
                path: path.clone(),
                offset,
                size,
                digest: None,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Local { id, config, layers })
}

fn is_compressed(start: &[u8]) -> bool {
    start.starts_with(&[0x1f, 0x8b]) || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
}

fn expand(
    file: File,
    path: &Path,
    scratch: &Path,
    limit: u64,
    job: &Job,
) -> Result<(), ImageError> {
    let mut plain = decompress(file).map_err(ImageError::io("read", path))?;
    let mut out = File::create(scratch).map_err(ImageError::io("create", scratch))?;
    let mut buffer = vec![0u8; 256 << 10];
    let mut written = 0u64;
    loop {
        job.check()?;
        let read = plain
            .read(&mut buffer)
            .map_err(ImageError::io("read", path))?;
        if read == 0 {
            return Ok(());
        }
        written += read as u64;
        if written > limit {
            let why = format!("it unpacks to more than {limit} bytes");
            return Err(ImageError::io("read", path)(io::Error::new(
                io::ErrorKind::InvalidData,
                why,
            )));
        }
        out.write_all(buffer.get(..read).unwrap_or_default())
            .map_err(ImageError::io("write", scratch))?;
    }
}

enum Failure {
    Bad(String),
    Other(ImageError),
}

/// Where each file lies in the archive. Links (older versions of Docker link equal layers) lead to what they name.
fn index(path: &Path, job: &Job) -> Result<HashMap<String, (u64, u64)>, Failure> {
    let file = File::open(path).map_err(|e| Failure::Other(ImageError::io("open", path)(e)))?;
    let mut tarball = Tarball::new(Skipping::new(file));
    let mut files = HashMap::new();
    let mut links = Vec::new();
    loop {
        job.check().map_err(Failure::Other)?;
        let entry = match tarball.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(e) => return Err(Failure::Bad(e.to_string())),
        };
        if files.len() + links.len() > FILES_MAX {
            return Err(Failure::Bad(format!("it has more than {FILES_MAX} files")));
        }
        let name = String::from_utf8_lossy(&entry.path)
            .trim_start_matches("./")
            .to_owned();
        match entry.kind {
            Kind::File => {
                let offset = tarball.inner_mut().position();
                files.insert(name, (offset, entry.size));
            }
            Kind::Symlink | Kind::HardLink => links.push((name, entry)),
            _ => {}
        }
    }
    for (name, entry) in links {
        let target = String::from_utf8_lossy(&entry.link).into_owned();
        // A symbolic link is relative to where it lies: `../<layer>/layer.tar`.
        let target = match (entry.kind, target.strip_prefix("../")) {
            (Kind::Symlink, Some(rest)) => rest.to_owned(),
            _ => target,
        };
        if let Some(place) = files.get(&target).copied() {
            files.insert(name, place);
        }
    }
    Ok(files)
}

/// A file that knows where it is and passes over long stretches without reading them.
pub(crate) struct Skipping {
    file: BufReader<File>,
    at: u64,
}

impl Skipping {
    fn new(file: File) -> Self {
        Self {
            file: BufReader::new(file),
            at: 0,
        }
    }

    fn position(&self) -> u64 {
        self.at
    }
}

impl Read for Skipping {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl crate::unpack::tarball::Skip for Skipping {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let end = self.file.get_ref().metadata()?.len();
        let skipped = bytes.min(end.saturating_sub(self.at));
        self.file
            .seek_relative(i64::try_from(skipped).map_err(io::Error::other)?)?;
        self.at += skipped;
        Ok(skipped)
    }
}

fn choose<'a>(entries: &'a [Entry], tag: Option<&str>) -> Result<&'a Entry, String> {
    let tags = |e: &Entry| e.repo_tags.clone().unwrap_or_default();
    let all = || entries.iter().flat_map(tags).collect::<Vec<_>>().join(", ");
    match (tag, entries) {
        (None, [only]) => Ok(only),
        (None, []) => Err("the archive is empty".into()),
        (None, _) => Err(format!(
            "the archive holds several images, name one of {}",
            all()
        )),
        (Some(tag), _) => entries
            .iter()
            .find(|entry| {
                tags(entry).iter().any(|known| {
                    known == tag || known.rsplit_once(':').is_some_and(|(_, last)| last == tag)
                })
            })
            .ok_or_else(|| format!("the archive has no {tag:?}, only {}", all())),
    }
}
