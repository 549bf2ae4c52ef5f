//! Copies of requests: who gets them, and how many.

use offshoot_model::quantity::parse_bytes;
use offshoot_model::traffic::{Mirror, Policy};

use super::matter::{Field, Group, Matter, Typed, Wrong, text_of};
use super::read;

/// The page.
pub(super) static MATTER: Matter = Matter {
    path: "copies",
    title: "Copies",
    about: "An environment that answers no visitors gets copies of their requests, and its answers are compared with theirs. Nobody waits \
        for it. A copy does what a request does: it may send mail, or charge a card.",
    part: |policy| text_of(&policy.mirror),
    typed,
    groups,
    edit,
};

/// What a mirror has that is not said otherwise.
fn usual() -> Mirror {
    Mirror {
        environment: String::new(),
        permille: 1_000,
        body_bytes: 256 << 10,
        ignore: Vec::new(),
    }
}

fn typed(policy: &Policy) -> Typed {
    let mirror = policy.mirror.clone().unwrap_or_else(usual);
    Typed::from([
        ("environment", mirror.environment),
        ("share", read::permille_text(mirror.permille)),
        ("body", read::bytes_text(mirror.body_bytes)),
        ("ignore", mirror.ignore.join(", ")),
    ])
}

fn groups(offered: &[String]) -> Vec<Group> {
    let nobody = (String::new(), "nobody".to_owned());
    let others = offered.iter().map(|name| (name.clone(), name.clone()));
    vec![Group {
        legend: "",
        fields: vec![
            Field::choice("environment", "Copies go to", std::iter::once(nobody).chain(others)),
            Field::line("share", "Share of the requests, in percent", "100")
                .hint("0.1 to 100, chosen by chance."),
            Field::line("body", "Longest body", "256k")
                .hint("Requests with a longer one are not copied. At most 16m."),
            Field::line("ignore", "Header fields that may differ", "none")
                .hint("In answers, as x-build, x-served-by. Dates, cookies and ids of requests are not compared anyway."),
        ],
    }]
}

fn edit(typed: &Typed, policy: &mut Policy) -> Result<(), Wrong> {
    let environment = typed.get("environment");
    if environment.is_empty() {
        policy.mirror = None;
        return Ok(());
    }
    let usual = usual();
    let mut wrong = Wrong::default();
    let mirror = Mirror {
        environment: environment.to_owned(),
        permille: match typed.get("share") {
            "" => usual.permille,
            text => wrong.or("share", read::permille(text), usual.permille),
        },
        body_bytes: match typed.get("body") {
            "" => usual.body_bytes,
            text => wrong.or("body", parse_bytes(text), usual.body_bytes),
        },
        ignore: read::words(typed.get("ignore")),
    };
    let mut alone = |field, one: Mirror| {
        let policy = Policy {
            sides: policy.sides.clone(),
            mirror: Some(one),
            ..Policy::default()
        };
        wrong.judge(field, &policy);
    };
    let alike = |mirror: &Mirror| Mirror {
        // Nobody's name, so that it is no side.
        environment: String::new(),
        ..mirror.clone()
    };
    let share = Mirror {
        permille: mirror.permille,
        ..alike(&usual)
    };
    let body = Mirror {
        body_bytes: mirror.body_bytes,
        ..alike(&usual)
    };
    let ignore = Mirror {
        ignore: mirror.ignore.clone(),
        ..alike(&usual)
    };
    let environment = Mirror {
        environment: mirror.environment.clone(),
        ..alike(&usual)
    };
    for (field, one) in [
        ("share", share),
        ("body", body),
        ("ignore", ignore),
        ("environment", environment),
    ] {
        alone(field, one);
    }
    policy.mirror = Some(mirror);
    wrong.end()
}

#[cfg(test)]
mod tests {
    use offshoot_model::traffic::Side;

    use super::*;

    fn policy(mirror: Option<Mirror>) -> Policy {
        Policy {
            sides: vec![Side {
                environment: "shop".to_owned(),
                weight: 1,
            }],
            mirror,
            ..Policy::default()
        }
    }

    #[test]
    fn what_is_shown_is_what_is_set() {
        let all = Mirror {
            environment: "next".to_owned(),
            permille: 125,
            body_bytes: 1_000,
            ignore: vec!["x-build".to_owned(), "x-id".to_owned()],
        };
        for mirror in [None, Some(all)] {
            let before = policy(mirror);
            let mut after = policy(None);
            edit(&typed(&before), &mut after).unwrap();
            assert_eq!(after, before);
        }
    }

    #[test]
    fn every_field_says_what_is_wrong_with_it() {
        for (field, value, says) in [
            ("environment", "shop", "mirror is a side"),
            ("share", "0", "not within 1"),
            ("share", "101", "not within 1"),
            ("share", "half", "is no share"),
            ("body", "1g", "bodies up to"),
            ("body", "large", "is not a size"),
            ("ignore", "x build:", "is no name"),
        ] {
            let mut sent = typed(&policy(None));
            sent.put("environment", "next");
            sent.put(field, value);
            let wrong = edit(&sent, &mut policy(None)).unwrap_err();
            let said = wrong.of(field).unwrap_or_default();
            assert!(said.contains(says), "{field}: {wrong:?}");
        }
    }
}
