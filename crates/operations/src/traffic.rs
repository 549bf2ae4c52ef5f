//! Policies: set and cleared as a whole, in use by the edge before an operation says that it is done.

use std::sync::PoisonError;

use async_trait::async_trait;
use offshoot_model::traffic::Policy;
use offshoot_model::traffic::stats::Stats;
use offshoot_model::traffic::view::TrafficView;
use offshoot_model::{
    Code, EnvId, Environment, EnvironmentState, Fault, OperationId, OperationKind, Problem,
};
use serde::{Deserialize, Serialize};

use crate::domains::no_entry;
use crate::saga::{Cx, Plan, Saga};
use crate::shared::{Change, Shared, store_problem};
use crate::submit::Draft;

/// Gives an environment a policy, or takes it away.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Set {
    pub(crate) environment: EnvId,
    pub(crate) policy: Policy<EnvId>,
    /// What it must still have, when somebody changed what they saw; an empty policy is none.
    #[serde(default)]
    pub(crate) seen: Option<Policy<EnvId>>,
    /// What it had, once that is known; true as long as it is held.
    pub(crate) before: Option<Policy<EnvId>>,
    /// Whether the change may have begun.
    pub(crate) changing: bool,
}

#[async_trait]
impl Saga for Set {
    fn steps(&self) -> &'static [&'static str] {
        &["check", "route"]
    }

    /// Those that it names too: they are there and stay until it says so.
    fn environments(&self) -> Vec<EnvId> {
        let mut all: Vec<_> = self.policy.environments().cloned().collect();
        all.push(self.environment.clone());
        all
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        if step == "check" {
            let owner = cx.shared.by_id(&self.environment)?;
            cx.shared.may_lead(&owner, &self.policy)?;
            let before = cx
                .shared
                .store
                .policy(&self.environment)
                .map_err(store_problem)?;
            let none = Policy::default();
            if let Some(seen) = &self.seen
                && seen != before.as_ref().unwrap_or(&none)
            {
                return Err(changed_meanwhile(&owner));
            }
            self.before = before;
            self.changing = true;
            return Ok(());
        }
        set(cx, &self.environment, Some(&self.policy)).await
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        if !self.changing {
            return Ok(());
        }
        set(cx, &self.environment, self.before.as_ref()).await
    }
}

fn changed_meanwhile(owner: &Environment) -> Problem {
    Problem::new(
        Code::WrongState,
        Fault::Request,
        format!("the traffic policy of {} was changed meanwhile", owner.name),
        "look at what it is now, and make the change again",
    )
}

/// Records a policy and has the edge use it.
pub(crate) async fn set(
    cx: &Cx,
    owner: &EnvId,
    policy: Option<&Policy<EnvId>>,
) -> Result<(), Problem> {
    let record = || {
        cx.shared
            .store
            .set_policy(owner, policy)
            .map_err(store_problem)
    };
    cx.shared
        .expose_after(Some(cx.live.id()), Change::None, record)
        .await
        .map(|_| ())
}

impl Shared {
    pub(crate) fn draft_traffic_set(
        &self,
        environment: &str,
        policy: Policy<String>,
        seen: Option<Policy<String>>,
    ) -> Result<Draft, Problem> {
        let owner = self.settled(environment, "given a traffic policy")?;
        let policy =
            policy.try_name(|name| self.settled(&name, "part of a policy").map(|env| env.id))?;
        self.may_lead(&owner, &policy)?;
        // Who is named in what was seen, and no longer there, was taken out of it.
        let id = |name: String| self.find(&name).map(|env| env.id);
        let seen = seen
            .map(|seen| seen.try_name(id))
            .transpose()
            .map_err(|_| changed_meanwhile(&owner))?;
        let plan = Plan::TrafficSet(Set {
            environment: owner.id.clone(),
            policy,
            seen,
            before: None,
            changing: false,
        });
        Ok(Draft::on(&owner, plan))
    }

    /// Whether a policy can be carried out: it agrees with itself, and whoever it names is there and can be asked.
    fn may_lead(&self, owner: &Environment, policy: &Policy<EnvId>) -> Result<(), Problem> {
        if *policy == Policy::default() {
            return Ok(());
        }
        policy.check().map_err(invalid)?;
        if owner.manifest.entry().is_none() {
            return Err(no_entry(owner));
        }
        let itself = policy.sides.is_empty()
            && policy
                .mirror
                .as_ref()
                .is_some_and(|mirror| mirror.environment == owner.id);
        if itself {
            let what = format!("{} would get copies of what it answers itself", owner.name);
            return Err(invalid(what));
        }
        for id in policy.environments() {
            let named = self.by_id(id)?;
            if !matches!(
                named.state,
                EnvironmentState::Running | EnvironmentState::Stopped
            ) {
                self.settled(id.as_str(), "part of a policy")?;
            }
            if named.manifest.entry().is_none() {
                return Err(no_entry(&named));
            }
        }
        Ok(())
    }

    /// The policy of an environment and what was counted at its domains. Counts that cannot be had are said, and keep
    /// nobody from seeing the policy.
    pub(crate) async fn traffic_view(&self, environment: &str) -> Result<TrafficView, Problem> {
        let owner = self.find(environment)?;
        let counted = self.engine.traffic_stats(vec![owner.id.clone()]).await;
        self.traffic_seen(&owner, counted)
    }

    /// Lets sides that are up take requests again.
    pub(crate) async fn traffic_back(&self, environment: &str) -> Result<TrafficView, Problem> {
        let owner = self.find(environment)?;
        let policy = self.store.policy(&owner.id).map_err(store_problem)?;
        if policy.is_none_or(|policy| policy.failover.is_none()) {
            return Err(Problem::new(
                Code::WrongState,
                Fault::Request,
                format!("the sides of {} are not checked", owner.name),
                format!(
                    "have them checked: `offshoot traffic failover {} STANDBY --check /`",
                    owner.name
                ),
            ));
        }
        let counted = self.engine.traffic_back(&owner.id).await?;
        self.traffic_seen(&owner, Ok(counted))
    }

    fn traffic_seen(
        &self,
        owner: &Environment,
        counted: Result<Stats, Problem>,
    ) -> Result<TrafficView, Problem> {
        let policy = self.store.policy(&owner.id).map_err(store_problem)?;
        let environments = self.store.environments().map_err(store_problem)?;
        let name = |id: &EnvId| {
            let found = environments.iter().find(|env| env.id == *id);
            found.map_or_else(|| id.to_string(), |env| env.name.to_string())
        };
        let (stats, uncounted) = match counted {
            Ok(stats) => (stats, None),
            Err(problem) => (Stats::default(), Some(problem.to_string())),
        };
        let mut owners = stats.owners.into_iter();
        let stats = owners.find(|stats| stats.environment == owner.id);
        Ok(TrafficView {
            uncounted,
            ..TrafficView::of(&owner.id, policy.unwrap_or_default(), stats, name)
        })
    }

    /// Refuses to remove an environment that another's policy names, or is about to.
    pub(crate) fn must_not_be_named(&self, environment: &Environment) -> Result<(), Problem> {
        for (owner, policy) in self.store.policies().map_err(store_problem)? {
            if owner != environment.id && policy.environments().any(|id| *id == environment.id) {
                let owner = self.by_id(&owner)?.name;
                return Err(Problem::new(
                    Code::EnvironmentInUse,
                    Fault::Request,
                    format!("the traffic policy of {owner} names {}", environment.name),
                    format!(
                        "take it out there first: `offshoot traffic set {owner} ...` or `offshoot traffic clear {owner}`"
                    ),
                ));
            }
        }
        self.must_not_be_led_by(&environment.id, &[OperationKind::TrafficSet])
    }

    /// Refuses what would change the way to an environment while a promotion or a ramp watches it.
    pub(crate) fn must_not_be_watched(&self, id: &EnvId) -> Result<(), Problem> {
        self.must_not_be_led_by(id, &[OperationKind::Promote, OperationKind::TrafficRamp])
    }

    /// Refuses while another's operation of one of these kinds is about the environment.
    fn must_not_be_led_by(&self, id: &EnvId, kinds: &[OperationKind]) -> Result<(), Problem> {
        let Some((by, subject)) = self.led_by(id, kinds) else {
            return Ok(());
        };
        let name = self.by_id(id)?.name;
        Err(Problem::new(
            Code::WrongState,
            Fault::Request,
            format!("an operation on {subject} decides what leads to {name}"),
            format!("wait for it, or cancel it: `offshoot op cancel {by}`"),
        ))
    }

    fn led_by(&self, id: &EnvId, kinds: &[OperationKind]) -> Option<(OperationId, String)> {
        let all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        all.values()
            .filter(|live| live.touches(id))
            .map(|live| live.snapshot())
            .find(|operation| {
                let own = operation.kind == OperationKind::TrafficSet
                    && operation.environment.as_ref() == Some(id);
                kinds.contains(&operation.kind) && !own
            })
            .map(|operation| (operation.id, operation.subject))
    }
}

fn invalid(what: String) -> Problem {
    Problem::new(
        Code::PolicyInvalid,
        Fault::Request,
        what,
        "correct the policy; `offshoot traffic set --help` and docs/traffic.md say what is possible",
    )
}
