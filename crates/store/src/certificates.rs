//! Certificates: which name has which. Keys and chains are files, never here.

use offshoot_model::certificate::Certificate;
use rusqlite::params;

use crate::environments::{decode, encode};
use crate::{StoreError, Tx};

impl Tx<'_> {
    /// All certificates, by their first name.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn certificates(&self) -> Result<Vec<Certificate>, StoreError> {
        let documents: Vec<String> = self
            .sql
            .prepare_cached("SELECT document FROM certificates ORDER BY id")
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(StoreError::sql("read certificates"))?;
        let mut all = documents
            .iter()
            .map(|document| decode("a certificate", document))
            .collect::<Result<Vec<Certificate>, _>>()?;
        all.sort_by(|one, other| one.names.first().cmp(&other.names.first()));
        Ok(all)
    }

    /// Keeps a certificate and gives it its names; a name has one certificate, so others lose them, and go with their
    /// last one. Answers those others as they were. Done twice it is done once.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn place_certificate(&self, new: &Certificate) -> Result<Vec<Certificate>, StoreError> {
        let mut before = Vec::new();
        for mut other in self.certificates()? {
            if other.id == new.id || !other.names.iter().any(|name| new.names.contains(name)) {
                continue;
            }
            before.push(other.clone());
            other.names.retain(|name| !new.names.contains(name));
            self.keep_or_drop(&other)?;
        }
        self.keep_or_drop(new)?;
        Ok(before)
    }

    /// Takes a certificate away and gives others what they had `before`, but for names that have another one meanwhile.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn take_certificate_back(
        &self,
        id: &str,
        before: &[Certificate],
    ) -> Result<(), StoreError> {
        self.drop_certificate(id)?;
        for mut one in before.iter().cloned() {
            let others = self.certificates()?;
            let others = || others.iter().filter(|other| other.id != one.id);
            let mut names = std::mem::take(&mut one.names);
            names.retain(|name| !others().any(|other| other.names.contains(name)));
            one.names = names;
            self.keep_or_drop(&one)?;
        }
        Ok(())
    }

    /// Takes a name from a certificate, which goes with its last one. Done twice it is done once.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn forget_certificate_name(&self, id: &str, name: &str) -> Result<(), StoreError> {
        let all = self.certificates()?;
        let Some(mut found) = all.into_iter().find(|one| one.id == id) else {
            return Ok(());
        };
        found.names.retain(|own| own != name);
        self.keep_or_drop(&found)
    }

    /// Gives a certificate a name back, unless another has it meanwhile.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn give_certificate_name(
        &self,
        certificate: &Certificate,
        name: &str,
    ) -> Result<(), StoreError> {
        let all = self.certificates()?;
        if all
            .iter()
            .any(|one| one.names.iter().any(|own| own == name))
        {
            return Ok(());
        }
        let mut found = all
            .into_iter()
            .find(|one| one.id == certificate.id)
            .unwrap_or_else(|| Certificate {
                names: Vec::new(),
                ..certificate.clone()
            });
        found.names.push(name.to_owned());
        self.keep_or_drop(&found)
    }

    /// Writes down what is known of a certificate that is there; of one that is not, nothing.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn update_certificate(&self, certificate: &Certificate) -> Result<(), StoreError> {
        let document = encode("a certificate", certificate)?;
        self.sql
            .prepare_cached("UPDATE certificates SET document = ?2 WHERE id = ?1")
            .and_then(|mut statement| statement.execute(params![certificate.id, document]))
            .map_err(StoreError::sql("change a certificate"))?;
        Ok(())
    }

    fn keep_or_drop(&self, certificate: &Certificate) -> Result<(), StoreError> {
        if certificate.names.is_empty() {
            return self.drop_certificate(&certificate.id);
        }
        let document = encode("a certificate", certificate)?;
        self.sql
            .prepare_cached(
                "INSERT INTO certificates (id, document) VALUES (?1, ?2) \
                 ON CONFLICT DO UPDATE SET document = excluded.document",
            )
            .and_then(|mut statement| statement.execute(params![certificate.id, document]))
            .map_err(StoreError::sql("keep a certificate"))?;
        Ok(())
    }

    fn drop_certificate(&self, id: &str) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("DELETE FROM certificates WHERE id = ?1")
            .and_then(|mut statement| statement.execute([id]))
            .map_err(StoreError::sql("remove a certificate"))?;
        Ok(())
    }
}
