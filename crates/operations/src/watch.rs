//! Watching a new side beside an old one: by what the edge counts, and by whether its entry nodes run.

use std::time::Duration;

use offshoot_model::environment::Health;
use offshoot_model::traffic::compare::{Figures, Guard, Mark, Tally, Verdict};
use offshoot_model::traffic::view::TrafficReport;
use offshoot_model::{Code, EnvId, Fault, NodeState, Problem, ProgressSink};
use tokio::time::{Instant, sleep_until};

use crate::runner::cancelled;
use crate::saga::Cx;
use crate::swap::entry_nodes;

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Looks in a row at which no entry node is well until a side is given up.
const DEAD_AFTER: u32 = 3;
/// How long nodes may take after the daemon, and perhaps the host, was started again.
const AFTER_RESTART: Duration = Duration::from_secs(60);

/// What the old side is measured by.
pub(crate) enum Old<'a> {
    /// What it answered before.
    Before(&'a Tally),
    /// What it answers in the same time at the same domains.
    Beside(&'a EnvId),
}

/// Who is watched.
pub(crate) struct Watch<'a> {
    /// Whose domains.
    pub(crate) owner: &'a EnvId,
    pub(crate) new: &'a EnvId,
    pub(crate) old: Old<'a>,
    /// Counts when the new side got what it has.
    pub(crate) mark: &'a Mark,
    pub(crate) guard: Guard,
    pub(crate) time: Duration,
    /// Whether the daemon ended while it watched, and took it up again.
    pub(crate) taken_up: bool,
    /// Code of the problem when the new side is worse.
    pub(crate) code: Code,
}

/// The counts at an environment's domains.
pub(crate) async fn mark(cx: &Cx, owner: &EnvId) -> Result<Mark, Problem> {
    let stats = cx.engine().traffic_stats(vec![owner.clone()]).await?;
    let of_owner = stats.owners.iter().find(|all| all.environment == *owner);
    Ok(Mark::of(of_owner))
}

/// Changes what an operation tells of both sides.
pub(crate) fn report(cx: &Cx, change: impl FnOnce(&mut TrafficReport)) {
    cx.live.change(|operation| {
        if let Some(report) = &mut operation.traffic {
            change(report);
        }
    });
}

/// Waits, unless the operation is cancelled.
pub(crate) async fn wait_until(cx: &Cx, at: Instant) -> Result<(), Problem> {
    tokio::select! {
        biased;
        () = cx.live.until_cancelled() => Err(cancelled()),
        () = sleep_until(at) => Ok(()),
    }
}

impl Watch<'_> {
    /// Looks every second until the time is up.
    ///
    /// # Errors
    /// When the new side is worse or does not run; when the operation is cancelled.
    pub(crate) async fn run(&self, cx: &Cx) -> Result<(), Problem> {
        let begun = Instant::now();
        let end = begun + self.time;
        let mut dead = 0;
        loop {
            let now = Instant::now();
            let passed = now.duration_since(begun);
            let looked = self.look(cx, passed).await?;
            dead = if self.well(cx).await { 0 } else { dead + 1 };
            let patient = self.taken_up && passed < AFTER_RESTART;
            if dead >= DEAD_AFTER && !patient {
                let why = "none of its entry nodes runs and is healthy";
                return Err(self.worse(cx, why));
            }
            if now >= end {
                if let Some(notice) = looked {
                    cx.notice(notice);
                }
                return Ok(());
            }
            wait_until(cx, (now + EVERY).min(end)).await?;
        }
    }

    /// Compares what both answered so far; says why that cannot be done.
    async fn look(&self, cx: &Cx, passed: Duration) -> Result<Option<String>, Problem> {
        let counts = match mark(cx, self.owner).await {
            Ok(counts) => counts,
            Err(problem) => {
                return Ok(Some(format!(
                    "the edge's counts were not to be had: {problem}"
                )));
            }
        };
        let new = counts.since(self.mark, self.new);
        let old = match &self.old {
            Old::Before(tally) => (*tally).clone(),
            Old::Beside(id) => counts.since(self.mark, id),
        };
        report(cx, |report| {
            report.old_figures = Some(old.figures());
            report.new_figures = Some(new.figures());
        });
        let total = self.time.as_secs();
        let note = format!("{} requests, {} errors", new.requests, new.errors);
        let passed = passed.as_secs().min(total);
        cx.progress().report(passed, total, "seconds", &note);
        match self.guard.judge(&old, &new) {
            Verdict::Worse(why) => Err(self
                .worse(cx, &why)
                .detail(told("new side", &new))
                .detail(told("old side", &old))),
            Verdict::TooFew => Ok(Some(format!(
                "too few requests to judge by: there were {}, {} are needed",
                new.requests, self.guard.min_requests
            ))),
            Verdict::Fine => Ok(None),
        }
    }

    /// Whether an entry node of the new side runs and is not unhealthy. A node that cannot be looked at is not judged.
    async fn well(&self, cx: &Cx) -> bool {
        let Ok(environment) = cx.shared.by_id(self.new) else {
            return false;
        };
        let Ok(status) = cx.engine().status(&environment).await else {
            return true;
        };
        let check = environment
            .manifest
            .entry()
            .and_then(|(layer, _)| layer.healthcheck.as_ref());
        entry_nodes(&environment).any(|node| {
            let seen = status.iter().find(|seen| seen.node == node.name());
            let runs = matches!(
                seen.map(|seen| &seen.state),
                Some(NodeState::Running { .. } | NodeState::Frozen { .. } | NodeState::Starting)
            );
            runs && cx.shared.health.verdict(&node.id, check) != Health::Unhealthy
        })
    }

    fn worse(&self, cx: &Cx, why: &str) -> Problem {
        let name = cx
            .shared
            .by_id(self.new)
            .map_or_else(|_| self.new.to_string(), |env| env.name.to_string());
        Problem::new(
            self.code,
            Fault::Environment,
            format!("{name} was worse, and everything is as it was before: {why}"),
            format!("look at `offshoot logs {name}`, then try again"),
        )
    }
}

/// What a side answered, in a line.
fn told(who: &str, tally: &Tally) -> String {
    let Figures {
        requests,
        errors,
        p95_ms,
    } = tally.figures();
    let p95 = p95_ms.map_or_else(String::new, |ms| format!(", p95 {ms} ms"));
    format!("{who}: {requests} requests, {errors} errors{p95}")
}
