//! Root file systems and volumes.

use offshoot_model::manifest::Mount;
use offshoot_model::{Environment, Node, Problem, Volume};
use offshoot_pool::{Access, Pool, Subvolume};

/// The subvolume of an image.
pub(crate) fn image_subvolume(id: &str) -> Subvolume {
    Subvolume::Image(id.strip_prefix("sha256:").unwrap_or(id).to_owned())
}

/// The subvolume of a volume.
pub(crate) fn volume_subvolume(volume: &Volume) -> Subvolume {
    Subvolume::Volume(volume.owner.clone(), volume.name.clone())
}

/// A root file system for every node and the environment's own volumes.
pub(crate) fn ensure_disks(pool: &Pool, environment: &Environment) -> Result<(), Problem> {
    let run = || {
        pool.prepare_env(&environment.id)?;
        for node in &environment.nodes {
            let root = Subvolume::Rootfs(node.id.clone());
            pool.ensure_snapshot(&image_subvolume(&node.image), &root, Access::ReadWrite)?;
        }
        for volume in environment
            .volumes
            .iter()
            .filter(|volume| volume.owner == environment.id)
        {
            let target = volume_subvolume(volume);
            pool.ensure_empty(&target)?;
            for (image, path) in mounted_at(environment, volume) {
                pool.ensure_seeded(&target, &image_subvolume(image), path)?;
            }
        }
        Ok(())
    };
    run().map_err(|e: offshoot_pool::PoolError| e.problem())
}

/// The root file system of `node` as its image has it, in place of what is there.
pub(crate) fn renew_disk(pool: &Pool, node: &Node) -> Result<(), Problem> {
    let run = || {
        let root = Subvolume::Rootfs(node.id.clone());
        pool.prepare_env(node.id.env())?;
        pool.ensure_removed(&root)?;
        pool.ensure_snapshot(&image_subvolume(&node.image), &root, Access::ReadWrite)
    };
    run().map_err(|e: offshoot_pool::PoolError| e.problem())
}

/// Images and paths at which layers mount a volume.
fn mounted_at<'a>(
    environment: &'a Environment,
    volume: &'a Volume,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    environment.manifest.layers.iter().flat_map(move |layer| {
        let image = environment
            .nodes_of(&layer.name)
            .next()
            .map(|node| node.image.as_str());
        layer.mounts.iter().filter_map(move |mount| match mount {
            Mount::Volume {
                volume: name,
                target,
                ..
            } if *name == volume.name => Some((image?, target.as_str())),
            _ => None,
        })
    })
}
