//! Images: from a registry, a file or a distribution's packages to a read-only subvolume of the pool.
//!
//! Whatever the source, an image is made in a staging subvolume and becomes an image in one step, a snapshot; its record
//! is written after that. So a kill at any point leaves staging subvolumes and partial downloads, which
//! [`Images::clean_up`] removes or keeps for continuing, and never half an image.

mod error;
mod job;
mod locks;
mod make;
mod oci;
mod packages;
mod record;
mod source;
mod unpack;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use offshoot_model::manifest::{ImageConfig, PackageImage};
use offshoot_model::{EnvId, ImageSource, ProgressSink};
use offshoot_pool::{Pool, Subvolume};

pub use error::ImageError;
use locks::Locks;
use make::{unpack_layers, usage};
use oci::Digest;
pub use record::Image;
use record::Records;
use source::{Local, archive, layout, registry};

/// Most bytes an image may unpack to, unless configured.
pub const UNPACKED_MAX: u64 = 64 << 30;
/// Partial downloads that nobody continued for this long are removed.
const PARTIAL_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

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

/// A file that goes when it is no longer needed.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
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
