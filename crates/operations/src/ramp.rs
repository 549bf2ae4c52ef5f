//! Ramp: a side gets a growing share of an environment's requests, and the policy goes back when it is worse.
//!
//! How far it came stands in the policy itself, so that a daemon that takes it up again goes on at that share. Both
//! sides are let go while it waits, as in a promotion.

use std::time::Duration;

use async_trait::async_trait;
use offshoot_model::traffic::compare::Guard;
use offshoot_model::traffic::view::{RampRequest, TrafficReport};
use offshoot_model::traffic::{Policy, Side, TRAFFIC_MAX};
use offshoot_model::{Code, EnvId, Problem};
use serde::{Deserialize, Serialize};

use crate::saga::{Cx, Plan, Saga};
use crate::shared::{Shared, store_problem};
use crate::submit::Draft;
use crate::swap::{bad, leads_elsewhere, must_answer};
use crate::traffic::set;
use crate::watch::{Old, Watch, mark, report};

/// Bounds on the time at each share, milliseconds.
const EVERY_MS: std::ops::RangeInclusive<u64> = 1_000..=7 * 86_400_000;

/// Sends more and more requests of an environment to another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ramp {
    pub(crate) owner: EnvId,
    pub(crate) to: EnvId,
    pub(crate) steps: Vec<u32>,
    pub(crate) every_ms: u64,
    pub(crate) guard: Guard,
    /// The policy before, once it is known.
    pub(crate) before: Option<Policy<EnvId>>,
    /// Whether the policy may have changed.
    pub(crate) changing: bool,
}

#[async_trait]
impl Saga for Ramp {
    fn steps(&self) -> &'static [&'static str] {
        &["preflight", "ramp"]
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.owner.clone(), self.to.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        if step == "preflight" {
            return self.preflight(cx);
        }
        for id in self.environments() {
            cx.release(&id);
        }
        self.ramp(cx).await
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        if !self.changing {
            return Ok(());
        }
        set(cx, &self.owner, self.before.as_ref()).await?;
        let share = self.share_in(self.before.as_ref());
        report(cx, |report| report.percent = share);
        Ok(())
    }
}

impl Ramp {
    fn preflight(&mut self, cx: &Cx) -> Result<(), Problem> {
        let owner = cx.shared.by_id(&self.owner)?;
        must_answer(&owner)?;
        must_answer(&cx.shared.by_id(&self.to)?)?;
        self.before = cx.shared.store.policy(&self.owner).map_err(store_problem)?;
        let others = self.before.iter().flat_map(|policy| policy.environments());
        if others
            .into_iter()
            .any(|id| *id != self.owner && *id != self.to)
        {
            return Err(leads_elsewhere(&owner));
        }
        if let Err(why) = self.with_share(100).check() {
            return Err(leads_elsewhere(&owner).detail(why));
        }
        self.changing = true;
        Ok(())
    }

    async fn ramp(&self, cx: &Cx) -> Result<(), Problem> {
        let now = cx.shared.store.policy(&self.owner).map_err(store_problem)?;
        let reached = self
            .steps
            .iter()
            .position(|percent| now.as_ref() == Some(&self.with_share(*percent)));
        for (place, percent) in self.steps.iter().enumerate().skip(reached.unwrap_or(0)) {
            set(cx, &self.owner, Some(&self.with_share(*percent))).await?;
            report(cx, |report| report.percent = *percent);
            if *percent == 100 {
                break;
            }
            let before = mark(cx, &self.owner).await?;
            let watch = Watch {
                owner: &self.owner,
                new: &self.to,
                old: Old::Beside(&self.owner),
                mark: &before,
                guard: self.guard,
                time: Duration::from_millis(self.every_ms),
                taken_up: reached == Some(place),
                code: Code::RampWorse,
            };
            watch.run(cx).await?;
        }
        Ok(())
    }

    /// The policy before, with this share in a hundred for the side that grows.
    fn with_share(&self, percent: u32) -> Policy<EnvId> {
        let mut policy = self.before.clone().unwrap_or_default();
        for (id, weight) in [(&self.owner, 100 - percent), (&self.to, percent)] {
            match policy.sides.iter_mut().find(|side| side.environment == *id) {
                Some(side) => side.weight = weight,
                None => policy.sides.push(Side {
                    environment: id.clone(),
                    weight,
                }),
            }
        }
        policy
    }

    /// The share in a hundred that the side has in a policy.
    fn share_in(&self, policy: Option<&Policy<EnvId>>) -> u32 {
        let sides = policy.map_or(&[][..], |policy| &policy.sides);
        let sum: u64 = sides.iter().map(|side| u64::from(side.weight)).sum();
        let own = sides.iter().find(|side| side.environment == self.to);
        let own = own.map_or(0, |side| u64::from(side.weight));
        u32::try_from(100 * own / sum.max(1)).unwrap_or(100)
    }
}

impl Shared {
    pub(crate) fn draft_ramp(
        &self,
        environment: &str,
        request: RampRequest,
    ) -> Result<Draft, Problem> {
        let owner = self.settled(environment, "ramped")?;
        let to = self.settled(&request.to, "ramped")?;
        if owner.id == to.id {
            return Err(bad(
                format!("environment {} has its own requests already", owner.name),
                "name another that shall get them",
            ));
        }
        let growing = request.steps.windows(2).all(|pair| pair[0] < pair[1]);
        let within = request.steps.iter().all(|step| (1..=100).contains(step));
        if !growing || !within || request.steps.is_empty() || request.steps.len() > TRAFFIC_MAX {
            return Err(bad(
                "the shares of a ramp do not grow from 1 to 100".to_owned(),
                format!("name 1 to {TRAFFIC_MAX} of them, for instance 1,10,50,100"),
            ));
        }
        if !EVERY_MS.contains(&request.every_ms) {
            return Err(bad(
                format!("{} ms are no time between two shares", request.every_ms),
                "allow 1s to 168h",
            ));
        }
        request
            .guard
            .check()
            .map_err(|why| bad(why, "see `offshoot traffic ramp --help`"))?;
        let plan = Plan::TrafficRamp(Ramp {
            owner: owner.id.clone(),
            to: to.id.clone(),
            steps: request.steps,
            every_ms: request.every_ms,
            guard: request.guard,
            before: None,
            changing: false,
        });
        let mut draft = Draft::on(&owner, plan);
        draft.traffic = Some(TrafficReport {
            old: owner.name.to_string(),
            new: to.name.to_string(),
            ..TrafficReport::default()
        });
        Ok(draft)
    }
}
