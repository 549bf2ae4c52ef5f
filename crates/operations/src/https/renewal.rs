//! Certificates are renewed before they expire, one after the other. The old one is shown until the new one is.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use offshoot_certificates::Checked;
use offshoot_model::certificate::Certificate;
use offshoot_model::{OperationKind, Problem};

use crate::platform::Request;
use crate::shared::{Change, Shared, store_problem};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(60);
/// First and longest wait after a renewal that failed; it doubles from one to the next.
const BACKOFF_HOURS: (i64, i64) = (1, 24);

/// When a certificate is to be renewed: a third of its life before its end, and a little earlier by chance, so that those
/// that came together do not go together.
pub(super) fn due(checked: &Checked) -> Timestamp {
    let third = checked.not_after.duration_since(checked.not_before) / 3;
    checked.not_after - third - by_chance(third / 10)
}

/// Writes down why a renewal failed, and when the next is due.
pub(super) fn note_failure(shared: &Shared, id: &str, problem: Problem) -> Result<(), Problem> {
    let all = shared.store.certificates().map_err(store_problem)?;
    let Some(mut found) = all.into_iter().find(|one| one.id == id) else {
        return Ok(());
    };
    found.failures = found.failures.saturating_add(1);
    let wait = wait_after(found.failures);
    found.renew_at = Some(Timestamp::now() + wait + by_chance(wait / 10));
    found.problem = Some(problem);
    shared
        .store
        .update_certificate(&found)
        .map_err(store_problem)
}

/// How long to wait after so many failures in a row.
fn wait_after(failures: u32) -> SignedDuration {
    let doubled = BACKOFF_HOURS.0 << failures.saturating_sub(1).min(8);
    SignedDuration::from_hours(doubled.min(BACKOFF_HOURS.1))
}

/// Anything from nothing to `most`.
fn by_chance(most: SignedDuration) -> SignedDuration {
    let seconds = most.as_secs().max(1).unsigned_abs();
    let chance = RandomState::new().build_hasher().finish() % seconds;
    SignedDuration::from_secs(i64::try_from(chance).unwrap_or(0))
}

/// Renews what is due until the task is aborted.
pub(crate) async fn renew(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(problem) = shared.renew_due(Timestamp::now()).await {
            tracing::warn!(%problem, details = ?problem.details, "certificates could not be looked at");
        }
    }
}

impl Shared {
    /// Renews what is due at `now`, and returns when that has ended.
    pub(crate) async fn renew_due(self: &Arc<Self>, now: Timestamp) -> Result<(), Problem> {
        let all = self.store.certificates().map_err(store_problem)?;
        let is_due = |one: &&Certificate| one.renew_at.is_some_and(|at| at <= now);
        let (automatic, others): (Vec<_>, Vec<_>) =
            all.iter().filter(is_due).partition(|one| one.automatic);
        if !automatic.is_empty() && self.settings.https.served {
            self.expose(None, Change::None).await?;
        }
        for one in others {
            let Some(name) = one.names.first() else {
                continue;
            };
            if self.is_renewed(one) {
                continue;
            }
            match self.submit(Request::CertificateRenew(name.clone())).await {
                Ok(operation) => self.until_ended(operation.id).await,
                // no operation tells of it, so the certificate does
                Err(problem) => note_failure(self, &one.id, problem)?,
            }
        }
        Ok(())
    }

    /// Whether an operation renews it just now.
    fn is_renewed(&self, certificate: &Certificate) -> bool {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let subject = super::subject(&certificate.names);
        live.values().map(|live| live.snapshot()).any(|operation| {
            operation.kind == OperationKind::CertificateRenew && operation.subject == subject
        })
    }

    async fn until_ended(&self, id: offshoot_model::OperationId) {
        loop {
            let ended = self.ended.notified();
            if self.live_of(id).is_none() {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_its_life_before_its_end() {
        let checked = Checked {
            names: Vec::new(),
            issuer: String::new(),
            not_before: "2026-01-01T00:00:00Z".parse().unwrap(),
            not_after: "2026-04-01T00:00:00Z".parse().unwrap(),
        };
        for _ in 0..100 {
            let days = checked.not_after.duration_since(due(&checked)).as_secs() / 86_400;
            assert!((30..=33).contains(&days), "{days}");
        }
    }

    #[test]
    fn failures_wait_longer_and_longer() {
        let hours: Vec<i64> = [1, 2, 3, 5, 6, 1_000]
            .into_iter()
            .map(|failures| wait_after(failures).as_hours())
            .collect();
        assert_eq!(hours, [1, 2, 4, 16, 24, 24]);
    }
}
