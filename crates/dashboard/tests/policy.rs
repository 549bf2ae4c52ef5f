//! Pages that each change one matter of a policy.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::traffic::split;
use common::{HOSTILE, Site, has, is_begun, sample};
use http::StatusCode;
use offshoot_model::traffic::Policy;
use offshoot_model::traffic::view::TrafficView;

async fn site() -> Site {
    let site = Site::open(sample::environments(), vec![]).await;
    site.fake.put_traffic("shop", split());
    site
}

fn policy(site: &Site) -> Policy {
    site.fake.traffic_of("shop").policy
}

#[tokio::test]
async fn every_matter_says_what_it_is_and_has_a_page() {
    let site = site().await;
    let page = site.get("/environments/shop/traffic").await;
    has(
        &page,
        &[
            "<h2>Policy</h2>",
            "header:x-country=AT,CH &#38; path:/new → upgrade",
            "/health every 2.0 s, good within 1.0 s with 200-399",
            "12.5 % of the requests to pr-1284, with bodies up to 256 KiB",
            "href=\"/environments/shop/traffic/rules\"",
            "href=\"/environments/shop/traffic/checks\"",
            "href=\"/environments/shop/traffic/copies\"",
            "href=\"/environments/shop/traffic/bounds\"",
            "href=\"/environments/shop/traffic/clear\"",
        ],
    );
    for path in ["rules", "checks", "copies", "bounds", "clear"] {
        let path = format!("/environments/shop/traffic/{path}");
        has(&site.get(&path).await, &["class=\"ask"]);
        let part = site.part(&path, "dialog-body").await;
        assert!(part.text.starts_with("<form "), "{}", part.text);
        let none = site.get(&path.replace("shop", "none")).await;
        assert_eq!(none.status, StatusCode::NOT_FOUND, "{path}");
        let body = "on=yes";
        let method = http::Method::POST;
        let foreign = site.send(method, &path, body, &[]).await;
        assert_eq!(foreign.status, StatusCode::FORBIDDEN, "{path}");
    }
    assert!(site.fake.calls().is_empty());
    let docs = site.get("/environments/docs/traffic").await;
    assert!(!docs.text.contains("Clear policy"), "there is none");
}

#[tokio::test]
async fn checks_are_changed_and_the_rest_stays() {
    let site = site().await;
    let path = "/environments/shop/traffic/checks";
    has(
        &site.get(path).await,
        &[
            "name=\"on\" value=\"yes\" checked",
            "name=\"path\" value=\"/health\"",
            "<option value=\"by-hand\" selected>",
        ],
    );
    let seen = site.seen(path).await;
    let wrong = "on=yes&path=health&interval=1ms&rise=many&body=all+well";
    let page = site.post(path, &format!("{seen}&{wrong}")).await;
    has(
        &page,
        &[
            "correct what is marked",
            "&#34;health&#34; is no path: it begins with / and has no spaces.",
            "which is not within 100 and 600000.",
            "&#34;many&#34; is not such a number.",
            "id=\"checks-path\" name=\"path\" value=\"health\"",
            "aria-describedby=\"checks-path-note\" aria-invalid=\"true\"",
            "name=\"body\" value=\"all well\"",
        ],
    );
    assert!(site.fake.calls().is_empty(), "nothing of it was set");
    let before = policy(&site);
    let right = "on=yes&path=%2Fup&interval=5s&timeout=500ms&rise=3&fall=4&statuses=200-299%2C+404\
        &body=&host=&failures=9&back=auto";
    is_begun(&site.post(path, &format!("{seen}&{right}")).await);
    let after = policy(&site);
    let failover = after.failover.clone().unwrap();
    assert_eq!(failover.check.interval_ms, 5_000);
    assert_eq!(failover.check.statuses, [(200, 299), (404, 404)]);
    assert_eq!(failover.passive.unwrap().failures, 9);
    let rest = Policy {
        failover: before.failover.clone(),
        ..after
    };
    assert_eq!(rest, before);
    let off = site.seen(path).await;
    is_begun(&site.post(path, &off).await);
    assert_eq!(policy(&site).failover, None);
}

#[tokio::test]
async fn copies_and_bounds_are_changed() {
    let site = site().await;
    let path = "/environments/shop/traffic/copies";
    let seen = site.seen(path).await;
    let page = site
        .post(path, &format!("{seen}&environment=upgrade&share=5"))
        .await;
    has(
        &page,
        &["the mirror is a side", "name=\"share\" value=\"5\""],
    );
    let right = format!("{seen}&environment=pr-1284&share=0.5&body=1m&ignore=x-build");
    is_begun(&site.post(path, &right).await);
    let mirror = policy(&site).mirror.unwrap();
    assert_eq!((mirror.permille, mirror.body_bytes), (5, 1 << 20));
    assert_eq!(mirror.ignore, ["x-build"]);

    let path = "/environments/shop/traffic/bounds";
    let seen = site.seen(path).await;
    let page = site.post(path, &format!("{seen}&body=much")).await;
    has(&page, &["is not a size", "name=\"body\" value=\"much\""]);
    let right = format!("{seen}&client-rate=20&client-burst=50&body=10m&proxy=v2&fence=yes");
    is_begun(&site.post(path, &right).await);
    let after = policy(&site);
    assert_eq!(after.bounds.client_requests_per_second, 20);
    assert!(after.fence && after.failover.is_some());
    let page = site.get("/environments/shop/traffic").await;
    has(
        &page,
        &[
            "20 requests per second of a client",
            "bodies up to 10.0 MiB",
            "nobody is let in",
        ],
    );
}

#[tokio::test]
async fn rules_are_changed_without_a_script() {
    let site = site().await;
    let path = "/environments/shop/traffic/rules";
    let page = site.get(path).await;
    has(
        &page,
        &[
            "<legend>Rule 1</legend>",
            "<option value=\"header\" selected>header field</option>",
            "name=\"name\" value=\"x-country\"",
            ">\nAT\nCH</textarea>",
            "name=\"to\" value=\"upgrade\"",
            "value=\"condition 0\"",
        ],
    );
    let seen = site.seen(path).await;
    let first =
        "kind=header&name=x-country&values=AT%0D%0ACH&kind=path&name=&values=%2Fnew&to=upgrade";
    // A button adds a rule; what was typed and not set is kept.
    let added = site.post(path, &format!("{seen}&{first}&act=rule")).await;
    has(&added, &["<legend>Rule 2</legend>", ">\nAT\nCH</textarea>"]);
    let second = "kind=cookie&name=beta&values=&to=docs";
    let moved = site
        .post(path, &format!("{seen}&{first}&{second}&act=up+1"))
        .await;
    has(&moved, &["name=\"name\" value=\"beta\""]);
    let place = |text: &str| moved.text.find(text).unwrap();
    assert!(place("value=\"beta\"") < place("value=\"x-country\""));
    assert!(site.fake.calls().is_empty(), "buttons set nothing");
    // The row that is wrong says so.
    let wrong = format!("{seen}&kind=client&name=&values=10.0.0.0%2F99&to=nobody");
    has(
        &site.post(path, &wrong).await,
        &[
            "neither an address nor a network.",
            "there is no environment &#34;nobody&#34; that could answer.",
            ">\n10.0.0.0/99</textarea>",
            "correct what is marked",
        ],
    );
    // Who gets the copies cannot answer, too: the model says so, and what was typed is kept.
    let copy = second.replace("docs", "pr-1284");
    let page = site.post(path, &format!("{seen}&{copy}")).await;
    has(&page, &["the mirror is a side", "value=\"pr-1284\""]);
    is_begun(&site.post(path, &format!("{seen}&{second}&{first}")).await);
    let after = policy(&site);
    assert_eq!(after.rules.len(), 2);
    assert_eq!(after.rules[0].to, "docs");
    // Who a rule leads to is a side, without a share.
    let side = after.sides.iter().find(|side| side.environment == "docs");
    assert_eq!(side.unwrap().weight, 0);
}

#[tokio::test]
async fn what_somebody_else_set_meanwhile_is_not_overwritten_unseen() {
    let site = site().await;
    let fields = [
        (
            "rules",
            "kind=path&name=&values=%2Fmine&to=shop",
            "/mine</textarea>",
        ),
        ("checks", "on=yes&path=%2Fmine", "value=\"/mine\""),
        (
            "copies",
            "environment=pr-1284&share=7",
            "name=\"share\" value=\"7\"",
        ),
        ("bounds", "client-rate=77", "value=\"77\""),
        (
            "split",
            "side=shop&weight=77&side=upgrade&weight=23",
            "value=\"77\"",
        ),
    ];
    let theirs: Policy = serde_json::from_value(serde_json::json!({
        "sides": [{"environment": "shop", "weight": 1}],
        "rules": [{"when": [{"path": "/theirs"}], "to": "shop"}],
        "bounds": {"body_bytes": 5},
    }))
    .unwrap();
    for (matter, typed, kept) in fields {
        site.fake.put_traffic("shop", split());
        let path = format!("/environments/shop/traffic/{matter}");
        let seen = site.seen(&path).await;
        site.fake.put_traffic(
            "shop",
            TrafficView {
                policy: theirs.clone(),
                ..split()
            },
        );
        let page = site.post(&path, &format!("{seen}&{typed}")).await;
        has(&page, &["changed since you began", "wrong-state", kept]);
        assert_eq!(policy(&site), theirs, "{matter}");
        // Sent again, knowing that, it is set.
        is_begun(&site.post(&path, &format!("{}&{typed}", page.seen())).await);
        assert_ne!(policy(&site), theirs, "{matter}");
    }
    // What they changed elsewhere is no reason to ask.
    site.fake.put_traffic("shop", split());
    let path = "/environments/shop/traffic/bounds";
    let seen = site.seen(path).await;
    let mut view = split();
    view.policy.goals.clear();
    site.fake.put_traffic("shop", view);
    is_begun(&site.post(path, &format!("{seen}&client-rate=5")).await);
    assert!(policy(&site).goals.is_empty(), "theirs stays");
}

#[tokio::test]
async fn a_policy_is_cleared() {
    let site = site().await;
    let path = "/environments/shop/traffic/clear";
    has(&site.get(path).await, &["counting begins anew"]);
    is_begun(&site.post(path, "").await);
    assert_eq!(site.fake.calls(), ["traffic clear shop"]);
}

#[tokio::test]
async fn names_are_shown_and_not_believed() {
    let site = site().await;
    let mut view = split();
    let policy = serde_json::json!({
        "sides": [{"environment": HOSTILE, "weight": 1}],
        "rules": vec![serde_json::json!({"when": [{"header": {"name": "x", "values": [HOSTILE]}}], "to": HOSTILE}); 12],
        "failover": {"check": {"path": HOSTILE, "host": HOSTILE, "body": HOSTILE}},
        "mirror": {"environment": HOSTILE, "ignore": [HOSTILE]},
    });
    view.policy = serde_json::from_value(policy).unwrap();
    site.fake.put_traffic("shop", view);
    for path in ["", "/rules", "/checks", "/copies", "/bounds", "/split"] {
        let path = format!("/environments/shop/traffic{path}");
        let page = site.get(&path).await;
        has(&page, &[]);
        for banned in ["<script>alert", "<img src=x"] {
            assert!(!page.text.contains(banned), "{path}: {}", page.text);
        }
    }
    // More than a page holds is not shown half.
    let mut view = split();
    view.policy.rules = vec![view.policy.rules[0].clone(); 30];
    site.fake.put_traffic("shop", view);
    let page = site.get("/environments/shop/traffic/rules").await;
    has(&page, &["offshoot traffic set -f"]);
    assert!(!page.text.contains("Set rules"));
}
