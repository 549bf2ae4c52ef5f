//! An owner whose sides are checked, and whose requests are copied.

use std::sync::Arc;

use offshoot_model::id::EnvId;
use offshoot_model::traffic::stats::OwnerStats;

use super::saved::Saved;
use super::{Choice, Owner};
use crate::checks::Health;
use crate::mirror::Mirror;
use crate::table::Target;

impl Owner {
    /// The same with what its policy says of checks and copies, which go to `mirror`. What `former` knows of its sides'
    /// health goes on, and so does what it or `saved` counted of copies.
    pub(crate) fn with_care(
        mut self,
        mirror: Option<Arc<Target>>,
        former: Option<&Self>,
        saved: Option<&Saved>,
    ) -> Self {
        let Some(policy) = &self.policy else {
            return self;
        };
        self.health = policy.failover.as_ref().map(|_| {
            let former = former.and_then(|former| former.health.clone());
            former.unwrap_or_else(Health::new)
        });
        let saved = saved.filter(|saved| saved.mirror.as_ref() == self.mirrored());
        let saved = saved.and_then(|saved| saved.stats.mirror.clone());
        let former = former.and_then(|former| former.mirror.as_ref());
        self.mirror = mirror.and_then(|target| Mirror::of(policy, target, former, saved));
        self
    }

    /// The environment that copies go to.
    pub(super) fn mirrored(&self) -> Option<&EnvId> {
        Some(&self.policy.as_ref()?.mirror.as_ref()?.environment)
    }

    /// Whether nothing is said against an environment.
    pub(super) fn is_well(&self, side: &EnvId) -> bool {
        self.health.as_ref().is_none_or(|health| health.takes(side))
    }

    /// Who answers a request that one side could not be asked: the first other side that takes requests, one with a
    /// weight before those without. Only where sides are checked.
    pub(crate) fn other_than(&self, side: usize) -> Option<Choice> {
        self.health.as_ref()?;
        let others = || {
            let sides = self.sides.iter().enumerate();
            sides.filter(|(number, _)| *number != side && self.takes(*number))
        };
        let weighty = others().find(|(_, side)| side.weight > 0);
        let (number, side) = weighty.or_else(|| others().next())?;
        Some(Choice {
            side: number,
            target: Arc::clone(&side.target),
        })
    }

    /// Adds to what was counted what checks and copies brought.
    pub(super) fn add_care(&self, stats: &mut OwnerStats) {
        if let Some(health) = &self.health {
            for side in &mut stats.sides {
                side.health = health.side(&side.environment);
            }
            stats.changes = health.changes();
        }
        stats.mirror = self.mirror.as_ref().map(|mirror| mirror.stats());
    }
}
