//! Who gets in, and who is kept out.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Fake, Site, sample};
use http::{Method, StatusCode};

fn closed() -> Site {
    Site::new(Fake::new(sample::environments(), vec![]))
}

#[tokio::test]
async fn a_link_signs_in_once() {
    let site = closed();
    let key = site.key();
    let page = site.get(&format!("/sign-in?{key}")).await;
    assert_eq!(page.status, StatusCode::OK);
    // Looking at it, as programs do that look at links, does not use it up.
    site.get(&format!("/sign-in?{key}")).await;
    let answer = site.send(Method::POST, "/sign-in", &key, &[]).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("offshoot-t1="), "{cookie}");
    for wanted in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
        assert!(cookie.contains(wanted), "{cookie}");
    }
    let again = site.send(Method::POST, "/sign-in", &key, &[]).await;
    assert_eq!(again.status, StatusCode::FORBIDDEN);
    assert!(again.text.contains("used already"), "{}", again.text);
}

#[tokio::test]
async fn guesses_are_counted() {
    let site = closed();
    for _ in 0..10 {
        let wrong = site.send(Method::POST, "/sign-in", "key=0", &[]).await;
        assert_eq!(wrong.status, StatusCode::FORBIDDEN);
    }
    let right = site.send(Method::POST, "/sign-in", &site.key(), &[]).await;
    assert_eq!(right.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn nobody_sees_anything_without_a_session() {
    let mut site = closed();
    for cookie in ["", "offshoot-t1=", "offshoot-t1=00", "offshoot-t2=x"] {
        site.cookie = cookie.to_owned();
        for path in [
            "/",
            "/environments/shop",
            "/environments/shop/clone",
            "/environments/shop/logs.txt",
            "/operations",
            "/live",
            "/nothing",
        ] {
            let answer = site.get(path).await;
            assert_eq!(answer.status, StatusCode::SEE_OTHER, "{path}");
            assert_eq!(answer.location(), "/sign-in");
            let part = site.part(path, "x").await;
            assert_eq!(part.status, StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(part.headers["hx-redirect"], "/sign-in");
        }
        for path in [
            "/environments/shop/stop",
            "/environments/shop/remove",
            "/examples/visitors",
            "/theme",
        ] {
            let answer = site.send(Method::POST, path, "csrf=x&name=shop", &[]).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        }
    }
    assert!(site.fake.calls().is_empty());
}

#[tokio::test]
async fn forms_of_others_do_nothing() {
    let site = Site::open(sample::environments(), vec![]).await;
    let csrf = site.csrf().await;
    let right = format!("csrf={csrf}&name=shop");
    let other = Site::open(vec![], vec![]).await.csrf().await;
    for body in [
        "",
        "name=shop",
        "csrf=&name=shop",
        &format!("csrf={other}&name=shop"),
    ] {
        for path in [
            "/environments/shop/stop",
            "/environments/shop/remove",
            "/sign-out",
        ] {
            let answer = site.send(Method::POST, path, body, &[]).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path} {body}");
        }
    }
    for headers in [
        [("origin", "http://127.0.0.1:3000")],
        [("origin", "null")],
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
    ] {
        let path = "/environments/shop/remove";
        let answer = site.send(Method::POST, path, &right, &headers).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{headers:?}");
    }
    let json = [("content-type", "application/json")];
    let answer = site
        .send(Method::POST, "/environments/shop/stop", "{}", &json)
        .await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(site.fake.calls().is_empty());
    let own = [
        ("origin", "http://127.0.0.1:9440"),
        ("sec-fetch-site", "same-origin"),
    ];
    let path = "/environments/shop/remove";
    let answer = site.send(Method::POST, path, &right, &own).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    assert_eq!(site.fake.calls(), ["remove shop"]);
}

#[tokio::test]
async fn other_host_names_are_not_answered() {
    let site = Site::open(sample::environments(), vec![]).await;
    for host in [
        "evil.example",
        "shop.localhost:8080",
        "192.0.2.1",
        "127.0.0.1.evil.example",
    ] {
        let answer = site.send(Method::GET, "/", "", &[("host", host)]).await;
        assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST, "{host}");
        assert!(!answer.text.contains("shop"), "{}", answer.text);
    }
    let answer = site
        .send(Method::GET, "/", "", &[("host", "localhost:9440")])
        .await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn signing_out_ends_the_session() {
    let site = Site::open(sample::environments(), vec![]).await;
    let answer = site.post("/sign-out", "").await;
    assert_eq!(answer.location(), "/sign-in");
    assert!(
        answer.headers["set-cookie"]
            .to_str()
            .unwrap()
            .contains("Max-Age=0")
    );
    assert_eq!(site.get("/").await.location(), "/sign-in");
}

#[tokio::test]
async fn every_answer_is_protected() {
    let site = Site::open(sample::environments(), vec![]).await;
    for path in [
        "/",
        "/sign-in",
        "/nothing",
        "/environments/none",
        "/operations",
    ] {
        let answer = site.get(path).await;
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["x-frame-options"], "DENY");
        assert_eq!(answer.headers["referrer-policy"], "same-origin");
        assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        for banned in ["<style", "style=\"", "onclick=", "<script>", "javascript:"] {
            assert!(!answer.text.contains(banned), "{path} has {banned}");
        }
    }
    let page = site.get("/").await.text;
    let (_, rest) = page.split_once("href=\"/assets/").unwrap();
    let version = rest.split('/').next().unwrap();
    for name in [
        "style.css",
        "htmx.js",
        "idiomorph.js",
        "dashboard.js",
        "icon.svg",
    ] {
        assert!(page.contains(name), "{name}");
        let answer = site.get(&format!("/assets/{version}/{name}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}");
        let cache = answer.headers["cache-control"].to_str().unwrap();
        assert!(cache.contains("immutable"), "{name}: {cache}");
        let old = site.get(&format!("/assets/0/{name}")).await;
        assert_eq!(old.headers["cache-control"], "no-store", "{name}");
    }
    assert_eq!(site.get("/assets/0/x").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_choice_of_colours_goes_back_to_the_page_and_nowhere_else() {
    let site = Site::open(vec![], vec![]).await;
    let answer = site.post("/theme", "theme=dark&back=/operations").await;
    assert_eq!(answer.location(), "/operations");
    let cookie = answer.headers["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("offshoot-theme=dark;"), "{cookie}");
    for away in [
        "//evil.example",
        "/%5Cevil.example",
        "https://evil.example",
        "x",
        "",
    ] {
        let answer = site
            .post("/theme", &format!("theme=dark&back={away}"))
            .await;
        assert_eq!(answer.location(), "/", "{away}");
    }
    let headers = [("cookie", cookie.as_str())];
    let page = site.send(Method::GET, "/", "", &headers).await;
    assert!(page.text.contains("data-theme=\"dark\""), "{}", page.text);
    let hostile = site.post("/theme", "theme=%22%3E%3Cscript%3E&back=/").await;
    assert!(
        hostile.headers["set-cookie"]
            .to_str()
            .unwrap()
            .starts_with("offshoot-theme=system;")
    );
}
