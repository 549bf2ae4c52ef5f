//! What requests without TLS get at a custom domain.

use async_trait::async_trait;
use offshoot_certificates::covers;
use offshoot_model::domain::DomainHttps;
use offshoot_model::{Code, Domain, EnvId, Fault, Problem};
use serde::{Deserialize, Serialize};

use crate::domains::parse;
use crate::saga::{Cx, Plan, Saga};
use crate::shared::{Change, Shared, store_problem};
use crate::submit::Draft;

/// Says what requests without TLS get at a domain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SetHttps {
    environment: EnvId,
    domain: Domain,
    before: DomainHttps,
    to: DomainHttps,
}

#[async_trait]
impl Saga for SetHttps {
    fn steps(&self) -> &'static [&'static str] {
        &["record", "route"]
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.environment.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        match step {
            "record" => cx
                .shared
                .store
                .set_domain_https(&self.domain, self.to)
                .map_err(store_problem),
            _ => cx.expose(Change::None).await,
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        // it may be gone, which is no less than undone
        let _ = cx.shared.store.set_domain_https(&self.domain, self.before);
        cx.expose(Change::None).await
    }
}

impl Shared {
    pub(crate) fn draft_domain_https(
        &self,
        domain: &str,
        to: DomainHttps,
    ) -> Result<Draft, Problem> {
        let domain = parse(&Domain::split(domain))?;
        let Some(holder) = self.store.domain_holder(&domain).map_err(store_problem)? else {
            return Err(Problem::new(
                Code::DomainUnknown,
                Fault::Request,
                format!("no environment has the custom domain {domain}"),
                "see `offshoot domain ls` for those that are there",
            ));
        };
        let environment = self.by_id(&holder.environment)?;
        let plan = SetHttps {
            environment: holder.environment,
            domain: domain.clone(),
            before: holder.https,
            to,
        };
        let mut draft = Draft::on(&environment, Plan::DomainHttps(plan));
        draft.notices.extend(self.unserved_notice());
        if to == DomainHttps::Redirect && self.settings.https.served {
            let all = self.store.certificates().map_err(store_problem)?;
            let covered = all
                .iter()
                .flat_map(|one| &one.names)
                .any(|name| covers(name, &domain.host));
            if !covered {
                draft.notices.push(format!(
                    "no certificate is for {}: nobody who is sent to HTTPS there gets an answer; see `offshoot cert --help`",
                    domain.host
                ));
            }
        }
        Ok(draft)
    }
}
