//! Checks of sides, and how one that was down gets its requests back.

use offshoot_model::quantity::parse_duration_ms;
use offshoot_model::traffic::{Back, Check, Failover, Passive, Policy};

use super::matter::{Field, Group, Matter, Typed, Wrong, text_of};
use super::read;

/// The page.
pub(super) static MATTER: Matter = Matter {
    path: "checks",
    title: "Checks",
    about: "Every node that answers is asked again and again. Nodes that are down are passed over; when no side with a share is up, the \
        first one in order that is up answers. A stand-by is a side with the share 0.",
    part: |policy| text_of(&policy.failover),
    typed,
    groups,
    edit,
};

fn typed(policy: &Policy) -> Typed {
    let on = policy.failover.is_some();
    let failover = policy.failover.clone().unwrap_or_default();
    let check = failover.check;
    let mut typed = Typed::from([
        ("path", check.path),
        ("host", check.host.unwrap_or_default()),
        ("interval", read::time_text(check.interval_ms)),
        ("timeout", read::time_text(check.timeout_ms)),
        ("rise", check.rise.to_string()),
        ("fall", check.fall.to_string()),
        ("statuses", read::statuses_text(&check.statuses)),
        ("body", check.body.unwrap_or_default()),
        (
            "failures",
            failover
                .passive
                .map_or_else(String::new, |passive| passive.failures.to_string()),
        ),
        (
            "back",
            match failover.back {
                Back::Auto => "auto",
                Back::ByHand => "by-hand",
            }
            .to_owned(),
        ),
    ]);
    if on {
        typed.put("on", "yes");
    }
    typed
}

fn groups(_: &[String]) -> Vec<Group> {
    let ways = [
        ("auto", "as soon as its checks are good"),
        ("by-hand", "when a person brings it back"),
    ];
    let ways = ways.map(|(value, text)| (value.to_owned(), text.to_owned()));
    vec![
        Group {
            legend: "",
            fields: vec![Field::switch("on", "Sides are checked")],
        },
        Group {
            legend: "What is asked",
            fields: vec![
                Field::line("path", "Path", "/").hint("Path and query of a GET request."),
                Field::line("host", "Host", "a domain of this environment"),
                Field::line("interval", "Every", "2s").hint("100ms to 10m."),
            ],
        },
        Group {
            legend: "What is good",
            fields: vec![
                Field::line("statuses", "Statuses", "200-399").hint("As 200-299, 404."),
                Field::line("body", "Text in the answer", "any")
                    .hint("In its first 64 KiB."),
                Field::line("timeout", "Within", "1s").hint("10ms to 1m."),
            ],
        },
        Group {
            legend: "When a node is down, and up again",
            fields: vec![
                Field::line("fall", "Down after so many bad answers", "3").hint("In a row."),
                Field::line("rise", "Up after so many good answers", "2").hint("In a row."),
                Field::line("failures", "Down after so many failed requests", "never")
                    .hint("Visitors' requests in a row: no connection, no answer, 502, 503, 504. Empty: only checks count."),
                Field::choice("back", "A side that was down gets its requests back", ways)
                    .hint("By hand, where what was written elsewhere meanwhile has to be brought home first."),
            ],
        },
    ]
}

fn edit(typed: &Typed, policy: &mut Policy) -> Result<(), Wrong> {
    if !typed.is_on("on") {
        policy.failover = None;
        return Ok(());
    }
    let usual = Check::default();
    let mut wrong = Wrong::default();
    let time = |text, usual| match text {
        "" => Ok(usual),
        text => parse_duration_ms(text),
    };
    let text = |name| Some(typed.get(name).to_owned()).filter(|text| !text.is_empty());
    let check = Check {
        path: text("path").unwrap_or(usual.path),
        host: text("host"),
        interval_ms: wrong.or(
            "interval",
            time(typed.get("interval"), usual.interval_ms),
            usual.interval_ms,
        ),
        timeout_ms: wrong.or(
            "timeout",
            time(typed.get("timeout"), usual.timeout_ms),
            usual.timeout_ms,
        ),
        rise: wrong.or("rise", read::number(typed.get("rise"), usual.rise), 1),
        fall: wrong.or("fall", read::number(typed.get("fall"), usual.fall), 1),
        statuses: match typed.get("statuses") {
            "" => usual.statuses,
            text => wrong.or("statuses", read::statuses(text), vec![(200, 399)]),
        },
        body: text("body"),
    };
    let passive = match typed.get("failures") {
        "" => None,
        text => Some(Passive {
            failures: wrong.or("failures", read::number(text, 1), 1),
        }),
    };
    let back = match typed.get("back") {
        "" | "auto" => Back::Auto,
        "by-hand" => Back::ByHand,
        other => wrong.or(
            "back",
            Err(format!("{other:?} is none of those that are offered")),
            Back::Auto,
        ),
    };
    judge(&mut wrong, &check, passive.as_ref());
    policy.failover = Some(Failover {
        check,
        passive,
        back,
    });
    wrong.end()
}

/// Has each field judged alone, so that what is wrong is said beside it.
fn judge(wrong: &mut Wrong, check: &Check, passive: Option<&Passive>) {
    let mut alone = |field, change: &dyn Fn(&mut Failover)| {
        let mut failover = Failover::default();
        change(&mut failover);
        let policy = Policy {
            failover: Some(failover),
            ..Policy::default()
        };
        wrong.judge(field, &policy);
    };
    alone("path", &|it| it.check.path.clone_from(&check.path));
    alone("host", &|it| it.check.host.clone_from(&check.host));
    alone("interval", &|it| it.check.interval_ms = check.interval_ms);
    alone("timeout", &|it| it.check.timeout_ms = check.timeout_ms);
    alone("rise", &|it| it.check.rise = check.rise);
    alone("fall", &|it| it.check.fall = check.fall);
    alone("statuses", &|it| {
        it.check.statuses.clone_from(&check.statuses);
    });
    alone("body", &|it| it.check.body.clone_from(&check.body));
    alone("failures", &|it| it.passive = passive.cloned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_set() {
        let all = Failover {
            check: Check {
                path: "/health?deep=1".to_owned(),
                host: Some("a.test".to_owned()),
                interval_ms: 90_500,
                timeout_ms: 250,
                rise: 4,
                fall: 5,
                statuses: vec![(200, 299), (404, 404)],
                body: Some("all well".to_owned()),
            },
            passive: Some(Passive { failures: 7 }),
            back: Back::ByHand,
        };
        for failover in [None, Some(Failover::default()), Some(all)] {
            let before = Policy {
                failover,
                ..Policy::default()
            };
            let mut after = Policy::default();
            edit(&typed(&before), &mut after).unwrap();
            assert_eq!(after, before);
        }
    }

    #[test]
    fn every_field_says_what_is_wrong_with_it() {
        for (field, value, says) in [
            ("path", "health", "is no path"),
            ("host", "a\u{7}b", "control characters"),
            ("interval", "1ms", "not within 100"),
            ("interval", "soon", "is not a duration"),
            ("timeout", "2h", "not within 10"),
            ("rise", "0", "not within 1"),
            ("fall", "many", "is not such a number"),
            ("statuses", "9-99", "are no statuses"),
            ("statuses", "ok", "are no statuses"),
            ("failures", "0", "not within 1"),
            ("back", "never", "none of those"),
        ] {
            let mut sent = typed(&Policy::default());
            sent.put("on", "yes");
            sent.put(field, value);
            let wrong = edit(&sent, &mut Policy::default()).unwrap_err();
            let said = wrong.of(field).unwrap_or_default();
            assert!(said.contains(says), "{field}: {wrong:?}");
        }
    }
}
