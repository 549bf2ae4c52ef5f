//! What the pages about traffic show, and what their forms do.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::traffic::{TAKEN, certificates, split};
use common::{HOSTILE, Site, has, is_begun, sample};
use http::StatusCode;
use offshoot_model::traffic::view::TrafficView;

async fn site() -> Site {
    Site::open(sample::environments(), vec![]).await
}

/// With a policy of the shop's that has everything, and certificates.
async fn busy_site() -> Site {
    let site = site().await;
    site.fake.put_traffic("shop", split());
    *site.fake.certificates.lock().unwrap() = certificates();
    site
}

#[tokio::test]
async fn without_a_policy_an_environment_answers_all() {
    let site = site().await;
    let page = site.get("/environments/shop/traffic").await;
    has(
        &page,
        &[
            "<h1>Traffic of shop</h1>",
            "shop answers all requests itself.",
            "shop.localhost",
            "href=\"http://shop.example.com:8080/\"",
            "HTTPS is not served",
            "12\u{202f}345",
            "href=\"/environments/shop/traffic/split\"",
            "/traffic/domains/remove?domain=shop.example.com",
        ],
    );
    for absent in [
        "Bring back",
        "<h2>Goals",
        "<h2>Checks",
        "<h2>Copies",
        "Swap back",
    ] {
        assert!(!page.text.contains(absent), "{absent}");
    }
    let part = site.part("/environments/shop/traffic", "traffic").await;
    assert!(
        part.text.starts_with("<div id=\"traffic\""),
        "{}",
        part.text
    );
    let there = site.get("/environments/shop").await;
    has(&there, &["href=\"/environments/shop/traffic\""]);
    let none = site.get("/environments/none/traffic").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn sides_goals_checks_and_copies_are_shown() {
    let site = busy_site().await;
    let page = site.get("/environments/shop/traffic").await;
    has(
        &page,
        &[
            // sides
            "90 %",
            "204 (2.2 %)",
            "1.3 s",
            "header:x-country=AT,CH &#38; path:/new → upgrade",
            // goals, with how sure they are
            "<h3>paid <small>bars end at 11 %",
            "480 of 8\u{202f}000",
            "upgrade is better: 99.9 %",
            "<h3>searched ",
            "not sure yet",
            "<rect class=\"within\"",
            // checks
            "up, not brought back",
            "10.208.4.15:80",
            "connection refused",
            "Bring back",
            // copies
            "12.5 % of the requests are copied to pr-1284",
            "10\u{202f}031",
            "99.66 % the same",
            "body (5120 and 5131 bytes)",
            // certificates
            "own authority",
            "renewal fails",
            "the ACME server could not reach shop.example.com",
            "Send to HTTPS",
        ],
    );
}

#[tokio::test]
async fn a_side_is_brought_back() {
    let site = busy_site().await;
    let answer = site.post("/environments/shop/traffic/back", "").await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    assert_eq!(answer.location(), "/environments/shop/traffic");
    assert_eq!(site.fake.calls(), ["traffic back shop"]);
    let page = site.get("/environments/shop/traffic").await;
    has(&page, &["takes requests"]);
    assert!(!page.text.contains("Bring back"), "{}", page.text);
    let none = site.post("/environments/none/traffic/back", "").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn domains_are_added_and_removed() {
    let site = site().await;
    let path = "/environments/shop/traffic/domains/add";
    has(&site.get(path).await, &["Add domains to shop"]);
    is_begun(
        &site
            .post(path, "domains=a.test%0D%0A+b.test%2Fapi%2C")
            .await,
    );
    // Who has it is named, and what was typed is still there.
    let again = site.post(path, &format!("domains={TAKEN}")).await;
    has(
        &again,
        &[
            "taken.example.com leads to environment docs",
            "<code>offshoot domain rm docs taken.example.com</code>",
            ">taken.example.com</textarea>",
        ],
    );
    let remove = "/environments/shop/traffic/domains/remove";
    let question = site.get(&format!("{remove}?domain=b.test%2Fapi")).await;
    has(&question, &["Remove b.test/api", "no longer leads to shop"]);
    is_begun(&site.post(remove, "domain=b.test%2Fapi").await);
    let https = "/environments/shop/traffic/domains/https";
    is_begun(&site.post(https, "domain=a.test&https=redirect").await);
    let nonsense = site.post(https, "domain=a.test&https=maybe").await;
    assert_eq!(nonsense.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        site.fake.calls(),
        [
            "domain add shop a.test b.test/api",
            "domain add shop taken.example.com",
            "domain rm shop b.test/api",
            "domain https a.test redirect",
        ]
    );
}

#[tokio::test]
async fn a_swap_is_seen_before_it_is_made_and_taken_back() {
    let site = site().await;
    let path = "/environments/shop/traffic/swap";
    let page = site.get(path).await;
    // Its clone comes first of those that it can be swapped with.
    has(
        &page,
        &[
            "<option selected>upgrade</option>",
            "<th scope=\"row\">shop.example.com</th><td>shop</td><td><b>upgrade</b></td>",
            "<th scope=\"row\">upgrade.localhost:8080</th><td>upgrade</td><td>upgrade</td>",
        ],
    );
    let other = site.get(&format!("{path}?with=pr-1284")).await;
    has(&other, &["<td>shop</td><td><b>pr-1284</b></td>"]);
    let nothing = site
        .get("/environments/upgrade/traffic/swap?with=docs")
        .await;
    has(&nothing, &["there is nothing to exchange"]);
    let unknown = site.get(&format!("{path}?with=none")).await;
    has(&unknown, &["there is no environment &#34;none&#34;"]);
    for (fields, says) in [
        ("with=upgrade&answers=many", "good answers in a row"),
        ("with=upgrade&timeout=soon", "is not a duration"),
        ("with=none", "there is no environment"),
    ] {
        has(&site.post(path, fields).await, &[says]);
    }
    assert_eq!(site.fake.calls().len(), 1, "only the last was understood");
    is_begun(
        &site
            .post(
                path,
                "with=upgrade&paths=%2F%0D%0A%2Flogin&answers=5&timeout=1m",
            )
            .await,
    );
    assert_eq!(
        site.fake.calls(),
        ["swap shop upgrade back false warm [\"/\", \"/login\"] 5 60000"]
    );
    // Both can take it back, until a domain is changed.
    let back = "/environments/upgrade/traffic/swap?back=yes&#38;with=shop";
    has(
        &site.get("/environments/upgrade/traffic").await,
        &["Swap back", back],
    );
    has(
        &site.get("/environments/shop/traffic").await,
        &["Swap back"],
    );
    let page = site.get(&back.replace("&#38;", "&")).await;
    has(
        &page,
        &["Swap back upgrade", "<td>upgrade</td><td><b>shop</b></td>"],
    );
    let path = "/environments/upgrade/traffic/swap";
    let operation = site.post(path, "with=shop&back=yes").await;
    is_begun(&operation);
    has(
        &site.get(operation.location()).await,
        &["<th scope=\"row\">shop.example.com</th><td>upgrade</td><td>shop</td>"],
    );
    assert_eq!(
        site.fake.calls(),
        ["swap upgrade shop back true warm [\"/\"] 3 30000"]
    );
    let remove = "/environments/shop/traffic/domains/remove";
    is_begun(&site.post(remove, "domain=shop.example.com").await);
    let page = site.get("/environments/shop/traffic").await;
    assert!(!page.text.contains("Swap back"), "{}", page.text);
}

#[tokio::test]
async fn shares_are_set_and_the_rest_of_a_policy_stays() {
    let site = site().await;
    let path = "/environments/shop/traffic/split";
    let page = site.get(path).await;
    has(
        &page,
        &[
            "type=\"range\"",
            "<option>upgrade</option>",
            "value=\"100\"",
        ],
    );
    let fields = "side=shop&weight=90&add=upgrade&add_weight=10&sticky=cookie&sticky_name=sid&goals=paid+%2Fthanks";
    let seen = page.seen();
    is_begun(&site.post(path, &format!("{seen}&{fields}")).await);
    assert_eq!(
        site.fake.calls(),
        [
            r#"traffic set shop {"sides":[{"environment":"shop","weight":90},{"environment":"upgrade","weight":10}],"sticky":{"cookie":"sid"},"goals":[{"name":"paid","path":"/thanks","statuses":[200,399]}]}"#
        ]
    );
    let page = site.get(path).await;
    has(
        &page,
        &[
            "<output class=\"number\">90 %</output>",
            "<option value=\"cookie\" selected>",
            "paid /thanks",
        ],
    );
    // What cannot be is said, and what was typed is still there.
    let seen = page.seen();
    let typed = "side=shop&weight=x&side=upgrade&weight=10&sticky=visitor";
    let wrong = site.post(path, &format!("{seen}&{typed}")).await;
    has(&wrong, &["is no share for shop", "value=\"x\""]);
    let typed = "side=shop&weight=0&side=upgrade&weight=0&sticky=visitor";
    let none = site.post(path, &format!("{seen}&{typed}")).await;
    has(
        &none,
        &["one side at least needs a weight", "policy-invalid"],
    );
    assert!(site.fake.calls().is_empty());

    // Rules, checks and copies are left as they are; a rule's side cannot leave.
    let site = busy_site().await;
    has(&site.get(path).await, &["Before that 1 rule decides."]);
    let gone = "side=shop&weight=90&side=upgrade&weight=10&leaves=upgrade&sticky=visitor";
    let seen = site.seen(path).await;
    let answer = site.post(path, &format!("{seen}&{gone}")).await;
    has(&answer, &["a rule leads to an environment that is no side"]);
    let half = "side=shop&weight=50&side=upgrade&weight=50&sticky=visitor&goals=";
    is_begun(&site.post(path, &format!("{seen}&{half}")).await);
    let call = site.fake.calls().concat();
    for kept in [
        "x-country",
        "\"back\":\"by-hand\"",
        "pr-1284",
        "\"weight\":50",
    ] {
        assert!(call.contains(kept), "{kept}: {call}");
    }
    assert!(!call.contains("goals"), "{call}");
}

#[tokio::test]
async fn a_ramp_and_a_promotion_are_begun() {
    let site = site().await;
    let path = "/environments/shop/traffic/ramp";
    has(
        &site.get(path).await,
        &["value=\"1, 10, 50, 100\"", "<option>upgrade"],
    );
    is_begun(
        &site
            .post(
                path,
                "to=upgrade&steps=5%25%2C+100&every=30s&errors=0.5&latency=1.5x&min=200",
            )
            .await,
    );
    for (fields, says) in [
        ("to=upgrade&steps=some", "is no share"),
        ("to=upgrade&every=soon", "the time at each share"),
        ("to=upgrade&errors=200", "within 0 and 100 percent"),
    ] {
        let again = site.post(path, fields).await;
        has(&again, &[says, "<option selected>upgrade</option>"]);
    }
    let path = "/environments/upgrade/traffic/promote";
    has(
        &site.get(path).await,
        &["shop, its parent", "name=\"fence\""],
    );
    is_begun(
        &site
            .post(path, "of=&watch=1h&keep=24h&fence=yes&paths=%2Flogin")
            .await,
    );
    let again = site.post(path, "watch=long&keep=1d").await;
    has(&again, &["the watch:", "value=\"long\"", "<details open>"]);
    let calls = site.fake.calls();
    assert_eq!(
        calls[0],
        r#"traffic ramp shop {"to":"upgrade","steps":[5,100],"every_ms":30000,"guard":{"errors_percent":0.5,"latency_factor":1.5,"min_requests":200}}"#
    );
    assert_eq!(
        calls[1],
        r#"promote upgrade {"of":null,"warm":{"paths":["/login"],"answers":3,"timeout_ms":30000},"baseline_ms":10000,"watch_ms":3600000,"guard":{"errors_percent":1.0,"latency_factor":2.0,"min_requests":50},"keep_ms":86400000,"fence":true}"#
    );
    assert_eq!(calls.len(), 2);
}

#[tokio::test]
async fn the_page_of_a_ramp_tells_how_it_goes() {
    let ramp = common::traffic::ramp();
    let path = format!("/operations/{}", ramp.id);
    let site = Site::open(sample::environments(), vec![ramp]).await;
    has(
        &site.get(&path).await,
        &[
            "Ramp from shop",
            "upgrade has <b>10 %</b> of the requests.",
            "<th scope=\"row\">upgrade</th><td class=\"number\">412</td><td class=\"number\">1</td><td class=\"number\">26 ms</td>",
        ],
    );
}

#[tokio::test]
async fn changes_need_the_token_of_the_session() {
    let site = busy_site().await;
    for (path, body) in [
        ("back", ""),
        ("domains/add", "domains=a.test"),
        ("domains/remove", "domain=shop.example.com"),
        ("domains/https", "domain=shop.example.com&https=redirect"),
        ("swap", "with=upgrade"),
        ("split", "side=shop&weight=1"),
        ("ramp", "to=upgrade"),
        ("promote", "of=upgrade"),
    ] {
        let path = format!("/environments/shop/traffic/{path}");
        let body = format!("csrf=0123456789&{body}");
        let answer = site.send(http::Method::POST, &path, &body, &[]).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
    }
    assert!(site.fake.calls().is_empty());
}

#[tokio::test]
async fn hostile_texts_are_text() {
    let mut env = sample::environment("shop", None);
    HOSTILE.clone_into(&mut env.name);
    let mut child = sample::environment("child", Some("shop"));
    child.domains.push(offshoot_model::domain::DomainView {
        host: HOSTILE.to_owned(),
        path: "/".to_owned(),
        added: env.created,
        https: offshoot_model::domain::DomainHttps::Redirect,
        redirect: None,
    });
    let site = Site::open(vec![env, child], vec![]).await;
    let text = serde_json::to_string(&split()).unwrap();
    let hostile = serde_json::to_string(HOSTILE).unwrap();
    let hostile = hostile.trim_matches('"');
    let mut text = text.replace("connection refused", hostile);
    for name in ["upgrade", "pr-1284", "paid", "x-country", "/cart", "etag"] {
        text = text.replace(name, hostile);
    }
    let view: TrafficView = serde_json::from_str(&text).unwrap();
    site.fake.put_traffic(HOSTILE, view);
    let mut shown = certificates();
    HOSTILE.clone_into(&mut shown.certificates[0].issuer);
    *site.fake.certificates.lock().unwrap() = shown;
    let name = "%3Cscript%3Ealert%28%27x%27%29%3C%2Fscript%3E%22%3E%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E";
    for env in [name, "child"] {
        for below in [
            "".to_owned(),
            "/split".to_owned(),
            "/ramp".to_owned(),
            "/promote".to_owned(),
            "/domains/add".to_owned(),
            format!("/domains/remove?domain={name}"),
            format!("/swap?with={name}"),
            "/swap?with=child&back=yes".to_owned(),
        ] {
            let path = format!("/environments/{env}/traffic{below}");
            let answer = site.get(&path).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
            for banned in ["<script>alert", "<img src=x", "href=\"javascript:"] {
                assert!(!answer.text.contains(banned), "{path}: {}", answer.text);
            }
        }
    }
}
