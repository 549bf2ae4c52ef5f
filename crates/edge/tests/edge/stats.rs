//! What the edge counts, exactly, and how long it remembers.

use http_body_util::BodyExt;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use offshoot_edge_api::{EdgeError, RoutesFile, stop};
use offshoot_model::traffic::stats::{GoalStats, OwnerStats, SideStats};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::{
    A, B, C, Server, TestEdge, ask, empty, get, http1, http2, route, routes, until, with_policy,
};
use crate::split::cookie;

fn of(edge: &TestEdge, owner: &str) -> Option<OwnerStats> {
    let owner = vec![owner.parse().unwrap()];
    edge.control().stats(owner).unwrap().owners.pop()
}

/// What was counted at A's domains, once that many requests have ended.
async fn counted(edge: &TestEdge, requests: u64) -> OwnerStats {
    let sum = || {
        let sides = of(edge, A).map(|stats| stats.sides).unwrap_or_default();
        sides.iter().map(|side| side.requests).sum::<u64>()
    };
    until("the requests are counted", || sum() >= requests).await;
    assert_eq!(sum(), requests);
    of(edge, A).unwrap()
}

fn policy(a: &Server, b: &Server, version: u64, weights: (u32, u32), rest: &str) -> RoutesFile {
    let (to_a, to_b) = weights;
    let policy = format!(
        r#"{{"sides":[{{"environment":"{A}","weight":{to_a}}},{{"environment":"{B}","weight":{to_b}}}]{rest}}}"#
    );
    with_policy(
        version,
        vec![route("a.org", A, &[a.address])],
        A,
        &policy,
        &[(A, &[a.address]), (B, &[b.address])],
    )
}

const GOALS: &str = r#","goals":[{"name":"paid","path":"/thanks"},{"name":"sent","method":"POST","statuses":[303,303]}]"#;

fn goals(side: &SideStats) -> Vec<u64> {
    side.goals.iter().map(|goal| goal.reached).collect()
}

#[tokio::test]
async fn requests_without_a_policy_are_counted_once_there_are_any() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = nobody.local_addr().unwrap();
    drop(nobody);
    edge.serve(&routes(
        1,
        vec![
            route("a.org", A, &[a.address]),
            route("closed.a.org", A, &[closed]),
            route("stopped.org", B, &[]),
            route("quiet.org", C, &[a.address]),
        ],
    ));
    assert_eq!(edge.control().stats(vec![]).unwrap().owners, []);
    let mut client = http1(edge.http()).await;
    for path in [
        "/",
        "/",
        "/status/302",
        "/status/404",
        "/status/500",
        "/status/503",
    ] {
        client.ready().await.unwrap();
        let answer = client.send_request(get("a.org", path)).await.unwrap();
        crate::kit::Answer::read(answer).await;
    }
    let refused = ask(edge.http(), get("closed.a.org", "/")).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    let events = ask(edge.http(), get("a.org", "/event")).await;
    assert_eq!(events.text(), "data: 0\n\n");
    // what went nowhere is nobody's
    let stopped = ask(edge.http(), get("stopped.org", "/")).await;
    assert_eq!(stopped.status, StatusCode::SERVICE_UNAVAILABLE);
    let stats = counted(&edge, 8).await;
    let [side] = &stats.sides[..] else {
        panic!("{stats:?}")
    };
    assert_eq!(side.environment.as_str(), A);
    assert_eq!(side.classes, [0, 3, 1, 1, 3]);
    assert_eq!(side.errors, 3);
    assert_eq!(side.latency.total(), 6);
    assert_eq!((side.visitors, &side.goals[..]), (0, &[][..]));
    let all = edge.control().stats(vec![]).unwrap().owners;
    assert_eq!(all, [stats]);
    let back = edge.control().back(A.parse().unwrap()).unwrap_err();
    assert!(matches!(back, EdgeError::Refused(_)), "{back}");
}

#[tokio::test]
async fn visitors_and_their_goals_are_counted_once() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    edge.serve(&policy(&a, &b, 1, (1, 0), GOALS));
    let ask = async |method: &str, path: &str, cookies: &str| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "a.org");
        let request = request.header("cookie", cookies).body(empty()).unwrap();
        cookie(&ask(edge.http(), request).await).map(|(cookie, _)| cookie)
    };
    let one = ask("GET", "/", "").await.unwrap();
    assert_eq!(ask("GET", "/", &one).await, None);
    let one = ask("GET", "/thanks", &one)
        .await
        .expect("a goal is remembered");
    assert_eq!(ask("GET", "/thanks/again", &one).await, None);
    assert_eq!(ask("GET", "/status/303", &one).await, None);
    let one = ask("POST", "/status/303", &one).await.unwrap();
    assert_eq!(ask("POST", "/status/303", &one).await, None);
    let two = ask("GET", "/thanks", "offshoot-visitor=planted")
        .await
        .unwrap();
    let stats = counted(&edge, 8).await;
    assert_eq!(stats.sides[0].visitors, 2);
    assert_eq!(goals(&stats.sides[0]), [2, 1]);
    assert_eq!(
        (stats.sides[1].visitors, goals(&stats.sides[1])),
        (0, vec![0, 0])
    );
    // weights alone go on counting: they come to the other side now, and have reached their goals already
    edge.serve(&policy(&a, &b, 2, (0, 1), GOALS));
    let one = ask("GET", "/thanks", &one).await.unwrap();
    assert_eq!(ask("GET", "/thanks", &one).await, None);
    let stats = counted(&edge, 10).await;
    assert_eq!(stats.sides[1].visitors, 1);
    assert_eq!(goals(&stats.sides[1]), [0, 0]);
    assert_eq!(stats.sides[0].visitors, 2);
    // another goal is another experiment, where the same visitor counts again
    edge.serve(&policy(
        &a,
        &b,
        3,
        (0, 1),
        r#","goals":[{"name":"paid","path":"/thanks"}]"#,
    ));
    assert_eq!(counted(&edge, 0).await.sides[1].visitors, 0);
    ask("GET", "/thanks", &one).await.unwrap();
    ask("GET", "/", &two).await.unwrap();
    let stats = counted(&edge, 2).await;
    assert_eq!(
        (stats.sides[1].visitors, goals(&stats.sides[1])),
        (2, vec![1])
    );
    let paid = GoalStats {
        name: "paid".into(),
        reached: 1,
    };
    assert_eq!(stats.sides[1].goals, [paid]);
}

#[tokio::test]
async fn counting_begins_anew_only_when_what_is_compared_changes() {
    let edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    edge.serve(&routes(1, vec![route("a.org", A, &[a.address])]));
    ask(edge.http(), get("a.org", "/")).await;
    let mut since = counted(&edge, 1).await.since;
    let mut requests = 1;
    let mut version = 1;
    let rule = format!(r#","rules":[{{"when":[{{"path":"/x"}}],"to":"{B}"}}]"#);
    for (weights, rest, anew) in [
        ((1, 1), "", true),
        ((90, 10), "", false),
        ((90, 10), rule.as_str(), false),
        ((90, 10), r#","sticky":"client""#, true),
        (
            (90, 10),
            r#","sticky":"client","bounds":{"body_bytes":9999}"#,
            false,
        ),
        (
            (90, 10),
            r#","sticky":"client","goals":[{"name":"x"}]"#,
            true,
        ),
        (
            (90, 10),
            r#","sticky":"client","goals":[{"name":"x"}],"fence":true"#,
            false,
        ),
        (
            (90, 10),
            r#","sticky":"client","goals":[{"name":"x","path":"/x"}]"#,
            true,
        ),
    ] {
        version += 1;
        edge.serve(&policy(&a, &b, version, weights, rest));
        if anew {
            requests = 0;
        }
        if !rest.contains("fence") {
            ask(edge.http(), get("a.org", "/")).await;
            requests += 1;
        }
        let stats = counted(&edge, requests).await;
        assert_eq!(stats.since != since, anew, "{weights:?} {rest}");
        since = stats.since;
    }
    // without any route it is forgotten
    edge.serve(&routes(90, vec![route("b.org", B, &[b.address])]));
    assert_eq!(of(&edge, A), None);
}

#[tokio::test]
async fn clients_that_leave_are_no_errors_and_streams_have_no_latency() {
    let edge = TestEdge::start();
    let a = Server::start("a").await;
    edge.serve(&routes(1, vec![route("a.org", A, &[a.address])]));
    for (number, path) in ["/events", "/large", "/slow"].into_iter().enumerate() {
        let mut stream = TcpStream::connect(edge.http()).await.unwrap();
        let asked = format!("GET {path} HTTP/1.1\r\nHost: a.org\r\n\r\n");
        stream.write_all(asked.as_bytes()).await.unwrap();
        until("it arrives", || {
            a.requests.load(std::sync::atomic::Ordering::SeqCst) > number
        })
        .await;
        if path != "/slow" {
            stream.read_u8().await.unwrap();
        }
        drop(stream);
    }
    let mut client = http2(edge.http()).await;
    let request = Request::get("http://a.org/large").body(empty()).unwrap();
    let mut large = client.send_request(request).await.unwrap().into_body();
    assert!(large.frame().await.unwrap().unwrap().is_data());
    drop((large, client));
    let stats = counted(&edge, 4).await;
    assert_eq!(stats.sides[0].errors, 0);
    assert_eq!(stats.sides[0].latency.total(), 0);
    assert_eq!(stats.sides[0].classes, [0, 3, 0, 0, 0]);
}

#[tokio::test]
async fn counts_survive_the_edge() {
    let mut edge = TestEdge::start();
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let mut file = policy(
        &a,
        &b,
        1,
        (1, 1),
        r#","sticky":{"query":"v"},"goals":[{"name":"x"}]"#,
    );
    file.routes.push(route("plain.org", C, &[a.address]));
    edge.serve(&file);
    for visitor in 0..20 {
        ask(edge.http(), get("a.org", &format!("/?v={visitor}"))).await;
        ask(edge.http(), get("plain.org", "/")).await;
    }
    let mut before = vec![counted(&edge, 20).await];
    until("the other is counted", || {
        of(&edge, C).is_some_and(|stats| stats.sides[0].requests == 20)
    })
    .await;
    before.extend(of(&edge, C));
    let now = |edge: &TestEdge| edge.control().stats(vec![]).unwrap().owners;
    assert_eq!(now(&edge), before);
    // told to stop it writes what there is
    stop(&edge.config).unwrap();
    edge.ensure();
    assert_eq!(now(&edge), before);
    // killed it has written what was there some seconds before
    ask(edge.http(), get("plain.org", "/")).await;
    let path = edge.config.stats_file();
    let written = || {
        std::fs::read_to_string(&path)
            .unwrap()
            .contains(r#""requests":21"#)
    };
    until("it is written", written).await;
    edge.kill().await;
    let after = now(&edge);
    assert_eq!(after[0], before[0]);
    assert_eq!(after[1].sides[0].requests, 21);
    // other goals in the meantime
    stop(&edge.config).unwrap();
    let mut other = file.clone();
    other.traffic[0].policy.goals[0].name = "y".to_owned();
    other.write_atomically(&edge.config.routes).unwrap();
    edge.ensure();
    let after = now(&edge);
    assert_eq!(after[0].sides[0].requests + after[0].sides[1].requests, 0);
    assert_eq!(after[1].sides[0].requests, 21);
    // damaged
    stop(&edge.config).unwrap();
    std::fs::write(&path, "[{").unwrap();
    edge.ensure();
    ask(edge.http(), get("plain.org", "/")).await;
    until("counting began anew", || {
        of(&edge, C).is_some_and(|stats| stats.sides[0].requests == 1)
    })
    .await;
    let log = std::fs::read_to_string(edge.config.log_file()).unwrap();
    assert!(log.contains("counting begins anew"), "{log}");
}
