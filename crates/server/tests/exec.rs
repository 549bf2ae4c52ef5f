//! Commands over a WebSocket: both ways, with flow control, ended by either side.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{SOON, TestServer, problem, request};
use futures::{SinkExt as _, StreamExt as _};
use http::Method;
use offshoot_model::Code;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

type Socket = WebSocketStream<UnixStream>;

async fn open(server: &TestServer) -> Socket {
    let stream = UnixStream::connect(&server.socket).await.unwrap();
    let url = "ws://localhost/api/v1/environments/shop/nodes/web/exec";
    timeout(SOON, tokio_tungstenite::client_async(url, stream))
        .await
        .unwrap()
        .unwrap()
        .0
}

async fn run(server: &TestServer, program: &str) -> Socket {
    let mut socket = open(server).await;
    say(&mut socket, json!({"args": [program]})).await;
    socket
}

async fn say(socket: &mut Socket, text: Value) {
    socket.send(Message::text(text.to_string())).await.unwrap();
}

async fn stdin(socket: &mut Socket, bytes: &[u8]) {
    socket
        .send(Message::binary([&[0], bytes].concat()))
        .await
        .unwrap();
}

async fn next(socket: &mut Socket) -> Message {
    timeout(SOON, socket.next())
        .await
        .expect("a message comes soon")
        .expect("the socket is open")
        .unwrap()
}

/// The last message, after which the socket is closed.
async fn end(socket: &mut Socket) -> Value {
    let Message::Text(text) = next(socket).await else {
        panic!("the last message is text")
    };
    let closed = timeout(SOON, socket.next()).await.unwrap();
    assert!(matches!(closed, Some(Ok(Message::Close(_)))), "{closed:?}");
    // Answers the farewell.
    while let Ok(Some(Ok(_))) = timeout(SOON, socket.next()).await {}
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn bytes_and_controls_go_both_ways() {
    let server = TestServer::start().await;
    let mut socket = open(&server).await;
    say(
        &mut socket,
        json!({"args": ["cat"], "tty": {"rows": 24, "cols": 80}, "user": "root"}),
    )
    .await;
    stdin(&mut socket, b"a\0\xff").await;
    assert_eq!(
        next(&mut socket).await,
        Message::binary(&b"\x01a\0\xff"[..])
    );
    stdin(&mut socket, b"b").await;
    assert_eq!(next(&mut socket).await, Message::binary(&b"\x02b"[..]));
    say(&mut socket, json!({"resize": {"rows": 50, "cols": 132}})).await;
    assert_eq!(next(&mut socket).await, Message::binary(&b"\x01132x50"[..]));
    say(&mut socket, json!({"signal": "SIGINT"})).await;
    assert_eq!(next(&mut socket).await, Message::binary(&b"\x01SIGINT"[..]));
    socket
        .send(Message::Ping("still there?".into()))
        .await
        .unwrap();
    assert_eq!(
        next(&mut socket).await,
        Message::Pong("still there?".into())
    );
    say(&mut socket, json!({"close_stdin": false})).await;
    say(&mut socket, json!({"close_stdin": true})).await;
    assert_eq!(end(&mut socket).await, json!({"exit": 7}));
    let call = &server.fake.calls()[0];
    assert!(
        call.starts_with("exec shop web ExecRequest { args: [\"cat\"]")
            && call.contains("cols: 80"),
        "{call}"
    );
    server.ended().await;
}

#[tokio::test]
async fn what_goes_wrong_is_the_last_message() {
    let server = TestServer::start().await;
    let mut socket = run(&server, "cat").await;
    stdin(&mut socket, b"").await;
    assert_eq!(
        end(&mut socket).await,
        json!({"problem": problem(Code::ExecFailed)}),
        "the platform's, while it ran"
    );
    let mut socket = run(&server, "mute").await;
    assert_eq!(end(&mut socket).await["problem"]["code"], "internal");

    for first in [
        Message::text("not json"),
        Message::text("{}"),
        Message::text(r#"{"args": []}"#),
        Message::text(r#"{"args": ["a"], "x": 1}"#),
        Message::binary(&b"\0a"[..]),
    ] {
        let mut socket = open(&server).await;
        socket.send(first.clone()).await.unwrap();
        assert_eq!(
            end(&mut socket).await["problem"]["code"],
            "bad-request",
            "{first:?}"
        );
    }
    for later in [
        Message::text("not json"),
        Message::text(r#"{"reboot": true}"#),
        Message::binary(&b"\x01a"[..]),
        Message::binary(&b""[..]),
        Message::binary(vec![0; (1 << 20) + 1]),
    ] {
        let mut socket = run(&server, "cat").await;
        // The server need not take in what is too large before it answers.
        let _ = socket.send(later.clone()).await;
        assert_eq!(
            end(&mut socket).await["problem"]["code"],
            "bad-request",
            "{} bytes",
            later.len()
        );
    }
    server.fake.refuse(problem(Code::NodeUnknown));
    let mut socket = run(&server, "cat").await;
    assert_eq!(
        end(&mut socket).await,
        json!({"problem": problem(Code::NodeUnknown)})
    );
    server.ended().await;
}

#[tokio::test]
async fn a_client_that_goes_ends_its_command() {
    let server = TestServer::start().await;
    let dropped = || timeout(SOON, server.fake.exec_dropped.notified());
    let mut socket = run(&server, "cat").await;
    stdin(&mut socket, b"x").await;
    next(&mut socket).await;
    drop(socket);
    dropped().await.expect("without a word");
    let mut socket = run(&server, "cat").await;
    stdin(&mut socket, b"x").await;
    next(&mut socket).await;
    socket.close(None).await.unwrap();
    dropped().await.expect("with one");
    // One that is not read from, and whose client still sends.
    let mut socket = run(&server, "wall").await;
    next(&mut socket).await;
    for _ in 0..100 {
        stdin(&mut socket, b"more").await;
    }
    drop(socket);
    dropped().await.expect("while it writes");
    server.ended().await;
}

#[tokio::test]
async fn the_end_of_the_daemon_ends_commands_in_order() {
    let mut server = TestServer::start().await;
    let mut socket = run(&server, "cat").await;
    stdin(&mut socket, b"x").await;
    next(&mut socket).await;
    server.stop();
    assert_eq!(end(&mut socket).await["problem"]["code"], "interrupted");
    server.ended().await;
}

#[tokio::test]
async fn plain_requests_are_told_to_use_a_websocket() {
    let server = TestServer::start().await;
    let answer = server.get("environments/shop/nodes/web/exec").await;
    assert_eq!(answer.problem(426).code, Code::BadRequest);
    let post = common::send(
        &mut server.unix().await,
        request(Method::POST, "environments/shop/nodes/web/exec", ""),
    )
    .await;
    post.problem(405);
    server.ended().await;
}
