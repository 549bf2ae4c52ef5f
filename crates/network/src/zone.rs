//! Which names an environment's name server answers for, and with what. No I/O.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use offshoot_model::environment::Placement;

use crate::spec::Names;

/// Answers may be kept this long, seconds: nodes come and go, and a clone's are its own.
const TTL: u32 = 5;

/// The names of one environment.
#[derive(Debug)]
pub(crate) struct Zone {
    placement: Placement,
    hosts: HashMap<String, Vec<u8>>,
    /// The name of each host part, for reverse look-ups.
    reverse: HashMap<u8, String>,
    /// Where the next list of addresses begins, so that clients that take the first spread over all nodes.
    turn: Cell<usize>,
}

/// What is known of a question.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    /// These records; none when the name exists without records of the type.
    Records(Vec<Record>),
    /// The name does not exist, here or anywhere.
    NoSuchName,
    /// Not ours: ask upstream.
    Elsewhere,
}

impl Zone {
    pub(crate) fn new(names: &Names, placement: &Placement) -> Self {
        let mut zone = Self {
            placement: placement.clone(),
            hosts: HashMap::new(),
            reverse: HashMap::new(),
            turn: Cell::new(0),
        };
        for (name, hosts) in names {
            if let &[host] = hosts.as_slice() {
                zone.reverse
                    .entry(host)
                    .or_insert_with(|| name.to_ascii_lowercase());
            }
            zone.hosts
                .entry(name.to_ascii_lowercase())
                .or_default()
                .extend(hosts);
        }
        zone
    }

    /// Answers the question for records of type `kind` of `name`.
    pub(crate) fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        if let Some(address) = reverse_address(name) {
            return self.answer_reverse(name, address, kind);
        }
        let text = name.to_lowercase().to_ascii();
        let text = text.trim_end_matches('.');
        if let Some(hosts) = self.hosts.get(text) {
            return Answer::Records(self.records(name, hosts, kind));
        }
        match text {
            "localhost" => Answer::Records(
                [
                    IpAddr::from(Ipv4Addr::LOCALHOST),
                    IpAddr::from(Ipv6Addr::LOCALHOST),
                ]
                .into_iter()
                .filter_map(|address| record(name, address, kind))
                .collect(),
            ),
            // A dotless name means nothing outside (RFC 7085), and asking would be slow and tell others our names.
            _ if name.num_labels() == 1 => Answer::NoSuchName,
            _ => Answer::Elsewhere,
        }
    }

    fn records(&self, name: &Name, hosts: &[u8], kind: RecordType) -> Vec<Record> {
        let start = self.turn.replace(self.turn.get().wrapping_add(1)) % hosts.len().max(1);
        let turned = hosts.iter().cycle().skip(start).take(hosts.len());
        turned
            .flat_map(|&host| {
                let v6 = self.placement.inner6_at(host).map(IpAddr::V6);
                std::iter::once(IpAddr::V4(self.placement.inner_at(host))).chain(v6)
            })
            .filter_map(|address| record(name, address, kind))
            .collect()
    }

    /// Reverse names of our own networks are answered here, known or not: databases ask for their clients' names,
    /// and an answer that takes seconds holds every connection up.
    fn answer_reverse(&self, name: &Name, address: IpAddr, kind: RecordType) -> Answer {
        let Placement {
            inner,
            outer,
            inner6,
            outer6,
            ..
        } = self.placement;
        let is_in = |net: IpNet| net.contains(&address);
        let inside = [Some(IpNet::V4(inner)), inner6.map(IpNet::V6)]
            .into_iter()
            .flatten()
            .any(is_in);
        let outside = [Some(IpNet::V4(outer)), outer6.map(IpNet::V6)]
            .into_iter()
            .flatten()
            .any(is_in);
        if !inside {
            return if outside {
                Answer::NoSuchName
            } else {
                Answer::Elsewhere
            };
        }
        let host = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        let is_node = [self.placement.inner_at(host).into()]
            .into_iter()
            .chain(self.placement.inner6_at(host).map(IpAddr::V6))
            .any(|known| known == address);
        match self
            .reverse
            .get(&host)
            .filter(|_| is_node)
            .and_then(|text| Name::from_ascii(format!("{text}.")).ok())
        {
            Some(target) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                Answer::Records(vec![Record::from_rdata(
                    name.clone(),
                    TTL,
                    RData::PTR(PTR(target)),
                )])
            }
            Some(_) => Answer::Records(Vec::new()),
            None => Answer::NoSuchName,
        }
    }
}

/// The address that a complete reverse name asks for.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then_some(net.addr())
}

fn record(name: &Name, address: IpAddr, kind: RecordType) -> Option<Record> {
    let data = match (address, kind) {
        (IpAddr::V4(address), RecordType::A | RecordType::ANY) => RData::A(A(address)),
        (IpAddr::V6(address), RecordType::AAAA | RecordType::ANY) => RData::AAAA(AAAA(address)),
        _ => return None,
    };
    Some(Record::from_rdata(name.clone(), TTL, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(v6: bool) -> Zone {
        let placement = Placement {
            id_base: 0,
            id_count: 1,
            inner: "10.9.0.0/24".parse().unwrap(),
            outer: "10.208.0.0/24".parse().unwrap(),
            inner6: v6.then(|| "fd01::/64".parse().unwrap()),
            outer6: v6.then(|| "fd02::/64".parse().unwrap()),
        };
        let names = vec![
            ("web-1".to_owned(), vec![10]),
            ("web-2".to_owned(), vec![11]),
            ("Web".to_owned(), vec![10, 11]),
            ("web-1.shop".to_owned(), vec![10]),
        ];
        Zone::new(&names, &placement)
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> Result<Vec<String>, Answer> {
        match zone.answer(&Name::from_ascii(name).unwrap(), kind) {
            Answer::Records(records) => Ok(records.iter().map(|r| r.data.to_string()).collect()),
            other => Err(other),
        }
    }

    #[test]
    fn nodes_layers_and_full_names_resolve() {
        let zone = zone(true);
        assert_eq!(ask(&zone, "WEB-1.", RecordType::A).unwrap(), ["10.9.0.10"]);
        assert_eq!(
            ask(&zone, "web-1.shop.", RecordType::AAAA).unwrap(),
            ["fd01::a"]
        );
        let first = ask(&zone, "web.", RecordType::A).unwrap();
        let second = ask(&zone, "web.", RecordType::A).unwrap();
        assert_eq!(first.len(), 2);
        assert_ne!(first, second, "the turn moves on");
        assert_eq!(ask(&zone, "web-1.", RecordType::MX).unwrap(), [""; 0]);
        assert_eq!(
            ask(&zone, "localhost.", RecordType::A).unwrap(),
            ["127.0.0.1"]
        );
    }

    #[test]
    fn what_is_not_ours_is_asked_upstream_unless_it_can_be_nowhere() {
        let zone = zone(false);
        assert_eq!(ask(&zone, "web-1.", RecordType::AAAA).unwrap(), [""; 0]);
        assert_eq!(
            ask(&zone, "example.org.", RecordType::A),
            Err(Answer::Elsewhere)
        );
        assert_eq!(
            ask(&zone, "web.example.org.", RecordType::A),
            Err(Answer::Elsewhere)
        );
        assert_eq!(ask(&zone, "wep.", RecordType::A), Err(Answer::NoSuchName));
    }

    #[test]
    fn reverse_names_of_our_networks_never_leave() {
        let zone = zone(true);
        assert_eq!(
            ask(&zone, "11.0.9.10.in-addr.arpa.", RecordType::PTR).unwrap(),
            ["web-2."]
        );
        let v6 = format!("a.{}1.0.d.f.ip6.arpa.", "0.".repeat(27));
        assert_eq!(ask(&zone, &v6, RecordType::PTR).unwrap(), ["web-1."]);
        assert_eq!(
            ask(&zone, "99.0.9.10.in-addr.arpa.", RecordType::PTR),
            Err(Answer::NoSuchName)
        );
        assert_eq!(
            ask(&zone, "1.0.208.10.in-addr.arpa.", RecordType::PTR),
            Err(Answer::NoSuchName)
        );
        assert_eq!(
            ask(&zone, "1.1.168.192.in-addr.arpa.", RecordType::PTR),
            Err(Answer::Elsewhere)
        );
    }
}
