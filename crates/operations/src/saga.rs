//! An operation as a list of steps with one way back.
//!
//! steno's semantics in small: each step may run twice, the way back may run twice, both only call `ensure_*`.
//! Unlike steno the journal shares its transactions with our own rows, so a crash never leaves a finished
//! operation beside an unfinished environment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use offshoot_engine::{Engine, Exposed};
use offshoot_model::{EnvId, EnvironmentState, OperationKind, Problem};
use offshoot_store::LastSwap;
use serde::{Deserialize, Serialize};

use crate::live::{Live, StepProgress};
use crate::locks::Held;
use crate::shared::{Change, Shared};
use crate::{
    clone, create, domains, hold, https, image, pool, power, promote, ramp, remove, rename, swap,
    traffic,
};

/// What the final record changes beside the operation itself, in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settle {
    /// Nothing.
    Nothing,
    /// The environment has this state from now on.
    State(EnvId, EnvironmentState),
    /// The environment's rows go.
    Gone(EnvId),
    /// The domains that the operation marked go.
    DomainsGone,
    /// Two environments have these domains after a swap.
    Swapped(LastSwap),
}

/// One kind of operation.
#[async_trait]
pub(crate) trait Saga: Send + Sync {
    /// Names of its steps in order; part of the API and of failpoints.
    fn steps(&self) -> &'static [&'static str];

    /// After a crash the operation goes forward when this many steps were done, else back.
    fn forward_from(&self) -> usize {
        0
    }

    /// Environments to hold while it runs.
    fn environments(&self) -> Vec<EnvId> {
        Vec::new()
    }

    /// Does a step.
    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem>;

    /// Takes back whatever its steps did, however far they came. Nothing, where half of it is no worse than none.
    async fn undo(&mut self, _cx: &Cx) -> Result<(), Problem> {
        Ok(())
    }

    /// What the final record changes when every step is done.
    fn on_success(&self) -> Settle {
        Settle::Nothing
    }

    /// What it changes when it was taken back.
    fn on_undone(&self) -> Settle {
        Settle::Nothing
    }

    /// What it changes when it ended before its first step: only what was reserved for it goes.
    fn on_unbegun(&self) -> Settle {
        match self.on_undone() {
            Settle::Gone(id) => Settle::Gone(id),
            Settle::State(..) | Settle::Nothing | Settle::DomainsGone | Settle::Swapped(_) => {
                Settle::Nothing
            }
        }
    }

    /// What it changes when it could not be taken back.
    fn on_stuck(&self) -> Settle {
        Settle::Nothing
    }
}

/// A saga as the journal keeps it.
#[expect(clippy::large_enum_variant, reason = "one for each running operation")]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "saga", rename_all = "kebab-case")]
pub(crate) enum Plan {
    Create(create::Create),
    Clone(Box<clone::Clone>),
    Rename(rename::Rename),
    Start(power::Start),
    Stop(power::Stop),
    Remove(remove::Remove),
    ImagePull(image::Pull),
    PoolGrow(pool::Grow),
    DomainAdd(domains::Add),
    DomainRemove(domains::Remove),
    Swap(swap::Swap),
    DomainHttps(https::SetHttps),
    CertificateAdd(https::Install),
    CertificateRemove(https::Forget),
    TrafficSet(traffic::Set),
    TrafficRamp(ramp::Ramp),
    Promote(Box<promote::Promote>),
    Hold(hold::SetHeld),
}

impl Plan {
    pub(crate) fn saga(&mut self) -> &mut dyn Saga {
        match self {
            Self::Create(saga) => saga,
            Self::Clone(saga) => saga.as_mut(),
            Self::Rename(saga) => saga,
            Self::Start(saga) => saga,
            Self::Stop(saga) => saga,
            Self::Remove(saga) => saga,
            Self::ImagePull(saga) => saga,
            Self::PoolGrow(saga) => saga,
            Self::DomainAdd(saga) => saga,
            Self::DomainRemove(saga) => saga,
            Self::Swap(saga) => saga,
            Self::DomainHttps(saga) => saga,
            Self::CertificateAdd(saga) => saga,
            Self::CertificateRemove(saga) => saga,
            Self::TrafficSet(saga) => saga,
            Self::TrafficRamp(saga) => saga,
            Self::Promote(saga) => saga.as_mut(),
            Self::Hold(saga) => saga,
        }
    }

    pub(crate) fn kind(&self) -> OperationKind {
        match self {
            Self::Create(_) => OperationKind::Create,
            Self::Clone(_) => OperationKind::Clone,
            Self::Rename(_) => OperationKind::Rename,
            Self::Start(_) => OperationKind::Start,
            Self::Stop(_) => OperationKind::Stop,
            Self::Remove(_) => OperationKind::Remove,
            Self::ImagePull(_) => OperationKind::ImagePull,
            Self::PoolGrow(_) => OperationKind::PoolGrow,
            Self::DomainAdd(_) => OperationKind::DomainAdd,
            Self::DomainRemove(_) => OperationKind::DomainRemove,
            Self::Swap(_) => OperationKind::Swap,
            Self::DomainHttps(_) => OperationKind::DomainHttps,
            Self::CertificateAdd(saga) if saga.is_renewal() => OperationKind::CertificateRenew,
            Self::CertificateAdd(_) => OperationKind::CertificateAdd,
            Self::CertificateRemove(_) => OperationKind::CertificateRemove,
            Self::TrafficSet(_) => OperationKind::TrafficSet,
            Self::TrafficRamp(_) => OperationKind::TrafficRamp,
            Self::Promote(_) => OperationKind::Promote,
            Self::Hold(_) => OperationKind::Hold,
        }
    }
}

/// What a step works with.
pub(crate) struct Cx {
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: Arc<Live>,
    held: Mutex<HashMap<EnvId, Held>>,
}

impl Cx {
    pub(crate) fn new(shared: Arc<Shared>, live: Arc<Live>) -> Self {
        Self {
            shared,
            live,
            held: Mutex::default(),
        }
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        self.shared.engine.as_ref()
    }

    pub(crate) fn progress(&self) -> StepProgress {
        StepProgress {
            shared: Arc::clone(&self.shared),
            live: Arc::clone(&self.live),
        }
    }

    /// Adds a sentence to the operation's notices.
    pub(crate) fn notice(&self, text: String) {
        self.live.change(|operation| {
            if !operation.notices.contains(&text) {
                operation.notices.push(text);
            }
        });
    }

    /// Tells the edge what there is, with `change`; it holds until the operation has ended.
    pub(crate) async fn expose(&self, change: Change<'_>) -> Result<(), Problem> {
        let exposed = self
            .shared
            .expose_after(Some(self.live.id()), change, || Ok(()))
            .await?;
        self.note_refused(&exposed);
        Ok(())
    }

    /// Says which published ports are not open; those of the operation's own environment fail it before.
    pub(crate) fn note_refused(&self, exposed: &Exposed) {
        for port in &exposed.refused {
            self.notice(format!("a published port is not open: {}", port.what));
        }
    }

    /// Keeps the environments that the operation changes until it ends.
    pub(crate) fn keep(&self, held: HashMap<EnvId, Held>) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(held);
    }

    /// Lets an environment go before the operation ends.
    pub(crate) fn release(&self, id: &EnvId) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}
