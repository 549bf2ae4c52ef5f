//! Counts survive the edge: they are written to a file beside the control socket every few seconds, and read at the
//! start.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use offshoot_edge_api::{read_file, replace_file};
use offshoot_model::id::EnvId;
use offshoot_model::traffic::stats::OwnerStats;
use offshoot_model::traffic::{Goal, Sticky};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::server::Edge;

/// What a crash may cost.
const EVERY: Duration = Duration::from_secs(5);
/// Some 200,000 owners.
const FILE_MAX: u64 = 256 << 20;

/// Counts of an owner, and what they depend on besides the sides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(super) sticky: Sticky,
    pub(super) goals: Vec<Goal>,
    /// Where the copies went that were counted.
    #[serde(default)]
    pub(super) mirror: Option<EnvId>,
    pub(super) stats: OwnerStats,
}

/// Reads what a former edge counted; counting begins anew when that cannot be read.
pub(crate) fn read(path: &Path) -> HashMap<EnvId, Saved> {
    let saved = match read_file(path, FILE_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return HashMap::new(),
        Err(error) => Err(error),
        Ok(content) => serde_json::from_slice::<Vec<Saved>>(&content).map_err(io::Error::from),
    };
    match saved {
        Ok(saved) => saved
            .into_iter()
            .map(|saved| (saved.stats.environment.clone(), saved))
            .collect(),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "counting begins anew");
            HashMap::new()
        }
    }
}

/// Writes counts that changed, every few seconds and when `end` is dropped.
pub(crate) async fn keep(edge: Arc<Edge>, mut end: oneshot::Receiver<()>) {
    let path = edge.config.stats_file();
    let mut written = None;
    let mut ended = false;
    while !ended {
        ended = tokio::time::timeout(EVERY, &mut end).await.is_ok();
        let table = edge.table.load_full();
        let state = (edge.requests.load(Ordering::Acquire), table.version);
        if written == Some(state) {
            continue;
        }
        let path = path.clone();
        let done = tokio::task::spawn_blocking(move || write(&path, &table.saved()));
        match done.await {
            Ok(Ok(())) => written = Some(state),
            Ok(Err(error)) => tracing::warn!(%error, "counts not written"),
            Err(error) => tracing::error!(%error, "counts not written"),
        }
    }
}

fn write(path: &Path, saved: &[Saved]) -> io::Result<()> {
    replace_file(path, &serde_json::to_vec(saved)?)
}
