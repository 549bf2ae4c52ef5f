//! Images and the pool as the platform tells of them.

use std::os::unix::fs::MetadataExt as _;

use offshoot_engine::ReadyImage;
use offshoot_images::{Image, ImageError};
use offshoot_model::Problem;
use offshoot_model::view::{ImageView, PoolView};
use offshoot_pool::{Backing, Pool};

/// An image that is there; who uses it is not the engine's to know.
pub(crate) fn image(image: Image) -> ImageView {
    ImageView {
        id: image.id,
        source: image.source,
        created: image.created,
        size: image.size,
        used_by: 0,
        config: image.config,
    }
}

/// An image that was fetched or made.
pub(crate) fn ready(image: Result<Image, ImageError>) -> Result<ReadyImage, Problem> {
    let image = image.map_err(|e| e.problem())?;
    Ok(ReadyImage {
        id: image.id,
        config: image.config,
    })
}

/// The pool, and what its file takes of the host's disk.
pub(crate) fn pool(pool: &Pool) -> Result<PoolView, Problem> {
    let status = pool.status().map_err(|e| e.problem())?;
    let (backing, path) = match &status.backing {
        Backing::LoopFile { path, .. } => ("loop file", path.clone()),
        Backing::Device(path) => ("device", path.clone()),
        Backing::Mounted => ("mounted", status.path.clone()),
    };
    let host_bytes = match &status.backing {
        Backing::LoopFile { path, .. } => std::fs::metadata(path)
            .ok()
            .map(|metadata| metadata.blocks() * 512),
        _ => None,
    };
    Ok(PoolView {
        backing: backing.to_owned(),
        path: path.display().to_string(),
        size: status.size,
        used: status.used,
        free: status.free,
        host_bytes,
    })
}
