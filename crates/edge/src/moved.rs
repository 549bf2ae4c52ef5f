//! What lasts (WebSockets, event streams, gRPC calls, connections to published ports) when the way it came by leads
//! elsewhere: it goes on with its environment for a bounded time and is then ended, so that its client comes anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::server::Edge;
use crate::table::{Environment, Table};

/// How an answer that lasts was come by.
pub(crate) struct Way {
    host: Box<str>,
    path: Box<str>,
    environment: Arc<Environment>,
}

impl Way {
    /// By a host name in its normal form and a path as the client sent it.
    pub(crate) fn new(host: &str, path: &str, environment: &Arc<Environment>) -> Self {
        Self {
            host: host.into(),
            path: path.into(),
            environment: Arc::clone(environment),
        }
    }

    /// Waits until what came this way has to end: its environment was removed, or it was elsewhere for long enough.
    pub(crate) async fn ended(&self, edge: &Edge) {
        let leads = |table: &Table| table.leads(&self.host, &self.path, &self.environment);
        tokio::select! {
            () = self.environment.gone() => {}
            () = moved(edge, leads) => {}
        }
    }
}

/// Waits until the tables have not led there for `moved_seconds` on end. Looks only at switches.
pub(crate) async fn moved(edge: &Edge, leads: impl Fn(&Table) -> bool) {
    let mut switches = edge.switches.subscribe();
    let mut becomes = async |wanted: bool| {
        while leads(&edge.table.load()) != wanted {
            // the sender is the edge's
            let _ = switches.changed().await;
        }
    };
    loop {
        becomes(false).await;
        let bound = spread(edge.config.limits.moved_seconds);
        if timeout(bound, becomes(true)).await.is_err() {
            return;
        }
    }
}

/// A random time in the last tenth of a bound, so that not all clients come anew in one moment.
fn spread(seconds: u64) -> Duration {
    let bound = Duration::from_secs(seconds);
    let part = getrandom::u32().unwrap_or(0);
    bound.saturating_sub(bound.mul_f64(f64::from(part) / f64::from(u32::MAX) / 10.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_spread_below_the_bound() {
        assert_eq!(spread(0), Duration::ZERO);
        let (least, most) = (Duration::from_secs(270), Duration::from_secs(300));
        let all: Vec<_> = (0..64).map(|_| spread(300)).collect();
        assert!(
            all.iter().all(|one| (least..=most).contains(one)),
            "{all:?}"
        );
        assert!(all.iter().any(|one| *one != most));
    }
}
