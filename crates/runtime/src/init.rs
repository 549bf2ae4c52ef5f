//! The small init of nodes that ask for one (`init: true`): process 1 that reaps orphans and passes signals on.
//!
//! It must run in any image, so it is linked statically; `build.rs` compiles it from crates/sys/init, the only place that may hold
//! `unsafe`.

use offshoot_model::manifest::FileContent;

use crate::config::INIT_PATH;
use crate::error::{Result, RuntimeError};
use crate::spec::{FilePlace, NodeFile};

/// Empty when this program was built where no static C library was at hand.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/offshoot-init"));

/// The file to put into the root file system.
///
/// # Errors
/// When this program was built without it.
pub fn init_file() -> Result<NodeFile> {
    if PROGRAM.is_empty() {
        return Err(RuntimeError::spec(
            "init: true is not possible: Offshoot was built without a static C library",
        ));
    }
    let content = FileContent::Bytes(PROGRAM.to_vec());
    Ok(NodeFile {
        target: INIT_PATH.into(),
        content,
        mode: 0o755,
        uid: 0,
        gid: 0,
        place: FilePlace::Rootfs,
    })
}
