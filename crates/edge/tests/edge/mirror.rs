//! Copies of requests arrive whole, are compared, and nobody notices them.

use futures::stream::iter;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Method, Request};
use offshoot_edge_api::stop;
use offshoot_model::traffic::stats::MirrorStats;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::backend::{Backend, Reply};
use crate::kit::{A, B, Body, TestEdge, ask, ask2, full, get, route, until, with_policy};

/// An environment and its mirror.
struct Mirrored {
    edge: TestEdge,
    live: Backend,
    mirror: Backend,
}

impl Mirrored {
    async fn start(more: Value) -> Self {
        let mirrored = Self {
            edge: TestEdge::start(),
            live: Backend::start("hello").await,
            mirror: Backend::start("hello").await,
        };
        mirrored.serve(1, more);
        mirrored
    }

    fn serve(&self, version: u64, more: Value) {
        let mut mirror = json!({"environment": B});
        mirror
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.edge.serve(&with_policy(
            version,
            vec![route("a.localhost", A, &[self.live.address])],
            A,
            &json!({"mirror": mirror}).to_string(),
            &[(B, &[self.mirror.address])],
        ));
    }

    fn stats(&self) -> MirrorStats {
        let mut stats = self.edge.control().stats(vec![A.parse().unwrap()]).unwrap();
        stats.owners.remove(0).mirror.unwrap()
    }

    /// Asks, and expects what the live side says.
    async fn visit(&self, request: Request<Body>) {
        assert_eq!(ask(self.edge.http(), request).await.text(), "hello");
    }

    async fn until(&self, what: &str, holds: impl Fn(&MirrorStats) -> bool) -> MirrorStats {
        until(what, || holds(&self.stats())).await;
        self.stats()
    }
}

fn post(body: Body) -> Request<Body> {
    Request::post("/form?secret=1")
        .header("host", "A.localhost:80")
        .header("x-offshoot-mirror", "forged")
        .header("cookie", "session=1")
        .body(body)
        .unwrap()
}

/// A body of unknown length, in parts.
fn parts(part: &'static [u8], many: usize) -> Body {
    let parts = std::iter::repeat_n(part, many).map(|part| Ok(Frame::data(part.into())));
    BodyExt::boxed(StreamBody::new(iter(parts)))
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_what_was_sent_and_marked() {
    let mirrored = Mirrored::start(json!({})).await;
    mirrored.visit(get("a.localhost", "/a?b=c")).await;
    mirrored.visit(post(full("name=value"))).await;
    mirrored.visit(post(parts(&[7; 1_000], 200))).await;
    let answer = ask2(mirrored.edge.http(), "a.localhost", "/2?x=y").await;
    assert_eq!(answer.text(), "hello");
    let stats = mirrored
        .until("all are compared", |stats| stats.compared == 4)
        .await;
    assert_eq!((stats.same, stats.failed, stats.skipped), (4, 0, 0));
    assert_eq!((stats.live.total(), stats.copy.total()), (4, 4));
    assert_eq!(stats.differences, []);
    let (mut live, mut copies) = (mirrored.live.asked(), mirrored.mirror.asked());
    // copies may arrive in another order
    for asked in [&mut live, &mut copies] {
        asked.sort_by_key(|asked| (asked.target.clone(), asked.body.len()));
    }
    assert_eq!((live.len(), copies.len()), (4, 4));
    for (mut live, mut copy) in live.into_iter().zip(copies) {
        assert_eq!(live.headers.get("x-offshoot-mirror"), None);
        assert_eq!(copy.headers.remove("x-offshoot-mirror").unwrap(), "1");
        assert_eq!((live.method, live.target), (copy.method, copy.target));
        assert_eq!(live.body, copy.body);
        // how a body's length is said may differ
        for name in ["content-length", "transfer-encoding"] {
            live.headers.remove(name);
            copy.headers.remove(name);
        }
        assert_eq!(live.headers, copy.headers);
        assert!(copy.headers.contains_key("x-forwarded-for"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_found_and_told() {
    let mut mirrored = Mirrored::start(json!({"ignore": ["x-build"]})).await;
    let differ = async |number, reply| {
        mirrored.mirror.reply(reply);
        mirrored.visit(post(full("secret"))).await;
        let stats = mirrored
            .until("it is compared", |stats| stats.compared == number)
            .await;
        (stats.clone(), stats.differences.last().cloned())
    };
    mirrored.live.reply(
        Reply::new(200, "hello")
            .with("etag", "1")
            .with("date", "then"),
    );
    let same = Reply::new(200, "hello")
        .with("etag", "1")
        .with("x-build", "2")
        .with("set-cookie", "a=b");
    let (stats, difference) = differ(1, same).await;
    assert_eq!((stats.same, difference), (1, None));

    let (stats, difference) = differ(2, Reply::new(500, "hello").with("etag", "1")).await;
    assert_eq!(
        (stats.same, stats.status, stats.headers, stats.body),
        (1, 1, 0, 0)
    );
    let difference = difference.unwrap();
    assert_eq!(difference.statuses, (200, 500));
    assert_eq!(
        (difference.host.as_str(), difference.path.as_str()),
        ("a.localhost", "/form")
    );
    assert_eq!(
        (difference.method, difference.bodies),
        ("POST".into(), None)
    );
    let text = std::fs::read_to_string(mirrored.edge.config.control.with_extension("log"));
    assert!(!text.unwrap().contains("secret"));

    let (stats, difference) = differ(
        3,
        Reply::new(200, "hello")
            .with("etag", "2")
            .with("x-new", "1"),
    )
    .await;
    assert_eq!((stats.status, stats.headers, stats.body), (1, 1, 0));
    let mut names = difference.unwrap().headers;
    names.sort_unstable();
    assert_eq!(names, ["etag", "x-new"]);

    let (stats, difference) = differ(4, Reply::new(200, "bye").with("etag", "1")).await;
    assert_eq!((stats.status, stats.headers, stats.body), (1, 1, 1));
    assert_eq!(difference.unwrap().bodies, Some((5, 3)));

    let (stats, difference) = differ(5, Reply::new(200, "HELLO").with("etag", "1")).await;
    assert_eq!((stats.same, stats.body), (1, 2));
    assert_eq!(difference.unwrap().bodies, Some((5, 5)));
    // the share may change meanwhile, and the rest of the policy
    mirrored.serve(2, json!({"permille": 500}));
    assert_eq!(mirrored.stats(), stats);
    // and the edge's process
    stop(&mirrored.edge.config).unwrap();
    mirrored.edge.ensure();
    assert_eq!(mirrored.stats(), stats);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_slow_mirror() {
    const AT_ONCE: usize = 64;
    let mirrored = Mirrored::start(json!({})).await;
    mirrored.mirror.reply(Reply::new(200, "hello").hanging());
    for _ in 0..AT_ONCE + 10 {
        mirrored.visit(get("a.localhost", "/")).await;
    }
    // every visitor has an answer, and no copy has
    let stats = mirrored.stats();
    assert_eq!((stats.compared, stats.failed, stats.skipped), (0, 0, 10));
    until("copies are under way", || {
        mirrored.mirror.asked().len() == AT_ONCE
    })
    .await;
    mirrored.mirror.reply(Reply::new(200, "hello"));
    let stats = mirrored
        .until("all are compared", |stats| stats.compared == 64)
        .await;
    assert_eq!((stats.same, stats.failed, stats.skipped), (64, 0, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_a_dead_mirror() {
    let mut mirrored = Mirrored::start(json!({})).await;
    mirrored.visit(get("a.localhost", "/")).await;
    mirrored
        .until("it is compared", |stats| stats.compared == 1)
        .await;
    mirrored.mirror.kill().await;
    for _ in 0..5 {
        mirrored.visit(get("a.localhost", "/")).await;
        mirrored.visit(post(full("content"))).await;
    }
    mirrored
        .until("all have failed", |stats| stats.failed == 10)
        .await;
    mirrored.mirror.revive().await;
    mirrored.mirror.reply(Reply::new(200, "").closing());
    mirrored.visit(post(full("content"))).await;
    mirrored.until("one more", |stats| stats.failed == 11).await;
    mirrored.mirror.reply(Reply::new(200, "hello"));
    mirrored.visit(post(full("content"))).await;
    let stats = mirrored
        .until("it is compared", |stats| stats.compared == 2)
        .await;
    assert_eq!((stats.same, stats.skipped), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_and_streams_are_not_copied() {
    let mirrored = Mirrored::start(json!({"body_bytes": 1_000})).await;
    mirrored.visit(post(full(vec![7; 1_001]))).await;
    mirrored.visit(post(parts(&[7; 100], 11))).await;
    assert_eq!(mirrored.live.asked()[1].body.len(), 1_100);
    mirrored
        .until("two are skipped", |stats| stats.skipped == 2)
        .await;
    assert_eq!(mirrored.mirror.asked().len(), 0);
    // what is asked for as a stream is no business of a mirror's, and is not counted
    let mut events = get("a.localhost", "/events");
    events
        .headers_mut()
        .insert("accept", "text/event-stream".parse().unwrap());
    mirrored.visit(events).await;
    let request = "ws://a.localhost/".into_client_request().unwrap();
    let stream = TcpStream::connect(mirrored.edge.http()).await.unwrap();
    tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap_err();
    // what turns out to be one is
    mirrored
        .live
        .reply(Reply::new(200, "hello").with("content-type", "text/event-stream"));
    mirrored.visit(get("a.localhost", "/turns")).await;
    mirrored
        .until("one more is skipped", |stats| stats.skipped == 3)
        .await;
    mirrored.live.reply(Reply::new(200, "hello"));
    mirrored.visit(post(full(vec![7; 1_000]))).await;
    let stats = mirrored
        .until("one is compared", |stats| stats.compared == 1)
        .await;
    assert_eq!((stats.same, stats.skipped, stats.failed), (1, 3, 0));
    let copies = mirrored.mirror.asked();
    let posted: Vec<_> = copies
        .iter()
        .filter(|asked| asked.method == Method::POST)
        .collect();
    assert_eq!((posted.len(), posted[0].body.len()), (1, 1_000));
    assert!(
        copies
            .iter()
            .all(|asked| asked.target != "/events" && asked.target != "/"),
        "{copies:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_copied() {
    const VISITS: u64 = 400;
    let mirrored = Mirrored::start(json!({"permille": 250})).await;
    for _ in 0..VISITS {
        mirrored.visit(get("a.localhost", "/")).await;
    }
    let copies = || mirrored.mirror.asked().len() as u64;
    let stats = mirrored
        .until("all are compared", |stats| stats.compared == copies())
        .await;
    // 100 expected; beyond these with a probability of less than one in a million
    assert!((55..=150).contains(&stats.compared), "{}", stats.compared);
    assert_eq!((stats.skipped, stats.failed), (0, 0));
}
