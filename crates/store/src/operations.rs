//! The journal: operations, what each will do, and whether it was asked to stop.

use offshoot_model::view::Event;
use offshoot_model::{EnvId, EnvironmentState, Operation, OperationId};
use rusqlite::{OptionalExtension as _, Params, named_params, params};
use serde_json::Value;

use crate::environments::{decode, encode};
use crate::{StoreError, Tx};

impl Tx<'_> {
    /// Records a new operation with its plan. Old ended operations make room for it.
    ///
    /// # Errors
    /// Those of the database, also when the id is there already.
    pub fn record_operation(
        &self,
        operation: &Operation,
        plan: &Value,
    ) -> Result<Event, StoreError> {
        let values = named_params! {
            ":id": operation.id.to_string(),
            ":ended": operation.state.is_final(),
            ":document": encode("an operation", operation)?,
            ":plan": encode("a plan", plan)?,
        };
        self.sql
            .prepare_cached(
                "INSERT INTO operations (id, ended, document, plan) VALUES (:id, :ended, :document, :plan)",
            )
            .and_then(|mut statement| statement.execute(values))
            .map_err(StoreError::sql("record an operation"))?;
        self.prune_operations()?;
        self.add_event(operation)
    }

    /// Writes an operation as it is now. When it has ended its plan is forgotten: it may hold secrets of an
    /// environment that is gone.
    ///
    /// # Errors
    /// [`StoreError::OperationUnknown`].
    pub fn update_operation(&self, operation: &Operation) -> Result<Event, StoreError> {
        let values = named_params! {
            ":id": operation.id.to_string(),
            ":ended": operation.state.is_final(),
            ":document": encode("an operation", operation)?,
        };
        let rows = self
            .sql
            .prepare_cached(
                "UPDATE operations SET ended = :ended, document = :document, \
                 plan = CASE WHEN :ended THEN 'null' ELSE plan END WHERE id = :id",
            )
            .and_then(|mut statement| statement.execute(values))
            .map_err(StoreError::sql("write an operation"))?;
        if rows == 0 {
            return Err(StoreError::OperationUnknown { id: operation.id });
        }
        self.add_event(operation)
    }

    /// Writes an operation and its plan as they are now.
    ///
    /// # Errors
    /// [`StoreError::OperationUnknown`].
    pub fn save_operation(&self, operation: &Operation, plan: &Value) -> Result<Event, StoreError> {
        let id = operation.id;
        let plan = encode("a plan", plan)?;
        self.change(
            "UPDATE operations SET plan = ?2 WHERE id = ?1",
            id,
            params![id.to_string(), plan],
        )?;
        self.update_operation(operation)
    }

    /// Ends an operation and sets the environment's state with it, where the environment is there.
    ///
    /// # Errors
    /// [`StoreError::OperationUnknown`].
    pub fn finish_with_state(
        &self,
        operation: &Operation,
        id: &EnvId,
        state: EnvironmentState,
    ) -> Result<Event, StoreError> {
        match self.set_state(id, state) {
            Ok(()) | Err(StoreError::EnvironmentUnknown { .. }) => self.update_operation(operation),
            Err(error) => Err(error),
        }
    }

    /// Ends an operation and removes the environment's rows with it, where they are there.
    ///
    /// # Errors
    /// [`StoreError::OperationUnknown`].
    pub fn finish_with_removal(
        &self,
        operation: &Operation,
        id: &EnvId,
    ) -> Result<Event, StoreError> {
        self.remove_environment(id)?;
        self.update_operation(operation)
    }

    /// Notes that an operation should stop at its next safe point. On one that has ended it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::OperationUnknown`].
    pub fn request_cancel(&self, id: OperationId) -> Result<(), StoreError> {
        self.change(
            "UPDATE operations SET cancel = 1 WHERE id = ?1",
            id,
            params![id.to_string()],
        )
    }

    /// Whether an operation was asked to stop.
    ///
    /// # Errors
    /// [`StoreError::OperationUnknown`].
    pub fn cancel_requested(&self, id: OperationId) -> Result<bool, StoreError> {
        self.sql
            .prepare_cached("SELECT cancel FROM operations WHERE id = ?1")
            .and_then(|mut statement| {
                statement
                    .query_row([id.to_string()], |row| row.get(0))
                    .optional()
            })
            .map_err(StoreError::sql("read an operation"))?
            .ok_or(StoreError::OperationUnknown { id })
    }

    /// An operation and its plan (`null` once it has ended), if it is still kept.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn operation(&self, id: OperationId) -> Result<Option<(Operation, Value)>, StoreError> {
        Ok(self
            .some_operations("WHERE id = ?1", params![id.to_string()])?
            .pop())
    }

    /// Operations, newest first, at most `limit`.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn operations(&self, limit: usize) -> Result<Vec<Operation>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows: Vec<String> = self
            .sql
            .prepare_cached("SELECT document FROM operations ORDER BY id DESC LIMIT ?1")
            .and_then(|mut statement| statement.query_map([limit], |row| row.get(0))?.collect())
            .map_err(StoreError::sql("read operations"))?;
        rows.iter()
            .map(|document| decode("an operation", document))
            .collect()
    }

    /// Operations that have not ended, oldest first, with their plans: what a start after a crash takes up.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn unfinished_operations(&self) -> Result<Vec<(Operation, Value)>, StoreError> {
        self.some_operations("WHERE ended = 0 ORDER BY id", [])
    }

    fn change(&self, sql: &str, id: OperationId, values: impl Params) -> Result<(), StoreError> {
        let rows = self
            .sql
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(values))
            .map_err(StoreError::sql("write an operation"))?;
        if rows == 0 {
            Err(StoreError::OperationUnknown { id })
        } else {
            Ok(())
        }
    }

    fn some_operations(
        &self,
        condition: &str,
        values: impl Params,
    ) -> Result<Vec<(Operation, Value)>, StoreError> {
        let rows: Vec<(String, String, String)> = self
            .sql
            .prepare_cached(&format!(
                "SELECT id, document, plan FROM operations {condition}"
            ))
            .and_then(|mut statement| {
                statement
                    .query_map(values, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                    .collect()
            })
            .map_err(StoreError::sql("read operations"))?;
        rows.into_iter()
            .map(|(id, document, plan)| {
                Ok((
                    decode(&format!("operation {id}"), &document)?,
                    decode(&format!("the plan of {id}"), &plan)?,
                ))
            })
            .collect()
    }

    fn prune_operations(&self) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "DELETE FROM operations WHERE ended = 1 \
                 AND id < (SELECT id FROM operations WHERE ended = 1 ORDER BY id DESC LIMIT 1 OFFSET ?1) \
                 AND id NOT IN (SELECT lineage_operation FROM environments WHERE lineage_operation IS NOT NULL)",
            )
            .and_then(|mut statement| statement.execute([self.retention.operations.saturating_sub(1)]))
            .map_err(StoreError::sql("forget old operations"))?;
        Ok(())
    }
}
