//! What a request must have to be a rule's, or to reach a goal: parsed once, when the policy comes.

use ipnet::IpNet;
use offshoot_edge_api::{covers, normal_path};
use offshoot_model::id::EnvId;
use offshoot_model::traffic::{self, Field, Policy, When};

use super::Facts;

/// The rules of a policy, in their order.
#[derive(Default)]
pub(super) struct Rules(Box<[Rule]>);

struct Rule {
    when: Box<[Test]>,
    side: usize,
}

enum Test {
    /// In normal form, without a final slash.
    Path(String),
    Method(Vec<String>),
    Header(Field),
    Cookie(Field),
    Query(Field),
    Client(Vec<IpNet>),
}

impl Rules {
    /// Those of a checked policy.
    pub(super) fn of(policy: &Policy<EnvId>) -> Self {
        let rules = policy.rules.iter().filter_map(|rule| {
            let mut sides = policy.sides.iter();
            Some(Rule {
                when: rule.when.iter().map(Test::of).collect(),
                side: sides.position(|side| side.environment == rule.to)?,
            })
        });
        Self(rules.collect())
    }

    /// The side that the first rule that fits names.
    pub(super) fn decide(&self, request: &Facts<'_>) -> Option<usize> {
        let fits = |rule: &&Rule| rule.when.iter().all(|test| test.holds(request));
        self.0.iter().find(fits).map(|rule| rule.side)
    }
}

impl Test {
    fn of(when: &When) -> Self {
        match when {
            When::Path(path) => Self::Path(prefix(path)),
            When::Method(methods) => Self::Method(methods.clone()),
            When::Header(field) => Self::Header(field.clone()),
            When::Cookie(field) => Self::Cookie(field.clone()),
            When::Query(field) => Self::Query(field.clone()),
            When::Client(networks) => {
                let networks = networks.iter();
                Self::Client(networks.filter_map(|text| traffic::network(text)).collect())
            }
        }
    }

    fn holds(&self, request: &Facts<'_>) -> bool {
        let fits = |field: &Field, value: &[u8]| {
            field.values.is_empty() || field.values.iter().any(|v| v.as_bytes() == value)
        };
        match self {
            Self::Path(path) => covers(path, request.path()),
            Self::Method(methods) => methods.iter().any(|method| method == request.method()),
            Self::Header(field) => request.fields(&field.name).any(|v| fits(field, v)),
            Self::Cookie(field) => request.cookies(&field.name).any(|v| fits(field, v)),
            Self::Query(field) => request
                .parameters(&field.name)
                .any(|value| fits(field, value.as_bytes())),
            Self::Client(networks) => request
                .client
                .is_some_and(|client| networks.iter().any(|network| network.contains(&client))),
        }
    }
}

/// The goals of a policy, in their order: at most 32.
#[derive(Default)]
pub(super) struct Goals(Box<[Goal]>);

struct Goal {
    path: Option<String>,
    method: Option<String>,
    statuses: (u16, u16),
}

impl Goals {
    pub(super) fn of(policy: &Policy<EnvId>) -> Self {
        let goals = policy.goals.iter().map(|goal| Goal {
            path: goal.path.as_deref().map(prefix),
            method: goal.method.clone(),
            statuses: goal.statuses,
        });
        Self(goals.collect())
    }

    /// The goals that an answer with this status reaches, a bit for each.
    pub(super) fn reached(&self, request: &Facts<'_>, status: u16) -> u32 {
        let reached = |goal: &Goal| {
            (goal.statuses.0..=goal.statuses.1).contains(&status)
                && goal.method.as_ref().is_none_or(|m| m == request.method())
                && goal.path.as_ref().is_none_or(|p| covers(p, request.path()))
        };
        let goals = self.0.iter().zip(0_u32..u32::BITS);
        goals.fold(0, |bits, (goal, at)| bits | u32::from(reached(goal)) << at)
    }
}

/// A path from a policy as it is compared with requests'.
fn prefix(path: &str) -> String {
    let mut normal = normal_path(path);
    if normal.len() > 1 && normal.ends_with('/') {
        normal.pop();
    }
    normal
}

#[cfg(test)]
mod tests {
    use pingora_http::RequestHeader;
    use proptest::prelude::*;

    use super::super::facts::tests::request;
    use super::*;

    fn policy(rest: &str) -> Policy<EnvId> {
        let text = format!(
            r#"{{"sides":[{{"environment":"aaaaaaaa","weight":1}},{{"environment":"bbbbbbbb","weight":0}}],{rest}}}"#
        );
        let policy: Policy<EnvId> = serde_json::from_str(&text).unwrap();
        policy.check().unwrap();
        policy
    }

    fn rules(when: &str) -> Rules {
        Rules::of(&policy(&format!(
            r#""rules":[{{"when":{when},"to":"bbbbbbbb"}}]"#
        )))
    }

    #[test]
    fn every_condition_is_looked_at() {
        let country = ("x-country", "CH");
        let cookie = ("cookie", "a=1; beta=yes");
        for (when, target, fields, client, fits) in [
            (r#"[{"path":"/new/"}]"#, "/new", &[][..], "::1", true),
            (r#"[{"path":"/new"}]"#, "/x/../%6eew//y", &[], "::1", true),
            (r#"[{"path":"/new"}]"#, "/newer", &[], "::1", false),
            (r#"[{"path":"/"}]"#, "/x", &[], "::1", true),
            (r#"[{"method":["PUT","GET"]}]"#, "/", &[], "::1", true),
            (r#"[{"method":["get"]}]"#, "/", &[], "::1", false),
            (
                r#"[{"header":{"name":"X-Country","values":["AT","CH"]}}]"#,
                "/",
                &[country],
                "::1",
                true,
            ),
            (
                r#"[{"header":{"name":"x-country","values":["ch"]}}]"#,
                "/",
                &[country],
                "::1",
                false,
            ),
            (
                r#"[{"header":{"name":"x-country"}}]"#,
                "/",
                &[country],
                "::1",
                true,
            ),
            (
                r#"[{"header":{"name":"x-country"}}]"#,
                "/",
                &[],
                "::1",
                false,
            ),
            (
                r#"[{"cookie":{"name":"beta","values":["yes"]}}]"#,
                "/",
                &[cookie],
                "::1",
                true,
            ),
            (
                r#"[{"cookie":{"name":"Beta"}}]"#,
                "/",
                &[cookie],
                "::1",
                false,
            ),
            (
                r#"[{"query":{"name":"v","values":["a b"]}}]"#,
                "/?v=1&v=a%20b",
                &[],
                "::1",
                true,
            ),
            (
                r#"[{"query":{"name":"v","values":["2"]}}]"#,
                "/v=2",
                &[],
                "::1",
                false,
            ),
            (
                r#"[{"client":["10.0.0.0/8","2001:db8::/32"]}]"#,
                "/",
                &[],
                "10.9.8.7",
                true,
            ),
            (
                r#"[{"client":["10.0.0.0/8"]}]"#,
                "/",
                &[],
                "::ffff:10.9.8.7",
                true,
            ),
            (
                r#"[{"client":["10.0.0.0/8","::1"]}]"#,
                "/",
                &[],
                "11.0.0.1",
                false,
            ),
            (
                r#"[{"client":["::1"]},{"path":"/a"}]"#,
                "/a",
                &[],
                "::1",
                true,
            ),
            (
                r#"[{"client":["::1"]},{"path":"/a"}]"#,
                "/b",
                &[],
                "::1",
                false,
            ),
        ] {
            let request = request("GET", target, fields);
            let facts = Facts::new(&request, Some(client.parse().unwrap()));
            let decided = rules(when).decide(&facts);
            assert_eq!(decided, fits.then_some(1), "{when} {target} {client}");
        }
    }

    #[test]
    fn goals_are_reached_by_path_method_and_status() {
        let goals = Goals::of(&policy(
            r#""goals":[{"name":"paid","path":"/thanks"},{"name":"sent","method":"POST","statuses":[303,303]},{"name":"any"}]"#,
        ));
        for (method, target, status, bits) in [
            ("GET", "/thanks/you", 200, 0b101),
            ("GET", "/thanks", 404, 0),
            ("POST", "/x", 303, 0b110),
            ("GET", "/x", 303, 0b100),
        ] {
            let request = request(method, target, &[]);
            let reached = goals.reached(&Facts::new(&request, None), status);
            assert_eq!(reached, bits, "{method} {target} {status}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_sends_breaks_a_rule(
            path in "/[!-~]{0,60}",
            cookie in "[ -~\\x80-\\xff]{0,60}",
            name in "[!-~]{1,20}",
        ) {
            let Ok(mut request) = RequestHeader::build("GET", path.as_bytes(), None) else {
                return Ok(());
            };
            let value = http::HeaderValue::from_bytes(cookie.as_bytes()).unwrap();
            request.append_header("cookie", value).unwrap();
            let field = Field { name, values: vec![cookie] };
            let facts = Facts::new(&request, None);
            for test in [
                Test::Path(prefix(&path)),
                Test::Header(field.clone()),
                Test::Cookie(field.clone()),
                Test::Query(field),
                Test::Client(vec![]),
            ] {
                test.holds(&facts);
            }
            super::super::facts::take_cookie(&mut request, "a");
        }
    }
}
