use super::*;

fn fields(pairs: &[(&str, &str)]) -> Fields {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(pair).collect()
}

fn policy(text: &str) -> Policy {
    serde_json::from_str(text).unwrap()
}

fn others() -> Vec<String> {
    vec!["next".to_owned(), "copy".to_owned()]
}

#[test]
fn what_is_shown_is_what_is_set() {
    let before = policy(
        r#"{"sides":[{"environment":"shop","weight":90},{"environment":"next","weight":10}],
        "rules":[{"when":[{"header":{"name":"x-country","values":["AT","a, b"]}},{"path":"/new"}],"to":"next"},
            {"when":[{"method":["PUT","POST"]},{"cookie":{"name":"beta"}}],"to":"shop"},
            {"when":[{"query":{"name":"q","values":[" two words "]}},{"client":["10.0.0.0/8","::1"]}],"to":"next"}]}"#,
    );
    let mut after = before.clone();
    after.rules.clear();
    let mut typed = Typed::of(&before);
    typed.edit(&mut after, "shop", &others()).unwrap();
    assert_eq!(after, before);
}

#[test]
fn who_a_rule_leads_to_becomes_a_side_without_a_share() {
    let mut after = Policy::default();
    let mut typed = Typed::read(fields(&[
        ("csrf", "x"),
        ("kind", "header"),
        ("name", "X-Country"),
        ("values", "AT\r\nCH\r\n"),
        ("kind", "path"),
        ("name", ""),
        ("values", "/new"),
        ("to", " next "),
    ]));
    typed.edit(&mut after, "shop", &others()).unwrap();
    let wanted = policy(
        r#"{"sides":[{"environment":"shop","weight":100},{"environment":"next","weight":0}],
        "rules":[{"when":[{"header":{"name":"X-Country","values":["AT","CH"]}},{"path":"/new"}],"to":"next"}]}"#,
    );
    assert_eq!(after, wanted);
    after.check().unwrap();
    // Without rules, whoever answers all by itself has no policy; others that were made sides stay.
    let mut alone = policy(
        r#"{"sides":[{"environment":"shop","weight":100}],"rules":[{"when":[{"path":"/"}],"to":"shop"}]}"#,
    );
    Typed::default()
        .edit(&mut alone, "shop", &others())
        .unwrap();
    assert_eq!(alone, Policy::default());
    Typed::default()
        .edit(&mut after, "shop", &others())
        .unwrap();
    assert_eq!((after.sides.len(), after.rules.len()), (2, 0));
}

#[test]
fn every_row_says_what_is_wrong_with_it() {
    for (kind, name, values, says) in [
        ("path", "", "new", "is no path"),
        ("path", "", "/a\n/b", "no control characters"),
        ("path", "", "", "a path has 1 to"),
        ("method", "", " ", "no method"),
        ("header", "x country", "AT", "is no name"),
        ("cookie", "", "", "is no name"),
        ("query", "q", "\u{7}", "control characters"),
        ("client", "", "10.0.0.0/99", "neither an address nor"),
        ("weather", "", "fine", "none of those"),
    ] {
        let mut typed = Typed::read(fields(&[
            ("kind", "path"),
            ("values", "/"),
            ("kind", kind),
            ("name", name),
            ("values", values),
            ("to", "next"),
        ]));
        let mut after = Policy::default();
        typed.edit(&mut after, "shop", &others()).unwrap_err();
        assert_eq!(after, Policy::default(), "nothing of it is set");
        let conditions = &typed.lines[0].conditions;
        assert_eq!(conditions[0].wrong, None);
        let said = conditions[1].wrong.clone().unwrap_or_default();
        assert!(said.contains(says), "{kind} {values:?}: {said}");
    }
    for (to, condition, says) in [
        ("", Some("path"), "say which"),
        ("<b>", Some("path"), "no environment \"<b>\""),
        ("next", None, "needs a condition"),
    ] {
        let mut sent: Vec<_> = condition.map(|kind| ("kind", kind)).into_iter().collect();
        sent.extend([("values", "/"), ("to", to)]);
        let mut typed = Typed::read(fields(&sent));
        typed
            .edit(&mut Policy::default(), "shop", &others())
            .unwrap_err();
        let said = typed.lines[0].wrong.clone().unwrap_or_default();
        assert!(said.contains(says), "{to:?}: {said}");
    }
}

#[test]
fn buttons_add_move_and_remove() {
    let two = || {
        Typed::read(fields(&[
            ("kind", "path"),
            ("values", "/a"),
            ("to", "a"),
            ("kind", "path"),
            ("values", "/b"),
            ("to", "b"),
        ]))
    };
    let done = |act: &str| {
        let mut typed = two();
        typed.act(Act::parse(act).unwrap()).unwrap();
        typed
    };
    let order =
        |typed: &Typed| -> Vec<String> { typed.lines.iter().map(|line| line.to.clone()).collect() };
    assert_eq!(order(&done("up 1")), ["b", "a"]);
    assert_eq!(order(&done("down 0")), ["b", "a"]);
    assert_eq!(order(&done("up 0")), ["a", "b"]);
    assert_eq!(order(&done("down 1")), ["a", "b"]);
    assert_eq!(order(&done("drop 0")), ["b"]);
    assert_eq!(order(&done("drop 9")), ["a", "b"]);
    assert_eq!(order(&done("rule")), ["a", "b", ""]);
    assert_eq!(done("condition 1").lines[1].conditions.len(), 2);
    assert!(done("without 0 0").lines[0].conditions.is_empty());
    assert_eq!(done("without 0 7"), two());
    for nonsense in ["", "up", "up x", "up -1", "burn 1", "without 1"] {
        assert_eq!(Act::parse(nonsense), None, "{nonsense}");
    }
}

#[test]
fn a_page_has_a_bound() {
    let mut typed = Typed::default();
    for _ in 0..TRAFFIC_MAX {
        typed.act(Act::AddRule).unwrap();
    }
    assert!(typed.act(Act::AddRule).is_err());
    let mut typed = Typed::read(fields(&[("to", "a")]));
    for _ in 0..CONDITIONS_MAX {
        typed.act(Act::AddCondition(0)).unwrap();
    }
    assert!(typed.act(Act::AddCondition(0)).is_err());
    let long = "x".repeat(TEXT_MAX);
    let typed = Typed::read(fields(&[("kind", "path"), ("values", &long), ("to", "a")]));
    assert!(!typed.fits());
}
