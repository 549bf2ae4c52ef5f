//! A policy in words, matter by matter, as far as it can be as it is typed at the command line.

use offshoot_model::traffic::{Back, Field, Policy, ProxyVersion, Rule, Sticky, When as Condition};

use super::read;
use crate::format::{bytes, duration};

/// A matter of a policy: what it says now, and where it is changed.
pub(super) struct Setting {
    pub(super) title: &'static str,
    /// Last part of the address of its page.
    pub(super) path: &'static str,
    pub(super) values: Vec<String>,
    /// Whether it says nothing.
    pub(super) is_off: bool,
}

/// Every matter of a policy.
pub(super) fn settings(policy: &Policy) -> Vec<Setting> {
    [
        (
            "Shares",
            "split",
            shares(policy),
            "all requests are answered here",
        ),
        (
            "Rules",
            "rules",
            policy.rules.iter().map(rule).collect(),
            "none",
        ),
        ("Checks", "checks", checks(policy), "off"),
        ("Copies", "copies", copies(policy), "none"),
        ("Bounds", "bounds", bounds(policy), "none"),
    ]
    .map(|(title, path, values, off)| Setting {
        title,
        path,
        is_off: values.is_empty(),
        values: match values.is_empty() {
            true => vec![off.to_owned()],
            false => values,
        },
    })
    .into()
}

fn shares(policy: &Policy) -> Vec<String> {
    if policy.sides.is_empty() {
        return Vec::new();
    }
    let side =
        |side: &offshoot_model::traffic::Side| format!("{} {}", side.environment, side.weight);
    let sides: Vec<_> = policy.sides.iter().map(side).collect();
    let mut lines = vec![sides.join(", ")];
    if policy.sides.len() > 1 {
        lines.push(format!("a visitor stays by {}", sticky(&policy.sticky)));
    }
    lines
}

fn checks(policy: &Policy) -> Vec<String> {
    let Some(failover) = &policy.failover else {
        return Vec::new();
    };
    let check = &failover.check;
    let back = match failover.back {
        Back::Auto => "comes back by itself",
        Back::ByHand => "is brought back by hand",
    };
    vec![
        format!(
            "{} every {}, good within {} with {}{}",
            check.path,
            duration(check.interval_ms.saturating_mul(1_000)),
            duration(check.timeout_ms.saturating_mul(1_000)),
            read::statuses_text(&check.statuses),
            if check.body.is_some() {
                " and a text"
            } else {
                ""
            },
        ),
        format!(
            "down after {}, up after {}; a side {back}",
            check.fall, check.rise
        ),
    ]
}

fn copies(policy: &Policy) -> Vec<String> {
    let mirror = policy.mirror.iter();
    mirror
        .map(|mirror| {
            format!(
                "{} % of the requests to {}, with bodies up to {}",
                read::permille_text(mirror.permille),
                mirror.environment,
                bytes(mirror.body_bytes)
            )
        })
        .collect()
}

fn bounds(policy: &Policy) -> Vec<String> {
    let bounds = &policy.bounds;
    let mut lines = Vec::new();
    let mut add = |number: u32, what: &str| {
        if number > 0 {
            lines.push(format!("{number} {what}"));
        }
    };
    add(
        bounds.client_requests_per_second,
        "requests per second of a client",
    );
    add(bounds.client_burst, "at once above that");
    add(bounds.client_requests, "requests of a client at a time");
    add(bounds.requests_per_second, "requests per second of all");
    if bounds.body_bytes > 0 {
        lines.push(format!("bodies up to {}", bytes(bounds.body_bytes)));
    }
    match policy.send_proxy {
        None => {}
        Some(ProxyVersion::V1) => lines.push("nodes get PROXY headers, version 1".to_owned()),
        Some(ProxyVersion::V2) => lines.push("nodes get PROXY headers, version 2".to_owned()),
    }
    if policy.fence {
        lines.push("nobody is let in: every request is answered 503".to_owned());
    }
    lines
}

fn sticky(sticky: &Sticky) -> String {
    match sticky {
        Sticky::Visitor => "the edge's own cookie".to_owned(),
        Sticky::Client => "the client's address".to_owned(),
        Sticky::Cookie(name) => format!("cookie {name}"),
        Sticky::Header(name) => format!("header {name}"),
        Sticky::Query(name) => format!("query parameter {name}"),
        Sticky::Nothing => "nothing: each request for itself".to_owned(),
    }
}

fn rule(rule: &Rule) -> String {
    let field = |kind: &str, field: &Field| match field.values.as_slice() {
        [] => format!("{kind}:{}", field.name),
        values => format!("{kind}:{}={}", field.name, values.join(",")),
    };
    let conditions = rule.when.iter().map(|when| match when {
        Condition::Path(path) => format!("path:{path}"),
        Condition::Method(methods) => format!("method:{}", methods.join(",")),
        Condition::Client(networks) => format!("client:{}", networks.join(",")),
        Condition::Header(of) => field("header", of),
        Condition::Cookie(of) => field("cookie", of),
        Condition::Query(of) => field("query", of),
    });
    let conditions: Vec<_> = conditions.collect();
    format!("{} → {}", conditions.join(" & "), rule.to)
}
