//! Rename: another name, and with it another domain and other host names. Nothing stops.

use async_trait::async_trait;
use jiff::Timestamp;
use offshoot_model::{EnvId, EnvName, EnvironmentState, Problem};
use offshoot_plan::rehost;
use offshoot_store::RedirectedHost;
use serde::{Deserialize, Serialize};

use crate::saga::{Cx, Saga};
use crate::shared::{Change, store_problem};

/// Renames an environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rename {
    pub(crate) environment: EnvId,
    pub(crate) from: EnvName,
    pub(crate) to: EnvName,
    /// Whether the old default domain leads to the new one.
    #[serde(default)]
    pub(crate) redirect: bool,
}

#[async_trait]
impl Saga for Rename {
    fn steps(&self) -> &'static [&'static str] {
        &["record", "names", "route"]
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.environment.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        match step {
            "record" => {
                record(cx, &self.environment, &self.to)?;
                match self.redirect {
                    true => self.keep_old_name(cx),
                    false => Ok(()),
                }
            }
            "names" => names(cx, &self.environment).await,
            _ => cx.expose(Change::None).await,
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        // The new name may never have been given: it was taken, or the environment is gone.
        if cx
            .shared
            .by_id(&self.environment)
            .is_ok_and(|environment| environment.name == self.to)
        {
            record(cx, &self.environment, &self.from)?;
            cx.shared
                .store
                .take_redirects_back(cx.live.id())
                .map_err(store_problem)?;
            names(cx, &self.environment).await?;
        }
        cx.expose(Change::None).await
    }
}

impl Rename {
    fn keep_old_name(&self, cx: &Cx) -> Result<(), Problem> {
        let redirect = RedirectedHost {
            host: cx.shared.settings.host.domain(self.from.as_str()),
            environment: self.environment.clone(),
            added: Timestamp::now(),
        };
        cx.shared
            .store
            .add_redirect(&redirect, cx.live.id())
            .map_err(store_problem)
    }
}

fn record(cx: &Cx, id: &EnvId, name: &EnvName) -> Result<(), Problem> {
    let mut environment = cx.shared.by_id(id)?;
    environment.name = name.clone();
    rehost(&mut environment);
    cx.shared
        .store
        .update_environment(&environment)
        .map_err(store_problem)
}

async fn names(cx: &Cx, id: &EnvId) -> Result<(), Problem> {
    let environment = cx.shared.by_id(id)?;
    if environment.state == EnvironmentState::Running {
        cx.engine().ensure_names(&environment).await?;
    }
    Ok(())
}
