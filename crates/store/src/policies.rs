//! Traffic policies: what happens with requests for an environment's domains.

use offshoot_model::EnvId;
use offshoot_model::traffic::Policy;
use rusqlite::OptionalExtension as _;

use crate::environments::{decode, encode};
use crate::{StoreError, Tx};

impl Tx<'_> {
    /// The policy of an environment, if it has one.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn policy(&self, id: &EnvId) -> Result<Option<Policy<EnvId>>, StoreError> {
        let document: Option<String> = self
            .sql
            .prepare_cached("SELECT document FROM policies WHERE environment = ?1")
            .and_then(|mut statement| {
                statement
                    .query_row([id.as_str()], |row| row.get(0))
                    .optional()
            })
            .map_err(StoreError::sql("read a policy"))?;
        document
            .map(|document| decode(&format!("the policy of {id}"), &document))
            .transpose()
    }

    /// All policies, by whose they are.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn policies(&self) -> Result<Vec<(EnvId, Policy<EnvId>)>, StoreError> {
        let rows: Vec<(String, String)> = self
            .sql
            .prepare_cached("SELECT environment, document FROM policies ORDER BY environment")
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .map_err(StoreError::sql("read policies"))?;
        let read = |(id, document): (String, String)| {
            let what = format!("the policy of {id}");
            let text = serde_json::Value::String(id).to_string();
            Ok((decode(&what, &text)?, decode(&what, &document)?))
        };
        rows.into_iter().map(read).collect()
    }

    /// Gives an environment a policy in place of the one it has; an absent or empty one is none.
    ///
    /// # Errors
    /// [`StoreError::EnvironmentUnknown`].
    pub fn set_policy(&self, id: &EnvId, policy: Option<&Policy<EnvId>>) -> Result<(), StoreError> {
        self.name_of(id.as_str())?;
        let Some(policy) = policy.filter(|policy| **policy != Policy::default()) else {
            self.sql
                .prepare_cached("DELETE FROM policies WHERE environment = ?1")
                .and_then(|mut statement| statement.execute([id.as_str()]))
                .map_err(StoreError::sql("remove a policy"))?;
            return Ok(());
        };
        let document = encode("a policy", policy)?;
        self.sql
            .prepare_cached(
                "INSERT INTO policies (environment, document) VALUES (?1, ?2) \
                 ON CONFLICT DO UPDATE SET document = excluded.document",
            )
            .and_then(|mut statement| statement.execute([id.as_str(), &document]))
            .map_err(StoreError::sql("keep a policy"))?;
        Ok(())
    }
}
