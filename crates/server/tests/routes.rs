//! Every path: what it asks of the platform, what it answers, and that every problem comes through.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{TestServer, problem, request, send};
use http::Method;
use offshoot_model::{Code, OperationId};
use serde_json::json;

const ID: &str = "019aad2e-7e1c-7d40-8c0e-5a3f9c1d2b3a";

/// Method, path, body, status, and the call that the platform gets.
fn paths() -> Vec<(Method, String, &'static str, u16, String)> {
    let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    let manifest = r#"{"name": "shop", "manifest": {"layers": []}}"#;
    let pull = r#"{"source": {"kind": "registry", "reference": "docker.io/library/nginx:1.27"}}"#;
    [
        (&get, "environments", "", 200, "environments"),
        (&post, "environments", manifest, 202, "create shop"),
        (&post, "plan", manifest, 200, "plan shop of 0 layers"),
        (&get, "environments/shop", "", 200, "environment shop"),
        (
            &get,
            "environments/..%2Fetc%00",
            "",
            200,
            "environment ../etc\0",
        ),
        (&delete, "environments/shop", "", 202, "remove shop"),
        (&get, "environments/shop/manifest", "", 200, "manifest shop"),
        (
            &post,
            "environments/shop/clone",
            "",
            202,
            "clone shop CloneRequest { name: None, rung: Auto, max_freeze_ms: None, start: true, hold: Hold { mail: false, jobs: false } }",
        ),
        (
            &post,
            "environments/shop/clone",
            r#"{"name": "x", "rung": "live", "max_freeze_ms": 70}"#,
            202,
            "clone shop CloneRequest { name: Some(\"x\"), rung: Live, max_freeze_ms: Some(70), start: true, hold: Hold { mail: false, jobs: false } }",
        ),
        (
            &post,
            "environments/shop/clone",
            r#"{"start": false, "hold": {"jobs": true}}"#,
            202,
            "clone shop CloneRequest { name: None, rung: Auto, max_freeze_ms: None, start: false, hold: Hold { mail: false, jobs: true } }",
        ),
        (
            &put,
            "environments/shop/held",
            r#"{"mail": true}"#,
            202,
            "hold shop mail",
        ),
        (
            &post,
            "environments/shop/clone?dry_run=true",
            "{}",
            200,
            "plan clone shop CloneRequest { name: None, rung: Auto, max_freeze_ms: None, start: true, hold: Hold { mail: false, jobs: false } }",
        ),
        (
            &post,
            "environments/shop/rename",
            r#"{"name": "blog"}"#,
            202,
            "rename shop blog",
        ),
        (&post, "environments/shop/start", "", 202, "start shop"),
        (&post, "environments/shop/stop", "", 202, "stop shop"),
        (&get, "environments/shop/domains", "", 200, "domains shop"),
        (
            &post,
            "environments/shop/domains",
            r#"{"domains": [{"host": "a.test"}, {"host": "b.test", "path": "/c"}]}"#,
            202,
            "add to shop: a.test b.test/c",
        ),
        (
            &delete,
            "environments/shop/domains/b.test%2Fc",
            "",
            202,
            "remove from shop: b.test/c",
        ),
        (
            &put,
            "domains/b.test%2Fc/https",
            r#"{"https": "redirect"}"#,
            202,
            "b.test/c: redirect",
        ),
        (&get, "certificates", "", 200, "certificates"),
        (&get, "certificates/ca", "", 200, "root"),
        (
            &post,
            "certificates",
            r#"{"kind": "uploaded", "chain": "C", "key": "SECRET", "domains": ["a.test"]}"#,
            202,
            "certificate uploaded [\"a.test\"]",
        ),
        (
            &post,
            "certificates",
            r#"{"kind": "acme", "domains": ["a.test", "b.test"]}"#,
            202,
            "certificate acme [\"a.test\", \"b.test\"]",
        ),
        (
            &delete,
            "certificates/*.a.test",
            "",
            202,
            "no certificate for *.a.test",
        ),
        (
            &post,
            "certificates/a.test/renew",
            "",
            202,
            "renew for a.test",
        ),
        (
            &post,
            "environments/shop/swap",
            r#"{"with": "next"}"#,
            202,
            "swap shop SwapRequest { with: \"next\", back: false, warm: Warm { paths: [\"/\"], answers: 3, timeout_ms: 30000 } }",
        ),
        (
            &post,
            "environments/shop/swap",
            r#"{"with": "next", "back": true, "warm": {"paths": ["/a"], "answers": 1, "timeout_ms": 500}}"#,
            202,
            "swap shop SwapRequest { with: \"next\", back: true, warm: Warm { paths: [\"/a\"], answers: 1, timeout_ms: 500 } }",
        ),
        (&get, "environments/shop/traffic", "", 200, "traffic shop"),
        (
            &put,
            "environments/shop/traffic",
            r#"{"sides":[{"environment":"shop","weight":1}],"sticky":"nothing"}"#,
            202,
            r#"lead shop {"sides":[{"environment":"shop","weight":1}],"sticky":"nothing"}"#,
        ),
        (&delete, "environments/shop/traffic", "", 202, "clear shop"),
        (
            &post,
            "environments/shop/traffic/back",
            "",
            200,
            "back shop",
        ),
        (
            &post,
            "environments/shop/traffic/ramp",
            r#"{"to": "next", "steps": [5], "guard": {"min_requests": 9}}"#,
            202,
            "ramp shop RampRequest { to: \"next\", steps: [5], every_ms: 600000, guard: Guard { errors_percent: 1.0, latency_factor: 2.0, min_requests: 9 } }",
        ),
        (
            &post,
            "environments/next/promote",
            r#"{"fence": true}"#,
            202,
            "promote next PromoteRequest { of: None, warm: Warm { paths: [\"/\"], answers: 3, timeout_ms: 30000 }, baseline_ms: 10000, watch_ms: 300000, guard: Guard { errors_percent: 1.0, latency_factor: 2.0, min_requests: 50 }, keep_ms: None, fence: true }",
        ),
        (
            &get,
            "environments/shop/logs?node=web&tail=5&follow=false",
            "",
            200,
            "logs shop LogQuery { node: Some(\"web\"), tail: Some(5), follow: false }",
        ),
        (
            &get,
            "environments/shop/nodes/web-1/files?path=/a%20b",
            "",
            200,
            "copy out shop web-1 /a b",
        ),
        (
            &get,
            "environments/shop/nodes/web-1/directory?path=/a%20b",
            "",
            200,
            "list shop web-1 /a b",
        ),
        (
            &get,
            "environments/shop/changes",
            "",
            200,
            "changes shop None",
        ),
        (
            &get,
            "environments/shop/changes?with=next",
            "",
            200,
            "changes shop Some(\"next\")",
        ),
        (
            &put,
            "environments/shop/nodes/web-1/files?path=/srv",
            "tar",
            204,
            "copy in shop web-1 /srv",
        ),
        (&get, "operations", "", 200, "operations 50"),
        (&get, "operations?limit=7", "", 200, "operations 7"),
        (&get, "operations?limit=70000", "", 200, "operations 1000"),
        (&get, "operations/ID", "", 200, "operation ID"),
        (&post, "operations/ID/cancel", "", 202, "cancel ID"),
        (&get, "images", "", 200, "images"),
        (
            &post,
            "images",
            pull,
            202,
            "pull docker.io/library/nginx:1.27",
        ),
        (
            &delete,
            "images/docker.io%2Flibrary%2Fnginx:1.27",
            "",
            204,
            "image remove docker.io/library/nginx:1.27",
        ),
        (&get, "pool", "", 200, "pool"),
        (
            &post,
            "pool/grow",
            r#"{"size": 1073741824}"#,
            202,
            "grow 1073741824",
        ),
        (&get, "doctor", "", 200, "doctor"),
    ]
    .into_iter()
    .map(|(method, path, body, status, call)| {
        (
            method.clone(),
            path.replace("ID", ID),
            body,
            status,
            call.replace("ID", ID),
        )
    })
    .collect()
}

#[tokio::test]
async fn every_path_asks_the_platform_and_answers() {
    let server = TestServer::start().await;
    let mut client = server.unix().await;
    for (method, path, body, status, call) in paths() {
        let answer = send(&mut client, request(method.clone(), &path, body)).await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method} {path}: {:?}",
            answer.body
        );
        assert_eq!(server.fake.calls()[0], call, "{method} {path}");
        match status {
            202 => {
                let id: OperationId = answer.json()["id"].as_str().unwrap().parse().unwrap();
                assert_eq!(
                    answer.headers["location"],
                    format!("/api/v1/operations/{id}")
                );
            }
            204 => assert!(answer.body.is_empty()),
            _ if path.contains("files") => {
                assert_eq!(answer.headers["content-type"], "application/x-tar")
            }
            _ if path.contains("logs") => {
                assert_eq!(answer.headers["content-type"], "application/x-ndjson")
            }
            _ => assert!(answer.json().is_object() || answer.json().is_array()),
        }
    }
    let version = send(&mut client, request(Method::GET, "version", ""))
        .await
        .json();
    assert_eq!(
        version,
        json!({"version": env!("CARGO_PKG_VERSION"), "api": "v1", "instance": "t1"})
    );
    let document = send(&mut client, request(Method::GET, "openapi.json", "")).await;
    assert_eq!(document.headers["content-type"], "application/json");
    let kept: serde_json::Value =
        serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap();
    assert_eq!(document.json(), kept);
    server.ended().await;
}

#[tokio::test]
async fn every_path_passes_every_problem_on() {
    let server = TestServer::start().await;
    let mut client = server.unix().await;
    for code in Code::ALL {
        server.fake.refuse(problem(*code));
        let answer = send(
            &mut client,
            request(Method::POST, "environments/shop/start", ""),
        )
        .await;
        assert_eq!(answer.problem(code.http_status()), problem(*code));
    }
    server.fake.refuse(problem(Code::PoolBroken));
    let mut all = paths();
    all.push((Method::GET, "events".to_owned(), "", 200, String::new()));
    all.push((
        Method::GET,
        format!("events?operation={ID}"),
        "",
        200,
        String::new(),
    ));
    for (method, path, body, ..) in all {
        let answer = send(&mut server.unix().await, request(method, &path, body)).await;
        assert_eq!(answer.problem(500), problem(Code::PoolBroken), "{path}");
    }
    server.ended().await;
}

#[tokio::test]
async fn what_is_not_understood_is_a_problem() {
    let server = TestServer::start().await;
    let post = |path: &'static str, body: &'static str| server.post(path, body);
    for (path, body, says) in [
        ("environments", "", "missing field `name`"),
        ("environments", "{", "line 1"),
        ("environments", "[1]", "body is not what is expected"),
        (
            "environments",
            r#"{"name": "a", "manifest": {"layers": []}, "x": 1}"#,
            "unknown field `x`",
        ),
        (
            "environments",
            r#"{"name": "a", "manifest": {"layers": [{"nme": 1}]}}"#,
            "unknown field `nme`",
        ),
        (
            "environments/shop/clone",
            r#"{"rung": "best"}"#,
            "unknown variant `best`",
        ),
        ("environments/shop/clone?dry_rum=true", "", "dry_rum"),
        ("environments/shop/clone?dry_run=maybe", "", "dry_run"),
        ("pool/grow", r#"{"size": -1}"#, "invalid value"),
        (
            "images",
            r#"{"source": {"kind": "floppy"}}"#,
            "unknown variant `floppy`",
        ),
        ("environments/%ff/start", "", "UTF-8"),
    ] {
        let problem = post(path, body).await.problem(400);
        assert_eq!(problem.code, Code::BadRequest, "{path}");
        assert!(
            problem.what.contains(says),
            "{path} {body}: {}",
            problem.what
        );
    }
    for path in [
        "operations?limit=many",
        "operations?limit=1&x=1",
        "events?after=-1",
        "environments/shop/logs?tail=-1",
        "environments/shop/nodes/web/files",
        "environments/shop/nodes/web/files?path=/a&path=/b",
    ] {
        assert_eq!(
            server.get(path).await.problem(400).code,
            Code::BadRequest,
            "{path}"
        );
    }
    for path in [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v2/pool",
        "/api/v1/pool/",
        "/api/v1/nothing",
        "//",
    ] {
        assert_eq!(
            server.get(path).await.problem(404).code,
            Code::NotFound,
            "{path}"
        );
    }
    for path in ["operations/1", "operations/..", "events?operation=x"] {
        assert_eq!(
            server.get(path).await.problem(404).code,
            Code::OperationUnknown,
            "{path}"
        );
    }
    for (method, path, allow) in [
        (Method::DELETE, "environments", "POST"),
        (Method::PATCH, "environments/shop", "DELETE"),
        (Method::PUT, "version", "GET"),
        (Method::OPTIONS, "pool", "GET"),
    ] {
        let answer = server.ask(method, path, "").await;
        assert_eq!(answer.problem(405).code, Code::BadRequest);
        assert!(
            answer.headers["allow"].to_str().unwrap().contains(allow),
            "{:?}",
            answer.headers
        );
    }
    let mut form = request(Method::POST, "environments/shop/clone", "name=x");
    form.headers_mut().insert(
        "content-type",
        "application/x-www-form-urlencoded".parse().unwrap(),
    );
    send(&mut server.unix().await, form).await.problem(415);
    let mut json = request(Method::POST, "environments/shop/clone", "{}");
    json.headers_mut().insert(
        "content-type",
        "Application/JSON; charset=utf-8".parse().unwrap(),
    );
    assert_eq!(
        send(&mut server.unix().await, json).await.status.as_u16(),
        202
    );
    server.ended().await;
}

#[tokio::test]
async fn a_defect_is_an_answer_too() {
    let server = TestServer::start().await;
    for (method, path) in [
        (Method::GET, "environments/defect"),
        (Method::POST, "environments/defect/start"),
    ] {
        let problem = server.ask(method, path, "").await.problem(500);
        assert_eq!(problem.code, Code::Internal);
    }
    assert_eq!(
        server.get("pool").await.status.as_u16(),
        200,
        "and the daemon goes on"
    );
    server.ended().await;
}

#[tokio::test]
async fn thirty_clients_are_answered_at_the_same_time() {
    let server = TestServer::start().await;
    *server.fake.wait_for.lock().unwrap() = Some(30);
    // None of them is answered before all thirty are in.
    let answers = futures::future::join_all((0..30).map(|_| server.get("environments"))).await;
    assert!(answers.iter().all(|answer| answer.status.as_u16() == 200));
    assert_eq!(
        server
            .fake
            .most_inside
            .load(std::sync::atomic::Ordering::SeqCst),
        30
    );
    server.ended().await;
}
