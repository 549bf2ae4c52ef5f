//! Images: from a registry, a file or a distribution's packages to a read-only subvolume of the pool.
//!
//! Whatever the source, an image is made in a staging subvolume and becomes an image in one step, a snapshot; its record
//! is written after that. So a kill at any point leaves staging subvolumes and partial downloads, which
//! [`Images::clean_up`] removes or keeps for continuing, and never half an image.

mod error;
mod job;
mod locks;
mod oci;
mod packages;
mod record;
mod source;
mod unpack;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use offshoot_model::manifest::{ImageConfig, PackageImage};
use offshoot_model::{EnvId, ImageSource, ProgressSink};
use offshoot_pool::{Access, Pool, Subvolume};

pub use error::ImageError;
use job::Job;
use locks::Locks;
use oci::Digest;
pub use record::Image;
use record::{Record, Records};
use source::{Hashing, Local, archive, layout, registry};
use unpack::{Limits, UnpackError, Unpacker, decompress};

/// Most bytes an image may unpack to, unless configured.
pub const UNPACKED_MAX: u64 = 64 << 30;
/// Partial downloads that nobody continued for this long are removed.
const PARTIAL_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// While unpacking, the room in the pool is looked at each time so many bytes were written.
const ROOM_STEP: u64 = 64 << 20;

/// How images are fetched and where their records lie.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// Directory of records, downloads and the package cache; made when missing.
    pub dir: PathBuf,
    /// Credentials for registries, in the form of docker's config.json.
    pub auth_file: Option<PathBuf>,
    /// Registries (`host[:port]`) that are spoken to without TLS. Those on this machine always are.
    pub insecure_registries: Vec<String>,
    /// Architecture in the words of images (`amd64`, `arm64`); this machine's when `None`.
    pub architecture: Option<String>,
    /// Most bytes an image may unpack to.
    pub unpacked_max: u64,
}

impl ImagesConfig {
    /// The usual: anonymous, this machine's architecture.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            auth_file: None,
            insecure_registries: Vec::new(),
            architecture: None,
            unpacked_max: UNPACKED_MAX,
        }
    }

    fn architecture(&self) -> &str {
        self.architecture
            .as_deref()
            .unwrap_or_else(|| oci::architecture())
    }
}

/// Whether a known reference is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// What was fetched under this name before will do.
    Suffices,
    /// The registry is asked: a tag may have moved.
    AskAgain,
}

/// The images of a daemon. Cheap to clone; any number of tasks may use it.
#[derive(Debug, Clone)]
pub struct Images(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Arc<Pool>,
    config: ImagesConfig,
    records: Records,
    locks: Locks,
}

impl Images {
    /// Opens the store, making its directories.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn open(pool: Arc<Pool>, config: ImagesConfig) -> Result<Self, ImageError> {
        let dir = &config.dir;
        for dir in [dir.clone(), dir.join("blobs")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(ImageError::io("create", dir))?;
        }
        let records = Records::open(dir.join("records"))?;
        Ok(Self(Arc::new(Inner {
            pool,
            records,
            locks: Locks::default(),
            config,
        })))
    }

    /// The image from that source: the one that is there, or made now. A registry's reference that was fetched before is
    /// not asked for again; a local file is looked at each time. Equal content is made once, and callers that ask for the
    /// same at the same time wait for one of them.
    ///
    /// # Errors
    /// See [`ImageError`]; nothing but continuable downloads is left behind.
    pub async fn ensure(
        &self,
        source: &ImageSource,
        sink: &dyn ProgressSink,
    ) -> Result<Image, ImageError> {
        self.make(source, Known::Suffices, sink).await
    }

    /// As [`Images::ensure`], but asks the registry even when the reference is known: a tag may have moved.
    ///
    /// # Errors
    /// As [`Images::ensure`].
    pub async fn refresh(
        &self,
        source: &ImageSource,
        sink: &dyn ProgressSink,
    ) -> Result<Image, ImageError> {
        self.make(source, Known::AskAgain, sink).await
    }

    /// All images, by id.
    ///
    /// # Errors
    /// When the records or the pool cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut found = Vec::new();
        for (_, record) in self.0.records.all()? {
            if self.0.pool.exists(&record.image.subvolume)? {
                found.push(record.image);
            }
        }
        Ok(found)
    }

    /// The image with that id (`sha256:<hex>`, or the digits alone).
    ///
    /// # Errors
    /// [`ImageError::Unknown`] when there is none.
    pub fn get(&self, id: &str) -> Result<Image, ImageError> {
        let unknown = || ImageError::Unknown { id: id.into() };
        let hex = hex_of(id).ok_or_else(unknown)?;
        match self.0.records.get(hex)? {
            Some(record) if self.0.pool.exists(&record.image.subvolume)? => Ok(record.image),
            _ => Err(unknown()),
        }
    }

    /// Removes an image. Root file systems made from it are snapshots of their own and stay. Not there is fine. Whether
    /// an environment still names it is for the caller to know.
    ///
    /// # Errors
    /// When the pool refuses.
    pub fn remove(&self, id: &str) -> Result<(), ImageError> {
        let Some(hex) = hex_of(id) else {
            return Err(ImageError::Unknown { id: id.into() });
        };
        // The record first: an image without one is removed by the next start.
        self.0.records.remove(hex)?;
        self.0
            .pool
            .ensure_removed(&Subvolume::Image(hex.to_owned()))?;
        Ok(())
    }

    /// Removes what interrupted work left; called once at start, before anything else runs.
    ///
    /// # Errors
    /// The first one; the rest is removed all the same.
    pub fn clean_up(&self) -> Result<(), ImageError> {
        let inner = &self.0;
        inner.records.clean_up();
        let mut first = Ok(());
        for subvolume in inner.pool.list()? {
            let stale = match &subvolume {
                Subvolume::Staging(_) => true,
                Subvolume::Image(hex) => !matches!(inner.records.get(hex), Ok(Some(_))),
                Subvolume::Rootfs(_) | Subvolume::Volume(..) => false,
            };
            if stale {
                first = first.and(
                    inner
                        .pool
                        .ensure_removed(&subvolume)
                        .map_err(ImageError::from),
                );
            }
        }
        for (hex, record) in inner.records.all()? {
            if !inner.pool.exists(&record.image.subvolume)? {
                first = first.and(inner.records.remove(&hex));
            }
        }
        let blobs = inner.config.dir.join("blobs");
        for entry in fs::read_dir(&blobs)
            .map_err(ImageError::io("list", &blobs))?
            .flatten()
        {
            let fresh = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|time| {
                    SystemTime::now().duration_since(time).unwrap_or_default() < PARTIAL_AGE
                });
            let keep = fresh && !entry.file_name().to_string_lossy().starts_with("scratch-");
            if !keep {
                let _ = fs::remove_file(entry.path());
            }
        }
        packages::clean_up(&inner.config.dir);
        first
    }

    async fn make(
        &self,
        source: &ImageSource,
        known: Known,
        sink: &dyn ProgressSink,
    ) -> Result<Image, ImageError> {
        let inner = &self.0;
        let shown = source.display();
        let lock = inner.locks.get(&format!("source {}", source_key(source)));
        let _held = job::until_cancelled(sink, lock.lock()).await?;
        match source {
            ImageSource::Registry { reference } => {
                if known == Known::Suffices
                    && let Some(image) = inner.by_source(&source_key(source))?
                {
                    return Ok(image);
                }
                let wanted = inner.config.architecture();
                let remote = registry::resolve(reference, wanted, &inner.config, sink).await?;
                if let Some(image) = inner.by_id(&remote.id, source)? {
                    return Ok(image);
                }
                inner.pool.ensure_room(remote.size())?;
                let blobs = inner.config.dir.join("blobs");
                let local = remote.fetch(&shown, &blobs, &inner.locks, sink).await?;
                let files: Vec<_> = local
                    .layers
                    .iter()
                    .map(|layer| layer.path.clone())
                    .collect();
                let image = self.unpack(local, source, sink).await;
                // Unpacked they are of no more use; after a mismatch they are fetched anew.
                if !matches!(image, Err(ImageError::Cancelled)) {
                    for file in files {
                        let _ = fs::remove_file(file);
                    }
                }
                image
            }
            ImageSource::OciLayout { path, tag } => {
                let (path, tag, image) = (PathBuf::from(path), tag.clone(), shown);
                let wanted = inner.config.architecture().to_owned();
                let local = job::run(sink, move |_| {
                    layout::open(&path, tag.as_deref(), &wanted, &image)
                })
                .await?;
                self.unpack(local, source, sink).await
            }
            ImageSource::DockerArchive { path, tag } => {
                let (path, tag, image) = (PathBuf::from(path), tag.clone(), shown);
                let wanted = inner.config.architecture().to_owned();
                let limit = inner.config.unpacked_max;
                let scratch = Scratch(
                    inner
                        .config
                        .dir
                        .join(format!("blobs/scratch-{}", EnvId::random())),
                );
                let to = scratch.0.clone();
                let local = job::run(sink, move |job| {
                    archive::open(&path, tag.as_deref(), &wanted, &image, &to, limit, job)
                })
                .await?;
                self.unpack(local, source, sink).await
            }
            ImageSource::Packages(recipe) => self.build(recipe, source, sink).await,
        }
    }

    /// From a local image to one in the pool.
    async fn unpack(
        &self,
        local: Local,
        source: &ImageSource,
        sink: &dyn ProgressSink,
    ) -> Result<Image, ImageError> {
        let lock = self.0.locks.get(&format!("image {}", local.id));
        let _held = job::until_cancelled(sink, lock.lock()).await?;
        if let Some(image) = self.0.by_id(&local.id, source)? {
            return Ok(image);
        }
        let (inner, source) = (self.0.clone(), source.clone());
        job::run(sink, move |job| {
            let id = local.id.clone();
            let config = local.config.config.clone();
            inner.make_image(&id, &source, config, None, |dir| {
                unpack_layers(&inner, &local, &source, dir, job)
            })
        })
        .await
    }

    async fn build(
        &self,
        recipe: &PackageImage,
        source: &ImageSource,
        sink: &dyn ProgressSink,
    ) -> Result<Image, ImageError> {
        packages::check(recipe)?;
        let base = self.base(&recipe.suite, sink).await?;
        let id = packages::recipe_id(recipe, &base.id)?;
        let lock = self.0.locks.get(&format!("image {id}"));
        let _held = job::until_cancelled(sink, lock.lock()).await?;
        if let Some(image) = self.0.by_id(&id, source)? {
            return Ok(image);
        }
        let (inner, source, recipe) = (self.0.clone(), source.clone(), recipe.clone());
        job::run(sink, move |job| {
            let config = recipe.config.clone();
            let cache = inner.config.dir.clone();
            inner.make_image(&id, &source, config, Some(&base.subvolume), |dir| {
                packages::install(&recipe, dir, &cache, job)?;
                usage(dir)
            })
        })
        .await
    }

    /// The bootstrapped base of a suite, shared by every image of that suite.
    async fn base(&self, suite: &str, sink: &dyn ProgressSink) -> Result<Image, ImageError> {
        let source = ImageSource::Packages(PackageImage {
            suite: suite.to_owned(),
            packages: Vec::new(),
            files: Default::default(),
            run: Vec::new(),
            config: ImageConfig::default(),
        });
        let sources = packages::sources(suite)?;
        let id = packages::base_id(suite, self.0.config.architecture(), &sources);
        let lock = self.0.locks.get(&format!("image {id}"));
        let _held = job::until_cancelled(sink, lock.lock()).await?;
        if let Some(image) = self.0.by_id(&id, &source)? {
            return Ok(image);
        }
        let (inner, suite) = (self.0.clone(), suite.to_owned());
        job::run(sink, move |job| {
            let cache = inner.config.dir.clone();
            inner.make_image(&id, &source, ImageConfig::default(), None, |dir| {
                packages::bootstrap(&suite, &sources, dir, &cache, job)?;
                usage(dir)
            })
        })
        .await
    }
}

impl Inner {
    /// The image that this source led to before.
    fn by_source(&self, key: &str) -> Result<Option<Image>, ImageError> {
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
    fn by_id(&self, id: &Digest, source: &ImageSource) -> Result<Option<Image>, ImageError> {
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
    fn make_image(
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
                None => self.pool.ensure_empty(&staging)?,
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
        if let Err(e) = self.pool.ensure_removed(&staging) {
            tracing::warn!(error = %e, %staging, "staging stays until the next start");
        }
        made
    }
}

/// Unpacks every layer and checks it against its digests.
fn unpack_layers(
    inner: &Inner,
    local: &Local,
    source: &ImageSource,
    dir: &Path,
    job: &Job,
) -> Result<u64, ImageError> {
    use std::cell::Cell;
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

impl<R: std::io::Read> std::io::Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.job.add(read as u64);
        Ok(read)
    }
}

/// A file that goes when it is no longer needed.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn usage(dir: &Path) -> Result<u64, ImageError> {
    fs::File::open(dir)
        .and_then(|dir| offshoot_sys::fsx::disk_usage(std::os::fd::AsFd::as_fd(&dir)))
        .map_err(ImageError::io("measure", dir))
}

/// What names a source in the records: its text, or for packages the digest of the recipe.
fn source_key(source: &ImageSource) -> String {
    match source {
        ImageSource::Packages(recipe) => {
            format!(
                "packages:{}",
                Digest::of(&serde_json::to_vec(recipe).unwrap_or_default())
            )
        }
        ImageSource::Registry { reference } => match registry::parse_reference(reference) {
            // The same with and without defaults such as `:latest`.
            Ok(parsed) => parsed.whole(),
            Err(_) => reference.clone(),
        },
        other => other.display(),
    }
}

fn hex_of(id: &str) -> Option<&str> {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then_some(hex)
}
