//! Fetch or make an image ahead of its use.

use async_trait::async_trait;
use offshoot_model::{ImageSource, Problem};
use serde::{Deserialize, Serialize};

use crate::saga::{Cx, Saga};

/// Fetches or makes an image; asks its registry also when the reference is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pull {
    pub(crate) source: ImageSource,
}

#[async_trait]
impl Saga for Pull {
    fn steps(&self) -> &'static [&'static str] {
        &["image"]
    }

    async fn run(&mut self, _step: &'static str, cx: &Cx) -> Result<(), Problem> {
        let image = cx
            .engine()
            .refresh_image(&self.source, &cx.progress())
            .await?;
        cx.notice(format!("image {}", image.id));
        Ok(())
    }
}
