//! What pages show, and what their buttons do.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::fake::line;
use common::{Answer, HOSTILE, PAGE_MAX, Site, sample};
use http::{Method, StatusCode};
use offshoot_model::operation::{OperationKind, OperationState};
use offshoot_model::view::LogStream;
use offshoot_model::{Layer, Manifest};

async fn site() -> Site {
    let operations = vec![sample::cloned("shop", "upgrade"), sample::failed()];
    Site::open(sample::environments(), operations).await
}

#[track_caller]
fn is_page(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert!(answer.text.starts_with("<!doctype html>"));
    assert!(answer.text.len() < PAGE_MAX, "{} bytes", answer.text.len());
}

#[track_caller]
fn is_part(answer: &Answer) {
    assert!(!answer.text.contains("<!doctype"), "{}", answer.text);
    assert!(!answer.text.contains("<html"), "{}", answer.text);
}

#[tokio::test]
async fn the_list_is_a_tree() {
    let page = site().await.get("/").await;
    is_page(&page);
    let at = |text: &str| {
        page.text
            .find(text)
            .unwrap_or_else(|| panic!("no {text} in {}", page.text))
    };
    assert!(at("id=\"e-docs\" class=\"d0\"") < at("id=\"e-shop\" class=\"d0\""));
    assert!(at("id=\"e-shop\" class=\"d0\"") < at("id=\"e-upgrade\" class=\"d1\""));
    assert!(at("id=\"e-upgrade\" class=\"d1\"") < at("id=\"e-upgrade-night\" class=\"d2\""));
    at("clone of main-line");
    at("href=\"http://shop.localhost:8080/\"");
    at("pool 11.0 GiB of 64.0 GiB");
    at("<time datetime=\"2026-11-20T08:29:41Z\"");
    // What is being made cannot be cloned or stopped yet, and can be removed.
    assert!(!page.text.contains("/environments/upgrade-night/stop"));
    at("href=\"/environments/upgrade-night#settings\"");
    at("/environments/docs/start");
}

#[tokio::test]
async fn the_list_is_filtered_and_sorted_by_links() {
    let site = site().await;
    let some = site.get("/?q=UP").await.text;
    assert!(
        some.contains("e-upgrade") && !some.contains("e-shop"),
        "{some}"
    );
    let stopped = site.get("/?state=stopped").await.text;
    assert!(stopped.contains("e-docs") && !stopped.contains("e-shop"));
    let busy = site.get("/?state=busy&sort=age").await.text;
    assert!(busy.contains("e-upgrade-night") && !busy.contains("e-docs"));
    let none = site.get("/?q=nothing-like-it").await.text;
    assert!(none.contains("None of 5 fits"), "{none}");
    let part = site.part("/?state=stopped", "environments").await;
    is_part(&part);
    assert!(
        part.text.contains("hx-get=\"/?state=stopped\""),
        "{}",
        part.text
    );
    let bad = site.get("/?sort=nonsense").await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_empty_host_teaches_the_first_step() {
    let site = Site::open(vec![], vec![]).await;
    let page = site.get("/").await;
    is_page(&page);
    assert!(page.text.contains("offshoot create"), "{}", page.text);
    assert!(page.text.contains("formaction=\"/examples/visitors\""));
    assert!(page.text.contains("formaction=\"/examples/blog\""));
    let answer = site.post("/examples/visitors", "").await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    assert!(answer.location().starts_with("/operations/"));
    assert_eq!(site.fake.calls(), ["create visitors of 1 layers"]);
    let none = site.post("/examples/none", "").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
    // A second one gets another name.
    let site = Site::open(vec![sample::environment("visitors", None)], vec![]).await;
    site.post("/examples/visitors", "").await;
    assert_eq!(site.fake.calls(), ["create visitors-2 of 1 layers"]);
}

#[tokio::test]
async fn a_hundred_environments_are_a_small_page_at_once() {
    let mut all = vec![sample::environment("parent", None)];
    for n in 1..100 {
        let parent = if n % 3 == 0 { Some("parent") } else { None };
        all.push(sample::environment(&format!("environment-{n}"), parent));
    }
    let site = Site::open(all, vec![]).await;
    site.get("/").await;
    let begun = Instant::now();
    let page = site.get("/").await;
    let took = begun.elapsed();
    is_page(&page);
    assert_eq!(page.text.matches("<tr id=\"e-").count(), 100);
    // What is shown first has the first sixteen rows.
    let (_, last) = page.text.split_once("rel=\"expect\" href=\"#").unwrap();
    let (last, _) = last.split_once('"').unwrap();
    let row = format!("<tr id=\"{last}\"");
    let (above, _) = page.text.split_once(&row).expect(&row);
    assert_eq!(above.matches("<tr id=\"e-").count(), 15);
    println!("{} bytes in {took:?}", page.text.len());
    assert!(took < Duration::from_millis(200), "{took:?}");
}

#[tokio::test]
async fn hostile_names_are_text() {
    let mut env = sample::environment("shop", None);
    env.name = HOSTILE.to_owned();
    env.url = Some(format!("javascript:{HOSTILE}"));
    env.layers[0].name = HOSTILE.to_owned();
    env.layers[0].image = HOSTILE.to_owned();
    env.layers[0].nodes[0].name = HOSTILE.to_owned();
    env.layers[0].nodes[0].inner = HOSTILE.to_owned();
    env.volumes[0].name = HOSTILE.to_owned();
    env.domains.push(offshoot_model::domain::DomainView {
        host: HOSTILE.to_owned(),
        path: "/".to_owned(),
        added: env.created,
        https: offshoot_model::domain::DomainHttps::Offer,
        redirect: Some(HOSTILE.to_owned()),
    });
    let mut child = sample::environment("child", Some("shop"));
    child.parent.as_mut().unwrap().name = HOSTILE.to_owned();
    let mut done = sample::cloned(HOSTILE, HOSTILE);
    done.environment = Some(env.id.clone());
    done.notices.push(HOSTILE.to_owned());
    done.report.as_mut().unwrap().parts[0].what = HOSTILE.to_owned();
    done.report.as_mut().unwrap().nodes[0].node = HOSTILE.to_owned();
    let mut failed = sample::failed();
    failed.problem = failed.problem.map(|mut problem| {
        problem.what = HOSTILE.to_owned();
        problem.next = HOSTILE.to_owned();
        problem.detail(HOSTILE)
    });
    let addresses = [
        format!("/operations/{}", done.id),
        format!("/operations/{}", failed.id),
    ];
    let site = Site::open(vec![env, child], vec![done, failed]).await;
    site.fake
        .lines
        .lock()
        .unwrap()
        .push(line(HOSTILE, HOSTILE, LogStream::Stderr));
    {
        let mut directory = site.fake.directory.lock().unwrap();
        directory.entries[0].name = HOSTILE.to_owned();
        directory.entries[2].target = Some(HOSTILE.to_owned());
        let mut changes = site.fake.changes.lock().unwrap();
        changes.disks[0].disk = offshoot_model::disk::Disk::Volume(HOSTILE.to_owned());
        changes.disks[1].files[0].path = HOSTILE.to_owned();
    }
    let mut manifest = Manifest::default();
    let mut layer: Layer =
        serde_json::from_str::<Manifest>(include_str!("../examples/visitors.json"))
            .unwrap()
            .layers
            .remove(0);
    layer
        .environment
        .insert("NAME".to_owned(), HOSTILE.to_owned());
    layer
        .environment
        .insert("DB_PASSWORD".to_owned(), "hunter2".to_owned());
    manifest.layers.push(layer);
    *site.fake.manifest.lock().unwrap() = manifest;
    let name = "%3Cscript%3Ealert%28%27x%27%29%3C%2Fscript%3E%22%3E%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E";
    let mut paths = vec!["/".to_owned(), "/operations".to_owned()];
    paths.extend(addresses);
    for below in [
        "",
        "/clone",
        "/rename",
        "/remove",
        "/logs",
        "/graphs",
        "/files",
        "/terminal",
    ] {
        paths.push(format!("/environments/{name}{below}"));
    }
    paths.push(format!("/?q={name}"));
    paths.push(format!("/compare?a={name}&b=child"));
    paths.push(format!("/compare/changes?a={name}&b=child"));
    paths.push(format!("/environments/{name}/clone/name?name={name}"));
    paths.push(format!("/environments/{name}x"));
    paths.push(format!("/operations/{name}"));
    paths.push(format!("/{name}"));
    paths.push(format!("/sign-in?key={name}"));
    for path in paths {
        let answer = site.get(&path).await;
        assert!(answer.status.as_u16() < 500, "{path}: {}", answer.text);
        for banned in [
            "<script>alert",
            "<img src=x",
            "href=\"javascript:",
            "hunter2",
        ] {
            assert!(
                !answer.text.contains(banned),
                "{path} has {banned}: {}",
                answer.text
            );
        }
    }
}

#[tokio::test]
async fn the_clone_dialog_shows_the_plan() {
    let site = site().await;
    let page = site.get("/environments/shop/clone").await;
    is_page(&page);
    for wanted in [
        "value=\"shop-clone\"",
        "This name is free.",
        "Memory and disk; its processes go on.",
        "it has a socket that leads out of the node",
        "× 2",
        "expected to stand still for about <b>160 ms</b>, all nodes together; the last time it was <b>148 ms</b>",
        "layer app is stateless",
        "not carried over: custom domains: shop.example.com",
        "shop-clone.localhost:8080",
        "name=\"max_freeze\"",
    ] {
        assert!(page.text.contains(wanted), "{wanted}: {}", page.text);
    }
    let part = site.part("/environments/shop/clone", "dialog-body").await;
    is_part(&part);
    let images = site.get("/environments/shop/clone?rung=image").await.text;
    assert!(images.contains("stand still is not known beforehand"));
    for (name, says) in [
        ("new-one", "This name is free."),
        ("upgrade", "There is an environment upgrade already."),
        ("Not-A-Name", "Lower-case letters"),
        ("", "a name is chosen"),
    ] {
        let path = format!("/environments/shop/clone/name?name={name}&rung=auto&max_freeze=");
        let check = site.part(&path, "name-check").await.text;
        assert!(check.contains(says), "{name}: {check}");
    }
    let unknown = site.get("/environments/none/clone").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(unknown.text.contains("environment-unknown"));
}

#[tokio::test]
async fn clone_begins_an_operation() {
    let site = site().await;
    let fields = "name=+trial+&rung=live&max_freeze=250ms";
    let answer = site.post("/environments/shop/clone", fields).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    assert_eq!(site.fake.calls(), ["clone shop as trial Live Some(250)"]);
    let page = site.get(answer.location()).await;
    is_page(&page);
    for wanted in [
        "Clone shop as trial",
        "preflight",
        "Cancel",
        "hx-trigger=\"operation-",
    ] {
        assert!(page.text.contains(wanted), "{wanted}: {}", page.text);
    }
    // In the dialog the page becomes the operation's.
    let part = site.part(answer.location(), "dialog-body").await;
    is_part(&part);
    assert_eq!(part.headers["hx-push-url"], answer.location());
    // What is wrong is said in the form, with what was typed.
    for (fields, says) in [
        ("name=upgrade&rung=auto&max_freeze=", "exists already"),
        ("name=x&rung=auto&max_freeze=soon", "is not a duration"),
        ("name=x&rung=hope&max_freeze=", "cannot be copied as"),
    ] {
        let again = site.post("/environments/shop/clone", fields).await;
        is_page(&again);
        assert!(again.text.contains(says), "{fields}: {}", again.text);
        assert!(
            again
                .text
                .contains("<form method=\"post\" action=\"/environments/shop/clone\"")
        );
    }
}

#[tokio::test]
async fn a_clone_that_holds_is_asked_for_and_let_go() {
    let site = site().await;
    let page = site.get("/environments/shop/clone").await;
    for name in ["hold_mail", "hold_jobs", "no_start"] {
        let field = format!("name=\"{name}\" value=\"yes\">");
        assert!(page.text.contains(&field), "not ticked: {name}");
    }
    let fields = "name=trial&rung=auto&max_freeze=&hold_mail=yes&hold_jobs=yes&no_start=yes";
    let ticked = site
        .get(&format!("/environments/shop/clone?{fields}"))
        .await;
    assert!(ticked.text.contains("<details open>"));
    assert_eq!(ticked.text.matches("value=\"yes\" checked>").count(), 3);
    let answer = site.post("/environments/shop/clone", fields).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    let want = "clone shop as trial Auto None holding mail and jobs stopped";
    assert_eq!(site.fake.calls(), [want]);

    site.fake.hold("shop");
    let page = site.get("/environments/shop").await;
    for wanted in [
        "<dt>Held</dt><dd>mail and jobs <button",
        "formaction=\"/environments/shop/release\"",
        "held: it runs jobs",
        "cron (process 7) stands still",
    ] {
        assert!(page.text.contains(wanted), "{wanted}: {}", page.text);
    }
    let answer = site.post("/environments/shop/release", "").await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    assert_eq!(site.fake.calls(), ["hold shop nothing"]);
}

#[tokio::test]
async fn operations_show_steps_times_and_problems() {
    let site = site().await;
    let list = site.get("/operations").await;
    is_page(&list);
    assert!(list.text.contains("Clone shop as upgrade") && list.text.contains("148 ms"));
    let ids: Vec<_> = {
        let all = site.fake.operations.lock().unwrap();
        all.iter().map(|operation| operation.id).collect()
    };
    let done = site.get(&format!("/operations/{}", ids[0])).await;
    is_page(&done);
    for wanted in [
        "148 ms",
        "160 ms expected",
        "3.4 s",
        "<rect x=",
        "Where the freeze went",
        "while everything ran: copy ahead 180 ms, settle 3.0 ms, complete images 41 ms.",
        "href=\"http://upgrade.localhost:8080/\"",
        "port 33060 of the parent",
    ] {
        assert!(done.text.contains(wanted), "{wanted}: {}", done.text);
    }
    assert!(!done.text.contains("/cancel"), "it has ended");
    let failed = site.get(&format!("/operations/{}", ids[1])).await.text;
    for wanted in [
        "pool-full",
        "No space left on device",
        "<code>offshoot pool grow +20GiB</code>",
        "taken back",
    ] {
        assert!(failed.contains(wanted), "{wanted}: {failed}");
    }
    let none = site.get("/operations/none").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
    let mut waiting = sample::operation(OperationKind::Stop, "shop");
    waiting.state = OperationState::Waiting;
    let path = format!("/operations/{}/cancel", waiting.id);
    site.fake.operations.lock().unwrap().push(waiting);
    assert_eq!(site.post(&path, "").await.status, StatusCode::SEE_OTHER);
    assert_eq!(site.fake.calls(), ["cancel"]);
}

#[tokio::test]
async fn the_page_of_an_environment() {
    let site = site().await;
    let page = site.get("/environments/upgrade").await;
    is_page(&page);
    for wanted in [
        "<h1>upgrade</h1>",
        "failed",
        "with status 137",
        "10.99.0.13",
        "packages:bookworm:mariadb-server",
        "copied as of the cut",
        "href=\"/environments/shop\"",
        "upgrade-night",
        "Clone shop as upgrade",
        "/logs?node=app-2",
    ] {
        assert!(page.text.contains(wanted), "{wanted}: {}", page.text);
    }
    let by_id = format!("/environments/{}", sample::id("upgrade"));
    is_page(&site.get(&by_id).await);
    is_part(&site.part("/environments/upgrade", "environment").await);
    let shop = site.get("/environments/shop").await.text;
    assert!(
        shop.contains("127.0.0.1:33060") && shop.contains("shop.example.com"),
        "{shop}"
    );
}

#[tokio::test]
async fn buttons() {
    let site = site().await;
    let begun = site.post("/environments/shop/stop", "").await;
    assert!(begun.location().starts_with("/operations/"));
    let body = format!("csrf={}", site.csrf().await);
    let headers = [("hx-request", "true"), ("hx-target", "notices")];
    let path = "/environments/docs/start";
    let notice = site.send(Method::POST, path, &body, &headers).await;
    is_part(&notice);
    assert!(notice.text.contains("Starting docs."), "{}", notice.text);
    let path = "/environments/none/start";
    let problem = site.send(Method::POST, path, &body, &headers).await;
    assert_eq!(problem.status, StatusCode::NOT_FOUND);
    is_part(&problem);
    assert_eq!(site.fake.calls(), ["stop shop", "start docs", "start none"]);
}

#[tokio::test]
async fn removal_asks_for_the_name() {
    let site = site().await;
    let page = site.get("/environments/shop/remove").await;
    is_page(&page);
    assert!(
        page.text.contains("Its clones stay: upgrade"),
        "{}",
        page.text
    );
    for wrong in ["", "sho", "SHOP", "docs"] {
        let answer = site
            .post("/environments/shop/remove", &format!("name={wrong}"))
            .await;
        is_page(&answer);
        assert!(answer.text.contains("That is not the name"), "{wrong}");
    }
    assert!(site.fake.calls().is_empty());
    let answer = site.post("/environments/shop/remove", "name=shop").await;
    assert!(answer.location().starts_with("/operations/"));
    assert_eq!(site.fake.calls(), ["remove shop"]);
}

#[tokio::test]
async fn renaming_says_what_is_wrong_with_a_name() {
    let site = site().await;
    let bad = site.post("/environments/shop/rename", "name=no!").await;
    is_page(&bad);
    assert!(bad.text.contains("is no name") && bad.text.contains("value=\"no!\""));
    let good = site.post("/environments/shop/rename", "name=+store+").await;
    assert_eq!(good.status, StatusCode::SEE_OTHER);
    assert_eq!(site.fake.calls(), ["rename shop no!", "rename shop store"]);
}

#[tokio::test]
async fn logs_are_shown_and_downloaded() {
    let site = site().await;
    let long = "x".repeat(5_000);
    let lines = (0..600).map(|n| line("app-1", &format!("line {n} {long}"), LogStream::Stdout));
    *site.fake.lines.lock().unwrap() = lines.collect();
    let page = site.get("/environments/shop/logs?node=app-1").await;
    is_page(&page);
    assert!(page.text.contains("line 599") && !page.text.contains("line 10 "));
    let file = site.get("/environments/shop/logs.txt?node=app-1").await;
    assert!(
        file.text
            .starts_with("2026-11-28T16:04:11.223Z app-1 line 0 xxx")
    );
    assert_eq!(file.text.lines().count(), 600);
    assert_eq!(file.headers["content-type"], "text/plain; charset=utf-8");
    assert!(
        file.headers["content-disposition"]
            .to_str()
            .unwrap()
            .starts_with("attachment")
    );
}

#[tokio::test]
async fn the_bytes_of_volumes_and_root_file_systems_are_told_when_they_are_known() {
    let site = site().await;
    // Found out behind the page: 4 times 37 MB and 5 MiB; an environment without volumes has root file systems, too.
    for _ in 0..500 {
        let page = site.get("/").await.text;
        if page.contains("<td>146 MiB</td>") && page.contains("<td>5.0 MiB</td>") {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("{}", site.get("/").await.text);
}
