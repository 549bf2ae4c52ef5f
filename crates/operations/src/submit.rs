//! From a request to a recorded operation: all that can be judged at once is judged here.

use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use offshoot_model::domain::SwapReport;
use offshoot_model::environment::PortBinding;
use offshoot_model::operation::{StepRecord, StepState};
use offshoot_model::traffic::Policy;
use offshoot_model::traffic::view::TrafficReport;
use offshoot_model::view::{CloneRequest, CreateRequest, RenameRequest};
use offshoot_model::{
    Code, EnvId, EnvName, Environment, EnvironmentState, Fault, Manifest, Operation, OperationId,
    OperationKind, OperationState, Problem, RungChoice,
};
use offshoot_plan::{ClonePlan, CreatePlan, clone_name, plan_clone, plan_create};
use offshoot_store::StoreError;

use crate::platform::Request;
use crate::runner::Way;
use crate::saga::Plan;
use crate::shared::{Shared, store_problem};
use crate::{clone, create, image, pool, power, remove, rename};

/// Least and most that a request may allow a freeze to take, milliseconds.
const FREEZE_BOUNDS: std::ops::RangeInclusive<u64> = 10..=60_000;

/// Most operations that run or wait at a time, and most of them on one environment.
const MOST_UNDER_WAY: usize = 256;
const MOST_ON_ONE: usize = 64;

/// What a request becomes before it is recorded.
pub(crate) struct Draft {
    plan: Plan,
    environment: Option<EnvId>,
    subject: String,
    parent: Option<String>,
    /// For a swap, with whom.
    pub(crate) swap: Option<SwapReport>,
    /// For a promotion or a ramp, of whom.
    pub(crate) traffic: Option<TrafficReport>,
    pub(crate) notices: Vec<String>,
    /// A new environment to reserve together with the operation.
    reserve: Option<(Environment, Vec<PortBinding>)>,
}

impl Draft {
    pub(crate) fn on(environment: &Environment, plan: Plan) -> Self {
        Self {
            environment: Some(environment.id.clone()),
            ..Self::of_host(environment.name.to_string(), plan)
        }
    }

    /// A change of the host, not of an environment.
    pub(crate) fn of_host(subject: String, plan: Plan) -> Self {
        Self {
            plan,
            environment: None,
            subject,
            parent: None,
            swap: None,
            traffic: None,
            notices: Vec::new(),
            reserve: None,
        }
    }
}

impl Shared {
    /// Judges and records a request, and lets it run.
    pub(crate) async fn submit(self: &Arc<Self>, request: Request) -> Result<Operation, Problem> {
        let id = OperationId::new();
        let now = Timestamp::now();
        let _one_at_a_time = self.submitting.lock().await;
        let mut draft = match request {
            Request::Create(request) => self.draft_create(request, now).await?,
            Request::Clone(parent, request) => self.draft_clone(&parent, &request, id, now).await?,
            Request::Rename(environment, request) => self.draft_rename(&environment, &request)?,
            Request::Start(environment) => {
                let found = self.settled(&environment, "started")?;
                Draft::on(
                    &found,
                    Plan::Start(power::Start {
                        environment: found.id.clone(),
                    }),
                )
            }
            Request::Stop(environment) => {
                let found = self.settled(&environment, "stopped")?;
                Draft::on(
                    &found,
                    Plan::Stop(power::Stop {
                        environment: found.id.clone(),
                    }),
                )
            }
            Request::Hold(environment, held) => self.draft_hold(&environment, held)?,
            Request::Remove(environment) => self.draft_remove(&environment)?,
            Request::ImagePull(source) => {
                Draft::of_host(source.display(), Plan::ImagePull(image::Pull { source }))
            }
            Request::PoolGrow(size) => Draft::of_host(
                offshoot_model::quantity::format_bytes(size),
                Plan::PoolGrow(pool::Grow { size }),
            ),
            Request::DomainAdd(environment, request) => {
                self.draft_domain_add(&environment, request.domains)?
            }
            Request::DomainRemove(environment, domain) => {
                self.draft_domain_remove(&environment, &domain)?
            }
            Request::Swap(environment, request) => self.draft_swap(&environment, request)?,
            Request::DomainHttps(domain, https) => self.draft_domain_https(&domain, https)?,
            Request::CertificateAdd(request) => self.draft_certificate(id, request)?,
            Request::CertificateRemove(name) => self.draft_certificate_remove(&name)?,
            Request::CertificateRenew(name) => self.draft_certificate_renew(id, &name)?,
            Request::TrafficSet(environment, policy) => {
                self.draft_traffic_set(&environment, policy, None)?
            }
            Request::TrafficReplace {
                environment,
                before,
                after,
            } => self.draft_traffic_set(&environment, after, Some(*before))?,
            Request::TrafficClear(environment) => {
                self.draft_traffic_set(&environment, Policy::default(), None)?
            }
            Request::TrafficRamp(environment, request) => self.draft_ramp(&environment, request)?,
            Request::Promote(environment, request) => self.draft_promote(&environment, request)?,
        };
        let environments = draft.plan.saga().environments();
        if changes_the_way(draft.plan.kind()) {
            for id in &environments {
                self.must_not_be_watched(id)?;
            }
        }
        self.must_have_room(&environments)?;
        let waits = environments.iter().any(|id| self.holder(id).is_some());
        let operation = Operation {
            id,
            kind: draft.plan.kind(),
            environment: draft.environment,
            subject: draft.subject,
            parent: draft.parent,
            state: if waits {
                OperationState::Waiting
            } else {
                OperationState::Running
            },
            created: now,
            ended: None,
            steps: draft
                .plan
                .saga()
                .steps()
                .iter()
                .map(|name| pending(name))
                .collect(),
            problem: None,
            report: None,
            swap: draft.swap,
            traffic: draft.traffic,
            notices: draft.notices,
        };
        let json = serde_json::to_value(&draft.plan)
            .map_err(|e| Problem::internal(format!("a plan has no JSON: {e}")))?;
        let event = match &draft.reserve {
            Some((environment, ports)) => self.store.reserve(environment, ports, &operation, &json),
            None => self.store.record_operation(&operation, &json),
        }
        .map_err(store_problem)?;
        let _ = self.news.send(event.seq);
        let _ = offshoot_engine::failpoint::reach("submit.recorded");
        self.launch(operation.clone(), draft.plan, Way::Forward);
        Ok(operation)
    }

    /// Decides a create without recording it.
    pub(crate) async fn decide_create(
        &self,
        name: &str,
        manifest: Manifest,
        now: Timestamp,
    ) -> Result<CreatePlan, Problem> {
        let name = parse_name(name)?;
        self.must_be_free(&name)?;
        let taken = self.taken().await?;
        let mut plan = plan_create(
            EnvId::random(),
            name,
            now,
            manifest,
            &self.settings.host,
            &taken,
        )
        .map_err(|e| e.problem())?;
        plan.ports = self.engine.choose_ports(plan.ports).await?;
        Ok(plan)
    }

    async fn draft_create(&self, request: CreateRequest, now: Timestamp) -> Result<Draft, Problem> {
        let CreatePlan { environment, ports } = self
            .decide_create(&request.name, request.manifest, now)
            .await?;
        let plan = Plan::Create(create::Create {
            environment: environment.id.clone(),
        });
        Ok(Draft {
            reserve: Some((environment.clone(), ports)),
            ..Draft::on(&environment, plan)
        })
    }

    /// Decides a clone without recording it.
    pub(crate) async fn decide_clone(
        &self,
        parent: &Environment,
        request: &CloneRequest,
        id: OperationId,
        now: Timestamp,
    ) -> Result<ClonePlan, Problem> {
        if !request.start && request.rung == RungChoice::Live {
            return Err(Problem::new(
                Code::BadRequest,
                Fault::Request,
                "a clone that is not started has no memory",
                "leave out `--rung live`, or have it started",
            ));
        }
        let taken = self.taken().await?;
        let name = match &request.name {
            Some(name) => parse_name(name)?,
            None => clone_name(&parent.name, &taken),
        };
        self.must_be_free(&name)?;
        let ports = self.store.ports(&parent.id).map_err(store_problem)?;
        let mut plan = plan_clone(
            parent,
            &ports,
            EnvId::random(),
            name,
            now,
            id,
            &self.settings.host,
            &taken,
            request.hold,
        )
        .map_err(|e| e.problem())?;
        plan.ports = self.engine.choose_ports(plan.ports).await?;
        for (before, after) in ports.iter().zip(&plan.ports) {
            if before.port.host_port != after.port.host_port {
                plan.notices.push(format!(
                    "port {} of the parent is port {} of the clone",
                    before.port.host_port.unwrap_or_default(),
                    after.port.host_port.unwrap_or_default()
                ));
            }
        }
        for layer in clone::stateless_layers(parent) {
            plan.notices.push(format!(
                "layer {layer} is stateless: its nodes start from their image"
            ));
        }
        Ok(plan)
    }

    async fn draft_clone(
        &self,
        parent: &str,
        request: &CloneRequest,
        id: OperationId,
        now: Timestamp,
    ) -> Result<Draft, Problem> {
        let max_freeze_ms = request.max_freeze_ms.unwrap_or(self.settings.max_freeze_ms);
        if !FREEZE_BOUNDS.contains(&max_freeze_ms) {
            return Err(Problem::new(
                Code::BadRequest,
                Fault::Request,
                format!("a freeze of at most {max_freeze_ms} ms cannot be asked for"),
                "give a bound from 10ms to 60s",
            ));
        }
        let parent = self.settled(parent, "cloned")?;
        let decided = self.decide_clone(&parent, request, id, now).await?;
        let plan = Plan::Clone(Box::new(clone::Clone {
            parent: parent.id.clone(),
            environment: decided.environment.id.clone(),
            choice: request.rung,
            begins: clone::begins(request),
            max_freeze_ms,
            nodes: Vec::new(),
            runs: false,
            paused: clone::Pause::default(),
        }));
        Ok(Draft {
            parent: Some(parent.name.to_string()),
            notices: decided.notices,
            reserve: Some((decided.environment.clone(), decided.ports)),
            ..Draft::on(&decided.environment, plan)
        })
    }

    fn draft_rename(&self, environment: &str, request: &RenameRequest) -> Result<Draft, Problem> {
        let to = parse_name(&request.name)?;
        let found = self.settled(environment, "renamed")?;
        if found.name != to {
            self.must_be_free(&to)?;
        }
        let plan = Plan::Rename(rename::Rename {
            environment: found.id.clone(),
            from: found.name.clone(),
            to: to.clone(),
            redirect: request.redirect && found.name != to,
        });
        Ok(Draft {
            subject: to.to_string(),
            ..Draft::on(&found, plan)
        })
    }

    /// Removal is possible in every state. It ends what is being made.
    fn draft_remove(&self, environment: &str) -> Result<Draft, Problem> {
        let found = self.find(environment)?;
        for child in self.store.environments().map_err(store_problem)? {
            if child.id != found.id
                && let Some(volume) = child.volumes.iter().find(|volume| volume.owner == found.id)
            {
                return Err(Problem::new(
                    Code::WrongState,
                    Fault::Request,
                    format!(
                        "environment {} shares volume {} of {}",
                        child.name, volume.name, found.name
                    ),
                    format!("remove {} first", child.name),
                ));
            }
        }
        self.must_not_be_named(&found)?;
        if found.state == EnvironmentState::Creating
            && let Some(live) = self.holder(&found.id).and_then(|id| self.live_of(id))
            && matches!(
                live.snapshot().kind,
                OperationKind::Create | OperationKind::Clone
            )
        {
            live.cancel();
        }
        Ok(Draft::on(
            &found,
            Plan::Remove(remove::Remove {
                environment: found.id.clone(),
            }),
        ))
    }

    /// Refuses what would wait in too long a queue.
    fn must_have_room(&self, environments: &[EnvId]) -> Result<(), Problem> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let on_one = environments
            .iter()
            .map(|id| live.values().filter(|live| live.touches(id)).count())
            .max()
            .unwrap_or(0);
        let what = if live.len() >= MOST_UNDER_WAY {
            format!("{} operations are under way", live.len())
        } else if on_one >= MOST_ON_ONE {
            format!("{on_one} operations on the environment are under way")
        } else {
            return Ok(());
        };
        Err(Problem::new(
            Code::Busy,
            Fault::Request,
            what,
            "wait for some to end, or cancel them; `offshoot op ls` shows them",
        ))
    }

    fn must_be_free(&self, name: &EnvName) -> Result<(), Problem> {
        match self
            .store
            .environment_by_name(name.as_str())
            .map_err(store_problem)?
        {
            Some(_) => Err(StoreError::NameTaken { name: name.clone() }.problem()),
            None => Ok(()),
        }
    }

    /// An environment that is made and not being removed.
    pub(crate) fn settled(&self, environment: &str, done: &str) -> Result<Environment, Problem> {
        let found = self.find(environment)?;
        let why = match found.state {
            EnvironmentState::Running | EnvironmentState::Stopped => return Ok(found),
            EnvironmentState::Creating => "is still being created",
            EnvironmentState::Removing => "is being removed",
            EnvironmentState::Broken => "is broken",
        };
        let next = match found.state {
            EnvironmentState::Creating => {
                "wait for its operation to end: `offshoot op ls`".to_owned()
            }
            _ => format!("remove it: `offshoot rm {}`", found.name),
        };
        let what = format!("environment {} {why} and cannot be {done}", found.name);
        Err(Problem::new(Code::WrongState, Fault::Request, what, next))
    }
}

/// Whether an operation changes where domains lead, or removes where they do.
fn changes_the_way(kind: OperationKind) -> bool {
    matches!(
        kind,
        OperationKind::Remove
            | OperationKind::DomainAdd
            | OperationKind::DomainRemove
            | OperationKind::Swap
            | OperationKind::TrafficSet
            | OperationKind::TrafficRamp
            | OperationKind::Promote
    )
}

/// A step that has not begun.
pub(crate) fn pending(name: &str) -> StepRecord {
    StepRecord {
        name: name.to_owned(),
        state: StepState::Pending,
        us: None,
        progress: None,
    }
}

fn parse_name(text: &str) -> Result<EnvName, Problem> {
    text.parse()
        .map_err(|error: offshoot_model::name::NameError| {
            Problem::new(
                Code::NameInvalid,
                Fault::Request,
                error.to_string(),
                "choose another name",
            )
        })
}
