//! The nftables rules, as text for `nft -f -` (nft(8)): pure functions, kept honest by golden files.

use ipnet::{Ipv4Net, Ipv6Net};
use offshoot_model::environment::Placement;
use offshoot_model::hold::MAIL_PORTS;

use crate::spec::{BRIDGE, Mail, ROUTER_HOST, UPLINK, host_table_name};

/// Rules inside an environment's router.
///
/// - Between the networks every address is translated one to one (`NETMAP` of old), both ways.
/// - Traffic between nodes is a bridge's business. Where br_netfilter shows it to these hooks all the same (it is on by
///   default in every new namespace once some other software loaded it), it passes untracked and unchanged: tracking
///   it would change what a cut captured.
/// - The router itself answers name queries and echo requests, nothing else, and a node cannot send under another
///   network's address.
#[must_use]
pub fn router_rules(placement: &Placement) -> String {
    let Placement { inner, outer, .. } = placement;
    let router = placement.outer_at(ROUTER_HOST);
    let mut rules = format!(
        "\
table ip offshoot
delete table ip offshoot
table ip offshoot {{
	chain untracked_in {{
		type filter hook prerouting priority raw; policy accept;
		ip saddr {inner} ip daddr {inner} notrack
	}}
	chain untracked_out {{
		type filter hook output priority raw; policy accept;
		ip saddr {inner} ip daddr {inner} notrack
	}}
	chain inward {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname \"{UPLINK}\" ip daddr != {router} dnat ip prefix to ip daddr map {{ {outer} : {inner} }}
	}}
	chain outward {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname \"{UPLINK}\" snat ip prefix to ip saddr map {{ {inner} : {outer} }}
	}}
	chain through {{
		type filter hook forward priority filter; policy drop;
		iifname \"{BRIDGE}\" oifname \"{BRIDGE}\" accept
		iifname \"{BRIDGE}\" oifname \"{UPLINK}\" ip saddr {inner} accept
		iifname \"{UPLINK}\" oifname \"{BRIDGE}\" ip daddr {inner} accept
	}}
	chain here {{
		type filter hook input priority filter; policy drop;
		iifname \"lo\" accept
		iifname \"{BRIDGE}\" udp dport 53 accept
		iifname \"{BRIDGE}\" tcp dport 53 accept
		icmp type {{ echo-request, destination-unreachable, time-exceeded, parameter-problem }} accept
	}}
}}
"
    );
    if let (Some(inner), Some(outer), Some(router)) = (
        placement.inner6,
        placement.outer6,
        placement.outer6_at(ROUTER_HOST),
    ) {
        rules.push_str(&format!(
            "\
table ip6 offshoot
delete table ip6 offshoot
table ip6 offshoot {{
	chain untracked_in {{
		type filter hook prerouting priority raw; policy accept;
		ip6 saddr {inner} ip6 daddr {inner} notrack
		icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} notrack
	}}
	chain untracked_out {{
		type filter hook output priority raw; policy accept;
		ip6 saddr {inner} ip6 daddr {inner} notrack
		icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} notrack
	}}
	chain inward {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname \"{UPLINK}\" ip6 daddr != {router} dnat ip6 prefix to ip6 daddr map {{ {outer} : {inner} }}
	}}
	chain outward {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname \"{UPLINK}\" snat ip6 prefix to ip6 saddr map {{ {inner} : {outer} }}
	}}
	chain through {{
		type filter hook forward priority filter; policy drop;
		iifname \"{BRIDGE}\" oifname \"{BRIDGE}\" accept
		iifname \"{BRIDGE}\" oifname \"{UPLINK}\" ip6 saddr {inner} accept
		iifname \"{UPLINK}\" oifname \"{BRIDGE}\" ip6 daddr {inner} accept
	}}
	chain here {{
		type filter hook input priority filter; policy drop;
		iifname \"lo\" accept
		iifname \"{BRIDGE}\" udp dport 53 accept
		iifname \"{BRIDGE}\" tcp dport 53 accept
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request, destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} accept
	}}
}}
"
        ));
    }
    rules
}

/// Rules inside an environment's router that keep its mail, in a table of their own beside [`router_rules`]; held or not, they replace
/// what was there in one transaction.
///
/// A connection to where mail is handed over ([`MAIL_PORTS`]) outside of the environment is reset at once, so that programs get an
/// error and try again later, instead of a wait. Those that are open are reset at their next segment. Inside the environment nothing
/// passes here.
#[must_use]
pub fn mail_rules(mail: Mail) -> String {
    let mut rules = "table inet offshoot_held\ndelete table inet offshoot_held\n".to_owned();
    if mail == Mail::Held {
        let ports = MAIL_PORTS.map(|port| port.to_string()).join(", ");
        rules.push_str(&format!(
            "\
table inet offshoot_held {{
	chain mail {{
		type filter hook forward priority filter - 1; policy accept;
		iifname \"{BRIDGE}\" oifname \"{UPLINK}\" tcp dport {{ {ports} }} reject with tcp reset
	}}
}}
"
        ));
    }
    rules
}

/// Rules on the host, for all environments of one instance.
///
/// - Environments do not reach each other, nor those of other instances whose tables say the same of theirs.
/// - From beyond the host nobody reaches a node directly: only the edge and published ports lead there.
/// - What leaves the host is masqueraded; its answers come back.
///
/// Another table that drops forwarded packets (Docker's, firewalld's) still does: nftables drops what any table drops.
#[must_use]
pub fn host_rules(instance: &str, outer_pool: Ipv4Net, outer_pool6: Option<Ipv6Net>) -> String {
    let table = host_table_name(instance);
    let ours = format!("\"{instance}-*\"");
    let pool6 = |rule: &dyn Fn(Ipv6Net) -> String| outer_pool6.map(rule).unwrap_or_default();
    let not_pool6 = pool6(&|pool| format!("\t\tiifname {ours} ip6 saddr != {pool} drop\n"));
    let to_pool6 = pool6(&|pool| format!("\t\tiifname {ours} ip6 daddr {pool} drop\n"));
    let masquerade6 = pool6(&|pool| format!("\t\tip6 saddr {pool} oifname != {ours} masquerade\n"));
    format!(
        "\
table inet {table}
delete table inet {table}
table inet {table} {{
	chain through {{
		type filter hook forward priority filter; policy accept;
		iifname != {ours} oifname != {ours} accept
		iifname {ours} oifname {ours} drop
		iifname {ours} ip saddr != {outer_pool} drop
{not_pool6}\
		iifname {ours} ip daddr {outer_pool} drop
{to_pool6}\
		oifname {ours} ct state established,related accept
		oifname {ours} drop
	}}
	chain outward {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {outer_pool} oifname != {ours} masquerade
{masquerade6}\
	}}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(v6: bool) -> Placement {
        Placement {
            id_base: 100_000,
            id_count: 65_536,
            inner: "10.9.0.0/24".parse().unwrap(),
            outer: "10.208.3.0/24".parse().unwrap(),
            inner6: v6.then(|| "fd6f:6666::/64".parse().unwrap()),
            outer6: v6.then(|| "fd6f:6667:0:3::/64".parse().unwrap()),
        }
    }

    #[test]
    fn router_rules_are_as_agreed() {
        insta::assert_snapshot!("router", router_rules(&placement(false)));
        insta::assert_snapshot!("router_v6", router_rules(&placement(true)));
    }

    #[test]
    fn mail_rules_are_as_agreed() {
        insta::assert_snapshot!("mail_held", mail_rules(Mail::Held));
        insta::assert_snapshot!("mail_passes", mail_rules(Mail::Passes));
    }

    #[test]
    fn host_rules_are_as_agreed() {
        insta::assert_snapshot!(
            "host",
            host_rules("os", "10.208.0.0/12".parse().unwrap(), None)
        );
        let pool6 = Some("fd6f:6667::/48".parse().unwrap());
        insta::assert_snapshot!(
            "host_v6",
            host_rules("os", "10.208.0.0/12".parse().unwrap(), pool6)
        );
    }
}
