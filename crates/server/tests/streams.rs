//! Streams: events, logs, archives. They resume, end with their client, and hold nothing whole in memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use bytes::Bytes;
use common::{Body, SOON, TestServer, event, line, piece, problem, request, send, until};
use futures::StreamExt as _;
use http::{Method, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use offshoot_model::Code;
use offshoot_model::view::Event;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

fn get(path: &str) -> Request<Body> {
    request(Method::GET, path, "")
}

#[tokio::test]
async fn events_resume_after_the_last_one_seen() {
    let mut server = TestServer::start().await;
    for seq in 1..=3 {
        server.fake.publish(event(seq));
    }
    let response = server.open(get("events")).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let all = until(&mut body, "id: 3\n").await;
    assert!(
        all.contains("id: 1\n") && all.contains("event: operation\n"),
        "{all}"
    );
    let data = all
        .lines()
        .find_map(|line| line.strip_prefix("data: "))
        .unwrap();
    assert_eq!(serde_json::from_str::<Event>(data).unwrap().seq, 1);
    server.fake.publish(event(4));
    until(&mut body, "id: 4\n").await;
    drop(body);

    for (path, header) in [
        ("events?after=2", None),
        ("events", Some("2")),
        ("events?after=1", Some("2")),
    ] {
        let mut request = get(path);
        if let Some(id) = header {
            request
                .headers_mut()
                .insert("last-event-id", id.parse().unwrap());
        }
        let mut body = server.open(request).await.into_body();
        let all = until(&mut body, "id: 4\n").await;
        assert!(all.contains("id: 3\n") && !all.contains("id: 2\n"), "{all}");
    }
    let mut bad = get("events");
    bad.headers_mut()
        .insert("last-event-id", "yesterday".parse().unwrap());
    send(&mut server.unix().await, bad).await.problem(400);

    let mine = server.fake.events.borrow()[1].operation.id;
    let mut body = server
        .open(get(&format!("events?operation={mine}")))
        .await
        .into_body();
    let own = Event {
        seq: 5,
        ..server.fake.events.borrow()[1].clone()
    };
    server.fake.publish(own);
    let all = until(&mut body, "id: 5\n").await;
    assert!(
        all.contains("id: 2\n") && !all.contains("id: 3\n") && !all.contains("id: 4\n"),
        "{all}"
    );

    // The end of the daemon ends the stream in order.
    server.stop();
    while piece(&mut body).await.is_some() {}
    server.ended().await;
}

#[tokio::test]
async fn logs_are_followed_until_the_client_goes() {
    let server = TestServer::start().await;
    let (sender, receiver) = mpsc::channel(4);
    *server.fake.log.lock().unwrap() = Some(receiver);
    let mut client = server.unix().await;
    let response = timeout(
        SOON,
        client.send_request(get("environments/shop/logs?follow=true")),
    )
    .await
    .unwrap()
    .unwrap();
    let mut body = response.into_body();
    sender.send(line("one\n\"two\"")).await.unwrap();
    let first = until(&mut body, "\n").await;
    assert_eq!(
        serde_json::from_str::<offshoot_model::view::LogLine>(&first).unwrap(),
        line("one\n\"two\"")
    );
    sender.send(line("three")).await.unwrap();
    until(&mut body, "three\"}\n").await;
    // Nothing is written now: the server sees the client go all the same.
    drop((body, client));
    timeout(SOON, sender.closed())
        .await
        .expect("the platform hears that nobody listens");
    server.ended().await;
}

#[tokio::test]
async fn logs_end_when_there_is_no_more() {
    let server = TestServer::start().await;
    let (sender, receiver) = mpsc::channel(1000);
    for n in 0..500 {
        sender.try_send(line(&n.to_string())).unwrap();
    }
    drop(sender);
    *server.fake.log.lock().unwrap() = Some(receiver);
    let answer = server.get("environments/shop/logs").await;
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert_eq!(text.lines().count(), 500);
    assert!(text.ends_with("\"499\"}\n"), "{text}");
    server.ended().await;
}

#[tokio::test]
async fn an_archive_comes_out_no_faster_than_it_is_read() {
    let server = TestServer::start().await;
    let (sender, receiver) = mpsc::channel(1);
    *server.fake.archive.lock().unwrap() = Some(receiver);
    let brick = Bytes::from(vec![7; 1 << 20]);
    let feeder = tokio::spawn(async move {
        let mut sent = 0;
        for _ in 0..64 {
            // A reader that stops stops us: then this does not get done.
            match timeout(
                std::time::Duration::from_millis(500),
                sender.send(Ok(brick.clone())),
            )
            .await
            {
                Ok(Ok(())) => sent += 1,
                _ => break,
            }
        }
        (sent, sender)
    });
    let mut body = server
        .open(get("environments/shop/nodes/web/files?path=/srv"))
        .await
        .into_body();
    let (sent, sender) = timeout(SOON, feeder).await.unwrap().unwrap();
    assert!(sent < 16, "{sent} MiB were taken although nobody read");
    let mut read = 0;
    let reader = async {
        while let Some(bytes) = piece(&mut body).await {
            assert!(bytes.iter().all(|b| *b == 7));
            read += bytes.len();
        }
    };
    let rest = async {
        for _ in 0..64 {
            sender
                .send(Ok(Bytes::from(vec![7; 1 << 20])))
                .await
                .unwrap();
        }
        drop(sender);
    };
    timeout(SOON, futures::future::join(reader, rest))
        .await
        .unwrap();
    assert_eq!(read, (sent + 64) << 20);
    server.ended().await;
}

#[tokio::test]
async fn an_archive_that_breaks_off_is_seen_to() {
    let server = TestServer::start().await;
    let broken = || problem(Code::NodeUnknown);
    let path = "environments/shop/nodes/web/files?path=/srv";
    let feed = || {
        let (sender, receiver) = mpsc::channel(8);
        *server.fake.archive.lock().unwrap() = Some(receiver);
        sender
    };
    feed().send(Err(broken())).await.unwrap();
    assert_eq!(
        server.get(path).await.problem(404),
        broken(),
        "before the first byte it is the answer"
    );

    let sender = feed();
    sender.send(Ok("tar".into())).await.unwrap();
    let response = server.open(get(path)).await;
    assert_eq!(response.status().as_u16(), 200);
    let mut body = response.into_body();
    assert_eq!(piece(&mut body).await.unwrap(), "tar");
    sender.send(Err(broken())).await.unwrap();
    let rest = timeout(SOON, body.collect()).await.unwrap();
    assert!(rest.is_err(), "after it the connection breaks: {rest:?}");
    server.ended().await;
}

/// A body that the test feeds.
fn fed() -> (mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (
        sender,
        StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync(),
    )
}

fn put(body: Body) -> Request<Body> {
    Request::builder()
        .method(Method::PUT)
        .uri("/api/v1/environments/shop/nodes/web/files?path=/srv")
        .header("host", "localhost")
        .body(body)
        .unwrap()
}

#[tokio::test]
async fn an_archive_of_any_size_goes_in() {
    let server = TestServer::start().await;
    let (sender, body) = fed();
    let mut client = server.unix().await;
    let feed = async move {
        // More than any JSON body may have.
        for n in 0..40_u8 {
            sender
                .send(Ok(Frame::data(Bytes::from(vec![n; 1 << 20]))))
                .await
                .unwrap();
        }
    };
    let (answer, ()) = futures::future::join(send(&mut client, put(body)), feed).await;
    assert_eq!(answer.status.as_u16(), 204);
    let received = std::mem::take(&mut *server.fake.received.lock().unwrap());
    assert_eq!(received.len(), 40 << 20);
    assert!((0..40_u8).all(|n| received[usize::from(n) << 20] == n));
    server.ended().await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_no_whole_one() {
    let server = TestServer::start().await;
    let (sender, body) = fed();
    let mut client = server.unix().await;
    let sending = tokio::spawn(async move {
        let _ = client.send_request(put(body)).await;
    });
    sender.send(Ok(Frame::data("half".into()))).await.unwrap();
    sender
        .send(Err(std::io::Error::other("gone")))
        .await
        .unwrap();
    timeout(SOON, sending).await.unwrap().unwrap();
    let calls = || server.fake.calls.lock().unwrap().join("\n");
    timeout(SOON, async {
        while !calls().contains("upload") {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(
        calls().contains("broken upload: the upload broke off"),
        "{}",
        calls()
    );
    server.ended().await;
}

#[tokio::test]
async fn an_upload_that_is_refused_half_way_still_gets_its_answer() {
    let server = TestServer::start().await;
    *server.fake.refuse_archive_after.lock().unwrap() = Some(100_000);
    let (sender, body) = fed();
    let mut client = server.unix().await;
    let feed = tokio::spawn(async move {
        for _ in 0..8 {
            if sender
                .send(Ok(Frame::data(Bytes::from(vec![0; 1 << 20]))))
                .await
                .is_err()
            {
                break;
            }
        }
    });
    assert_eq!(
        send(&mut client, put(body)).await.problem(507),
        problem(Code::PoolFull)
    );
    timeout(SOON, feed).await.unwrap().unwrap();
    server.ended().await;
}

#[tokio::test]
async fn streams_are_bounded() {
    let server = TestServer::start().await;
    let open = futures::stream::iter(0..256)
        .map(|_| server.open(get("events")))
        .buffered(16);
    let held: Vec<_> = open.collect().await;
    assert!(
        held.iter()
            .all(|response| response.status().as_u16() == 200)
    );
    assert_eq!(server.get("events").await.problem(503).code, Code::Busy);
    assert_eq!(
        server.get("pool").await.status.as_u16(),
        200,
        "short requests go on"
    );
    drop(held);
    timeout(SOON, async {
        while server.open(get("events")).await.status().as_u16() != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("there is room again when they have gone");
    server.ended().await;
}
