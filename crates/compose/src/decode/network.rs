//! Ports, names and networks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use offshoot_model::manifest::{Protocol, PublishedPort};

use offshoot_model::name::{LABEL_MAX, is_label};

use crate::diagnostic::Report;
use crate::field::{At, Fields};

/// Most ports that one entry may stand for.
const MAX_RANGE: u16 = 200;
/// Most ports of one layer.
const MAX_PORTS: usize = 1000;
/// Longest name that DNS carries (RFC 1035, 2.3.4).
const HOST_NAME_MAX: usize = 253;
/// Compose's default: every address of the host.
const EVERY_ADDRESS: &str = "0.0.0.0";

/// `ports`.
pub(super) fn ports(at: &At<'_>, report: &mut Report) -> Vec<PublishedPort> {
    let mut ports: Vec<PublishedPort> = Vec::new();
    for item in at.list(report) {
        let parsed = if item.is_text() {
            item.parse(report, short)
        } else {
            long(&item, report)
        };
        if ports.len() > MAX_PORTS {
            at.unsupported(
                report,
                format!("a layer publishes at most {MAX_PORTS} ports"),
            );
            break;
        }
        for port in parsed.unwrap_or_default() {
            let taken = |other: &PublishedPort| {
                other.host_port.is_some()
                    && (other.host_port, other.protocol, &other.host_ip)
                        == (port.host_port, port.protocol, &port.host_ip)
            };
            if let Some(other) = ports.iter().find(|other| taken(other)) {
                let host_port = other.host_port.unwrap_or_default();
                item.invalid(
                    report,
                    format!("the host's port {host_port} is published twice"),
                );
            } else if !ports.contains(&port) {
                ports.push(port);
            }
        }
    }
    ports
}

/// `[[IP:]HOST:]TARGET[/PROTOCOL]`, where ports may be ranges.
fn short(text: &str) -> Result<Vec<PublishedPort>, String> {
    let (rest, protocol) = match text.trim().split_once('/') {
        Some((rest, protocol)) => (rest, protocol_of(protocol)?),
        None => (text.trim(), Protocol::Tcp),
    };
    let (rest, target) = match rest.rsplit_once(':') {
        Some((rest, target)) => (Some(rest), target),
        None => (None, rest),
    };
    let (host_ip, published) = match rest {
        None => (None, None),
        Some(rest) if rest.starts_with('[') => {
            let (ip, published) = rest
                .split_once(']')
                .ok_or_else(|| format!("{text:?} has no closing bracket"))?;
            (
                Some(ip.trim_start_matches('[')),
                Some(published.trim_start_matches(':')),
            )
        }
        Some(rest) => match rest.rsplit_once(':') {
            Some((ip, published)) => (Some(ip), Some(published)),
            None => (None, Some(rest)),
        },
    };
    expand(
        host_ip,
        published.filter(|p| !p.is_empty()),
        range(target)?,
        protocol,
    )
}

fn expand(
    host_ip: Option<&str>,
    published: Option<&str>,
    (first, last): (u16, u16),
    protocol: Protocol,
) -> Result<Vec<PublishedPort>, String> {
    if first == 0 {
        return Err("0 is not a port of a node".to_owned());
    }
    let host_ip = match host_ip {
        None | Some("") => EVERY_ADDRESS.to_owned(),
        Some(ip) => ip
            .parse::<IpAddr>()
            .map_err(|_| format!("{ip:?} is not an address"))?
            .to_string(),
    };
    let host_first = match published.map(range).transpose()? {
        None => None,
        Some((0, 0)) => None,
        Some((host_first, host_last)) if host_last - host_first == last - first => Some(host_first),
        Some(_) if first == last => {
            return Err("a range of host ports for one port is not supported; name one, or none to have one chosen".to_owned());
        }
        Some(_) => return Err("the two ranges are not equally long".to_owned()),
    };
    let port = |target: u16| PublishedPort {
        host_ip: host_ip.clone(),
        host_port: host_first.map(|host| host + (target - first)),
        target,
        protocol,
    };
    Ok((first..=last).map(port).collect())
}

/// A port, or `first-last`.
fn range(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| {
        text.trim()
            .parse::<u16>()
            .map_err(|_| format!("{text:?} is not a port, 1 to 65535"))
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if first > last {
        return Err(format!("the range {text} runs backwards"));
    }
    if last - first >= MAX_RANGE {
        return Err(format!(
            "a range of more than {MAX_RANGE} ports is not supported"
        ));
    }
    Ok((first, last))
}

fn protocol_of(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(format!("the protocol {text:?} is neither tcp nor udp")),
    }
}

fn long(at: &At<'_>, report: &mut Report) -> Option<Vec<PublishedPort>> {
    let mut fields = at.fields(report);
    let target = fields
        .get("target")
        .and_then(|at| at.number(report, 1, 65_535))
        .and_then(|n| u16::try_from(n).ok());
    let published = fields.get("published").and_then(|at| at.word(report));
    let host_ip = fields.get("host_ip").and_then(|at| at.word(report));
    let protocol = fields
        .get("protocol")
        .and_then(|at| at.parse(report, protocol_of))
        .unwrap_or_default();
    if let Some(at) = fields.get("mode")
        && at
            .word(report)
            .is_some_and(|mode| mode != "host" && mode != "ingress")
    {
        at.invalid(report, "is neither host nor ingress");
    }
    for name in ["name", "app_protocol"] {
        fields.ignore(report, name, "is for information and ignored");
    }
    if target.is_none() {
        fields.invalid(report, "has no target");
    }
    fields.finish(report);
    let target = target?;
    match expand(host_ip, published, (target, target), protocol) {
        Ok(ports) => Some(ports),
        Err(message) => {
            at.invalid(report, message);
            None
        }
    }
}

/// `expose`: TCP ports.
pub(super) fn expose(at: &At<'_>, report: &mut Report) -> Vec<u16> {
    let mut ports = Vec::new();
    for item in at.list(report) {
        let Some(text) = item.word(report) else {
            continue;
        };
        let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        match (protocol_of(protocol), range(text)) {
            (Ok(Protocol::Tcp), Ok((first, last))) if first > 0 => ports.extend(first..=last),
            // For information only, and the model knows TCP.
            (Ok(Protocol::Udp), Ok(_)) => {}
            (Err(message), _) | (_, Err(message)) => item.invalid(report, message),
            (Ok(_), Ok(_)) => item.invalid(report, "0 is not a port"),
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// `extra_hosts`.
pub(super) fn extra_hosts(at: &At<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let mut hosts = BTreeMap::new();
    for (name, at) in at.entries(report) {
        let valid = !name.is_empty()
            && name.len() <= 253
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if !valid {
            at.invalid(report, format!("{name:?} is not a host name"));
            continue;
        }
        if !at.is_text() {
            at.unsupported(report, "one address for each name is supported");
            continue;
        }
        let Some(text) = at.word(report) else {
            continue;
        };
        let text = text.trim().trim_start_matches('[').trim_end_matches(']');
        if text == "host-gateway" {
            at.unsupported(
                report,
                "nodes do not reach services of the host by this name; write the host's address",
            );
        } else if let Ok(address) = text.parse::<IpAddr>() {
            hosts.insert(name.to_owned(), address.to_string());
        } else {
            at.invalid(report, format!("{text:?} is not an address"));
        }
    }
    hosts
}

/// A network of the top level: all are one here.
pub(super) fn top_level(name: &str, at: &At<'_>, report: &mut Report) {
    let mut fields = at.fields(report);
    if let Some(external) = fields.get("external")
        && (!external.is_text() || external.boolean(report) == Some(true))
    {
        external.unsupported(
            report,
            "networks of others cannot be joined; an environment has one of its own",
        );
    }
    if name != "default" {
        at.warn(
            report,
            "separates nothing: all layers of an environment share its one network",
        );
    }
    if let Some(at) = fields.get("internal")
        && at.boolean(report) == Some(true)
    {
        at.warn(report, "is ignored; nodes reach the outside");
    }
    for name in [
        "name",
        "driver",
        "driver_opts",
        "ipam",
        "labels",
        "attachable",
        "enable_ipv6",
        "enable_ipv4",
    ] {
        fields.ignore(
            report,
            name,
            "is ignored; Offshoot sets up the environment's network",
        );
    }
    fields.finish(report);
}

/// `networks` of a service. All layers are on the environment's network; what counts is the names they have there.
pub(super) fn joined(at: &At<'_>, declared: &[&str], report: &mut Report) -> Vec<String> {
    let mut names = Vec::new();
    for (name, at) in at.entries(report) {
        if !declared.contains(&name) {
            at.invalid(
                report,
                format!("there is no network {name:?} under the top-level networks"),
            );
        }
        let mut fields = at.fields(report);
        if let Some(aliases) = fields.get("aliases") {
            for alias in aliases.list(report) {
                names.extend(alias.parse(report, host_name));
            }
        }
        for name in [
            "ipv4_address",
            "ipv6_address",
            "link_local_ips",
            "mac_address",
        ] {
            fields.refuse(report, name, "Offshoot chooses the addresses; use names");
        }
        for name in ["priority", "gw_priority", "interface_name", "driver_opts"] {
            fields.ignore(report, name, "is ignored; there is one network");
        }
        fields.finish(report);
    }
    names
}

/// A name that can be asked for by DNS; underscores are allowed, as Compose allows them in names of services.
fn host_name(text: &str) -> Result<String, String> {
    let name = text.trim().to_ascii_lowercase();
    let is_label = |label: &str| is_label(&label.replace('_', "-"), LABEL_MAX);
    if name.len() <= HOST_NAME_MAX && name.split('.').all(is_label) {
        Ok(name)
    } else {
        Err(format!("{text:?} is not a host name"))
    }
}

/// Fields about networks that are warned about or refused.
pub(super) fn others(fields: &mut Fields<'_>, report: &mut Report) {
    if let Some(at) = fields.get("network_mode") {
        match at.word(report) {
            None | Some("bridge" | "default") => {
                at.warn(report, "is ignored; every environment has its own network")
            }
            Some(_) => at.unsupported(
                report,
                "every environment has its own network; leave this out",
            ),
        }
    }
    for name in ["dns", "dns_search", "dns_opt", "domainname"] {
        fields.ignore(
            report,
            name,
            "is ignored; names are resolved by the environment's own DNS server",
        );
    }
    fields.refuse(report, "mac_address", "Offshoot chooses the addresses");
    fields.refuse(
        report,
        "external_links",
        "containers outside the environment cannot be linked",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        match short(text) {
            Err(error) => error,
            Ok(ports) => {
                let show = |p: &PublishedPort| {
                    let host = p.host_port.map_or("-".to_owned(), |port| port.to_string());
                    format!("{}|{host}|{}|{:?}", p.host_ip, p.target, p.protocol)
                };
                ports.iter().map(show).collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn short_forms() {
        for (text, expected) in [
            ("3000", "0.0.0.0|-|3000|Tcp"),
            ("3000-3001", "0.0.0.0|-|3000|Tcp 0.0.0.0|-|3001|Tcp"),
            ("8000:80", "0.0.0.0|8000|80|Tcp"),
            ("9090-9091:80-81", "0.0.0.0|9090|80|Tcp 0.0.0.0|9091|81|Tcp"),
            ("127.0.0.1:8001:8001", "127.0.0.1|8001|8001|Tcp"),
            ("127.0.0.1::80", "127.0.0.1|-|80|Tcp"),
            ("6060:6060/udp", "0.0.0.0|6060|6060|Udp"),
            ("[::1]:80:81", "::1|80|81|Tcp"),
            ("::1:80:81", "::1|80|81|Tcp"),
            ("0:80", "0.0.0.0|-|80|Tcp"),
        ] {
            assert_eq!(show(text), expected, "{text}");
        }
        for bad in [
            "",
            "x",
            "70000",
            "80/sctp",
            "1.2.3:80:80",
            "3-1",
            "1-9999",
            "80-81:1-3",
            "80-90:1",
            "a:b:c:d",
            "65535-65536",
        ] {
            assert!(short(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[0-9a-f:.\\[\\]/-]{0,24}") {
            let _ = short(&text);
        }
    }
}
