//! A host name loses its certificate.

use async_trait::async_trait;
use offshoot_model::Problem;
use offshoot_model::certificate::Certificate;
use serde::{Deserialize, Serialize};

use crate::saga::{Cx, Saga};
use crate::shared::{Change, store_problem};

/// Takes the certificate away from a host name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Forget {
    name: String,
    /// The certificate as it was.
    before: Certificate,
}

impl Forget {
    pub(super) fn new(name: String, before: Certificate) -> Self {
        Self { name, before }
    }

    /// Ids whose files it may still need.
    pub(super) fn files_needed(&self) -> Vec<String> {
        vec![self.before.id.clone()]
    }
}

#[async_trait]
impl Saga for Forget {
    fn steps(&self) -> &'static [&'static str] {
        &["record", "route", "tidy"]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        match step {
            "record" => {
                let _one_at_a_time = cx.shared.certifying.lock().await;
                cx.shared
                    .store
                    .forget_certificate_name(&self.before.id, &self.name)
                    .map_err(store_problem)
            }
            "route" => cx.expose(Change::None).await,
            _ => {
                cx.shared.remove_files(std::slice::from_ref(&self.before));
                Ok(())
            }
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        let _one_at_a_time = cx.shared.certifying.lock().await;
        if cx.shared.settings.https.files.has(&self.before.id) {
            cx.shared
                .store
                .give_certificate_name(&self.before, &self.name)
                .map_err(store_problem)?;
        }
        cx.expose(Change::None).await
    }
}
