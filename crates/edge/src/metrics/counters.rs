//! Counts of the whole edge.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// A request that can be read in two ways, or not at all (400).
    Malformed,
    /// A client that was too slow (408).
    Slow,
    /// A body that is too long (413).
    Body,
    /// A request on a connection that was made for another host's certificate (421).
    Misdirected,
    /// A header that is too large (431).
    Header,
    /// A connection without the PROXY header that it must begin with.
    ProxyHeader,
    /// A connection of a client that has too many.
    ClientConnections,
    /// An HTTP/2 connection with too many requests that its client gave up.
    Streams,
    /// A request of a client that makes too many in a time (429).
    ClientRate,
    /// A request of a client that has too many under way (429).
    ClientRequests,
    /// A request to domains that get too many in a time (503).
    Rate,
}

impl Refused {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 11] = [
        Self::Malformed,
        Self::Slow,
        Self::Body,
        Self::Misdirected,
        Self::Header,
        Self::ProxyHeader,
        Self::ClientConnections,
        Self::Streams,
        Self::ClientRate,
        Self::ClientRequests,
        Self::Rate,
    ];

    /// As a label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Slow => "slow",
            Self::Body => "body",
            Self::Misdirected => "misdirected",
            Self::Header => "header",
            Self::ProxyHeader => "proxy-header",
            Self::ClientConnections => "client-connections",
            Self::Streams => "streams",
            Self::ClientRate => "client-rate",
            Self::ClientRequests => "client-requests",
            Self::Rate => "rate",
        }
    }

    /// What a status of the edge's own is counted as.
    pub(crate) fn of_status(status: u16) -> Option<Self> {
        match status {
            400 => Some(Self::Malformed),
            408 => Some(Self::Slow),
            413 => Some(Self::Body),
            421 => Some(Self::Misdirected),
            431 => Some(Self::Header),
            _ => None,
        }
    }
}

/// Counts since the edge's start.
#[derive(Default)]
pub(crate) struct Counters {
    refused: [AtomicU64; Refused::ALL.len()],
    /// Client connections, HTTP and published TCP ports.
    pub(crate) connections: AtomicU64,
    /// Bytes of requests' bodies.
    pub(crate) received: AtomicU64,
    /// Bytes of answers' bodies.
    pub(crate) sent: AtomicU64,
    /// Connections to nodes that could not be made.
    pub(crate) unreachable: AtomicU64,
    /// Routes that were switched to.
    pub(crate) reloads: AtomicU64,
    /// Routes that could not be used.
    pub(crate) reloads_failed: AtomicU64,
}

impl Counters {
    /// Bytes of the bodies of one more request and its answer.
    pub(crate) fn bodies(&self, received: usize, sent: usize) {
        for (count, bytes) in [(&self.received, received), (&self.sent, sent)] {
            count.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// How often something was refused for a reason.
    pub(crate) fn refusals(&self, why: Refused) -> u64 {
        let count = self.refused.get(why as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// One more that was refused.
    pub(crate) fn refused(&self, why: Refused) {
        if let Some(count) = self.refused.get(why as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
