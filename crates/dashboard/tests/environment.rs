//! The pages of one environment: what they draw, compare and lead to.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Answer, HOST, Site, sample};
use http::StatusCode;
use offshoot_model::Manifest;

async fn site() -> Site {
    let cloned = sample::cloned("shop", "upgrade");
    let mut environments = sample::environments();
    for env in &mut environments {
        if let Some(lineage) = env.parent.as_mut().filter(|_| env.name == "upgrade") {
            lineage.operation = cloned.id;
        }
    }
    let site = Site::open(environments, vec![cloned]).await;
    *site.fake.manifest.lock().unwrap() = sample::manifest();
    site
}

#[track_caller]
fn has(answer: &Answer, all: &[&str]) {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert!(answer.text.len() < 100_000, "{} bytes", answer.text.len());
    assert!(!answer.text.contains(sample::SECRET), "{}", answer.text);
    for wanted in all {
        assert!(answer.text.contains(wanted), "no {wanted}: {}", answer.text);
    }
}

/// Where a box of the picture begins at the left.
#[track_caller]
fn column(page: &str, title: &str) -> usize {
    let (_, rest) = page
        .split_once(&format!("<title>{title}"))
        .unwrap_or_else(|| panic!("no {title} in {page}"));
    let (_, rest) = rest.split_once("<rect x=\"").unwrap();
    rest.split('"').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_topology_is_drawn_from_the_description() {
    let site = site().await;
    let page = site.get("/environments/shop").await;
    has(
        &page,
        &[
            "nginx depends on app.",
            "app depends on mariadb.",
            "app names redis in SESSIONS.",
            "The edge leads from shop.localhost:8080, shop.example.com to nginx, port 80.",
            "leads to mariadb, port 3306.",
            "mariadb: mariadb-1 healthy.",
            "class=\"line named\"",
        ],
    );
    let at = |title| column(&page.text, title);
    assert!(
        at("shop.localhost") < at("nginx:"),
        "the edge is left of all layers"
    );
    assert!(at("nginx:") < at("app:"));
    assert!(at("app:") < at("mariadb:"));
    assert_eq!(at("mariadb:"), at("redis:"));
    // Without a description roles say where layers stand.
    *site.fake.manifest.lock().unwrap() = Manifest::default();
    let page = site.get("/environments/shop").await;
    has(&page, &["The edge leads from"]);
    assert!(!page.text.contains("depends on"), "{}", page.text);
    assert!(column(&page.text, "nginx:") < column(&page.text, "redis:"));
}

#[tokio::test]
async fn a_large_layer_is_counted() {
    let site = site().await;
    {
        let mut environments = site.fake.environments.lock().unwrap();
        let shop = environments
            .iter_mut()
            .find(|env| env.name == "shop")
            .unwrap();
        let node = shop.layers[1].nodes[0].clone();
        shop.layers[1].nodes = vec![node; 64];
    }
    let page = site.get("/environments/shop").await;
    has(&page, &["and 59 more</text>", "and 58 more."]);
}

#[tokio::test]
async fn lineage_has_every_cut_with_its_freeze() {
    let site = site().await;
    let page = site.get("/environments/upgrade-night").await;
    has(
        &page,
        &[
            "<li class=\"d0\"><span class=\"name\"><a href=\"/environments/shop\">",
            "<li class=\"d1\"><span class=\"name\"><a href=\"/environments/upgrade\">",
            "<b aria-current=\"true\">upgrade-night</b>",
            "stood still 148 ms",
            "href=\"/compare?a=shop&#38;b=upgrade\"",
        ],
    );
    let orphan = site.get("/environments/pr-1284").await;
    has(&orphan, &["main-line (gone)", "<li class=\"d1\""]);
    assert!(
        !orphan.text.contains("/compare"),
        "there is nothing to compare it with"
    );
    let alone = site.get("/environments/docs").await;
    assert!(!alone.text.contains("Lineage"));
}

#[tokio::test]
async fn checks_and_mounts_are_shown_without_secrets() {
    let page = site().await.get("/environments/shop").await;
    has(
        &page,
        &[
            "<code>mariadb-admin ping -p••••••</code>",
            "wget -qO- http://127.0.0.1/health",
            "2 healthy",
            "<code>mariadb:/var/lib/mysql</code>",
            "DATABASE_PASSWORD</dt><dd><span class=\"quiet\">••••••",
        ],
    );
}

#[tokio::test]
async fn two_environments_side_by_side() {
    let site = site().await;
    let page = site.get("/compare?a=shop&b=upgrade").await;
    has(
        &page,
        &[
            "upgrade is a clone of shop",
            "stood still 148 ms",
            "app: DATABASE_HOST",
            "<td>registry.example.org/team/app:42</td><td>registry.example.org/team/app:42</td>",
            "app-1 healthy, app-2 failed",
            "mariadb:3306",
            "<option selected>shop</option>",
        ],
    );
    let different = site.get("/compare?a=shop&b=upgrade&show=differences").await;
    has(
        &different,
        &["app-2 failed", "mariadb:3306", "shop.example.com"],
    );
    assert!(
        !different.text.contains("DATABASE_HOST"),
        "{}",
        different.text
    );
    let same = site.get("/compare?a=shop&b=shop&show=differences").await;
    has(&same, &["Nothing differs"]);
    has(&site.get("/compare").await, &["<option>shop</option>"]);
    let none = site.get("/compare?a=shop&b=none").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn terminals_open_only_from_this_site() {
    let site = site().await;
    let page = site.get("/environments/shop/terminal?node=app-2").await;
    has(
        &page,
        &[
            "data-socket=\"/environments/shop/nodes/app-2/terminal\"",
            "terminal.js",
        ],
    );
    let stopped = site.get("/environments/docs/terminal").await;
    has(&stopped, &["No node runs"]);
    // Never a shell of another node than the one that was asked for.
    let other = site.get("/environments/upgrade/terminal?node=app-2").await;
    has(&other, &["This node does not run"]);
    assert!(!other.text.contains("data-socket"), "{}", other.text);
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let path = "/environments/shop/nodes/app-2/terminal";
    let own = format!("http://{HOST}");
    for origin in [
        None,
        Some("http://evil.example"),
        Some("http://127.0.0.1:3000"),
        Some("null"),
    ] {
        let mut headers = upgrade.to_vec();
        headers.extend(origin.map(|origin| ("origin", origin)));
        let answer = site.send(http::Method::GET, path, "", &headers).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{origin:?}");
    }
    // Without a connection below it a request cannot be upgraded; it came that far.
    let mut headers = upgrade.to_vec();
    headers.push(("origin", &own));
    let answer = site.send(http::Method::GET, path, "", &headers).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
    assert!(answer.text.contains("WebSocket"), "{}", answer.text);
    assert!(site.fake.calls().is_empty(), "nothing was run");
}

#[tokio::test]
async fn graphs_begin_with_what_is_used_now() {
    let site = site().await;
    // The first look is made as soon as the dashboard is there.
    let page = loop {
        let page = site.get("/environments/shop/graphs?layer=app").await;
        if page.text.contains("<path d=\"M360 ") {
            break page;
        }
        tokio::task::yield_now().await;
    };
    has(
        &page,
        &[
            "<b>212 MiB</b>",
            "most 208 MiB",
            "nothing seen yet",
            "aria-current=\"true\">app</a>",
            "/environments/shop/graphs?span=day&#38;layer=app",
        ],
    );
    assert!(
        !page.text.contains("mariadb-1"),
        "only one layer is asked for"
    );
    let part = site
        .part("/environments/shop/graphs?span=day", "graphs")
        .await;
    assert!(part.text.starts_with("<div id=\"graphs\""), "{}", part.text);
}

#[tokio::test]
async fn files_are_listed_and_downloaded() {
    let site = site().await;
    let page = site
        .get("/environments/shop/files?node=app-2&path=/etc/ng")
        .await;
    has(
        &page,
        &[
            "href=\"/environments/shop/files?node=app-2&#38;path=%2Fetc%2Fng%2Fconf.d\">conf.d/</a>",
            "href=\"/environments/shop/files/download?node=app-2&#38;path=%2Fetc%2Fng%2Fnginx.conf\"",
            "→ /usr/lib/nginx/modules",
            "socket, pipe or device",
            "633 KiB",
            "<code>0644</code>",
            "<b aria-current=\"page\">ng</b>",
        ],
    );
    assert!(
        !page.text.contains("path=%2Fetc%2Fng%2Fcaf"),
        "it has no name to ask for"
    );
    assert_eq!(site.fake.calls(), ["list shop app-2 /etc/ng"]);
    // Volumes are named where they are mounted.
    let page = site.get("/environments/shop/files?node=mariadb-1").await;
    has(&page, &["path=%2Fvar%2Flib%2Fmysql\">/var/lib/mysql</a>"]);
    let none = site.get("/environments/shop/files?path=/none").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
    site.fake.calls();
    let long = "n".repeat(150);
    for name in ["short.txt", long.as_str()] {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(10_000);
        header.set_mode(0o644);
        let content = "0123456789".repeat(1_000);
        archive
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
        *site.fake.archive.lock().unwrap() = archive.into_inner().unwrap();
        let path = format!("/environments/shop/files/download?node=app-2&path=/srv/{name}");
        let file = site.get(&path).await;
        assert_eq!(file.text, content, "{name}");
        assert_eq!(file.headers["content-type"], "application/octet-stream");
        let disposition = format!("attachment; filename*=UTF-8''{name}");
        assert_eq!(file.headers["content-disposition"], disposition);
    }
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir("ng", ".").unwrap();
    let archive = archive.into_inner().unwrap();
    *site.fake.archive.lock().unwrap() = archive.clone();
    let all = site
        .get("/environments/shop/files/download?node=app-2&path=/etc/n%22%0ag")
        .await;
    assert_eq!(all.text.len(), archive.len());
    let disposition = "attachment; filename*=UTF-8''n%22%0Ag.tar";
    assert_eq!(all.headers["content-disposition"], disposition);
}

#[tokio::test]
async fn files_that_differ() {
    let site = site().await;
    let page = site.get("/compare?a=shop&b=upgrade").await;
    has(
        &page,
        &["hx-get=\"/compare/changes?a=shop&#38;b=upgrade\" hx-trigger=\"load\""],
    );
    let path = "/compare/changes?a=shop&b=upgrade";
    has(
        &site.get(path).await,
        &[
            "Files changed since the cut",
            "Root file system of nginx-1</b> <span class=\"quiet\">nothing differs",
            "1200 only in upgrade, 1 changed, of what was looked at",
            "<code>srv/app/cache/</code> <small>by upgrade</small>",
            "And 1199 more.",
            // Only the parent has it, and the parent made it.
            "<span class=\"mark good\">added</span> <code>ibdata1</code> <small>by shop</small>",
        ],
    );
    assert_eq!(site.fake.calls(), ["changes upgrade Some(\"shop\")"]);
    let part = site.part(path, "changes").await;
    assert!(part.text.starts_with("<section"), "{}", part.text);
}

#[tokio::test]
async fn events_of_operations_nodes_and_checks_are_one_list() {
    let site = site().await;
    site.fake.put_traffic("shop", common::traffic::split());
    let page = site.get("/environments/shop").await;
    has(
        &page,
        &[
            "<h2>Events</h2>",
            "href=\"/environments/shop/events\"",
            "Clone shop as upgrade",
            "stood still 148 ms",
            "Side upgrade",
            "takes no requests",
            "10.208.4.10:80: connection refused",
            "<time datetime=\"2026-11-28T17:00:01Z\" data-show=\"full\">2026-11-28 17:00:01 UTC</time>",
        ],
    );
    // The newest first: the side went down after the clone was made.
    let place = |text: &str| page.text.find(text).unwrap();
    assert!(place("takes no requests") < place("Clone shop as upgrade"));
    {
        let mut environments = site.fake.environments.lock().unwrap();
        let shop = environments
            .iter_mut()
            .find(|env| env.name == "shop")
            .unwrap();
        shop.layers[0].nodes[0].status = offshoot_model::NodeState::Exited {
            status: 139,
            at: "2026-11-28T18:30:00Z".parse().unwrap(),
        };
    }
    let page = site.get("/environments/shop").await;
    has(&page, &["with status 139", "/logs?node=nginx-1"]);
    let all = site.get("/environments/shop/events").await;
    has(
        &all,
        &[
            "<h1>Events of shop</h1>",
            "with status 139",
            "Clone shop as upgrade",
            "Side upgrade",
        ],
    );
    let nodes = site.get("/environments/shop/events?kind=nodes").await;
    has(
        &nodes,
        &[
            "with status 139",
            "started again",
            "hx-get=\"/environments/shop/events?kind=nodes\"",
        ],
    );
    assert!(!nodes.text.contains("Clone shop as upgrade"));
    assert!(!nodes.text.contains("Side upgrade"));
    let checks = site.get("/environments/shop/events?kind=checks").await;
    has(&checks, &["Side upgrade"]);
    assert!(!checks.text.contains("with status 139"));
    let part = site.part("/environments/shop/events", "events").await;
    assert!(part.text.starts_with("<div id=\"events\""), "{}", part.text);
    let docs = site.get("/environments/docs/events").await;
    has(&docs, &["Nothing happened"]);
    let none = site.get("/environments/none/events").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_page_of_many_events_has_a_bound() {
    let problem = offshoot_model::Problem::new(
        offshoot_model::Code::Internal,
        offshoot_model::Fault::Offshoot,
        "<script>".repeat(500),
        "see the log",
    );
    let failed = |_| offshoot_model::Operation {
        problem: Some(problem.clone()),
        ..sample::operation(offshoot_model::OperationKind::Start, "shop")
    };
    let operations = (0..400).map(failed).collect();
    let site = Site::open(sample::environments(), operations).await;
    let page = site.get("/environments/shop/events").await;
    assert!(page.text.contains("And 300 more, which are older."));
    assert!(!page.text.contains("<script>"), "{}", page.text);
    assert!(page.text.len() < 100_000, "{} bytes", page.text.len());
}
