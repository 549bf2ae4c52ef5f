//! Fetch or make an image ahead of its use.

use async_trait::async_trait;
use offshoot_model::{EnvId, ImageSource, Problem};
use serde::{Deserialize, Serialize};

use crate::saga::{Cx, Saga, Settle};

/// Fetches or makes an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pull {
    pub(crate) source: ImageSource,
}

#[async_trait]
impl Saga for Pull {
    fn steps(&self) -> &'static [&'static str] {
        &["image"]
    }

    fn forward_from(&self) -> usize {
        0
    }

    fn environments(&self) -> Vec<EnvId> {
        Vec::new()
    }

    async fn run(&mut self, _step: &'static str, cx: &Cx) -> Result<(), Problem> {
        let image = cx
            .engine()
            .ensure_image(&self.source, &cx.progress())
            .await?;
        cx.notice(format!("image {}", image.id));
        Ok(())
    }

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
