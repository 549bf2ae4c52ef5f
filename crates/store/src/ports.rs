//! Published ports: which environment has which port of the host.

use std::net::IpAddr;

use offshoot_model::environment::PortBinding;
use offshoot_model::manifest::Protocol;
use offshoot_model::{EnvId, Environment};
use rusqlite::params;

use crate::environments::{decode, encode};
use crate::{StoreError, Tx};

/// Whether a socket bound to `a` and one bound to `b` want the same port of the same address. `::` takes IPv4
/// along (ipv6(7), `bindv6only` is 0 by default).
#[must_use]
pub fn overlaps(a: IpAddr, b: IpAddr) -> bool {
    let (a, b) = (a.to_canonical(), b.to_canonical());
    let covers = |wide: IpAddr, other: IpAddr| match wide {
        IpAddr::V4(wide) => wide.is_unspecified() && other.is_ipv4(),
        IpAddr::V6(wide) => wide.is_unspecified(),
    };
    a == b || covers(a, b) || covers(b, a)
}

impl Tx<'_> {
    /// Ports of an environment, in the order of its manifest.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn ports(&self, id: &EnvId) -> Result<Vec<PortBinding>, StoreError> {
        let rows: Vec<String> = self
            .sql
            .prepare_cached("SELECT document FROM ports WHERE environment = ?1 ORDER BY place")
            .and_then(|mut statement| {
                statement
                    .query_map([id.as_str()], |row| row.get(0))?
                    .collect()
            })
            .map_err(StoreError::sql("read ports"))?;
        rows.iter()
            .map(|document| decode("a port", document))
            .collect()
    }

    /// Ports of all environments.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn all_ports(&self) -> Result<Vec<(EnvId, PortBinding)>, StoreError> {
        let rows: Vec<(String, String)> = self
            .sql
            .prepare_cached("SELECT environment, document FROM ports ORDER BY environment, place")
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .map_err(StoreError::sql("read ports"))?;
        rows.iter()
            .map(|(id, document)| {
                let id = id.parse().map_err(|what| StoreError::Undecided { what })?;
                Ok((id, decode("a port", document)?))
            })
            .collect()
    }

    /// Takes one port. The transaction holds the only writer, so what is checked here stays true until the row is
    /// in; the table's key stands behind it.
    pub(crate) fn take_port(
        &self,
        environment: &Environment,
        place: usize,
        binding: &PortBinding,
    ) -> Result<(), StoreError> {
        let undecided = |what: &str| StoreError::Undecided {
            what: format!("a port of environment {} has {what}", environment.name),
        };
        let port = binding
            .port
            .host_port
            .filter(|port| *port != 0)
            .ok_or_else(|| undecided("no host port"))?;
        let ip: IpAddr = binding
            .port
            .host_ip
            .parse()
            .map_err(|_| undecided("no valid host address"))?;
        let ip = ip.to_canonical();
        let protocol = match binding.port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let taken: Vec<(String, String)> = self
            .sql
            .prepare_cached(
                "SELECT environment, host_ip FROM ports WHERE host_port = ?1 AND protocol = ?2",
            )
            .and_then(|mut statement| {
                statement
                    .query_map(params![port, protocol], |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })?
                    .collect()
            })
            .map_err(StoreError::sql("look for a port"))?;
        for (holder, held) in taken {
            if held.parse().is_ok_and(|held| overlaps(ip, held)) {
                return Err(StoreError::PortTaken {
                    binding: Box::new(binding.clone()),
                    holder: self.name_of(&holder)?,
                });
            }
        }
        let place = i64::try_from(place).unwrap_or(i64::MAX);
        self.sql
            .prepare_cached(
                "INSERT INTO ports (environment, host_ip, host_port, protocol, place, document) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .and_then(|mut statement| {
                let document = encode("a port", binding)
                    .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
                statement.execute(params![
                    environment.id.as_str(),
                    ip.to_string(),
                    port,
                    protocol,
                    place,
                    document
                ])
            })
            .map_err(StoreError::sql("take a port"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn addresses() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            Just(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            Just(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            Just(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            any::<IpAddr>(),
        ]
    }

    proptest! {
        #[test]
        fn overlap_is_mutual_and_everything_overlaps_itself(a in addresses(), b in addresses()) {
            prop_assert_eq!(overlaps(a, b), overlaps(b, a));
            prop_assert!(overlaps(a, a));
            prop_assert!(overlaps(a, IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
        }
    }

    #[test]
    fn wildcards() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(overlaps(ip("0.0.0.0"), ip("127.0.0.1")));
        assert!(!overlaps(ip("0.0.0.0"), ip("::1")));
        assert!(overlaps(ip("::"), ip("127.0.0.1")));
        assert!(overlaps(ip("::ffff:127.0.0.1"), ip("127.0.0.1")));
        assert!(!overlaps(ip("127.0.0.1"), ip("127.0.0.2")));
    }
}
