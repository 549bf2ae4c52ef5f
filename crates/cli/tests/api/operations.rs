//! Commands that change something: followed, cancelled, left to the daemon.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use offshoot_model::view::CreateRequest;
use offshoot_model::{Code, Fault, Operation, OperationKind, OperationState, Problem};

use crate::fake::{Fake, later, operation, sse};
use crate::reading::environment;

/// The operation as the daemon knows it.
type Known = Arc<Mutex<Operation>>;

pub(crate) fn accepted(operation: &Operation) -> Response {
    (StatusCode::ACCEPTED, Json(operation.clone())).into_response()
}

/// An event stream that stays open.
fn open_stream(text: String) -> Response {
    use futures::StreamExt as _;
    let begin = futures::stream::once(async move { Ok::<_, Infallible>(text) });
    Response::new(Body::from_stream(begin.chain(futures::stream::pending())))
}

/// Routes around one operation: what it is now, and an event stream that says nothing.
fn around(known: &Known) -> Router {
    let (look, cancel) = (Arc::clone(known), Arc::clone(known));
    Router::new()
        .route(
            "/operations/{id}",
            get(move || async move { Json(look.lock().unwrap().clone()) }),
        )
        .route(
            "/operations/{id}/cancel",
            post(move || async move {
                let mut known = cancel.lock().unwrap();
                *known = later(&known, OperationState::Cancelled);
                Json(known.clone())
            }),
        )
        .route(
            "/environments/{environment}",
            get(|| async { Json(environment("shop", "aaaaaaaa", None)) }),
        )
}

fn compose(fake: &Fake) {
    std::fs::write(
        fake.dir().join("compose.yaml"),
        "services: {web: {image: nginx}}\n",
    )
    .unwrap();
}

#[test]
fn a_create_is_followed_over_a_broken_stream() {
    let running = operation(OperationKind::Create, "shop", OperationState::Running);
    let done = later(&running, OperationState::Done);
    let known: Known = Arc::new(Mutex::new(running.clone()));
    let requests: Arc<Mutex<Vec<CreateRequest>>> = Arc::default();
    let resumed: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
    let (seen, ids, first) = (Arc::clone(&requests), Arc::clone(&resumed), running.clone());
    let routes = around(&known)
        .route(
            "/environments",
            post(move |Json(request): Json<CreateRequest>| async move {
                seen.lock().unwrap().push(request);
                accepted(&first)
            }),
        )
        .route(
            "/events",
            get(move |headers: HeaderMap| async move {
                let mut ids = ids.lock().unwrap();
                ids.push(
                    headers
                        .get("last-event-id")
                        .map(|id| id.to_str().unwrap().to_owned()),
                );
                if ids.len() == 1 {
                    // Another's operation, which a later daemon may send, then ours, then the connection ends.
                    let other = operation(OperationKind::Stop, "other", OperationState::Done);
                    let old = later(&running, OperationState::Waiting);
                    sse(40, &old) + &sse(41, &other) + &sse(42, &running)
                } else {
                    sse(43, &done)
                }
            }),
        );
    let fake = Fake::start(routes);
    compose(&fake);
    let ended = fake.run(&["create", "--name", "shop"]).expect(0);
    assert!(
        ended.text().contains("http://shop.localhost/"),
        "{}",
        ended.text()
    );
    assert!(
        ended.stderr.starts_with("Creating shop\n"),
        "{}",
        ended.stderr
    );
    for line in ["done network", "done nodes"] {
        assert_eq!(ended.stderr.matches(line).count(), 1, "{}", ended.stderr);
    }
    assert_eq!(*resumed.lock().unwrap(), [None, Some("42".to_owned())]);
    let requests = requests.lock().unwrap();
    assert_eq!(requests[0].name, "shop");
    assert_eq!(
        requests[0].manifest.layers[0].image.display(),
        "docker.io/library/nginx:latest"
    );
}

#[test]
fn an_operation_outlives_a_restart_of_the_daemon() {
    let running = operation(OperationKind::Stop, "shop", OperationState::Running);
    let known: Known = Arc::new(Mutex::new(running.clone()));
    let first = running.clone();
    let routes = || {
        let first = first.clone();
        around(&known)
            .route(
                "/environments/shop/stop",
                post(move || async move { accepted(&first) }),
            )
            .route(
                "/events",
                get(|| async { open_stream(": hello\n\n".to_owned()) }),
            )
    };
    let mut fake = Fake::start(routes());
    let program = fake.begin(&["stop", "shop", "-o", "json"]);
    fake.wait_asked("GET /api/v1/operations/");
    fake.stop();
    *known.lock().unwrap() = later(&running, OperationState::Done);
    fake.listen(routes());
    let done = program.end().expect(0);
    assert_eq!(done.json()["state"], "done");
    assert_eq!(done.json()["id"], running.id.to_string());
}

#[test]
fn a_failed_operation_is_a_problem() {
    let mut failed = operation(OperationKind::Clone, "shop-clone", OperationState::Failed);
    failed.problem = Some(Problem::new(
        Code::FreezeTimeout,
        Fault::Host,
        "the freeze passed its bound",
        "try again",
    ));
    let first = later(&failed, OperationState::Running);
    let known: Known = Arc::new(Mutex::new(failed));
    let fake = Fake::start(
        around(&known)
            .route(
                "/environments/shop/clone",
                post(move || async move { accepted(&first) }),
            )
            .route("/events", get(|| async { open_stream(String::new()) })),
    );
    let done = fake
        .run(&["clone", "shop", "--rung", "live", "--max-freeze", "200ms"])
        .expect(1);
    assert!(
        done.stderr
            .contains("error[freeze-timeout]: the freeze passed its bound"),
        "{}",
        done.stderr
    );
    assert_eq!(done.text(), "");
    let json = fake.run(&["clone", "shop", "-o", "json"]).expect(1);
    assert_eq!(json.problem().code, Code::FreezeTimeout);
    assert_eq!(json.stderr.lines().count(), 1, "{}", json.stderr);
}

#[test]
fn detach_answers_at_once() {
    let running = operation(OperationKind::Start, "shop", OperationState::Running);
    let first = running.clone();
    let fake = Fake::start(Router::new().route(
        "/environments/shop/start",
        post(move || async move { accepted(&first) }),
    ));
    assert_eq!(
        fake.run(&["start", "--detach", "shop"]).expect(0).text(),
        format!("{}\n", running.id)
    );
    let json: Operation = serde_json::from_value(
        fake.run(&["start", "-d", "shop", "-o", "json"])
            .expect(0)
            .json(),
    )
    .unwrap();
    assert_eq!(json, running);
}

#[test]
fn ctrl_c_cancels_and_waits_for_the_undo() {
    let running = operation(OperationKind::Create, "shop", OperationState::Running);
    let known: Known = Arc::new(Mutex::new(running.clone()));
    let fake = Fake::start(
        around(&known)
            .route(
                "/environments",
                post(move || async move { accepted(&running) }),
            )
            .route("/events", get(|| async { open_stream(String::new()) })),
    );
    compose(&fake);
    let program = fake.begin(&["create", "--name", "shop"]);
    fake.wait_asked("GET /api/v1/operations/");
    program.interrupt();
    let done = program.end().expect(1);
    assert!(done.stderr.contains("error[cancelled]"), "{}", done.stderr);
    assert!(
        fake.asked()
            .iter()
            .any(|asked| asked.starts_with("POST") && asked.ends_with("/cancel"))
    );
}

#[test]
fn a_second_ctrl_c_leaves_it_to_the_daemon() {
    let running = operation(OperationKind::Create, "shop", OperationState::Running);
    let id = running.id;
    let known: Known = Arc::new(Mutex::new(running.clone()));
    let look = Arc::clone(&known);
    let fake = Fake::start(
        Router::new()
            .route(
                "/operations/{id}",
                get(move || async move { Json(look.lock().unwrap().clone()) }),
            )
            // A daemon that does not get to answer.
            .route(
                "/operations/{id}/cancel",
                post(|| async { std::future::pending::<()>().await }),
            )
            .route(
                "/environments",
                post(move || async move { accepted(&running) }),
            )
            .route("/events", get(|| async { open_stream(String::new()) })),
    );
    compose(&fake);
    let program = fake.begin(&["create", "--name", "shop"]);
    fake.wait_asked("GET /api/v1/operations/");
    program.interrupt();
    fake.wait_asked(&format!("POST /api/v1/operations/{id}/cancel"));
    program.interrupt();
    let done = program.end().expect(1);
    assert!(
        done.stderr.contains(&format!("offshoot op show {id}")),
        "{}",
        done.stderr
    );
}

#[test]
fn several_are_begun_together_and_a_failure_does_not_hide_the_rest() {
    let done = operation(OperationKind::Remove, "a", OperationState::Done);
    let look = done.clone();
    let fake = Fake::start(
        Router::new()
            .route(
                "/environments/{environment}",
                axum::routing::delete(
                    move |axum::extract::Path(name): axum::extract::Path<String>| async move {
                        if name == "a" {
                            accepted(&done)
                        } else {
                            let what = format!("there is no environment {name}");
                            crate::fake::problem(&Problem::new(
                                Code::EnvironmentUnknown,
                                Fault::Request,
                                what,
                                "",
                            ))
                        }
                    },
                ),
            )
            .route("/operations/{id}", get(move || async move { Json(look) }))
            .route("/events", get(|| async { open_stream(String::new()) })),
    );
    let ended = fake.run(&["rm", "--yes", "b", "a", "c", "a"]).expect(1);
    for name in ["b", "c"] {
        assert!(
            ended
                .stderr
                .contains(&format!("there is no environment {name}")),
            "{}",
            ended.stderr
        );
    }
    assert_eq!(
        fake.asked()
            .iter()
            .filter(|asked| asked.starts_with("DELETE"))
            .count(),
        3
    );
}

#[test]
fn a_dry_run_asks_for_a_plan() {
    let plan = serde_json::json!({"name": "shop-clone", "url": null, "volumes": [], "ports": [], "steps": ["cut"], "predicted_freeze_us": null,
        "notices": ["port 8081 is not carried over"], "nodes": [{"name": "db-1", "image": "mariadb",
        "inner": "10.0.0.10", "outer": "10.208.1.10", "hostname": "db-1.shop-clone", "rung": "disk",
        "why": "it uses io_uring", "memory": null, "memory_bytes": 1048576, "held": null}]});
    let answer = plan.clone();
    let fake = Fake::start(Router::new().route(
        "/environments/shop/clone",
        post(move || async move { Json(answer) }),
    ));
    let table = fake.run(&["clone", "shop", "--dry-run"]).expect(0);
    assert!(
        table.text().contains("it uses io_uring"),
        "{}",
        table.text()
    );
    assert_eq!(
        fake.run(&["clone", "shop", "--dry-run", "-o", "json"])
            .expect(0)
            .json(),
        plan
    );
    assert_eq!(
        fake.asked()[0],
        "POST /api/v1/environments/shop/clone?dry_run=true"
    );
}

#[test]
fn operations_are_listed_shown_and_cancelled() {
    let running = operation(OperationKind::Clone, "shop-clone", OperationState::Running);
    let id = running.id.to_string();
    let known: Known = Arc::new(Mutex::new(running.clone()));
    let fake = Fake::start(
        around(&known)
            .route(
                "/operations",
                get(move || async move { Json(vec![running]) }),
            )
            .route("/events", get(|| async { open_stream(String::new()) })),
    );
    assert_eq!(
        fake.run(&["op", "ls", "-q", "-n", "7"]).expect(0).text(),
        format!("{id}\n")
    );
    assert_eq!(fake.asked()[0], "GET /api/v1/operations?limit=7");
    assert!(
        fake.run(&["op", "show", &id])
            .expect(0)
            .text()
            .contains("running")
    );
    assert!(
        fake.run(&["op", "show", "--timing", &id])
            .expect(0)
            .text()
            .contains("network")
    );
    assert_eq!(
        fake.run(&["op", "cancel", &id]).expect(0).text(),
        format!("{id} was cancelled\n")
    );
    let json = fake
        .run(&["op", "show", "--follow", "-o", "json", &id])
        .expect(0)
        .json();
    assert_eq!(json["state"], "cancelled");
}

#[test]
fn images_are_fetched_and_the_pool_grows() {
    let bodies: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
    let done = operation(
        OperationKind::ImagePull,
        "docker.io/library/nginx:1.27",
        OperationState::Done,
    );
    let (grown, look) = (done.clone(), done.clone());
    let (images, sizes) = (Arc::clone(&bodies), Arc::clone(&bodies));
    let pool = serde_json::json!({"backing": "loop file", "path": "/p", "size": 1u64 << 30, "used": 0, "free": 0,
        "host_bytes": null});
    let fake = Fake::start(
        Router::new()
            .route(
                "/images",
                post(move |Json(body): Json<serde_json::Value>| async move {
                    images.lock().unwrap().push(body);
                    accepted(&done)
                }),
            )
            .route(
                "/pool/grow",
                post(move |Json(body): Json<serde_json::Value>| async move {
                    sizes.lock().unwrap().push(body);
                    accepted(&grown)
                }),
            )
            .route("/pool", get(move || async move { Json(pool) }))
            .route("/operations/{id}", get(move || async move { Json(look) }))
            .route("/events", get(|| async { open_stream(String::new()) })),
    );
    assert_eq!(
        fake.run(&["image", "pull", "nginx:1.27"]).expect(0).text(),
        "docker.io/library/nginx:1.27\n"
    );
    std::fs::write(fake.dir().join("image.tar"), "").unwrap();
    fake.run(&["image", "import", "docker-archive:image.tar"])
        .expect(0);
    fake.run(&["image", "import", "docker-archive:none.tar"])
        .expect(1);
    fake.run(&["image", "import", "nginx"]).expect(2);
    fake.run(&["pool", "grow", "+1GiB"]).expect(0);
    let file = fake.dir().canonicalize().unwrap().join("image.tar");
    assert_eq!(
        *bodies.lock().unwrap(),
        [
            serde_json::json!({"source": {"kind": "registry", "reference": "docker.io/library/nginx:1.27"}}),
            serde_json::json!({"source": {"kind": "docker-archive", "path": file, "tag": null}}),
            serde_json::json!({"size": 2u64 << 30}),
        ]
    );
}

#[test]
fn domains_are_added_and_removed_as_typed() {
    use offshoot_model::view::DomainAddRequest;
    let done = |kind| accepted(&operation(kind, "shop", OperationState::Done));
    let requests: Arc<Mutex<Vec<DomainAddRequest>>> = Arc::default();
    let seen = Arc::clone(&requests);
    let routes = Router::new()
        .route(
            "/environments/shop/domains",
            post(move |Json(request): Json<DomainAddRequest>| async move {
                seen.lock().unwrap().push(request);
                done(OperationKind::DomainAdd)
            }),
        )
        .route(
            "/environments/shop/domains/{domain}",
            axum::routing::delete(move || async move { done(OperationKind::DomainRemove) }),
        );
    let fake = Fake::start(routes);
    let added = fake.run(&["domain", "add", "shop", "A.test", "b.test/c"]);
    assert_eq!(added.expect(0).text(), "shop\n");
    let asked = &requests.lock().unwrap()[0].domains;
    let typed: Vec<_> = asked.iter().map(ToString::to_string).collect();
    assert_eq!(typed, ["A.test", "b.test/c"]);
    let removed = fake.run(&["domain", "rm", "shop", "a.test", "b.test/c", "-o", "json"]);
    assert_eq!(removed.expect(0).json().as_array().map(Vec::len), Some(2));
    let deletes: Vec<_> = fake
        .asked()
        .into_iter()
        .filter(|asked| asked.starts_with("DELETE"))
        .collect();
    let path = "DELETE /api/v1/environments/shop/domains";
    assert_eq!(
        deletes,
        [format!("{path}/a.test"), format!("{path}/b.test%2Fc")]
    );
}

#[test]
fn a_key_goes_in_the_body_and_its_file_is_named_when_it_is_refused() {
    use offshoot_model::certificate::CertificateRequest;
    let bodies: Arc<Mutex<Vec<CertificateRequest>>> = Arc::default();
    let seen = Arc::clone(&bodies);
    let routes = Router::new().route(
        "/certificates",
        post(move |Json(request): Json<CertificateRequest>| async move {
            let refused =
                matches!(&request, CertificateRequest::Uploaded { key, .. } if key == "BAD");
            seen.lock().unwrap().push(request);
            if refused {
                let what = "the key cannot be used: it is not the key of the certificate";
                let problem = Problem::new(Code::CertificateInvalid, Fault::Request, what, "");
                return (StatusCode::UNPROCESSABLE_ENTITY, Json(problem)).into_response();
            }
            accepted(&operation(
                OperationKind::CertificateAdd,
                "a.test",
                OperationState::Done,
            ))
            .into_response()
        }),
    );
    let fake = Fake::start(routes);
    let file = |name: &str, text: &str| {
        let path = fake.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (chain, key, bad) = (
        file("chain.pem", "CHAIN"),
        file("key.pem", "KEY"),
        file("bad.pem", "BAD"),
    );
    let added = fake.run(&["cert", "add", &chain, &key, "a.test"]);
    assert_eq!(added.expect(0).text(), "a.test\n");
    assert!(matches!(&bodies.lock().unwrap()[0],
        CertificateRequest::Uploaded { chain, key, domains }
            if chain == "CHAIN" && key == "KEY" && domains == &["a.test"]));
    let refused = fake.run(&["cert", "add", &chain, &bad]).expect(1).stderr;
    assert!(
        refused.contains(&bad) && refused.contains("certificate-invalid"),
        "{refused}"
    );
    let missing = fake
        .run(&["cert", "add", &chain, "/nonexistent"])
        .expect(1)
        .stderr;
    assert!(missing.contains("/nonexistent cannot be read"), "{missing}");
    assert_eq!(bodies.lock().unwrap().len(), 2);
}

#[test]
fn a_swap_says_what_is_to_be_seen_first_and_what_came_of_it() {
    use offshoot_model::domain::{MovedDomain, SwapReport, Warm};
    use offshoot_model::view::SwapRequest;
    let mut done = operation(OperationKind::Swap, "shop", OperationState::Done);
    done.swap = Some(SwapReport {
        with: "next".to_owned(),
        moved: vec![MovedDomain {
            host: "a.test".to_owned(),
            path: "/".to_owned(),
            from: "shop".to_owned(),
            to: "next".to_owned(),
        }],
        switched: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        us: Some(900),
        version: Some(7),
    });
    let requests: Arc<Mutex<Vec<SwapRequest>>> = Arc::default();
    let seen = Arc::clone(&requests);
    let routes = Router::new().route(
        "/environments/shop/swap",
        post(move |Json(request): Json<SwapRequest>| async move {
            seen.lock().unwrap().push(request);
            accepted(&done)
        }),
    );
    let fake = Fake::start(routes);
    let told = fake.run(&["swap", "shop", "next"]).expect(0);
    for part in ["a.test   shop   next", "900 µs", "swap --back shop next"] {
        assert!(told.text().contains(part), "no {part} in {}", told.text());
    }
    let args =
        "swap --back shop next --warm /a --warm /b --warm-answers 1 --warm-timeout 2s -o json";
    let told = fake.run(&args.split(' ').collect::<Vec<_>>()).expect(0);
    assert_eq!(told.json()["swap"]["version"], 7);
    let requests = requests.lock().unwrap();
    assert_eq!(
        (requests[0].back, &requests[0].warm),
        (false, &Warm::default())
    );
    let warm = Warm {
        paths: vec!["/a".to_owned(), "/b".to_owned()],
        answers: 1,
        timeout_ms: 2_000,
    };
    assert_eq!((requests[1].back, &requests[1].warm), (true, &warm));
    assert_eq!(requests[1].with, "next");
}
