//! Former default domains, whose visitors are sent to where their environment is now.

use jiff::Timestamp;
use offshoot_model::{EnvId, OperationId};
use rusqlite::params;

use crate::environments::decode;
use crate::{StoreError, Tx};

/// A former default domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectedHost {
    /// Host name.
    pub host: String,
    /// Whose it was.
    pub environment: EnvId,
    /// Since when.
    pub added: Timestamp,
}

impl Tx<'_> {
    /// All former default domains that lead on, by name.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn redirects(&self) -> Result<Vec<RedirectedHost>, StoreError> {
        let rows: Vec<(String, String, String)> = self
            .sql
            .prepare_cached("SELECT host, environment, added FROM redirects ORDER BY host")
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                    .collect()
            })
            .map_err(StoreError::sql("read redirects"))?;
        let read = |(host, environment, added): (String, String, String)| {
            let text = |text: String| serde_json::Value::String(text).to_string();
            let what = format!("the redirect of {host}");
            Ok(RedirectedHost {
                environment: decode(&what, &text(environment))?,
                added: decode(&what, &text(added))?,
                host,
            })
        };
        rows.into_iter().map(read).collect()
    }

    /// Lets a host name lead on to an environment, whoever had it before.
    ///
    /// # Errors
    /// Those of the database, also when there is no such environment.
    pub fn add_redirect(
        &self,
        redirect: &RedirectedHost,
        by: OperationId,
    ) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT OR REPLACE INTO redirects (host, environment, added, added_by) VALUES (?1, ?2, ?3, ?4)",
            )
            .and_then(|mut statement| {
                statement.execute(params![
                    redirect.host,
                    redirect.environment.as_str(),
                    redirect.added.to_string(),
                    by.to_string()
                ])
            })
            .map_err(StoreError::sql("keep a redirect"))?;
        Ok(())
    }

    /// A host name leads on no longer.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn remove_redirect(&self, host: &str) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("DELETE FROM redirects WHERE host = ?1")
            .and_then(|mut statement| statement.execute([host]))
            .map_err(StoreError::sql("remove a redirect"))?;
        Ok(())
    }

    /// Takes back what an operation added.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn take_redirects_back(&self, by: OperationId) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("DELETE FROM redirects WHERE added_by = ?1")
            .and_then(|mut statement| statement.execute([by.to_string()]))
            .map_err(StoreError::sql("remove redirects"))?;
        Ok(())
    }
}
