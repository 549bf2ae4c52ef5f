//! Paths, wildcards and redirects: what environments with domains of their own need.

use hyper::{Method, Request, StatusCode};
use offshoot_edge_api::{EdgeError, Redirect, Route};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::kit::{A, B, Server, TestEdge, ask, ask2, empty, full, get, route, routes};

fn at(path: &str, mut route: Route) -> Route {
    route.path = path.to_owned();
    route
}

pub(crate) fn redirect(host: &str, to: &str, status: u16) -> Route {
    let mut route = route(host, A, &[]);
    let to = to.to_owned();
    route.redirect = Some(Redirect { to, status });
    route
}

#[tokio::test]
async fn paths_choose_the_environment_and_arrive_as_sent() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    edge.serve(&routes(
        1,
        vec![
            route("a.org", A, &[a.address]),
            at("/shop", route("a.org", B, &[b.address])),
            at("/shop/cart", route("a.org", A, &[a.address])),
            at("/only", route("b.org", B, &[b.address])),
        ],
    ));
    for (path, who) in [
        ("/", "a"),
        ("/shopping", "a"),
        ("/shop", "b"),
        ("/shop?x=/y", "b"),
        ("/?x=/shop", "a"),
        ("/shop/x", "b"),
        ("/shop/cart/x", "a"),
        ("/x/../shop/x", "b"),
        ("/shop/%2e%2e/x", "a"),
        ("/shop/x/.%2E/cart", "a"),
        ("/%73hop", "b"),
        ("//shop//x", "b"),
        ("/x/..%2fshop", "a"),
    ] {
        assert_eq!(
            ask(edge.http(), get("a.org", path)).await.text(),
            who,
            "{path}"
        );
        assert_eq!(ask2(edge.http(), "a.org", path).await.text(), who, "{path}");
    }
    // the server sees what the client sent, not what was compared
    let echo = "/x/%2e%2e/shop//%41?q=%2e";
    let seen = raw_target(&edge, "b.org", &format!("/only/..{echo}")).await;
    assert_eq!(seen, None, "it left its prefix");
    let seen = raw_target(&edge, "b.org", "/only/x//%2e%2e/%41?q=%2e").await;
    assert_eq!(seen.as_deref(), Some("/only/x//%2e%2e/%41?q=%2e"));
    let unknown = ask(edge.http(), get("b.org", "/other")).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(
        unknown.text().contains("this path of b.org"),
        "{}",
        unknown.text()
    );
}

/// Routes a host's `/only` to a server that notes the target it was asked for, and asks.
async fn raw_target(edge: &TestEdge, host: &str, target: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let version = edge.control().status().unwrap().version + 1;
    edge.serve(&routes(
        version,
        vec![at("/only", route(host, B, &[upstream]))],
    ));
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        String::from_utf8(head).unwrap()
    });
    let answer = ask(edge.http(), get(host, target)).await;
    if answer.status == StatusCode::NOT_FOUND {
        server.abort();
        return None;
    }
    let head = server.await.unwrap();
    head.split(' ').nth(1).map(str::to_owned)
}

#[tokio::test]
async fn wildcards_answer_what_has_no_name_of_its_own() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    edge.serve(&routes(
        1,
        vec![
            route("*.example.org", A, &[a.address]),
            route("*.b.Example.org", B, &[b.address]),
            route("own.example.org", B, &[b.address]),
        ],
    ));
    for (host, who) in [
        ("x.example.org", "a"),
        ("Y.X.example.org.:80", "a"),
        ("b.example.org", "a"),
        ("x.b.example.org", "b"),
        ("own.example.org", "b"),
        ("x.own.example.org", "a"),
    ] {
        assert_eq!(ask(edge.http(), get(host, "/")).await.text(), who, "{host}");
    }
    for host in ["example.org", "xexample.org", "org"] {
        let answer = ask(edge.http(), get(host, "/")).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{host}");
    }
    for host in ["*", "*.", "a.*.org", "*a.org"] {
        routes(2, vec![route(host, A, &[])])
            .write_atomically(&edge.config.routes)
            .unwrap();
        let error = edge.control().reload().unwrap_err();
        assert!(matches!(&error, EdgeError::Refused(_)), "{error}");
        assert!(error.to_string().contains(&format!("{host:?}")), "{error}");
    }
    // `*` in a request is no host name either
    let answer = ask(edge.http(), get("*.example.org", "/")).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn redirects_keep_path_and_query() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(
        1,
        vec![
            redirect("old.org", "https://New.org:8443", 308),
            redirect("temporary.org", "http://new.org", 307),
            at("/moved", redirect("a.org", "https://new.org", 301)),
            route("a.org", A, &[a.address]),
        ],
    ));
    for (host, path, status, location) in [
        ("old.org", "/", 308, "https://new.org:8443/"),
        (
            "old.org",
            "/a/%2e%2e/b?c=d&e",
            308,
            "https://new.org:8443/a/%2e%2e/b?c=d&e",
        ),
        (
            "old.org",
            "//evil.org/",
            308,
            "https://new.org:8443//evil.org/",
        ),
        ("temporary.org", "/x", 307, "http://new.org/x"),
        ("a.org", "/moved/x", 301, "https://new.org/moved/x"),
    ] {
        for answer in [
            ask(edge.http(), get(host, path)).await,
            ask2(edge.http(), host, path).await,
        ] {
            assert_eq!(answer.status.as_u16(), status, "{host}{path}");
            assert_eq!(answer.headers["location"], location);
        }
    }
    assert_eq!(ask(edge.http(), get("a.org", "/")).await.text(), "a");
    let post = Request::builder()
        .method(Method::POST)
        .uri("/form")
        .header("host", "old.org")
        .body(full("x".repeat(100_000)))
        .unwrap();
    let answer = ask(edge.http(), post).await;
    assert_eq!(answer.headers["location"], "https://new.org:8443/form");
    let options = Request::builder().method(Method::OPTIONS).uri("*");
    let options = options.header("host", "old.org").body(empty()).unwrap();
    let answer = ask(edge.http(), options).await;
    assert_eq!(answer.headers["location"], "https://new.org:8443/");
}

#[tokio::test]
async fn websockets_are_redirected_like_everything() {
    let edge = TestEdge::start();
    edge.serve(&routes(
        1,
        vec![redirect("old.org", "https://new.org", 308)],
    ));
    let stream = TcpStream::connect(edge.http()).await.unwrap();
    let request = "ws://old.org/socket?x=y".into_client_request().unwrap();
    let error = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap_err();
    let tungstenite::Error::Http(response) = error else {
        panic!("{error}")
    };
    assert_eq!(response.status(), StatusCode::PERMANENT_REDIRECT);
    assert_eq!(response.headers()["location"], "https://new.org/socket?x=y");
}
