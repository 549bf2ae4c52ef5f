//! The page of certificates: a key goes in and never comes out.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::traffic::certificates;
use common::{HOSTILE, Site, has, is_begun, sample};
use http::{Method, StatusCode};

const KEY: &str = "-----BEGIN PRIVATE KEY-----%0AMC4CAQAwSECRETSECRET%0A-----END PRIVATE KEY-----";

async fn site() -> Site {
    let site = Site::open(sample::environments(), vec![]).await;
    *site.fake.certificates.lock().unwrap() = certificates();
    site
}

#[tokio::test]
async fn all_are_listed_with_how_their_renewal_goes() {
    let site = site().await;
    let page = site.get("/certificates").await;
    has(
        &page,
        &[
            "aria-current=\"page\">Certificates</a>",
            "*.localhost",
            "own authority, for default domains; Offshoot os",
            "ACME; Example CA R3",
            "renewal fails",
            "failed 2 ×",
            "the ACME server could not reach shop.example.com; see that its name leads to this host",
            "datetime=\"2099-01-30T00:00:00Z\"",
            "href=\"/certificates/remove?name=%2A.localhost\"",
        ],
    );
    let part = site.part("/certificates", "certificates").await;
    assert!(part.text.starts_with("<div id=\"certificates\""));
    let root = site.get("/certificates/root.pem").await;
    assert_eq!(root.headers["content-type"], "application/x-pem-file");
    assert!(root.text.starts_with("-----BEGIN CERTIFICATE-----"));
    site.fake.certificates.lock().unwrap().certificates.clear();
    site.fake.certificates.lock().unwrap().served = false;
    let page = site.get("/certificates").await;
    has(&page, &["HTTPS is not served", "There are none"]);
}

#[tokio::test]
async fn a_key_never_comes_back() {
    let site = site().await;
    let path = "/certificates/add";
    has(
        &site.get(&format!("{path}?domains=shop.test")).await,
        &["name=\"key\"", ">\nshop.test</textarea>"],
    );
    let wrong = format!("kind=uploaded&domains=shop.test&chain=mine&key={KEY}");
    let page = site.post(path, &wrong).await;
    has(
        &page,
        &[
            "the chain has no certificate in it",
            "value=\"uploaded\" checked",
            ">\nmine</textarea>",
            "The key that you sent was not kept",
        ],
    );
    let half = site
        .post(path, &format!("kind=uploaded&chain=&key={KEY}"))
        .await;
    has(&half, &["is a chain and its key"]);
    for page in [&page, &half] {
        assert!(!page.text.contains("SECRET"), "{}", page.text);
    }
    let right = format!("kind=uploaded&domains=&chain=-----BEGIN CERTIFICATE-----&key={KEY}");
    let done = site.post(path, &right).await;
    assert_eq!(done.status, StatusCode::SEE_OTHER, "{}", done.text);
    assert!(done.location().starts_with("/operations/"));
    let page = site.get(done.location()).await;
    assert!(!page.text.contains("SECRET"), "{}", page.text);
    let calls = site.fake.calls();
    assert_eq!(
        calls,
        ["cert add uploaded [\"shop.test\"]", "cert add uploaded []"]
    );
}

#[tokio::test]
async fn others_are_asked_for_renewed_and_removed() {
    let site = site().await;
    let path = "/certificates/add";
    is_begun(
        &site
            .post(path, "kind=acme&domains=a.test%2C+b.test%0D%0A")
            .await,
    );
    is_begun(
        &site
            .post(path, "kind=self-signed&domains=*.c.test&chain=&key=")
            .await,
    );
    for (fields, says) in [
        ("kind=acme&domains=+", "it is for no host name"),
        ("kind=luck&domains=a.test", "it is not said where"),
    ] {
        has(&site.post(path, fields).await, &[says]);
    }
    is_begun(
        &site
            .post("/certificates/renew", "name=shop.example.com")
            .await,
    );
    let remove = "/certificates/remove";
    has(
        &site.get(&format!("{remove}?name=shop.example.com")).await,
        &["Type <b>shop.example.com</b>"],
    );
    let other = site
        .post(remove, "name=shop.example.com&typed=shop.example.org")
        .await;
    has(
        &other,
        &["That is not the name", "value=\"shop.example.org\""],
    );
    is_begun(
        &site
            .post(remove, "name=shop.example.com&typed=+shop.example.com")
            .await,
    );
    assert_eq!(
        site.fake.calls(),
        [
            "cert add acme [\"a.test\", \"b.test\"]",
            "cert add self-signed [\"*.c.test\"]",
            "cert renew shop.example.com",
            "cert rm shop.example.com",
        ]
    );
    for path in [path, remove, "/certificates/renew"] {
        let foreign = site.send(Method::POST, path, "name=a.test&typed=a.test", &[]);
        assert_eq!(foreign.await.status, StatusCode::FORBIDDEN, "{path}");
    }
}

#[tokio::test]
async fn names_and_issuers_are_shown_and_not_believed() {
    let site = site().await;
    for one in &mut site.fake.certificates.lock().unwrap().certificates {
        one.names = vec![HOSTILE.to_owned()];
        one.issuer = HOSTILE.to_owned();
    }
    let question = format!("/certificates/remove?name={}", "%22%3E%3Cimg+src=x");
    for path in ["/certificates", &question] {
        let page = site.get(path).await;
        has(&page, &[]);
        for banned in ["<script>alert", "<img src=x"] {
            assert!(!page.text.contains(banned), "{path}: {}", page.text);
        }
    }
}
