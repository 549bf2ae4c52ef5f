//! Promote: a clone gets its parent's domains, and they go back by themselves when it is worse.
//!
//! A swap with more around it: what the old side did before is counted, the policies of the two that lead to each other
//! end with the switch, what the new side holds is let go, and it is watched after it. Both are let go while it is watched, so that their nodes
//! are looked after; what would change the way to them is refused meanwhile ([`Shared::must_not_be_watched`]).

use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use offshoot_model::traffic::Policy;
use offshoot_model::traffic::compare::{Guard, Mark, Tally};
use offshoot_model::traffic::view::{PromoteRequest, TrafficReport};
use offshoot_model::{Code, EnvId, Environment, Fault, Hold, Problem};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::hold;
use crate::saga::{Cx, Plan, Saga, Settle};
use crate::shared::{Change, Shared, store_problem};
use crate::submit::Draft;
use crate::swap::{self, Swap, bad};
use crate::watch::{Old, Watch, mark, report, wait_until};

/// Longest baseline, watch and keeping, milliseconds.
const BASELINE_MAX: u64 = 3_600_000;
const WATCH_MAX: u64 = 86_400_000;
const KEEP_MAX: u64 = 366 * 86_400_000;
/// A watch that begins so long after the switch was cut short by the end of the daemon.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Gives a clone its parent's domains.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Promote {
    /// `one` is the old side, `other` the new.
    pub(crate) swap: Swap,
    pub(crate) baseline_ms: u64,
    pub(crate) watch_ms: u64,
    pub(crate) guard: Guard,
    pub(crate) keep_ms: Option<u64>,
    pub(crate) fence: bool,
    /// Policies before: of the old side, of the new.
    pub(crate) policies: (Option<Policy<EnvId>>, Option<Policy<EnvId>>),
    /// What the old side answered before.
    pub(crate) old: Tally,
    /// Counts at the new side's domains right before the switch.
    pub(crate) mark: Mark,
    pub(crate) switched: Option<Timestamp>,
    /// What the new side held before the switch.
    #[serde(default)]
    pub(crate) held: Hold,
}

#[async_trait]
impl Saga for Promote {
    fn steps(&self) -> &'static [&'static str] {
        &[
            "preflight",
            "baseline",
            "warm",
            "switch",
            "release",
            "watch",
        ]
    }

    fn environments(&self) -> Vec<EnvId> {
        self.swap.environments()
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        match step {
            "preflight" => {
                self.swap.preflight(cx)?;
                self.policies(cx)
            }
            "baseline" => self.baseline(cx).await,
            "warm" => {
                self.swap.warm_up(cx).await?;
                self.mark = counts(cx, &self.swap.other).await;
                // Journalled with the end of this step, before the switch can begin.
                self.held = cx.shared.by_id(&self.swap.other)?.held;
                self.swap.switching = true;
                Ok(())
            }
            "switch" => self.switch(cx).await,
            "release" => hold::let_go(cx, &self.swap.other, self.held, &self.swap.one).await,
            _ => self.watch(cx).await,
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        if !self.swap.switching {
            return Ok(());
        }
        let places = self.swap.places_before();
        self.place(cx, &places, self.policies.clone()).await?;
        if self.held.any() {
            hold::change(cx, &self.swap.other, Hold::default(), self.held).await?;
        }
        self.swap.tell_unswitched(cx);
        report(cx, |report| (report.percent, report.keep_until) = (0, None));
        Ok(())
    }

    fn on_success(&self) -> Settle {
        self.swap.on_success()
    }
}

/// Counts at an environment's domains; none when the edge does not tell, which the watch will say.
async fn counts(cx: &Cx, owner: &EnvId) -> Mark {
    mark(cx, owner).await.unwrap_or_else(|problem| {
        tracing::warn!(%problem, "the edge's counts were not to be had");
        Mark::of(None)
    })
}

impl Promote {
    /// The policies of both: those that lead to each other end with the switch, others must be cleared by a person.
    fn policies(&mut self, cx: &Cx) -> Result<(), Problem> {
        let of = |id: &EnvId| cx.shared.store.policy(id).map_err(store_problem);
        self.policies = (of(&self.swap.one)?, of(&self.swap.other)?);
        let both = [&self.swap.one, &self.swap.other];
        for (policy, id) in [(&self.policies.0, both[0]), (&self.policies.1, both[1])] {
            let stranger = policy.iter().filter(|policy| policy.leads()).any(|policy| {
                let mut named = policy.environments().peekable();
                named.peek().is_none() || named.any(|named| !both.contains(&named))
            });
            if stranger {
                return Err(swap::leads_elsewhere(&cx.shared.by_id(id)?));
            }
        }
        Ok(())
    }

    /// Counts what the old side answers for a while; when that is too little, all that it answered counts.
    async fn baseline(&mut self, cx: &Cx) -> Result<(), Problem> {
        if self.watch_ms == 0 {
            return Ok(());
        }
        let old = &self.swap.one;
        let earlier = counts(cx, old).await;
        wait_until(cx, Instant::now() + Duration::from_millis(self.baseline_ms)).await?;
        let now = counts(cx, old).await;
        let window = now.since(&earlier, old);
        self.old = if window.requests >= self.guard.min_requests {
            window
        } else {
            now.all(old)
        };
        report(cx, |report| report.old_figures = Some(self.old.figures()));
        Ok(())
    }

    async fn switch(&mut self, cx: &Cx) -> Result<(), Problem> {
        let (old, new) = self.policies.clone();
        // Bounds and goals of the domains go where the domains go, unless there are some already.
        let rest = old.map(Policy::without_sides);
        let new = match new.map(Policy::without_sides) {
            Some(own) if own != Policy::default() => Some(own),
            _ => rest.clone(),
        };
        let old = match (rest, self.fence) {
            (rest, true) => Some(Policy {
                fence: true,
                ..rest.unwrap_or_default()
            }),
            (rest, false) => rest,
        };
        let places = self.swap.places_after();
        let exposed = self.place(cx, &places, (old, new)).await?;
        self.switched = Some(exposed.at);
        self.swap.tell_switched(cx, &exposed);
        let keep = self
            .keep_ms
            .map(|ms| SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX)));
        report(cx, |report| {
            report.percent = 100;
            report.keep_until = keep.and_then(|keep| exposed.at.checked_add(keep).ok());
        });
        Ok(())
    }

    /// Domains and policies in one transaction and one table of the edge.
    async fn place(
        &self,
        cx: &Cx,
        places: &[(offshoot_model::Domain, EnvId)],
        (old, new): (Option<Policy<EnvId>>, Option<Policy<EnvId>>),
    ) -> Result<offshoot_engine::Exposed, Problem> {
        let record = || {
            cx.shared
                .store
                .update_in_one(|tx| {
                    tx.place_domains(places)?;
                    tx.set_policy(&self.swap.one, old.as_ref())?;
                    tx.set_policy(&self.swap.other, new.as_ref())
                })
                .map_err(store_problem)
        };
        cx.shared
            .expose_after(Some(cx.live.id()), Change::None, record)
            .await
    }

    async fn watch(&self, cx: &Cx) -> Result<(), Problem> {
        if self.watch_ms == 0 {
            return Ok(());
        }
        for id in self.environments() {
            cx.release(&id);
        }
        // What of it an earlier daemon did.
        let passed = self
            .switched
            .map(|at| Timestamp::now().duration_since(at).unsigned_abs())
            .filter(|passed| *passed >= AT_ONCE);
        let watch = Watch {
            owner: &self.swap.other,
            new: &self.swap.other,
            old: Old::Before(&self.old),
            mark: &self.mark,
            guard: self.guard,
            time: Duration::from_millis(self.watch_ms).saturating_sub(passed.unwrap_or_default()),
            taken_up: passed.is_some(),
            code: Code::PromoteWorse,
        };
        watch.run(cx).await
    }
}

impl Shared {
    pub(crate) fn draft_promote(
        &self,
        environment: &str,
        request: PromoteRequest,
    ) -> Result<Draft, Problem> {
        let new = self.settled(environment, "promoted")?;
        let old = match &request.of {
            Some(of) => self.settled(of, "replaced")?,
            None => self.parent_of(&new)?,
        };
        if old.id == new.id {
            return Err(bad(
                format!("environment {} cannot be promoted to itself", new.name),
                "name the environment whose domains it shall get with --of",
            ));
        }
        swap::judge(&request.warm)?;
        request
            .guard
            .check()
            .map_err(|why| bad(why, "see `offshoot promote --help`"))?;
        for (what, ms, most) in [
            ("baseline", request.baseline_ms, BASELINE_MAX),
            ("watch", request.watch_ms, WATCH_MAX),
            ("keep", request.keep_ms.unwrap_or(0), KEEP_MAX),
        ] {
            if ms > most {
                return Err(bad(
                    format!("{ms} ms are too long for {what}"),
                    format!("allow at most {} s", most / 1_000),
                ));
            }
        }
        let plan = Plan::Promote(Box::new(Promote {
            swap: Swap::new(&old, &new, request.warm),
            baseline_ms: request.baseline_ms,
            watch_ms: request.watch_ms,
            guard: request.guard,
            keep_ms: request.keep_ms,
            fence: request.fence,
            policies: (None, None),
            old: Tally::default(),
            mark: Mark::of(None),
            switched: None,
            held: Hold::default(),
        }));
        let mut draft = Draft::on(&new, plan);
        draft.swap = Some(Swap::report(&old));
        draft.traffic = Some(TrafficReport {
            old: old.name.to_string(),
            new: new.name.to_string(),
            ..TrafficReport::default()
        });
        Ok(draft)
    }

    fn parent_of(&self, clone: &Environment) -> Result<Environment, Problem> {
        let name = &clone.name;
        let Some(lineage) = &clone.lineage else {
            return Err(Problem::new(
                Code::WrongState,
                Fault::Request,
                format!("environment {name} is no clone"),
                format!("name whose domains it shall get: `offshoot promote {name} --of ENV`"),
            ));
        };
        self.settled(lineage.parent.as_str(), "replaced")
    }
}
