//! What of health outlives the process: which sides wait to be brought back, and the last changes.

use std::collections::HashMap;
use std::path::Path;

use offshoot_edge_api::{read_file, replace_file};
use offshoot_model::id::EnvId;
use offshoot_model::traffic::stats::HealthChange;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Largest file that is read, bytes.
const FILE_MAX: u64 = 64 << 20;

static CHANGED: Notify = Notify::const_new();

/// One owner's part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Sides that wait to be brought back.
    pub(super) out: Vec<EnvId>,
    /// The last changes, the newest last.
    pub(super) changes: Vec<HealthChange>,
}

/// By owner.
pub(super) type AllKept = HashMap<EnvId, Kept>;

/// Says that there is something to write.
pub(super) fn changed() {
    CHANGED.notify_one();
}

/// Waits until there is.
pub(super) async fn wait() {
    CHANGED.notified().await;
}

/// Replaces what is kept.
pub(super) fn write(path: &Path, all: &AllKept) -> std::io::Result<()> {
    replace_file(path, &serde_json::to_vec(all)?)
}

/// What a former process left; one that left nothing, or nothing that can be read, said nothing of any side.
pub(super) fn read(path: &Path) -> AllKept {
    let content = match read_file(path, FILE_MAX) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return AllKept::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "sides that waited to be brought back are forgotten");
            return AllKept::new();
        }
    };
    serde_json::from_slice(&content).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "sides that waited to be brought back are forgotten");
        AllKept::new()
    })
}
