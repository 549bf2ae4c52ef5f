//! Remove: everything of an environment goes, whatever state it is in.

use async_trait::async_trait;
use offshoot_model::{EnvId, EnvironmentState, Problem};
use offshoot_store::StoreError;
use serde::{Deserialize, Serialize};

use crate::saga::{Cx, Saga, Settle};
use crate::shared::{Change, store_problem};

/// Removes an environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Remove {
    pub(crate) environment: EnvId,
}

#[async_trait]
impl Saga for Remove {
    fn steps(&self) -> &'static [&'static str] {
        &["mark", "unroute", "halt", "disks"]
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.environment.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        match step {
            "mark" => match cx
                .shared
                .store
                .set_state(&self.environment, EnvironmentState::Removing)
            {
                // A create that was under way was cancelled by this removal and has taken its row along.
                Ok(()) | Err(StoreError::EnvironmentUnknown { .. }) => Ok(()),
                Err(error) => Err(store_problem(error)),
            },
            "unroute" => cx.expose(Change::Forget(&self.environment)).await,
            "halt" => cx.engine().ensure_halted(&self.environment).await,
            _ => {
                cx.engine().ensure_cut_forgotten(&self.environment).await?;
                cx.engine().ensure_removed(&self.environment).await
            }
        }
    }

    fn on_success(&self) -> Settle {
        Settle::Gone(self.environment.clone())
    }

    /// What is removed cannot come back: the environment stays, marked, and can be removed again.
    fn on_undone(&self) -> Settle {
        Settle::State(self.environment.clone(), EnvironmentState::Broken)
    }
}
