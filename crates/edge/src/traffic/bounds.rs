//! Bounds for clients of one owner's domains: how often they may ask, and how much at a time.
//!
//! The rate is kept by the generic cell rate algorithm (ITU-T I.371): of each client only the time is stored at which
//! it will have used up what it was given. A client whose time has passed is as one that never came, so forgetting the
//! oldest under a flood of addresses costs hardly anything, and memory is bounded.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use offshoot_model::traffic::Bounds;

use crate::clients::Client;
use crate::metrics::Refused;

/// Locks, so that clients rarely wait for each other.
const SHARDS: usize = 16;
/// Clients that are remembered in one shard, at most twice: some 131,000 in all, about 8 MiB for an owner under a flood.
const CLIENTS: usize = 4_096;

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) why: Refused,
    /// When it might be.
    pub(crate) after: Option<Duration>,
}

/// What is remembered of an owner's clients; nothing until there are bounds.
#[derive(Default)]
pub(crate) struct BoundsState {
    memory: OnceLock<Arc<Memory>>,
}

struct Memory {
    begin: Instant,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    /// Of all clients together.
    owner: Mutex<Cell>,
}

/// Clients by when they were last seen: in this generation or in the one before.
#[derive(Default)]
struct Shard {
    young: HashMap<Client, Cell>,
    old: HashMap<Client, Cell>,
    /// Requests under way; those that have none are not in it.
    under_way: HashMap<Client, u32>,
}

/// When what was given will have been used up, since the beginning.
#[derive(Debug, Clone, Copy, Default)]
struct Cell(Duration);

impl Cell {
    /// Takes one of `rate` per second when fewer than `burst` were taken at once.
    ///
    /// # Errors
    /// How long until there is one again.
    fn take(&mut self, now: Duration, rate: u32, burst: u32) -> Result<(), Duration> {
        let interval = Duration::from_secs(1) / rate.max(1);
        let at = self.0.max(now);
        let ahead = interval.saturating_mul(burst.max(1) - 1);
        match at.checked_sub(now + ahead) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                self.0 = at + interval;
                Ok(())
            }
        }
    }
}

impl Shard {
    fn cell(&mut self, client: Client) -> &mut Cell {
        if self.young.len() >= CLIENTS && !self.young.contains_key(&client) {
            self.old = std::mem::take(&mut self.young);
        }
        let former = self.old.remove(&client);
        let cell = self.young.entry(client).or_default();
        if let Some(former) = former {
            *cell = former;
        }
        cell
    }
}

/// A request that counts as under way until this is dropped.
pub(crate) struct UnderWay {
    memory: Arc<Memory>,
    client: Client,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.memory.with(self.client, |shard| {
            if let Some(count) = shard.under_way.get_mut(&self.client) {
                *count -= 1;
                if *count == 0 {
                    shard.under_way.remove(&self.client);
                }
            }
        });
    }
}

impl Memory {
    fn new(now: Instant) -> Self {
        Self {
            begin: now,
            hasher: RandomState::new(),
            shards: Default::default(),
            owner: Mutex::default(),
        }
    }

    fn with<T>(&self, client: Client, then: impl FnOnce(&mut Shard) -> T) -> Option<T> {
        // the lower bits choose: cut off on machines with 32 bits
        #[expect(
            clippy::cast_possible_truncation,
            reason = "only the lower bits are wanted"
        )]
        let at = self.hasher.hash_one(client) as usize % SHARDS;
        let shard = self.shards.get(at)?;
        Some(then(
            &mut shard.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl BoundsState {
    /// Whether a client's request is let in at `now`; with a bound for requests under way, what counts it.
    ///
    /// # Errors
    /// The first bound that it passes: its client's rate, its client's requests under way, the rate of all.
    pub(crate) fn admit(
        &self,
        client: Client,
        bounds: &Bounds,
        now: Instant,
    ) -> Result<Option<UnderWay>, Refusal> {
        let (rate, most, all) = (
            bounds.client_requests_per_second,
            bounds.client_requests,
            bounds.requests_per_second,
        );
        if rate == 0 && most == 0 && all == 0 {
            return Ok(None);
        }
        let memory = self.memory.get_or_init(|| Arc::new(Memory::new(now)));
        let now = now.saturating_duration_since(memory.begin);
        let at_once = |burst: u32, rate: u32| if burst == 0 { rate } else { burst };
        let of_client = memory.with(client, |shard| {
            if rate > 0 {
                let burst = at_once(bounds.client_burst, rate);
                let taken = shard.cell(client).take(now, rate, burst);
                taken.map_err(|after| (Refused::ClientRate, Some(after)))?;
            }
            if most > 0 {
                let count = shard.under_way.entry(client).or_default();
                if *count >= most {
                    return Err((Refused::ClientRequests, None));
                }
                *count += 1;
                return Ok(true);
            }
            Ok(false)
        });
        let counted = of_client.unwrap_or(Ok(false)).map_err(refusal)?;
        let under_way = counted.then(|| UnderWay {
            memory: Arc::clone(memory),
            client,
        });
        if all > 0 {
            let mut owner = memory.owner.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = owner.take(now, all, all);
            taken.map_err(|after| refusal((Refused::Rate, Some(after))))?;
        }
        Ok(under_way)
    }
}

fn refusal((why, after): (Refused, Option<Duration>)) -> Refusal {
    Refusal { why, after }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(number: u32) -> Client {
        Client::of(Ipv4Addr::from_bits(number).into())
    }

    fn refused(
        state: &BoundsState,
        client: Client,
        bounds: &Bounds,
        now: Instant,
    ) -> Option<Refused> {
        state
            .admit(client, bounds, now)
            .err()
            .map(|refusal| refusal.why)
    }

    #[test]
    fn a_client_has_its_burst_and_then_its_rate() {
        let state = BoundsState::default();
        let bounds = Bounds {
            client_requests_per_second: 10,
            client_burst: 3,
            ..Bounds::default()
        };
        let begin = Instant::now();
        for _ in 0..3 {
            assert!(state.admit(client(1), &bounds, begin).is_ok());
        }
        let refusal = state.admit(client(1), &bounds, begin).err().unwrap();
        assert_eq!(refusal.why, Refused::ClientRate);
        assert_eq!(refusal.after, Some(Duration::from_millis(100)));
        assert!(
            state.admit(client(2), &bounds, begin).is_ok(),
            "another client"
        );
        // ten in the second that follows, at whatever times it asks
        let let_in = (1..=1_000)
            .filter(|ms| {
                state
                    .admit(client(1), &bounds, begin + Duration::from_millis(*ms))
                    .is_ok()
            })
            .count();
        assert_eq!(let_in, 10);
        let later = begin + Duration::from_secs(60);
        let let_in = (0..9)
            .filter(|_| state.admit(client(1), &bounds, later).is_ok())
            .count();
        assert_eq!(
            let_in, 3,
            "what is not used is not saved up beyond the burst"
        );
    }

    #[test]
    fn all_together_have_a_rate() {
        let state = BoundsState::default();
        let bounds = Bounds {
            requests_per_second: 5,
            ..Bounds::default()
        };
        let begin = Instant::now();
        let answers: Vec<_> = (0..7)
            .map(|number| refused(&state, client(number), &bounds, begin))
            .collect();
        assert_eq!(
            answers,
            [
                None,
                None,
                None,
                None,
                None,
                Some(Refused::Rate),
                Some(Refused::Rate)
            ]
        );
    }

    #[test]
    fn requests_under_way_are_counted_until_they_end() {
        let state = BoundsState::default();
        let bounds = Bounds {
            client_requests: 2,
            ..Bounds::default()
        };
        let now = Instant::now();
        let first = state.admit(client(1), &bounds, now).unwrap();
        let _second = state.admit(client(1), &bounds, now).unwrap();
        assert_eq!(
            refused(&state, client(1), &bounds, now),
            Some(Refused::ClientRequests)
        );
        assert_eq!(refused(&state, client(2), &bounds, now), None);
        drop(first);
        assert_eq!(refused(&state, client(1), &bounds, now), None);
        let memory = state.memory.get().unwrap();
        let left: usize = memory
            .shards
            .iter()
            .map(|s| s.lock().unwrap().under_way.len())
            .sum();
        assert_eq!(
            left, 1,
            "only the client with a request under way is remembered"
        );
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_forgets_the_oldest() {
        let state = BoundsState::default();
        let bounds = Bounds {
            client_requests_per_second: 1,
            ..Bounds::default()
        };
        let now = Instant::now();
        assert_eq!(refused(&state, client(0), &bounds, now), None);
        for number in 1..400_000 {
            assert_eq!(refused(&state, client(number), &bounds, now), None);
            if number % 1_000 == 0 {
                // one that keeps coming stays known
                assert_eq!(
                    refused(&state, client(0), &bounds, now),
                    Some(Refused::ClientRate)
                );
            }
        }
        let memory = state.memory.get().unwrap();
        let known: usize = memory
            .shards
            .iter()
            .map(|shard| {
                let shard = shard.lock().unwrap();
                shard.young.len() + shard.old.len()
            })
            .sum();
        assert!(known <= 2 * SHARDS * CLIENTS, "{known}");
        assert_eq!(
            refused(&state, client(1), &bounds, now),
            None,
            "long forgotten"
        );
        assert_eq!(
            refused(&state, client(399_999), &bounds, now),
            Some(Refused::ClientRate)
        );
    }
}
