//! Grow the pool.

use async_trait::async_trait;
use offshoot_model::{EnvId, Problem};
use serde::{Deserialize, Serialize};

use crate::saga::{Cx, Saga, Settle};

/// Grows the pool to `size` bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Grow {
    pub(crate) size: u64,
}

#[async_trait]
impl Saga for Grow {
    fn steps(&self) -> &'static [&'static str] {
        &["grow"]
    }

    fn forward_from(&self) -> usize {
        0
    }

    fn environments(&self) -> Vec<EnvId> {
        Vec::new()
    }

    async fn run(&mut self, _step: &'static str, cx: &Cx) -> Result<(), Problem> {
        cx.engine().ensure_pool_size(self.size).await
    }

    /// A pool that grew part of the way is as good as before.
    async fn undo(&mut self, _cx: &Cx) -> Result<(), Problem> {
        Ok(())
    }

    fn on_success(&self) -> Settle {
        Settle::Nothing
    }

    fn on_undone(&self) -> Settle {
        Settle::Nothing
    }
}
