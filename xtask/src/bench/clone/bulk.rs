//! Bulk data in Redis: what the memory of a clone is measured with.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use offshoot_load::{Redis, Writer, Writes};

use crate::interrupt;

/// Writes values number `ARGV[1]` to `ARGV[2]`, `ARGV[3]` bytes each: no two pages are alike.
const FILL: &str = "for i = ARGV[1], ARGV[2] do redis.call('SET', 'bulk:' .. i, string.rep(string.format('%016x', i), ARGV[3] / 16)) end";
const PREFIX: &str = "bulk:";
/// Bytes per call of [`FILL`], so that none is long.
const BATCH: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// How much of it, in pieces of which size, and how fast it is overwritten.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bulk {
    /// Bytes of all values.
    pub(super) bytes: u64,
    /// Bytes of one value, a multiple of 16.
    pub(super) value: u32,
    /// Writes per second, 0 for none.
    pub(super) writes: u32,
}

impl Bulk {
    fn keys(self) -> u64 {
        self.bytes / u64::from(self.value)
    }

    /// Which values to write, call by call.
    fn batches(self) -> impl Iterator<Item = (u64, u64)> {
        let (count, step) = (self.keys(), BATCH / u64::from(self.value));
        (0..count.div_ceil(step))
            .map(move |batch| (batch * step + 1, ((batch + 1) * step).min(count)))
    }

    /// Makes the Redis at the address hold this and nothing else.
    pub(super) fn fill(self, address: SocketAddr) -> anyhow::Result<()> {
        let mut redis = connect(address)?;
        redis.ask(&["CONFIG", "SET", "maxmemory", "0"])?;
        redis.ask(&["FLUSHALL", "SYNC"])?;
        // so that memory that is free is given back before the next measurement
        redis.ask(&["MEMORY", "PURGE"])?;
        for (first, last) in self.batches() {
            interrupt::check()?;
            let numbers = [first, last, u64::from(self.value)].map(|number| number.to_string());
            let [first, last, value] = &numbers;
            redis
                .ask(&["EVAL", FILL, "0", first, last, value])
                .context("cannot fill Redis")?;
        }
        Ok(())
    }

    /// Begins to overwrite it; `None` when nothing is to be written, or nothing is there.
    pub(super) fn overwrite(self, address: SocketAddr) -> anyhow::Result<Option<Writer>> {
        if self.writes == 0 || self.keys() == 0 {
            return Ok(None);
        }
        let writes = Writes {
            per_second: self.writes,
            prefix: PREFIX,
            keys: self.keys(),
            value: usize::try_from(self.value)?,
        };
        let writer = Writer::start(address, PATIENCE, writes);
        writer
            .map(Some)
            .with_context(|| format!("cannot write to Redis at {address}"))
    }
}

/// A connection to Redis.
pub(super) fn connect(address: SocketAddr) -> anyhow::Result<Redis> {
    Redis::connect(address, PATIENCE).with_context(|| format!("no Redis at {address}"))
}

/// `256MiB`, `1GiB`, `0`, `1048576`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err("write a size such as 0, 256MiB or 1GiB".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write a number first".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= 1 << 40)
        .ok_or_else(|| "that is too much".to_owned())
}

/// The size of a value: a multiple of 16 up to 1 MiB.
pub(super) fn value_size(text: &str) -> Result<u32, String> {
    let bytes = size(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| (16..=1 << 20).contains(bytes) && bytes.is_multiple_of(16))
        .ok_or_else(|| "a value has a multiple of 16 bytes, at most 1MiB".to_owned())
}

/// As people write sizes, exact.
pub(super) fn human(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("0", 0),
            ("256MiB", 256 << 20),
            ("1GiB", 1 << 30),
            ("1000", 1_000),
            ("3KiB", 3 << 10),
        ] {
            assert_eq!(size(text), Ok(bytes));
            assert_eq!(human(bytes), text);
        }
        for wrong in ["", "1GB", "GiB", "99999999GiB", "-1"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(value_size("4000"), Ok(4_000));
        for wrong in ["0", "1", "4001", "2MiB", "1024GiB"] {
            assert!(value_size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn batches_cover_everything_once() {
        let bulk = |bytes| Bulk {
            bytes,
            value: 64 << 10,
            writes: 0,
        };
        let all: Vec<_> = bulk(200 << 20).batches().collect();
        assert_eq!(all, [(1, 1024), (1025, 2048), (2049, 3072), (3073, 3200)]);
        assert_eq!(bulk(0).batches().count(), 0);
    }
}
