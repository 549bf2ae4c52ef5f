//! The tables, and how an older file becomes a current one.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::StoreError;

/// Schema that this version reads and writes (`PRAGMA user_version`).
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// `PRAGMA application_id`, "OfSh": tells our files from other programs'.
const APPLICATION_ID: i64 = 0x4f66_5368;

/// Step n brings schema n to n + 1. Released steps never change.
const MIGRATIONS: &[&str] = &[
    include_str!("schema-1.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
    include_str!("schema-5.sql"),
];

/// Refuses damaged, foreign and newer files. Writes nothing.
pub(crate) fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let open = |source| StoreError::from_opening(path, source);
    let corrupt = |detail: String| StoreError::Corrupt {
        path: path.to_owned(),
        detail,
    };
    let number = |pragma: &str| {
        connection
            .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
            .map_err(open)
    };
    let verdict: String = connection
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(open)?;
    if verdict != "ok" {
        return Err(corrupt(verdict));
    }
    let (application, found) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(open)?;
    let fresh = application == 0 && found == 0 && tables == 0;
    if !fresh && application != APPLICATION_ID {
        return Err(corrupt("another program's database".to_owned()));
    }
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: SCHEMA_VERSION,
        });
    }
    Ok(())
}

/// Runs the missing migrations, each with its version number in one transaction.
pub(crate) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let open = |source| StoreError::from_opening(path, source);
    loop {
        let tx = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(open)?;
        let version: i64 = tx
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(open)?;
        let Some(step) = usize::try_from(version)
            .ok()
            .and_then(|n| MIGRATIONS.get(n))
        else {
            return Ok(());
        };
        tracing::info!(
            from = version,
            to = version + 1,
            "bringing the database to a newer schema"
        );
        tx.execute_batch(step)
            .map_err(StoreError::sql("be brought to the current schema"))?;
        tx.pragma_update(None, "user_version", version + 1)
            .map_err(open)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)
            .map_err(open)?;
        tx.commit().map_err(open)?;
    }
}
