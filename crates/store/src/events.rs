//! The event stream: every change of an operation, in order, for those who were away.

use offshoot_model::Operation;
use offshoot_model::view::Event;
use rusqlite::params;

use crate::environments::{decode, encode};
use crate::{StoreError, Tx};

impl Tx<'_> {
    /// Events from after `seq` on, oldest first, at most `limit`. When events after `seq` were pruned it begins with
    /// the oldest kept.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn events_after(&self, seq: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
        let seq = i64::try_from(seq).unwrap_or(i64::MAX);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows: Vec<(i64, String)> = self
            .sql
            .prepare_cached(
                "SELECT seq, operation FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2",
            )
            .and_then(|mut statement| {
                statement
                    .query_map(params![seq, limit], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .map_err(StoreError::sql("read events"))?;
        rows.into_iter()
            .map(|(seq, operation)| {
                Ok(Event {
                    seq: seq.unsigned_abs(),
                    operation: decode("an event", &operation)?,
                })
            })
            .collect()
    }

    /// Position of the newest event; 0 before the first.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn last_event(&self) -> Result<u64, StoreError> {
        self.sql
            .prepare_cached("SELECT coalesce(max(seq), 0) FROM events")
            .and_then(|mut statement| statement.query_row([], |row| row.get::<_, i64>(0)))
            .map(i64::unsigned_abs)
            .map_err(StoreError::sql("read events"))
    }

    pub(crate) fn add_event(&self, operation: &Operation) -> Result<Event, StoreError> {
        let document = encode("an event", operation)?;
        let what = "add an event";
        self.sql
            .prepare_cached("INSERT INTO events (operation) VALUES (?1)")
            .and_then(|mut statement| statement.execute([document]))
            .map_err(StoreError::sql(what))?;
        let seq = self.sql.last_insert_rowid();
        self.sql
            .prepare_cached("DELETE FROM events WHERE seq <= ?1")
            .and_then(|mut statement| statement.execute([seq - i64::from(self.retention.events)]))
            .map_err(StoreError::sql("forget old events"))?;
        Ok(Event {
            seq: seq.unsigned_abs(),
            operation: operation.clone(),
        })
    }
}
