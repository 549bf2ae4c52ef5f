//! In which order layers start.

use std::collections::BTreeSet;

use offshoot_model::{LayerName, Manifest};

/// `depends_on` goes in a circle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("depends_on goes in a circle through {}", .0.join(", "))]
pub struct Cycle(pub Vec<String>);

/// Layers in waves: each wave depends on earlier ones only. Layers of one wave may start together.
///
/// # Errors
/// [`Cycle`] with the layers that wait for each other. A dependency on a layer that does not exist counts as
/// met: the manifest's parser has judged it.
pub fn start_waves(manifest: &Manifest) -> Result<Vec<Vec<LayerName>>, Cycle> {
    let mut waiting: Vec<_> = manifest.layers.iter().collect();
    let mut waves = Vec::new();
    while !waiting.is_empty() {
        let open: BTreeSet<_> = waiting.iter().map(|layer| layer.name.clone()).collect();
        let (ready, rest): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|layer| layer.depends_on.iter().all(|d| !open.contains(&d.layer)));
        if ready.is_empty() {
            return Err(Cycle(
                rest.iter().map(|layer| layer.name.to_string()).collect(),
            ));
        }
        waves.push(ready.iter().map(|layer| layer.name.clone()).collect());
        waiting = rest;
    }
    Ok(waves)
}
