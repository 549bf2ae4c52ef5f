//! Bounds for clients, and how nodes are spoken to.

use offshoot_model::quantity::parse_bytes;
use offshoot_model::traffic::{Bounds, Policy, ProxyVersion};

use super::matter::{Field, Group, Matter, Typed, Wrong, text_of};
use super::read;

/// The page.
pub(super) static MATTER: Matter = Matter {
    path: "bounds",
    title: "Bounds",
    about: "What clients of these domains may do. A client is an IPv4 address, or an IPv6 /64, which is what one household or host has. \
        An empty field is no bound.",
    part: |policy| text_of(&(&policy.bounds, &policy.send_proxy, policy.fence)),
    typed,
    groups,
    edit,
};

fn typed(policy: &Policy) -> Typed {
    let bounds = &policy.bounds;
    let number = |number: u32| match number {
        0 => String::new(),
        number => number.to_string(),
    };
    let mut typed = Typed::from([
        ("client-rate", number(bounds.client_requests_per_second)),
        ("client-burst", number(bounds.client_burst)),
        ("client-requests", number(bounds.client_requests)),
        ("rate", number(bounds.requests_per_second)),
        (
            "body",
            match bounds.body_bytes {
                0 => String::new(),
                bytes => read::bytes_text(bytes),
            },
        ),
        (
            "proxy",
            match policy.send_proxy {
                None => "",
                Some(ProxyVersion::V1) => "v1",
                Some(ProxyVersion::V2) => "v2",
            }
            .to_owned(),
        ),
    ]);
    if policy.fence {
        typed.put("fence", "yes");
    }
    typed
}

fn groups(_: &[String]) -> Vec<Group> {
    let versions = [
        ("", "not sent"),
        ("v1", "version 1, a line of text"),
        ("v2", "version 2, binary"),
    ];
    let versions = versions.map(|(value, text)| (value.to_owned(), text.to_owned()));
    vec![
        Group {
            legend: "One client",
            fields: vec![
                Field::line("client-rate", "Requests per second", "no bound")
                    .hint("More are answered 429."),
                Field::line("client-burst", "At once above that", "as many as in a second")
                    .hint("Before the rate is held against it."),
                Field::line("client-requests", "Requests at a time", "no bound")
                    .hint("More are answered 429."),
            ],
        },
        Group {
            legend: "All together",
            fields: vec![
                Field::line("rate", "Requests per second", "no bound")
                    .hint("More are answered 503."),
                Field::line("body", "Longest body", "no bound")
                    .hint("As 64k or 10m; a longer one is answered 413."),
            ],
        },
        Group {
            legend: "Nodes",
            fields: vec![
                Field::choice("proxy", "Header of the PROXY protocol", versions)
                    .hint("Tells a node who the client is. Its server must expect it; each request gets a connection of its own."),
                Field::switch("fence", "Nobody is let in")
                    .hint("Every request is answered 503, so that nothing is written here unseen."),
            ],
        },
    ]
}

fn edit(typed: &Typed, policy: &mut Policy) -> Result<(), Wrong> {
    let mut wrong = Wrong::default();
    let mut number = |field| {
        let read = read::number(typed.get(field), 0);
        wrong.or(field, read, 0)
    };
    let bounds = Bounds {
        client_requests_per_second: number("client-rate"),
        client_burst: number("client-burst"),
        client_requests: number("client-requests"),
        requests_per_second: number("rate"),
        body_bytes: 0,
    };
    let body = match typed.get("body") {
        "" => Ok(0),
        text => parse_bytes(text),
    };
    policy.bounds = Bounds {
        body_bytes: wrong.or("body", body, 0),
        ..bounds
    };
    if bounds.client_burst > 0 && bounds.client_requests_per_second == 0 {
        wrong.add(
            "client-burst",
            "it goes with a rate of one client, and there is none",
        );
    }
    policy.send_proxy = match typed.get("proxy") {
        "" => None,
        "v1" => Some(ProxyVersion::V1),
        "v2" => Some(ProxyVersion::V2),
        other => wrong.or("proxy", Err(format!("there is no version {other:?}")), None),
    };
    policy.fence = typed.is_on("fence");
    wrong.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_set() {
        let all = Policy {
            bounds: Bounds {
                client_requests_per_second: 20,
                client_burst: 40,
                client_requests: 8,
                requests_per_second: 3_000,
                body_bytes: 10 << 20,
            },
            send_proxy: Some(ProxyVersion::V2),
            fence: true,
            ..Policy::default()
        };
        for before in [Policy::default(), all] {
            let mut after = Policy::default();
            edit(&typed(&before), &mut after).unwrap();
            assert_eq!(after, before);
        }
    }

    #[test]
    fn every_field_says_what_is_wrong_with_it() {
        for (field, value, says) in [
            ("client-rate", "-1", "is not such a number"),
            ("client-burst", "5", "there is none"),
            ("client-requests", "4294967296", "is not such a number"),
            ("rate", "1.5", "is not such a number"),
            ("body", "10 potatoes", "is not a size"),
            ("proxy", "v3", "no version"),
        ] {
            let sent = Typed::from([(field, value.to_owned())]);
            let wrong = edit(&sent, &mut Policy::default()).unwrap_err();
            let said = wrong.of(field).unwrap_or_default();
            assert!(said.contains(says), "{field}: {wrong:?}");
        }
    }
}
