//! From a filled directory to an image: staging, snapshot, record, in this order.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use offshoot_model::manifest::ImageConfig;
use offshoot_model::{EnvId, ImageSource};
use offshoot_pool::{Access, Subvolume};

use crate::job::Job;
use crate::oci::Digest;
use crate::record::{Image, Record};
use crate::source::{Hashing, Local};
use crate::unpack::{self, Limits, UnpackError, Unpacker, decompress};
use crate::{ImageError, Inner, source_key};

/// While unpacking, the room in the pool is looked at each time so many bytes were written.
const ROOM_STEP: u64 = 64 << 20;

impl Inner {
    /// The image that this source led to before.
    pub(crate) fn by_source(&self, key: &str) -> Result<Option<Image>, ImageError> {
        let known = self
            .records
            .all()?
            .into_iter()
            .find(|(_, r)| r.sources.iter().any(|s| s == key));
        match known {
            Some((_, record)) if self.pool.exists(&record.image.subvolume)? => {
                Ok(Some(record.image))
            }
            _ => Ok(None),
        }
    }

    /// The image with that id, which from now on is known by this source too.
    pub(crate) fn by_id(
        &self,
        id: &Digest,
        source: &ImageSource,
    ) -> Result<Option<Image>, ImageError> {
        let _changing = self.records.change();
        let Ok(Some(mut record)) = self.records.get(id.hex()) else {
            return Ok(None);
        };
        if !self.pool.exists(&record.image.subvolume)? {
            return Ok(None);
        }
        let key = source_key(source);
        if !record.sources.contains(&key) {
            self.take_over(&key, id.hex())?;
            record.sources.push(key);
            self.records.put(id.hex(), &record)?;
        }
        Ok(Some(record.image))
    }

    /// A source leads to one image: where a tag moved, the older image loses it.
    fn take_over(&self, key: &str, to: &str) -> Result<(), ImageError> {
        for (hex, mut record) in self.records.all()? {
            if hex != to && record.sources.iter().any(|source| source == key) {
                record.sources.retain(|source| source != key);
                self.records.put(&hex, &record)?;
            }
        }
        Ok(())
    }

    /// Makes an image: `fill` fills a staging subvolume (empty, or a snapshot of `base`) and answers its size.
    pub(crate) fn make_image(
        &self,
        id: &Digest,
        source: &ImageSource,
        config: ImageConfig,
        base: Option<&Subvolume>,
        fill: impl FnOnce(&Path) -> Result<u64, ImageError>,
    ) -> Result<Image, ImageError> {
        let subvolume = Subvolume::Image(id.hex().to_owned());
        // Left by a kill between the snapshot and the record: its content is not vouched for.
        self.pool.ensure_removed(&subvolume)?;
        let staging = Subvolume::Staging(format!("image-{}", EnvId::random()));
        let made = (|| {
            match base {
                Some(base) => self
                    .pool
                    .ensure_snapshot(base, &staging, Access::ReadWrite)?,
                None => {
                    self.pool.ensure_empty(&staging)?;
                    let root = self.pool.path(&staging);
                    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))
                        .map_err(ImageError::io("set the mode of", root))?;
                }
            }
            let size = fill(&self.pool.path(&staging))?;
            self.pool
                .ensure_snapshot(&staging, &subvolume, Access::ReadOnly)?;
            let image = Image {
                id: id.to_string(),
                source: source.display(),
                config,
                created: jiff::Timestamp::now(),
                size,
                subvolume: subvolume.clone(),
            };
            let key = source_key(source);
            let _changing = self.records.change();
            self.take_over(&key, id.hex())?;
            self.records.put(
                id.hex(),
                &Record {
                    image: image.clone(),
                    sources: vec![key],
                },
            )?;
            Ok(image)
        })();
        // A command only says in its own words that there was no room.
        let made = match made {
            Err(failed @ ImageError::Build { .. }) => self
                .pool
                .ensure_room(ROOM_STEP)
                .map_err(ImageError::from)
                .and(Err(failed)),
            made => made,
        };
        if let Err(e) = self.pool.ensure_removed(&staging) {
            tracing::warn!(error = %e, %staging, "staging stays until the next start");
        }
        made
    }
}

/// Unpacks every layer and checks it against its digests.
pub(crate) fn unpack_layers(
    inner: &Inner,
    local: &Local,
    source: &ImageSource,
    dir: &Path,
    job: &Job,
) -> Result<u64, ImageError> {
    let image = source.display();
    let invalid = |why: String| ImageError::invalid(&image, why);
    job.begin(local.layers.iter().map(|layer| layer.size).sum(), "bytes");
    job.note(format!("unpacking {image}"));
    let refused: Cell<Option<ImageError>> = Cell::new(None);
    let room_at = Cell::new(0u64);
    let check = |written: u64| {
        let result = job.check().and_then(|()| {
            if written >= room_at.get() {
                room_at.set(written + ROOM_STEP);
                inner.pool.ensure_room(ROOM_STEP)?;
            }
            Ok(())
        });
        match result {
            Ok(()) => true,
            Err(e) => {
                refused.set(Some(e));
                false
            }
        }
    };
    let limits = Limits {
        bytes: inner.config.unpacked_max,
    };
    let mut unpacker = Unpacker::new(dir, limits, &check).map_err(ImageError::io("open", dir))?;
    for (number, (layer, diff_id)) in local.layers.iter().zip(&local.config.diff_ids).enumerate() {
        let number = number + 1;
        let file = unpack::section(&layer.path, layer.offset, layer.size)
            .map_err(ImageError::io("read", &layer.path))?;
        let mut raw = Hashing::new(Counting { inner: file, job });
        let plain = decompress(&mut raw).map_err(|e| invalid(format!("layer {number}: {e}")))?;
        let mut plain = Hashing::new(plain);
        match unpacker.layer(&mut plain) {
            Ok(()) => {}
            Err(UnpackError::Stopped) => {
                return Err(refused.take().unwrap_or(ImageError::Cancelled));
            }
            Err(UnpackError::Write { path, source }) => {
                return Err(ImageError::io("unpack", dir.join(path))(source));
            }
            Err(e) => return Err(invalid(format!("layer {number}: {e}"))),
        }
        let unpacked = plain
            .digest()
            .map_err(|e| invalid(format!("layer {number}: {e}")))?;
        let packed = raw
            .digest()
            .map_err(|e| invalid(format!("layer {number}: {e}")))?;
        if layer
            .digest
            .as_ref()
            .is_some_and(|digest| *digest != packed)
        {
            return Err(invalid(format!("layer {number} does not match its digest")));
        }
        if unpacked != *diff_id {
            return Err(invalid(format!(
                "layer {number} does not unpack to {diff_id}"
            )));
        }
    }
    Ok(unpacker.bytes())
}

/// Passes bytes on and counts them as progress.
struct Counting<'a, R> {
    inner: R,
    job: &'a Job,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.job.add(read as u64);
        Ok(read)
    }
}

/// Bytes of disk below a directory.
pub(crate) fn usage(dir: &Path) -> Result<u64, ImageError> {
    fs::File::open(dir)
        .and_then(|dir| offshoot_sys::fsx::disk_usage(dir.as_fd()))
        .map_err(ImageError::io("measure", dir))
}
