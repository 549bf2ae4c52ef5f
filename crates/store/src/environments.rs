//! Environments: their rows, and what they hold alone.

use ipnet::{Ipv4Net, Ipv6Net};
use offshoot_model::environment::PortBinding;
use offshoot_model::view::Event;
use offshoot_model::{EnvId, EnvName, Environment, EnvironmentState, Hold, Operation};
use rusqlite::{OptionalExtension as _, Params, named_params, params};
use serde_json::Value;

use crate::{StoreError, Tx};

/// Rows as (id, document).
const ENVIRONMENT: &str = "SELECT id, document FROM environments";

impl Tx<'_> {
    /// Takes the name, the outer networks, the id range and the ports for a new environment and records the
    /// operation that makes it: all or nothing.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], [`StoreError::PortTaken`], [`StoreError::OuterTaken`],
    /// [`StoreError::IdRangeTaken`] say what another environment has.
    pub fn reserve(
        &self,
        environment: &Environment,
        ports: &[PortBinding],
        operation: &Operation,
        plan: &Value,
    ) -> Result<Event, StoreError> {
        self.check_name(&environment.id, &environment.name)?;
        self.check_placement(environment)?;
        let write = "INSERT INTO environments \
             (id, name, state, outer, outer6, id_base, id_count, parent, lineage_operation, document) \
             VALUES (:id, :name, :state, :outer, :outer6, :id_base, :id_count, :parent, :lineage, :document)";
        self.write_environment(write, environment)?;
        for (place, binding) in ports.iter().enumerate() {
            self.take_port(environment, place, binding)?;
        }
        self.record_operation(operation, plan)
    }

    /// Writes an environment as it is now; its name and placement are judged as in [`Tx::reserve`].
    ///
    /// # Errors
    /// [`StoreError::EnvironmentUnknown`], or what another environment has.
    pub fn update_environment(&self, environment: &Environment) -> Result<(), StoreError> {
        self.check_name(&environment.id, &environment.name)?;
        self.check_placement(environment)?;
        let write = "UPDATE environments SET name = :name, state = :state, outer = :outer, outer6 = :outer6, \
             id_base = :id_base, id_count = :id_count, parent = :parent, lineage_operation = :lineage, \
             document = :document WHERE id = :id";
        if self.write_environment(write, environment)? == 0 {
            return Err(unknown(environment.id.as_str()));
        }
        Ok(())
    }

    /// Gives an environment another name. Its own name again is fine.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], [`StoreError::EnvironmentUnknown`].
    pub fn rename(&self, id: &EnvId, name: &EnvName) -> Result<(), StoreError> {
        let mut environment = self.known_environment(id)?;
        environment.name = name.clone();
        self.update_environment(&environment)
    }

    /// Sets the settled state of an environment.
    ///
    /// # Errors
    /// [`StoreError::EnvironmentUnknown`].
    pub fn set_state(&self, id: &EnvId, state: EnvironmentState) -> Result<(), StoreError> {
        let mut environment = self.known_environment(id)?;
        environment.state = state;
        self.update_environment(&environment)
    }

    /// Sets what an environment is kept from.
    ///
    /// # Errors
    /// [`StoreError::EnvironmentUnknown`].
    pub fn set_held(&self, id: &EnvId, held: Hold) -> Result<(), StoreError> {
        let mut environment = self.known_environment(id)?;
        environment.held = held;
        self.update_environment(&environment)
    }

    /// Removes an environment with its ports and restart counts. One that is not there is fine.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn remove_environment(&self, id: &EnvId) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("DELETE FROM environments WHERE id = ?1")
            .and_then(|mut statement| statement.execute([id.as_str()]))
            .map_err(StoreError::sql("remove an environment"))?;
        Ok(())
    }

    /// The environment of that id, if it is there.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn environment(&self, id: &EnvId) -> Result<Option<Environment>, StoreError> {
        self.one_environment("WHERE id = ?1", id.as_str())
    }

    /// The environment of that name, if there is one.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn environment_by_name(&self, name: &str) -> Result<Option<Environment>, StoreError> {
        self.one_environment("WHERE name = ?1", name)
    }

    /// The environment of that name, or else of that id, if there is one.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn find_environment(&self, name_or_id: &str) -> Result<Option<Environment>, StoreError> {
        self.one_environment(
            "WHERE name = ?1 OR id = ?1 ORDER BY name <> ?1 LIMIT 1",
            name_or_id,
        )
    }

    /// All environments, by name.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn environments(&self) -> Result<Vec<Environment>, StoreError> {
        self.some_environments("ORDER BY name", [])
    }

    /// Environments that were cloned from this one and still are, by name.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn children(&self, id: &EnvId) -> Result<Vec<Environment>, StoreError> {
        self.some_environments("WHERE parent = ?1 ORDER BY name", [id.as_str()])
    }

    /// Outer IPv4 networks that environments have.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn used_outer_networks(&self) -> Result<Vec<Ipv4Net>, StoreError> {
        Ok(self
            .environments()?
            .iter()
            .map(|environment| environment.placement.outer)
            .collect())
    }

    /// Outer IPv6 networks that environments have.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn used_outer6_networks(&self) -> Result<Vec<Ipv6Net>, StoreError> {
        Ok(self
            .environments()?
            .iter()
            .filter_map(|environment| environment.placement.outer6)
            .collect())
    }

    /// First ids of the ranges that environments have, ascending.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn used_id_bases(&self) -> Result<Vec<u32>, StoreError> {
        let what = "read the used ids";
        self.sql
            .prepare_cached("SELECT id_base FROM environments ORDER BY id_base")
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(StoreError::sql(what))
    }

    /// How often a node was started again; 0 for one never heard of.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn node_restarts(&self, id: &EnvId, node: &str) -> Result<u32, StoreError> {
        self.sql
            .prepare_cached(
                "SELECT restarts FROM node_restarts WHERE environment = ?1 AND node = ?2",
            )
            .and_then(|mut statement| {
                statement
                    .query_row([id.as_str(), node], |row| row.get(0))
                    .optional()
            })
            .map(Option::unwrap_or_default)
            .map_err(StoreError::sql("read a node's restarts"))
    }

    /// Sets how often a node was started again.
    ///
    /// # Errors
    /// Those of the database, also when the environment is gone.
    pub fn set_node_restarts(
        &self,
        id: &EnvId,
        node: &str,
        restarts: u32,
    ) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT INTO node_restarts (environment, node, restarts) VALUES (?1, ?2, ?3) \
                 ON CONFLICT DO UPDATE SET restarts = excluded.restarts",
            )
            .and_then(|mut statement| statement.execute(params![id.as_str(), node, restarts]))
            .map_err(StoreError::sql("write a node's restarts"))?;
        Ok(())
    }

    /// Name of the environment of that id.
    pub(crate) fn name_of(&self, id: &str) -> Result<EnvName, StoreError> {
        let environment = self.one_environment("WHERE id = ?1", id)?;
        environment
            .map(|environment| environment.name)
            .ok_or_else(|| unknown(id))
    }

    fn known_environment(&self, id: &EnvId) -> Result<Environment, StoreError> {
        self.environment(id)?.ok_or_else(|| unknown(id.as_str()))
    }

    fn check_name(&self, own: &EnvId, name: &EnvName) -> Result<(), StoreError> {
        let taken = "SELECT id FROM environments WHERE id <> :own AND name = :name";
        match self.holder(
            taken,
            named_params! { ":own": own.as_str(), ":name": name.as_str() },
        )? {
            Some(_) => Err(StoreError::NameTaken { name: name.clone() }),
            None => Ok(()),
        }
    }

    fn check_placement(&self, environment: &Environment) -> Result<(), StoreError> {
        let own = environment.id.as_str();
        let placement = &environment.placement;
        let ids = "SELECT id FROM environments \
             WHERE id <> :own AND id_base < :end AND id_base + id_count > :base";
        let base = i64::from(placement.id_base);
        let end = base + i64::from(placement.id_count);
        if let Some(holder) = self.holder(
            ids,
            named_params! { ":own": own, ":end": end, ":base": base },
        )? {
            return Err(StoreError::IdRangeTaken {
                base: placement.id_base,
                holder: self.name_of(&holder)?,
            });
        }
        let outer = placement.outer.trunc().to_string();
        let outer6 = placement.outer6.map(|network| network.trunc().to_string());
        for (column, network) in [("outer", Some(outer)), ("outer6", outer6)] {
            let Some(network) = network else { continue };
            let taken =
                format!("SELECT id FROM environments WHERE id <> :own AND {column} = :network");
            if let Some(holder) =
                self.holder(&taken, named_params! { ":own": own, ":network": network })?
            {
                return Err(StoreError::OuterTaken {
                    network,
                    holder: self.name_of(&holder)?,
                });
            }
        }
        Ok(())
    }

    fn holder(&self, sql: &str, values: impl Params) -> Result<Option<String>, StoreError> {
        self.sql
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(values, |row| row.get(0)).optional())
            .map_err(StoreError::sql("look for what is taken"))
    }

    fn write_environment(&self, sql: &str, environment: &Environment) -> Result<usize, StoreError> {
        let placement = &environment.placement;
        let lineage = environment.lineage.as_ref();
        let values = named_params! {
            ":id": environment.id.as_str(),
            ":name": environment.name.as_str(),
            ":state": word(environment.state)?,
            ":outer": placement.outer.trunc().to_string(),
            ":outer6": placement.outer6.map(|network| network.trunc().to_string()),
            ":id_base": placement.id_base,
            ":id_count": placement.id_count,
            ":parent": lineage.map(|lineage| lineage.parent.as_str()),
            ":lineage": lineage.map(|lineage| lineage.operation.to_string()),
            ":document": encode("an environment", environment)?,
        };
        self.sql
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(values))
            .map_err(StoreError::sql("write an environment"))
    }

    fn one_environment(
        &self,
        condition: &str,
        key: &str,
    ) -> Result<Option<Environment>, StoreError> {
        Ok(self.some_environments(condition, [key])?.pop())
    }

    fn some_environments(
        &self,
        condition: &str,
        values: impl Params,
    ) -> Result<Vec<Environment>, StoreError> {
        let rows: Vec<(String, String)> = self
            .sql
            .prepare_cached(&format!("{ENVIRONMENT} {condition}"))
            .and_then(|mut statement| {
                statement
                    .query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .map_err(StoreError::sql("read environments"))?;
        rows.into_iter()
            .map(|(id, document)| decode(&format!("environment {id}"), &document))
            .collect()
    }
}

fn unknown(environment: &str) -> StoreError {
    StoreError::EnvironmentUnknown {
        environment: environment.to_owned(),
    }
}

/// A unit variant as its name.
fn word(state: EnvironmentState) -> Result<String, StoreError> {
    let text = encode("a state", &state)?;
    Ok(text.trim_matches('"').to_owned())
}

/// A document as text.
pub(crate) fn encode<T: serde::Serialize + ?Sized>(
    what: &str,
    value: &T,
) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Document {
        what: format!("write {what}"),
        source,
    })
}

/// A document from text; `what` names it.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(
    what: &str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Document {
        what: format!("read {what}"),
        source,
    })
}
