//! Commands that only read, and how problems are told.

use std::io::Read as _;
use std::process::Stdio;

use axum::extract::Path;
use axum::response::Response;
use axum::routing::{delete, get};
use axum::{Json, Router};
use offshoot_model::view::{EnvironmentView, LogLine, LogStream, PoolView};
use offshoot_model::{Code, Fault, Problem};
use serde_json::json;

use crate::fake::{Fake, problem, wait};

/// An environment as the API writes it.
pub(crate) fn environment(name: &str, id: &str, parent: Option<&str>) -> EnvironmentView {
    serde_json::from_value(json!({
        "id": id, "name": name, "state": "running", "healthy": true, "url": format!("http://{name}.localhost/"),
        "parent": parent.map(|parent| json!({
            "id": parent, "name": "parent", "cut": "2026-01-01T00:00:00Z",
            "operation": "01950001-0000-7000-8000-000000000000"})),
        "created": "2026-01-01T00:00:00Z",
        "layers": [{"name": "web", "role": "app", "scaling": "stateful", "image": "docker.io/library/nginx:1.27",
            "entry": 80, "nodes": [{"name": "web-1", "status": {"state": "running", "pid": 7,
                "since": "2026-01-01T00:00:00Z", "health": "healthy"}, "hostname": "web-1.shop",
                "inner": "10.0.0.10", "outer": "10.208.0.10", "inner6": null, "outer6": null,
                "memory_bytes": 1048576, "cpu_us": 10, "pids": 2, "restarts": 0}]}],
        "volumes": [], "ports": [], "operation": null
    }))
    .unwrap()
}

fn shop_and_clone() -> Router {
    let all = || {
        vec![
            environment("shop", "aaaaaaaa", None),
            environment("shop-clone", "bbbbbbbb", Some("aaaaaaaa")),
        ]
    };
    Router::new()
        .route("/environments", get(move || async move { Json(all()) }))
        .route(
            "/environments/{environment}",
            get(|Path(name): Path<String>| async move {
                if name == "shop" {
                    axum::response::IntoResponse::into_response(Json(environment(
                        "shop", "aaaaaaaa", None,
                    )))
                } else {
                    problem(
                        &Problem::new(
                            Code::EnvironmentUnknown,
                            Fault::Request,
                            format!("there is no environment {name:?}"),
                            "see `offshoot ls`",
                        )
                        .detail("asked by name"),
                    )
                }
            }),
        )
}

#[test]
fn lists_for_people_and_for_programs() {
    let fake = Fake::start(shop_and_clone());
    let table = fake.run(&["ls"]).expect(0);
    let lines: Vec<&str> = table.text().lines().collect();
    assert!(lines[0].starts_with("NAME"), "{lines:?}");
    assert!(
        lines[1].starts_with("shop ") && lines[2].starts_with("└─ shop-clone "),
        "{lines:?}"
    );
    assert!(!table.text().contains('\u{1b}'), "colours in a pipe");
    assert_eq!(table.stderr, "");
    assert_eq!(
        fake.run(&["ls", "-q"]).expect(0).text(),
        "shop\nshop-clone\n"
    );

    let json: Vec<EnvironmentView> =
        serde_json::from_value(fake.run(&["ls", "-o", "json"]).expect(0).json()).unwrap();
    assert_eq!(
        json,
        [
            environment("shop", "aaaaaaaa", None),
            environment("shop-clone", "bbbbbbbb", Some("aaaaaaaa"))
        ]
    );
    let nodes = fake.run(&["ps", "-o", "json"]).expect(0).json();
    assert_eq!(nodes[1]["environment"], "shop-clone");
    assert_eq!(nodes[1]["status"]["health"], "healthy");
    assert_eq!(
        fake.run(&["ps", "-q"]).expect(0).text(),
        "shop/web-1\nshop-clone/web-1\n"
    );
    let shown: EnvironmentView =
        serde_json::from_value(fake.run(&["show", "shop", "-o", "json"]).expect(0).json()).unwrap();
    assert_eq!(shown, environment("shop", "aaaaaaaa", None));
}

#[test]
fn a_problem_from_the_daemon() {
    let fake = Fake::start(shop_and_clone());
    let done = fake.run(&["show", "nothing"]).expect(1);
    assert_eq!(done.text(), "");
    assert_eq!(
        done.stderr,
        "error[environment-unknown]: there is no environment \"nothing\"\n  asked by name\n  fault: the request\n  \
         next:  see `offshoot ls`\n"
    );
    let done = fake.run(&["-o", "json", "show", "nothing"]).expect(1);
    assert_eq!(done.problem().code, Code::EnvironmentUnknown);
    assert_eq!(done.stderr.lines().count(), 1);
}

#[test]
fn names_are_one_segment_whatever_is_typed() {
    let fake = Fake::start(shop_and_clone());
    fake.run(&["show", "../pool/grow?x=1"]).expect(1);
    assert_eq!(
        fake.asked(),
        ["GET /api/v1/environments/..%2Fpool%2Fgrow%3Fx%3D1"]
    );
}

#[test]
fn without_a_daemon() {
    let fake = Fake::absent();
    let done = fake.run(&["ls"]).expect(1);
    assert!(
        done.stderr.starts_with("error[daemon-unreachable]: "),
        "{}",
        done.stderr
    );
    assert!(
        done.stderr.contains("systemctl start offshoot"),
        "{}",
        done.stderr
    );

    std::fs::write(
        fake.dir().join("compose.yaml"),
        "name: blog\nservices: {web: {image: nginx, deploy: {replicas: 2}}}\n",
    )
    .unwrap();
    let plan = fake.run(&["plan", "-o", "json"]).expect(0);
    assert_eq!(plan.json()["name"], "blog");
    assert_eq!(plan.json()["nodes"][1]["name"], "web-2");
    assert!(plan.stderr.starts_with("warning: "), "{}", plan.stderr);

    let version = fake.run(&["version", "-o", "json"]).expect(0).json();
    assert_eq!(version["client"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(version["daemon"].is_null());
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            fake.run(&["completion", shell])
                .expect(0)
                .text()
                .contains("offshoot")
        );
    }
}

#[test]
fn a_command_that_is_not_understood() {
    let fake = Fake::absent();
    for args in [
        &["clon"][..],
        &["clone"],
        &["clone", "shop", "--max-freeze", "1ms"],
        &["rm", "shop"],
        &["cp", "a", "b"],
    ] {
        fake.run(args).expect(2);
    }
    assert_eq!(fake.asked().len(), 0);
}

#[test]
fn logs_line_by_line() {
    let line = |node: &str, text: &str| LogLine {
        time: "2026-01-02T03:04:05Z".parse().unwrap(),
        node: node.to_owned(),
        stream: LogStream::Stdout,
        line: text.to_owned(),
    };
    let lines = [line("web-1", "one"), line("db-1", "two")];
    let body: String = lines
        .iter()
        .map(|line| serde_json::to_string(line).unwrap() + "\n")
        .collect();
    let fake = Fake::start(
        Router::new().route("/environments/shop/logs", get(move || async move { body })),
    );
    assert_eq!(
        fake.run(&["logs", "shop"]).expect(0).text(),
        "web-1 | one\ndb-1  | two\n"
    );
    assert_eq!(
        fake.run(&["logs", "--no-prefix", "-f", "--tail", "5", "shop", "web"])
            .expect(0)
            .text(),
        "one\ntwo\n"
    );
    assert_eq!(
        fake.asked()[1],
        "GET /api/v1/environments/shop/logs?node=web&tail=5&follow=true"
    );
    let json = fake.run(&["logs", "shop", "-o", "json"]).expect(0);
    let back: Vec<LogLine> = json
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(back, lines);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let line = json!({"time": "2026-01-02T03:04:05Z", "node": "web-1", "stream": "stdout", "line": "x".repeat(1000)});
    let endless = move || async move {
        let text = format!("{line}\n");
        let stream = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(text.clone()));
        Response::new(axum::body::Body::from_stream(stream))
    };
    let fake = Fake::start(Router::new().route("/environments/shop/logs", get(endless)));
    let mut child = fake
        .command(&["logs", "-f", "shop"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 5000]).unwrap();
    drop(stdout);
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn the_pool_and_images() {
    let pool = PoolView {
        backing: "loop file".to_owned(),
        path: "/var/lib/offshoot/pool.img".to_owned(),
        size: 1 << 30,
        used: 1 << 29,
        free: 1 << 29,
        host_bytes: None,
    };
    let answer = pool.clone();
    let fake = Fake::start(
        Router::new()
            .route("/pool", get(move || async move { Json(answer) }))
            .route(
                "/images/{image}",
                delete(|| async { axum::http::StatusCode::NO_CONTENT }),
            ),
    );
    assert!(
        fake.run(&["pool", "status"])
            .expect(0)
            .text()
            .contains("512 MiB (50 %)")
    );
    assert_eq!(
        fake.run(&["pool", "status", "-o", "json"]).expect(0).json(),
        serde_json::to_value(pool).unwrap()
    );
    assert_eq!(
        fake.run(&["image", "rm", "docker.io/library/nginx:1"])
            .expect(0)
            .text(),
        "docker.io/library/nginx:1\n"
    );
    assert_eq!(
        fake.asked()[2],
        "DELETE /api/v1/images/docker.io%2Flibrary%2Fnginx%3A1"
    );
}

#[test]
fn a_host_that_is_not_fit_is_status_1() {
    let report = json!({"fit": false, "checks": [{"name": "runc", "verdict": "missing", "found": "not found",
        "cost": "nothing runs", "next": "apt install runc"}]});
    let fake =
        Fake::start(Router::new().route("/doctor", get(move || async move { Json(report) })));
    let done = fake.run(&["doctor"]).expect(1);
    assert!(done.text().contains("apt install runc"), "{}", done.text());
    assert_eq!(
        fake.run(&["doctor", "-o", "json"]).expect(1).json()["fit"],
        false
    );
}
