//! Which node a request is sent to, and where it goes when that one does not answer.

use std::sync::Arc;

use pingora_core::{Error, ErrorSource, ErrorType};

use super::short::Asked;
use super::{Context, connection};
use crate::checks::Health;
use crate::table::Upstream;

impl Context {
    /// The next node of its side: one that is up and was not tried.
    pub(super) fn next_upstream(&self) -> Option<Upstream> {
        let health = self.health();
        self.target.as_ref()?.first_upstream(self.turn, |node| {
            !self.tried.contains(&node.key) && health.is_none_or(|health| health.is_up(node))
        })
    }

    /// Turns to another side, once, and only where sides are checked; returns a node of it.
    pub(super) fn on_other_side(&mut self) -> Option<Upstream> {
        if self.other_side {
            return None;
        }
        let choice = self.owner.as_ref()?.other_than(self.side)?;
        connection::routed(&choice.target.environment);
        self.other_side = true;
        self.side = choice.side;
        self.turn = choice.target.turn();
        self.target = Some(choice.target);
        self.next_upstream()
    }

    /// A node has the request already, whatever the routes say by now.
    pub(super) fn answered_by(&mut self, asked: &Asked) {
        connection::routed(&asked.target.environment);
        self.started = asked.started;
        self.owner = Some(Arc::clone(&asked.owner));
        self.side = 0;
        self.target = Some(Arc::clone(&asked.target));
    }

    /// Its node answered.
    pub(super) fn answered(&self, status: u16) {
        if let (Some(health), Some(node)) = (self.health(), &self.upstream) {
            match status {
                502..=504 => health.failed(node, &status.to_string()),
                _ => health.answered(node),
            }
        }
    }

    /// Its node could not be asked.
    pub(super) fn failed(&mut self, why: &str) {
        if let Some(node) = self.upstream {
            self.tried.push(node.key);
            if let Some(health) = self.health() {
                health.failed(&node, why);
            }
        }
    }

    /// Something failed after the connection. Returns whether the request is sent again, elsewhere: at most once, if
    /// it may be sent `again` at all, and not when it was only slow.
    pub(super) fn broke(&mut self, error: &Error, again: bool) -> bool {
        if self.own || self.health().is_none() || *error.esource() != ErrorSource::Upstream {
            return false;
        }
        let late = matches!(
            error.etype(),
            ErrorType::ReadTimedout | ErrorType::WriteTimedout
        );
        self.failed(if late {
            "no answer in time"
        } else {
            "no answer"
        });
        if !again || late || self.resent {
            return false;
        }
        self.resent = true;
        self.next_upstream()
            .or_else(|| self.on_other_side())
            .is_some()
    }

    fn health(&self) -> Option<&Arc<Health>> {
        self.owner.as_ref()?.health.as_ref()
    }
}
