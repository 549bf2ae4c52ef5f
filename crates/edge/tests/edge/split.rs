//! Which side answers: rules, weights, what keeps a visitor on a side, and the fence.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::header::{COOKIE, HOST, RETRY_AFTER, SET_COOKIE};
use hyper::{Method, Request, StatusCode};
use offshoot_edge_api::RoutesFile;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::authority::Authority;
use crate::kit::{
    A, Answer, B, Body, C, SOON, Server, TestEdge, ask, empty, get, http1, http1_on, http2, route,
    routes, until, with_policy,
};

/// A's domain `a.org` with a policy over A and B.
fn split(version: u64, a: &Server, b: &Server, policy: &str) -> RoutesFile {
    with_policy(
        version,
        vec![route("a.org", A, &[a.address])],
        A,
        policy,
        &[(A, &[a.address]), (B, &[b.address])],
    )
}

fn sides(a: u32, b: u32, rest: &str) -> String {
    format!(
        r#"{{"sides":[{{"environment":"{A}","weight":{a}}},{{"environment":"{B}","weight":{b}}}]{rest}}}"#
    )
}

fn request(target: &str, fields: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::get(target).header(HOST, "a.org");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(empty()).unwrap()
}

/// The value of the edge's cookie in an answer, and the rest of the field.
pub(crate) fn cookie(answer: &Answer) -> Option<(String, String)> {
    let value = answer.headers.get(SET_COOKIE)?.to_str().unwrap();
    let (value, rest) = value.split_once("; ").unwrap();
    Some((value.to_owned(), rest.to_owned()))
}

#[tokio::test]
async fn shares_are_those_of_the_weights() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    for (version, sticky) in [(1, r#""visitor""#), (2, r#""nothing""#)] {
        let policy = sides(70, 30, &format!(r#","sticky":{sticky}"#));
        edge.serve(&split(version, &a, &b, &policy));
        let mut client = http1(edge.http()).await;
        let mut to_b = 0;
        for _ in 0..2_000 {
            client.ready().await.unwrap();
            let answer = client.send_request(request("/", &[])).await.unwrap();
            let answer = Answer::read(answer).await;
            to_b += u32::from(answer.text() == "b");
        }
        // 600, and five standard deviations to both sides
        assert!((500..=700).contains(&to_b), "{sticky}: {to_b} of 2000");
    }
}

#[tokio::test]
async fn visitors_stay_on_their_side_when_the_edge_is_killed_and_weights_move() {
    let mut edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let mut version = 0;
    for sticky in [
        r#"{"cookie":"session"}"#,
        r#"{"header":"x-user"}"#,
        r#"{"query":"user"}"#,
        r#""client""#,
        r#""visitor""#,
    ] {
        let policy = |a, b| sides(a, b, &format!(r#","sticky":{sticky}"#));
        version += 1;
        edge.serve(&split(version, &a, &b, &policy(50, 50)));
        let mut people = Vec::new();
        for number in 1..=40_u8 {
            let user = format!("user-{number}");
            let mut person = match sticky {
                r#""client""# => Person::at(number),
                r#"{"query":"user"}"# => Person::with("/?user=", &user, None),
                r#"{"header":"x-user"}"# => Person::with("/", &user, Some("x-user")),
                r#"{"cookie":"session"}"# => {
                    Person::with("/", &format!("x=y; session={user}"), Some("cookie"))
                }
                _ => Person::with("/", "", None),
            };
            let answer = person.ask(edge.http()).await;
            if let Some((cookie, _)) = cookie(&answer) {
                assert_eq!(sticky, r#""visitor""#);
                person = Person::with("/", &cookie, Some("cookie"));
            }
            people.push((person, answer.text().to_owned()));
        }
        let on_b = people.iter().filter(|(_, side)| side == "b").count();
        assert!((5..=35).contains(&on_b), "{sticky}: {on_b} of 40");
        edge.kill().await;
        for (person, side) in &people {
            assert_eq!(person.ask(edge.http()).await.text(), side, "{sticky}");
        }
        version += 1;
        edge.serve(&split(version, &a, &b, &policy(10, 90)));
        let mut moved = 0;
        for (person, side) in &people {
            let now = person.ask(edge.http()).await;
            assert!(
                side == "a" || now.text() == "b",
                "{sticky}: away from more weight"
            );
            moved += u32::from(now.text() != side);
        }
        assert!(moved > 0, "{sticky}: nobody moved");
    }
}

/// Somebody whom the edge can tell from others.
struct Person {
    target: String,
    field: Option<(&'static str, String)>,
    address: [u8; 4],
}

impl Person {
    fn at(number: u8) -> Self {
        let address = [127, 0, 9, number];
        Self {
            target: "/".into(),
            field: None,
            address,
        }
    }

    fn with(target: &str, value: &str, field: Option<&'static str>) -> Self {
        let query = if field.is_none() { value } else { "" };
        Self {
            target: format!("{target}{query}"),
            field: field.map(|field| (field, value.to_owned())),
            address: [127, 0, 0, 1],
        }
    }

    async fn ask(&self, edge: SocketAddr) -> Answer {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.address, 0).into()).unwrap();
        let mut client = http1_on(socket.connect(edge).await.unwrap()).await;
        let fields: Vec<_> = self
            .field
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let request = request(&self.target, &fields);
        Answer::read(client.send_request(request).await.unwrap()).await
    }
}

#[tokio::test]
async fn rules_go_before_weights() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let rules = format!(
        r#","rules":[
        {{"when":[{{"header":{{"name":"X-Country","values":["AT","CH"]}}}},{{"path":"/new"}}],"to":"{B}"}},
        {{"when":[{{"cookie":{{"name":"beta"}}}}],"to":"{B}"}},
        {{"when":[{{"query":{{"name":"side","values":["b b"]}}}}],"to":"{B}"}},
        {{"when":[{{"method":["PUT"]}}],"to":"{B}"}},
        {{"when":[{{"client":["127.0.9.0/24"]}}],"to":"{B}"}}]"#
    );
    edge.serve(&split(1, &a, &b, &sides(1, 0, &rules)));
    let put = Request::builder()
        .method(Method::PUT)
        .uri("/")
        .header(HOST, "a.org");
    for (request, side) in [
        (request("/new/x", &[("x-country", "CH")]), "b"),
        (request("/new/x", &[("x-country", "DE")]), "a"),
        (request("/old", &[("x-country", "CH")]), "a"),
        (
            request("/x/..//new", &[("x-country", "DE"), ("x-country", "AT")]),
            "b",
        ),
        (request("/", &[("cookie", "a=b;beta=")]), "b"),
        (request("/", &[("cookie", "Beta=1")]), "a"),
        (request("/?side=b+b", &[]), "b"),
        (request("/?side=b", &[]), "a"),
        (put.body(empty()).unwrap(), "b"),
    ] {
        let what = format!("{request:?}");
        assert_eq!(ask(edge.http(), request).await.text(), side, "{what}");
    }
    assert_eq!(Person::at(1).ask(edge.http()).await.text(), "b");
    // HTTP/2 sends each cookie in a field of its own; HTTP/1.1 has one
    let asked = Request::get("http://a.org/headers")
        .header(COOKIE, "a=1")
        .header(COOKIE, "beta=2");
    let answer = http2(edge.http())
        .await
        .send_request(asked.body(empty()).unwrap())
        .await;
    let answer = Answer::read(answer.unwrap()).await;
    assert!(
        answer.text().contains("cookie: a=1; beta=2\n"),
        "{}",
        answer.text()
    );
    // a rule's side that takes nothing leaves it to the weights
    let mut file = split(2, &a, &b, &sides(1, 0, &rules));
    file.traffic[0].upstreams.insert(B.parse().unwrap(), vec![]);
    edge.serve(&file);
    let answer = ask(edge.http(), request("/", &[("cookie", "beta=1")])).await;
    assert_eq!(answer.text(), "a");
}

#[tokio::test]
async fn sides_that_are_stopped_take_nothing() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let mut file = split(1, &a, &b, &sides(1_000, 0, ""));
    file.traffic[0].upstreams.insert(A.parse().unwrap(), vec![]);
    edge.serve(&file);
    assert_eq!(ask(edge.http(), request("/", &[])).await.text(), "b");
    file.version = 2;
    file.traffic[0].upstreams.insert(B.parse().unwrap(), vec![]);
    edge.serve(&file);
    let answer = ask(edge.http(), request("/", &[])).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key(RETRY_AFTER));
    assert!(!answer.headers.contains_key(SET_COOKIE));
    // an owner that is no side of its own answers nothing
    let only_b = format!(r#"{{"sides":[{{"environment":"{B}","weight":1}}]}}"#);
    edge.serve(&with_policy(
        3,
        vec![route("a.org", A, &[a.address])],
        A,
        &only_b,
        &[(B, &[b.address])],
    ));
    let answer = ask(edge.http(), request("/", &[])).await;
    assert_eq!(answer.text(), "b");
    assert!(
        !answer.headers.contains_key(SET_COOKIE),
        "one side needs no cookie"
    );
}

#[tokio::test]
async fn the_edge_s_cookie_is_its_own() {
    let authority = Authority::new();
    let edge = TestEdge::with(|config| config.listen_tls = vec!["127.0.0.1:0".parse().unwrap()]);
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let mut file = split(1, &a, &b, &sides(1, 1, ""));
    file.certificates = vec![authority.certificate("a", &["a.org"])];
    edge.serve(&file);
    let first = ask(edge.http(), request("/", &[])).await;
    let (value, rest) = cookie(&first).unwrap();
    assert_eq!(rest, "Path=/; Max-Age=7776000; HttpOnly; SameSite=Lax");
    let tls = authority.ask2(edge.https(), "a.org", "/").await;
    assert_eq!(cookie(&tls).unwrap().1, format!("{rest}; Secure"));
    // who has it gets no other, and it goes no further
    let both = format!("a=1; {value}; b=2");
    let again = ask(edge.http(), request("/headers", &[("cookie", &both)])).await;
    assert_eq!(cookie(&again), None);
    assert!(
        again.text().contains("cookie: a=1; b=2\n"),
        "{}",
        again.text()
    );
    let alone = ask(edge.http(), request("/headers", &[("cookie", &value)])).await;
    assert!(!alone.text().contains("cookie"), "{}", alone.text());
    // nor does it where no policy is
    edge.serve(&routes(2, vec![route("a.org", A, &[a.address])]));
    let plain = ask(edge.http(), request("/headers", &[("cookie", &both)])).await;
    assert!(
        plain.text().contains("cookie: a=1; b=2\n"),
        "{}",
        plain.text()
    );
    // what is not ours in it is absent
    edge.serve(&split(3, &a, &b, &sides(1, 1, "")));
    for planted in [
        "offshoot-visitor=",
        "offshoot-visitor=x",
        "offshoot-visitor=../../%00",
    ] {
        let answer = ask(edge.http(), request("/", &[("cookie", planted)])).await;
        let (set, _) = cookie(&answer).unwrap();
        let value = set.strip_prefix("offshoot-visitor=").unwrap();
        assert!(value.len() > 32, "{set}");
        assert!(
            value
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || b".-".contains(&b)),
            "{set}"
        );
    }
}

async fn echo() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() {
                        socket.send(message).await.unwrap();
                    }
                }
            });
        }
    });
    (address, task)
}

#[tokio::test]
async fn websockets_and_requests_on_their_way_stay_where_they_are() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let (socket_server, _task) = echo().await;
    let rules = format!(
        r#","rules":[{{"when":[{{"header":{{"name":"upgrade","values":["websocket"]}}}}],"to":"{C}"}}]"#
    );
    let all = [
        (A, &[a.address][..]),
        (B, &[b.address]),
        (C, &[socket_server]),
    ];
    let file = |version, weights: [u32; 3], rest: &str| {
        let sides = [A, B, C]
            .iter()
            .zip(weights)
            .map(|(id, weight)| format!(r#"{{"environment":"{id}","weight":{weight}}}"#));
        let sides = sides.collect::<Vec<_>>().join(",");
        let policy = format!(r#"{{"sides":[{sides}]{rest}}}"#);
        with_policy(
            version,
            vec![route("a.org", A, &[a.address])],
            A,
            &policy,
            &all,
        )
    };
    edge.serve(&file(1, [1, 0, 0], &rules));
    let stream = TcpStream::connect(edge.http()).await.unwrap();
    let asked = "ws://a.org/".into_client_request().unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async(asked, stream)
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut talks = async |what: &str| {
        socket.send(Message::text(what)).await.unwrap();
        let heard = tokio::time::timeout(SOON, socket.next()).await.unwrap();
        assert_eq!(heard.unwrap().unwrap(), Message::text(what), "{what}");
    };
    talks("through a rule").await;
    edge.serve(&file(2, [0, 1, 0], ""));
    talks("without the rule").await;
    assert_eq!(ask(edge.http(), request("/", &[])).await.text(), "b");
    // a slow answer that began before the fence is finished after it
    let mut slow = http1(edge.http()).await;
    let before = b.requests.load(std::sync::atomic::Ordering::SeqCst);
    let slow = tokio::spawn(async move { slow.send_request(request("/slow", &[])).await });
    until("the slow request arrives", || {
        b.requests.load(std::sync::atomic::Ordering::SeqCst) > before
    })
    .await;
    edge.serve(&file(3, [0, 1, 0], r#","fence":true"#));
    let fenced = ask(edge.http(), request("/", &[])).await;
    assert_eq!(fenced.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(fenced.headers.contains_key(RETRY_AFTER));
    assert!(
        fenced.text().contains("lets nobody in"),
        "{}",
        fenced.text()
    );
    talks("behind the fence").await;
    let answer = slow.await.unwrap().unwrap();
    assert_eq!(answer.collect().await.unwrap().to_bytes(), "b");
    // a side that nothing names any more is gone, and its WebSockets with it
    edge.serve(&routes(4, vec![route("a.org", A, &[a.address])]));
    assert_eq!(ask(edge.http(), request("/", &[])).await.text(), "a");
    let end = tokio::time::timeout(SOON, socket.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
}

/// B has a domain of its own, loses it, and is still a side of A's.
#[tokio::test]
async fn an_environment_that_is_only_a_side_is_not_gone() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let mut file = split(1, &a, &b, &sides(1, 1, ""));
    file.routes.push(route("b.org", B, &[b.address]));
    edge.serve(&file);
    let mut client = http1(edge.http()).await;
    let events = client.send_request(get("b.org", "/events")).await.unwrap();
    let mut events = events.into_body().into_data_stream();
    events.next().await.unwrap().unwrap();
    edge.serve(&split(2, &a, &b, &sides(1, 1, "")));
    let answer = ask(edge.http(), get("b.org", "/")).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    for _ in 0..3 {
        let event = tokio::time::timeout(SOON, events.next()).await.unwrap();
        event.unwrap().unwrap();
    }
    edge.serve(&routes(3, vec![route("a.org", A, &[a.address])]));
    let end = async { while let Some(Ok(_)) = events.next().await {} };
    tokio::time::timeout(SOON, end).await.unwrap();
}

#[tokio::test]
async fn the_access_log_says_which_side_answered() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    edge.serve(&split(1, &a, &b, &sides(0, 1, "")));
    let answer = ask(edge.http(), request("/logged?secret", &[])).await;
    assert!(
        !format!("{:?}", answer.headers).contains(B),
        "{:?}",
        answer.headers
    );
    let log = edge.config.access_log.as_ref().unwrap().path.clone();
    let mut found = BTreeMap::new();
    until("the line", || {
        for line in std::fs::read_to_string(&log).unwrap_or_default().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            found.insert(line["path"].to_string(), line["environment"].to_string());
        }
        !found.is_empty()
    })
    .await;
    assert_eq!(found[r#""/logged""#], format!("{B:?}"));
}
