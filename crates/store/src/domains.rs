//! Custom domains: who has which, and what two environments had after their last swap.

use jiff::Timestamp;
use offshoot_model::domain::{DomainHttps, DomainView};
use offshoot_model::view::Event;
use offshoot_model::{Domain, EnvId, Operation, OperationId};
use rusqlite::{OptionalExtension as _, params};

use crate::environments::{decode, encode};
use crate::{StoreError, Tx};

/// Who holds a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainHolder {
    /// The domain.
    pub domain: Domain,
    /// The environment.
    pub environment: EnvId,
    /// When it was added.
    pub added: Timestamp,
    /// What requests without TLS get.
    pub https: DomainHttps,
}

/// The custom domains of two environments right after their last swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastSwap {
    /// One of them.
    pub one: (EnvId, Vec<Domain>),
    /// The other.
    pub other: (EnvId, Vec<Domain>),
}

impl LastSwap {
    /// The two in the order in which they are kept.
    fn ordered(&self) -> [&(EnvId, Vec<Domain>); 2] {
        if self.one.0 < self.other.0 {
            [&self.one, &self.other]
        } else {
            [&self.other, &self.one]
        }
    }
}

impl Tx<'_> {
    /// Gives an environment domains, all or none. Those it has already stay as they are.
    ///
    /// # Errors
    /// [`StoreError::DomainTaken`] when another environment has one of them, or it is just being removed;
    /// [`StoreError::EnvironmentUnknown`].
    pub fn add_domains(
        &self,
        id: &EnvId,
        domains: &[Domain],
        by: OperationId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.name_of(id.as_str())?;
        for domain in domains {
            match self.domain_row(domain)? {
                Some((holder, None)) if holder == id.as_str() => {}
                Some((holder, _)) => {
                    return Err(StoreError::DomainTaken {
                        domain: domain.clone(),
                        holder: self.name_of(&holder)?,
                    });
                }
                None => {
                    self.sql
                        .prepare_cached(
                            "INSERT INTO domains (host, path, environment, added, added_by) VALUES (?1, ?2, ?3, ?4, ?5)",
                        )
                        .and_then(|mut statement| {
                            statement.execute(params![
                                domain.host,
                                domain.path,
                                id.as_str(),
                                at.to_string(),
                                by.to_string()
                            ])
                        })
                        .map_err(StoreError::sql("add a domain"))?;
                }
            }
        }
        Ok(())
    }

    /// Takes back what an operation added.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn take_domains_back(&self, by: OperationId) -> Result<(), StoreError> {
        self.domains_by("DELETE FROM domains WHERE added_by = ?1", by)
    }

    /// Marks a domain as leaving its environment: it is no longer told by [`Tx::domains`], and nobody else can have
    /// it until the operation has ended. Done twice by one operation it is done once.
    ///
    /// # Errors
    /// [`StoreError::DomainUnknown`] when the environment does not have it.
    pub fn let_domain_leave(
        &self,
        id: &EnvId,
        domain: &Domain,
        by: OperationId,
    ) -> Result<(), StoreError> {
        let rows = self
            .sql
            .prepare_cached(
                "UPDATE domains SET leaving = ?4 WHERE host = ?1 AND path = ?2 AND environment = ?3 \
                 AND (leaving IS NULL OR leaving = ?4)",
            )
            .and_then(|mut statement| {
                statement.execute(params![
                    domain.host,
                    domain.path,
                    id.as_str(),
                    by.to_string()
                ])
            })
            .map_err(StoreError::sql("mark a domain"))?;
        if rows == 0 {
            return Err(StoreError::DomainUnknown {
                domain: domain.clone(),
                environment: self.name_of(id.as_str())?,
            });
        }
        Ok(())
    }

    /// Lets domains stay that an operation was about to remove.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn let_domains_stay(&self, by: OperationId) -> Result<(), StoreError> {
        self.domains_by("UPDATE domains SET leaving = NULL WHERE leaving = ?1", by)
    }

    /// Ends an operation and removes the domains that it marked.
    ///
    /// # Errors
    /// [`StoreError::OperationUnknown`].
    pub fn finish_with_domains_gone(&self, operation: &Operation) -> Result<Event, StoreError> {
        self.domains_by("DELETE FROM domains WHERE leaving = ?1", operation.id)?;
        self.update_operation(operation)
    }

    /// Gives each of these domains to its environment, all or none. Where all is so already nothing changes.
    ///
    /// # Errors
    /// [`StoreError::DomainsChanged`] when one of them is gone or is just being removed; those of the database when an
    /// environment is gone.
    pub fn place_domains(&self, places: &[(Domain, EnvId)]) -> Result<(), StoreError> {
        for (domain, id) in places {
            let rows = self
                .sql
                .prepare_cached(
                    "UPDATE domains SET environment = ?3 WHERE host = ?1 AND path = ?2 AND leaving IS NULL",
                )
                .and_then(|mut statement| {
                    statement.execute(params![domain.host, domain.path, id.as_str()])
                })
                .map_err(StoreError::sql("move a domain"))?;
            if rows == 0 {
                return Err(StoreError::DomainsChanged {
                    domain: domain.clone(),
                });
            }
        }
        Ok(())
    }

    /// Ends an operation and remembers what the two environments have after it.
    ///
    /// # Errors
    /// [`StoreError::OperationUnknown`].
    pub fn finish_with_swap(
        &self,
        operation: &Operation,
        swap: &LastSwap,
    ) -> Result<Event, StoreError> {
        let [(first, firsts), (second, seconds)] = swap.ordered();
        let document = encode("a swap", &(firsts, seconds))?;
        self.sql
            .prepare_cached(
                "INSERT INTO swaps (first, second, document) VALUES (?1, ?2, ?3) \
                 ON CONFLICT DO UPDATE SET document = excluded.document",
            )
            .and_then(|mut statement| {
                statement.execute(params![first.as_str(), second.as_str(), document])
            })
            .map_err(StoreError::sql("remember a swap"))?;
        self.update_operation(operation)
    }

    /// Says what requests without TLS get at a domain, whoever has it.
    ///
    /// # Errors
    /// [`StoreError::DomainsChanged`] when nobody has it.
    pub fn set_domain_https(&self, domain: &Domain, https: DomainHttps) -> Result<(), StoreError> {
        let rows = self
            .sql
            .prepare_cached("UPDATE domains SET https = ?3 WHERE host = ?1 AND path = ?2")
            .and_then(|mut statement| {
                statement.execute(params![domain.host, domain.path, https.to_string()])
            })
            .map_err(StoreError::sql("change a domain"))?;
        if rows == 0 {
            return Err(StoreError::DomainsChanged {
                domain: domain.clone(),
            });
        }
        Ok(())
    }

    /// What two environments had after their last swap, if there was one; the answer names them in the order asked.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn last_swap(&self, one: &EnvId, other: &EnvId) -> Result<Option<LastSwap>, StoreError> {
        let turned = one > other;
        let (first, second) = if turned { (other, one) } else { (one, other) };
        let document: Option<String> = self
            .sql
            .prepare_cached("SELECT document FROM swaps WHERE first = ?1 AND second = ?2")
            .and_then(|mut statement| {
                statement
                    .query_row([first.as_str(), second.as_str()], |row| row.get(0))
                    .optional()
            })
            .map_err(StoreError::sql("read a swap"))?;
        let Some(document) = document else {
            return Ok(None);
        };
        let (firsts, seconds): (Vec<Domain>, Vec<Domain>) =
            decode(&format!("the swap of {first} and {second}"), &document)?;
        let (ones, others) = if turned {
            (seconds, firsts)
        } else {
            (firsts, seconds)
        };
        Ok(Some(LastSwap {
            one: (one.clone(), ones),
            other: (other.clone(), others),
        }))
    }

    /// Custom domains of an environment, by name, without those that are leaving.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn domains(&self, id: &EnvId) -> Result<Vec<DomainView>, StoreError> {
        let all = self.holders("WHERE environment = ?1 AND leaving IS NULL", &[id.as_str()])?;
        Ok(all
            .into_iter()
            .map(|held| DomainView {
                host: held.domain.host,
                path: held.domain.path,
                added: held.added,
                https: held.https,
                redirect: None,
            })
            .collect())
    }

    /// Who has a domain, also while it leaves.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn domain_holder(&self, domain: &Domain) -> Result<Option<DomainHolder>, StoreError> {
        let condition = "WHERE host = ?1 AND path = ?2";
        Ok(self
            .holders(condition, &[&domain.host, &domain.path])?
            .pop())
    }

    fn domain_row(&self, domain: &Domain) -> Result<Option<(String, Option<String>)>, StoreError> {
        self.sql
            .prepare_cached(
                "SELECT environment, leaving FROM domains WHERE host = ?1 AND path = ?2",
            )
            .and_then(|mut statement| {
                statement
                    .query_row([&domain.host, &domain.path], |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })
                    .optional()
            })
            .map_err(StoreError::sql("look for a domain"))
    }

    fn domains_by(&self, sql: &str, by: OperationId) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([by.to_string()]))
            .map_err(StoreError::sql("change domains"))?;
        Ok(())
    }

    fn holders(&self, condition: &str, values: &[&str]) -> Result<Vec<DomainHolder>, StoreError> {
        let rows: Vec<(String, String, String, String, String)> = self
            .sql
            .prepare_cached(&format!(
                "SELECT host, path, environment, added, https FROM domains {condition} ORDER BY host, path"
            ))
            .and_then(|mut statement| {
                statement
                    .query_map(rusqlite::params_from_iter(values), |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
                    })?
                    .collect()
            })
            .map_err(StoreError::sql("read domains"))?;
        let read =
            |(host, path, environment, added, https): (String, String, String, String, String)| {
                let text = |text: String| serde_json::Value::String(text).to_string();
                let what = format!("domain {host}{path}");
                Ok(DomainHolder {
                    environment: decode(&what, &text(environment))?,
                    added: decode(&what, &text(added))?,
                    https: decode(&what, &text(https))?,
                    domain: Domain { host, path },
                })
            };
        rows.into_iter().map(read).collect()
    }
}
