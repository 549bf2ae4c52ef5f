//! Whether a policy can be carried out.

use std::collections::HashSet;
use std::hash::Hash;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::{Check, Failover, Goal, Mirror, Policy, Sticky, TRAFFIC_MAX, WEIGHT_MAX, When};

/// Longest name, value, path or text in a policy, bytes.
const TEXT_MAX: usize = 1_024;
const BODY_MAX: u64 = 16 << 20;

impl<E: Eq + Hash> Policy<E> {
    /// Whether everything is within its bounds and agrees with the rest. Whether the environments exist is not looked at.
    ///
    /// # Errors
    /// What is wrong, in a sentence without a final dot.
    pub fn check(&self) -> Result<(), String> {
        self.check_sides()?;
        for rule in &self.rules {
            if rule.when.is_empty() || rule.when.len() > TRAFFIC_MAX {
                return Err(format!("a rule needs 1 to {TRAFFIC_MAX} conditions"));
            }
            if !self.sides.iter().any(|side| side.environment == rule.to) {
                return Err("a rule leads to an environment that is no side".to_owned());
            }
            rule.when.iter().try_for_each(check_when)?;
        }
        match &self.sticky {
            Sticky::Cookie(name) | Sticky::Header(name) => token(name)?,
            Sticky::Query(name) => text("the name of a query parameter", name)?,
            Sticky::Visitor | Sticky::Client | Sticky::Nothing => {}
        }
        if let Some(failover) = &self.failover {
            check_failover(failover)?;
        }
        if let Some(mirror) = &self.mirror {
            self.check_mirror(mirror)?;
        }
        let mut names = HashSet::new();
        for goal in &self.goals {
            check_goal(goal)?;
            if !names.insert(&goal.name) {
                return Err(format!("two goals have the name {}", goal.name));
            }
        }
        for (what, many) in [("rules", self.rules.len()), ("goals", self.goals.len())] {
            if many > TRAFFIC_MAX {
                return Err(format!("{many} {what} are too many, at most {TRAFFIC_MAX}"));
            }
        }
        Ok(())
    }

    fn check_sides(&self) -> Result<(), String> {
        if self.sides.len() > TRAFFIC_MAX {
            let many = self.sides.len();
            return Err(format!("{many} sides are too many, at most {TRAFFIC_MAX}"));
        }
        let mut seen = HashSet::new();
        for side in &self.sides {
            if !seen.insert(&side.environment) {
                return Err("an environment is a side twice".to_owned());
            }
            if side.weight > WEIGHT_MAX {
                return Err(format!("a weight is at most {WEIGHT_MAX}"));
            }
        }
        if !self.sides.is_empty() && self.sides.iter().all(|side| side.weight == 0) {
            return Err("one side at least needs a weight".to_owned());
        }
        Ok(())
    }

    fn check_mirror(&self, mirror: &Mirror<E>) -> Result<(), String> {
        within("the share of a mirror", mirror.permille, 1..=1_000)?;
        if mirror.body_bytes > BODY_MAX {
            return Err(format!("a mirror takes bodies up to {BODY_MAX} bytes"));
        }
        if self
            .sides
            .iter()
            .any(|side| side.environment == mirror.environment)
        {
            return Err(
                "the mirror is a side: its visitors' data would be written twice".to_owned(),
            );
        }
        mirror.ignore.iter().try_for_each(|name| token(name))
    }
}

fn check_when(when: &When) -> Result<(), String> {
    match when {
        When::Path(path) => check_path(path),
        When::Method(methods) if methods.is_empty() => Err("no method is named".to_owned()),
        When::Method(methods) => methods.iter().try_for_each(|method| token(method)),
        When::Header(field) | When::Cookie(field) => {
            token(&field.name)?;
            field
                .values
                .iter()
                .try_for_each(|value| text("a value", value))
        }
        When::Query(field) => {
            text("the name of a query parameter", &field.name)?;
            field
                .values
                .iter()
                .try_for_each(|value| text("a value", value))
        }
        When::Client(networks) if networks.is_empty() => Err("no network is named".to_owned()),
        When::Client(networks) => networks.iter().try_for_each(|text| match network(text) {
            Some(_) => Ok(()),
            None => Err(format!("{text:?} is neither an address nor a network")),
        }),
    }
}

/// An address or a network as [`When::Client`] has it.
#[must_use]
pub fn network(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| Some(IpNet::from(text.parse::<std::net::IpAddr>().ok()?)))
}

fn check_failover(failover: &Failover) -> Result<(), String> {
    let Check {
        path,
        host,
        interval_ms,
        timeout_ms,
        rise,
        fall,
        statuses,
        body,
    } = &failover.check;
    check_path(path.split('?').next().unwrap_or_default())?;
    text("the path of a check", path)?;
    if let Some(host) = host {
        text("the host of a check", host)?;
    }
    if let Some(body) = body {
        text("the body of a check", body)?;
    }
    within("the interval of a check", *interval_ms, 100..=600_000)?;
    within("the time-out of a check", *timeout_ms, 10..=60_000)?;
    within("rise", *rise, 1..=100)?;
    within("fall", *fall, 1..=100)?;
    if statuses.is_empty() || statuses.len() > TRAFFIC_MAX {
        return Err(format!("a check needs 1 to {TRAFFIC_MAX} good statuses"));
    }
    statuses
        .iter()
        .try_for_each(|range| check_statuses(*range))?;
    match &failover.passive {
        Some(passive) => within("passive failures", passive.failures, 1..=1_000),
        None => Ok(()),
    }
}

fn check_goal(goal: &Goal) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if goal.name.is_empty() || goal.name.len() > 32 || !goal.name.bytes().all(plain) {
        return Err(format!(
            "{:?} is no name for a goal: 1 to 32 letters, digits and -",
            goal.name
        ));
    }
    if let Some(path) = &goal.path {
        check_path(path)?;
    }
    if let Some(method) = &goal.method {
        token(method)?;
    }
    check_statuses(goal.statuses)
}

fn check_statuses((from, to): (u16, u16)) -> Result<(), String> {
    if !(100..=599).contains(&from) || !(from..=599).contains(&to) {
        return Err(format!("{from} to {to} are no statuses"));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), String> {
    text("a path", path)?;
    if path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(format!(
        "{path:?} is no path: it begins with / and has no spaces"
    ))
}

/// A name as methods, header fields and cookies have it (RFC 9110, 5.6.2).
fn token(name: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(fits) {
        return Err(format!(
            "{name:?} is no name of a header field, cookie or method"
        ));
    }
    Ok(())
}

fn text(what: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > TEXT_MAX || text.chars().any(char::is_control) {
        let begin: String = text.chars().take(60).collect();
        return Err(format!(
            "{what} has 1 to {TEXT_MAX} bytes and no control characters: {begin:?}"
        ));
    }
    Ok(())
}

fn within<T: PartialOrd + std::fmt::Display>(
    what: &str,
    value: T,
    bounds: RangeInclusive<T>,
) -> Result<(), String> {
    if bounds.contains(&value) {
        return Ok(());
    }
    Err(format!(
        "{what} is {value}, which is not within {} and {}",
        bounds.start(),
        bounds.end()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> Result<(), String> {
        serde_json::from_str::<Policy>(text).unwrap().check()
    }

    #[test]
    fn what_cannot_be_carried_out_is_said() {
        judged(
            r#"{"sides":[{"environment":"a","weight":1},{"environment":"b","weight":0}],
            "rules":[{"when":[{"client":["10.0.0.0/8","::1"]}],"to":"b"}],"failover":{},
            "mirror":{"environment":"c"},"goals":[{"name":"paid"}]}"#,
        )
        .unwrap();
        for (policy, part) in [
            (
                r#"{"sides":[{"environment":"a","weight":0}]}"#,
                "needs a weight",
            ),
            (
                r#"{"sides":[{"environment":"a","weight":1},{"environment":"a","weight":1}]}"#,
                "twice",
            ),
            (
                r#"{"sides":[{"environment":"a","weight":1000001}]}"#,
                "at most",
            ),
            (r#"{"rules":[{"when":[{"path":"/"}],"to":"a"}]}"#, "no side"),
            (
                r#"{"sides":[{"environment":"a","weight":1}],"rules":[{"when":[],"to":"a"}]}"#,
                "conditions",
            ),
            (
                r#"{"sides":[{"environment":"a","weight":1}],"mirror":{"environment":"a"}}"#,
                "mirror is a side",
            ),
            (r#"{"sticky":{"header":"a b"}}"#, "no name"),
            (r#"{"failover":{"check":{"interval_ms":1}}}"#, "interval"),
            (
                r#"{"failover":{"check":{"statuses":[[200,100]]}}}"#,
                "no statuses",
            ),
            (r#"{"failover":{"check":{"path":"health"}}}"#, "no path"),
            (r#"{"failover":{"passive":{"failures":0}}}"#, "passive"),
            (r#"{"goals":[{"name":"a"},{"name":"a"}]}"#, "two goals"),
            (r#"{"goals":[{"name":"a b"}]}"#, "no name for a goal"),
            (r#"{"mirror":{"environment":"c","permille":0}}"#, "share"),
            (
                r#"{"sides":[{"environment":"a","weight":1}],"rules":[{"when":[{"client":["x"]}],"to":"a"}]}"#,
                "neither an address",
            ),
        ] {
            let why = judged(policy).unwrap_err();
            assert!(why.contains(part), "{policy}: {why}");
        }
    }
}
