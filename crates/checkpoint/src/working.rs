//! One node on its way through a cut.

use std::time::{Duration, Instant};

use offshoot_model::clone::Rung;

use crate::cut::{CutNode, CutNodeReport, Lease};
use crate::dump::{Dump, Finished};
use crate::error::{CriuError, CutError, chain};
use crate::forecast::Work;
use crate::images;
use crate::memory::{Plant, Taken};
use crate::swrk::Until;

pub(crate) struct Working {
    pub(crate) node: CutNode,
    pub(crate) dump: Option<Dump>,
    pub(crate) done: Option<Finished>,
    pub(crate) taken: Taken,
    pub(crate) why: Option<CriuError>,
    pub(crate) lease: Option<Box<dyn Lease>>,
    pub(crate) told: Option<Instant>,
    pub(crate) frozen: Option<Instant>,
    pub(crate) began: Option<Instant>,
    pub(crate) thawed: Option<Instant>,
    pub(crate) dump_time: Duration,
}

impl Working {
    pub(crate) fn new(node: CutNode) -> Self {
        Self {
            node,
            dump: None,
            done: None,
            taken: Taken::default(),
            why: None,
            lease: None,
            told: None,
            frozen: None,
            began: None,
            thawed: None,
            dump_time: Duration::ZERO,
        }
    }

    /// Gives up this node's memory; what CRIU holds of it is let go.
    pub(crate) fn give_up(&mut self, why: CriuError) {
        tracing::info!(
            node = self.node.node,
            why = why.chain(),
            "its memory cannot be taken"
        );
        if let Some(dump) = self.dump.as_mut() {
            dump.abort();
        }
        self.why.get_or_insert(why);
    }

    /// Whether its memory is still to be taken.
    pub(crate) fn is_live(&self) -> bool {
        self.dump.is_some() && self.why.is_none()
    }

    /// Whether CRIU gave a name to a file of the node: it is there for the time of the dump.
    pub(crate) fn has_named_files(&self) -> bool {
        self.is_live() && images::has_named_files(&self.node.images)
    }

    /// Does `work` where its memory is still to be taken; if that fails, it is not taken.
    fn with_dump(&mut self, work: impl FnOnce(&mut Dump, &CutNode) -> Result<(), CriuError>) {
        if self.is_live()
            && let Some(dump) = self.dump.as_mut()
            && let Err(why) = work(dump, &self.node)
        {
            self.give_up(why);
        }
    }

    pub(crate) fn tell(&mut self) {
        self.with_dump(|dump, node| dump.tell(&node.container));
    }

    pub(crate) fn copy_ahead(&mut self, plant: &dyn Plant, until: Until<'_>) {
        self.with_dump(|dump, node| dump.copy_ahead(node, plant, until));
    }

    pub(crate) fn ready(&mut self, plant: &dyn Plant, until: Until<'_>) {
        self.with_dump(|dump, node| dump.ready(node, plant, until));
    }

    /// Has CRIU begin with it.
    pub(crate) fn begin(&mut self) {
        self.began = Some(Instant::now());
        self.with_dump(|dump, _| dump.begin());
    }

    /// Has CRIU let go of its processes, which its freezer keeps. Does nothing the second time.
    pub(crate) fn let_go(&mut self, until: Until<'_>) {
        self.with_dump(|dump, _| dump.let_go(until));
    }

    /// Whether it still stands: by CRIU, or by its freezer where CRIU has let go.
    pub(crate) fn is_held(&self) -> bool {
        self.dump.as_ref().is_some_and(|dump| !dump.is_through()) || self.node.container.is_held()
    }

    /// What taking its memory takes; `None` when it is not taken.
    pub(crate) fn forecast(&self) -> Option<Work> {
        let dump = self.dump.as_ref().filter(|_| self.why.is_none())?;
        Some(dump.forecast(&self.node.container))
    }

    /// Lets the node go on, and then CRIU's keeper. Does nothing the second time.
    pub(crate) fn thaw(&mut self) -> Result<(), CutError> {
        if let Some(dump) = self.dump.as_mut() {
            dump.abort();
        }
        let result = match self.lease.take().map(Lease::end) {
            None | Some(Ok(())) => Ok(()),
            // CRIU writes the cgroup back to what it found, after the lease may have run out: so look.
            Some(Err(source)) => match self.node.container.thaw() {
                Ok(()) => {
                    tracing::warn!(
                        node = self.node.node,
                        error = chain(&*source),
                        "thawed without its freezer"
                    );
                    Ok(())
                }
                Err(_) => Err(CutError::Thaw {
                    node: self.node.node.clone(),
                    source,
                }),
            },
        };
        if self.frozen.is_some() {
            self.thawed.get_or_insert_with(Instant::now);
        }
        result
    }

    pub(crate) fn report(&self) -> CutNodeReport {
        let live = self.node.rung == Rung::Live && self.why.is_none();
        CutNodeReport {
            node: self.node.node.clone(),
            rung: match self.node.rung {
                Rung::Live if !live => Rung::Disk,
                rung => rung,
            },
            why: self.why.as_ref().map(CriuError::chain),
            freeze: self
                .told
                .zip(self.thawed)
                .map_or(Duration::ZERO, |(from, to)| {
                    to.saturating_duration_since(from)
                }),
            memory: None,
            paused: Duration::ZERO,
            dump: self.dump_time,
            stages: Vec::new(),
            memory_bytes: 0,
            frozen_bytes: 0,
            processes: 0,
        }
    }
}
