//! Connections to nodes that wait for their next request.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::super::{KEPT, KEPT_CONNECTIONS};
use super::PATIENCE;

/// How often those are closed that were kept for long enough. It is less than [`PATIENCE`], so that a request's bound is never
/// the first of all timers: setting the first one takes a system call.
const CLEARED_EVERY: Duration = Duration::from_millis(500);
const _: () = assert!(CLEARED_EVERY.as_millis() < PATIENCE.as_millis());

/// By the key of their upstream, the one that was used last at the end.
#[derive(Default)]
pub(in super::super) struct Kept(Mutex<State>);

#[derive(Default)]
struct State {
    connections: HashMap<u64, Vec<(TcpStream, Instant)>>,
    count: usize,
}

impl Kept {
    /// A connection to an upstream of which nobody says that it has ended.
    pub(super) fn take(&self, upstream: u64) -> Option<TcpStream> {
        loop {
            let (stream, since) = {
                let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = state.connections.get_mut(&upstream)?.pop()?;
                state.count -= 1;
                taken
            };
            // nothing may come on it before it is asked: neither its end nor an answer to nothing. The runtime knows
            // whether anything came since the last read, so as a rule this asks no kernel
            let silent = stream.try_read(&mut [0]);
            let silent = silent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            if silent && since.elapsed() < KEPT {
                return Some(stream);
            }
        }
    }

    /// Keeps a connection.
    pub(super) fn keep(&self, upstream: u64, stream: TcpStream) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.count < KEPT_CONNECTIONS {
            state.count += 1;
            let kept = (stream, Instant::now());
            state.connections.entry(upstream).or_default().push(kept);
        }
    }

    /// Closes those that were kept for long enough, for as long as anyone uses them.
    pub(in super::super) async fn clear(kept: Arc<Self>) {
        let kept = {
            let weak = Arc::downgrade(&kept);
            drop(kept);
            weak
        };
        loop {
            tokio::time::sleep(CLEARED_EVERY).await;
            let Some(kept) = kept.upgrade() else { return };
            let mut state = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
            let mut count = 0;
            state.connections.retain(|_, connections| {
                connections.retain(|(_, since)| since.elapsed() < KEPT);
                count += connections.len();
                !connections.is_empty()
            });
            state.count = count;
        }
    }
}
