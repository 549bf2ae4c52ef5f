//! Which node a request is sent to, and where it goes when that one does not answer.

use std::sync::Arc;

use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;

use super::short::Asked;
use super::{Context, connection};
use crate::checks::Health;
use crate::table::{Target, Upstream};
use crate::traffic::{End, Ended};

impl Context {
    /// The next node of its side: one that is up and was not tried.
    pub(super) fn next_upstream(&self) -> Option<Upstream> {
        self.next_of(self.target.as_ref()?, self.turn)
    }

    fn next_of(&self, target: &Target, turn: usize) -> Option<Upstream> {
        let health = self.health();
        target.first_upstream(turn, |node| {
            !self.tried.contains(&node.key) && health.is_none_or(|health| health.is_up(node))
        })
    }

    /// Turns to another side, once, and only where sides are checked; returns a node of it.
    pub(super) fn on_other_side(&mut self) -> Option<Upstream> {
        if self.other_side {
            return None;
        }
        let choice = self.owner.as_ref()?.other_than(self.side)?;
        let turn = choice.target.turn();
        let node = self.next_of(&choice.target, turn)?;
        connection::routed(&choice.target.environment);
        self.other_side = true;
        self.side = choice.side;
        self.turn = turn;
        self.target = Some(choice.target);
        Some(node)
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

    /// Looks at the status of an answer that nobody has seen yet. 502, 503 and 504 say that what is behind the node does not
    /// answer (Envoy's `gateway-error`), which its side has in common: the request is sent to another side instead, if there is one and it may be
    /// sent again. Once, and the side that failed is charged with it.
    ///
    /// # Errors
    /// One that makes the library ask again.
    pub(super) fn gives_way(&mut self, session: &Session, status: u16) -> Result<()> {
        let again = matches!(status, 502..=504)
            && !self.call
            && !self.resent
            && may_be_sent_again(session)
            && session.response_written().is_none();
        let (left, asked) = (self.side, self.upstream);
        if !again || self.on_other_side().is_none() {
            return Ok(());
        }
        self.resent = true;
        if let (Some(health), Some(node)) = (self.health(), asked) {
            health.failed(&node, &status.to_string());
        }
        if let Some(owner) = &self.owner {
            let ended = Ended {
                status: Some(status),
                own: true,
                end: End::Failed,
                stream: false,
                took: self.started.elapsed(),
            };
            owner.ended(left, &ended);
        }
        let mut error = Error::explain(ErrorType::HTTPStatus(status), "its node's own answer");
        error.set_retry(true);
        Err(error.into_up())
    }

    fn health(&self) -> Option<&Arc<Health>> {
        self.owner.as_ref()?.health.as_ref()
    }
}

/// Whether a request may be carried out twice (RFC 9110, 9.2.2), and all that was read of its body is kept for that.
pub(super) fn may_be_sent_again(session: &Session) -> bool {
    session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated()
}
