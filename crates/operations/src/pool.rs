//! Grow the pool. One that grew part of the way is as good as before.

use async_trait::async_trait;
use offshoot_model::Problem;
use serde::{Deserialize, Serialize};

use crate::saga::{Cx, Saga};

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

    async fn run(&mut self, _step: &'static str, cx: &Cx) -> Result<(), Problem> {
        cx.engine().ensure_pool_size(self.size).await
    }
}
