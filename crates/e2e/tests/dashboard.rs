//! The dashboard of a whole daemon: signing in by the command line's link, and a clone by the button of its dialog.
#![allow(missing_docs)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use offshoot_e2e::http::{self, Answer};
use offshoot_e2e::{TestDaemon, wait_for};

/// Where every test daemon's dashboard listens, as by default: namespaces keep them apart.
const DASHBOARD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9440);
const FORM: &str = "application/x-www-form-urlencoded";
const SOON: Duration = Duration::from_secs(120);

const SHOP: &str = r#"
services:
  web:
    image: IMAGE
    stop_grace_period: 1s
    volumes: ["data:/data"]
    environment: {PASSWORD: hunter2, GREETING: "<b>hello</b>"}
    x-offshoot: {entry: 8080}
volumes: {data: {}}
"#;

/// Somebody with a browser that runs no scripts.
struct Person<'a> {
    daemon: &'a TestDaemon,
    cookie: String,
}

impl Person<'_> {
    fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        let headers = [("Cookie", self.cookie.as_str()), ("Content-Type", FORM)];
        let sent = self.daemon.inside(|| {
            let host = DASHBOARD.to_string();
            http::send(DASHBOARD, &host, method, path, &headers, body.as_bytes())
        });
        sent.expect("the dashboard answers")
    }

    fn page(&self, path: &str) -> String {
        let answer = self.send("GET", path, "");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    }

    /// Sends a form of a page, with what the page hides in it; gives where it leads.
    fn post(&self, page: &str, path: &str, fields: &str) -> String {
        let page = self.page(page);
        let (_, rest) = page
            .split_once("name=\"csrf\" value=\"")
            .expect("a page with forms");
        let csrf = rest.split('"').next().unwrap_or_default();
        let answer = self.send("POST", path, &format!("csrf={csrf}&{fields}"));
        assert_eq!(answer.status, 303, "{path}: {}", answer.body);
        answer.header("location").expect("a place").to_owned()
    }

    fn wait(&self, path: &str, text: &str) -> String {
        wait_for(text, SOON, || {
            let page = self.page(path);
            page.contains(text).then_some(page)
        })
    }
}

/// Somebody who used the command line's link.
fn sign_in(daemon: &TestDaemon) -> Person<'_> {
    let link = daemon.run(&["login-link"]);
    let key = link
        .trim()
        .strip_prefix("http://127.0.0.1:9440/sign-in?")
        .expect("a link");
    let cookie = String::new();
    let nobody = Person { daemon, cookie };
    let answer = nobody.send("POST", "/sign-in", key);
    assert_eq!(answer.status, 303, "{}", answer.body);
    let cookie = answer.header("set-cookie").expect("a cookie");
    let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
    assert!(!daemon.log().contains(key), "no link stands in the log");
    Person { daemon, cookie }
}

#[test]
fn who_is_signed_in_stays_so_when_the_daemon_is_started_again() {
    let mut daemon = TestDaemon::start();
    let leaving = sign_in(&daemon);
    leaving.post("/operations", "/sign-out", "");
    let (left, kept) = (leaving.cookie, sign_in(&daemon).cookie);
    for _ in 0..2 {
        daemon.restart();
        let get = |cookie: &str| {
            let cookie = cookie.to_owned();
            let daemon = &daemon;
            Person { daemon, cookie }.send("GET", "/", "").status
        };
        assert_eq!(get(&kept), 200);
        assert_eq!(get(&left), 303, "to where people sign in");
    }
}

#[test]
fn clone_and_remove_by_pages_alone() {
    let daemon = TestDaemon::start();
    daemon.create("shop", SHOP);
    let person = sign_in(&daemon);

    let list = person.page("/");
    assert!(list.contains("http://shop.localhost:8080/"), "{list}");
    let environment = person.page("/environments/shop");
    assert!(
        environment.contains("&#60;b&#62;hello&#60;/b&#62;"),
        "{environment}"
    );
    assert!(!environment.contains("hunter2"), "{environment}");
    let dialog = person.page("/environments/shop/clone");
    assert!(dialog.contains("value=\"shop-clone\""), "{dialog}");
    assert!(dialog.contains("This name is free."), "{dialog}");

    let form = "name=trial&rung=auto&max_freeze=";
    let operation = person.post("/environments/shop/clone", "/environments/shop/clone", form);
    let page = person.wait(&operation, "<span class=\"mark good\">done</span>");
    assert!(page.contains("Stood still"), "{page}");
    assert!(page.contains("Where the freeze went"), "{page}");
    assert!(page.contains("http://trial.localhost:8080/"), "{page}");
    assert_eq!(
        daemon.get("trial", "/").expect("the clone answers").status,
        200
    );
    let list = person.page("/");
    assert!(list.contains("id=\"e-trial\" class=\"d1\""), "{list}");
    let logs = person.page("/environments/trial/logs");
    assert!(
        logs.contains("data-follow=\"/environments/trial/logs/follow\""),
        "{logs}"
    );

    let removal = person.post("/operations", "/environments/trial/remove", "name=trial");
    person.wait(&removal, "<span class=\"mark good\">done</span>");
    daemon.finish(&["shop"]);
}
