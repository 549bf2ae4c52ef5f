//! `exec` without a terminal.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use offshoot_model::view::ExecRequest;
use offshoot_model::{Code, Fault, Problem};
use serde_json::{Value, json};

use crate::fake::{Fake, problem};

/// What the fake command heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) request: ExecRequest,
    pub(crate) stdin: Vec<u8>,
    pub(crate) texts: Vec<Value>,
}

pub(crate) type Ears = Arc<Mutex<Heard>>;

/// What the fake command does with what comes; `None` goes on, `Some` ends it with these messages.
pub(crate) type Reaction = fn(&Heard) -> Option<Vec<Message>>;

/// A route that runs a fake command.
pub(crate) fn command(ears: &Ears, greeting: Vec<Message>, react: Reaction) -> Router {
    let ears = Arc::clone(ears);
    Router::new().route(
        "/environments/shop/nodes/web-1/exec",
        any(move |upgrade: WebSocketUpgrade| async move {
            upgrade.on_upgrade(move |socket| serve(socket, ears, greeting, react))
        }),
    )
}

async fn serve(mut socket: WebSocket, ears: Ears, greeting: Vec<Message>, react: Reaction) {
    let Some(Ok(Message::Text(first))) = socket.recv().await else {
        panic!("no request")
    };
    ears.lock().unwrap().request = serde_json::from_str(&first).unwrap();
    for message in greeting {
        socket.send(message).await.unwrap();
    }
    while let Some(Ok(message)) = socket.recv().await {
        let answer = {
            let mut heard = ears.lock().unwrap();
            match message {
                Message::Binary(bytes) => {
                    assert_eq!(bytes[0], 0, "the channel of standard input");
                    heard.stdin.extend_from_slice(&bytes[1..]);
                }
                Message::Text(text) => heard.texts.push(serde_json::from_str(&text).unwrap()),
                _ => {}
            }
            react(&heard)
        };
        if let Some(answer) = answer {
            for message in answer {
                let _ = socket.send(message).await;
            }
            // The other side closes.
            while let Some(Ok(_)) = socket.recv().await {}
            return;
        }
    }
}

pub(crate) fn out(channel: u8, text: &str) -> Message {
    let mut bytes = vec![channel];
    bytes.extend_from_slice(text.as_bytes());
    Message::Binary(bytes.into())
}

pub(crate) fn exit(status: i32) -> Message {
    Message::Text(json!({ "exit": status }).to_string().into())
}

/// Ends when standard input was closed: says how much came, on both channels.
fn at_end(heard: &Heard) -> Option<Vec<Message>> {
    let closed = heard.texts.iter().any(|text| text["close_stdin"] == true);
    closed.then(|| {
        vec![
            out(1, &format!("{} bytes\n", heard.stdin.len())),
            out(2, "warned\n"),
            exit(7),
        ]
    })
}

#[test]
fn bytes_pass_both_ways_and_so_does_the_status() {
    let ears = Ears::default();
    let fake = Fake::start(command(&ears, Vec::new(), at_end));
    let input = vec![b'x'; 300_000];
    let args = [
        "exec", "-i", "-u", "www-data", "-w", "/srv", "-e", "A=1", "shop", "web-1", "--", "wc",
        "-c",
    ];
    let done = fake.run_with_input(&args, &input).expect(7);
    assert_eq!(
        (done.text(), done.stderr.as_str()),
        ("300000 bytes\n", "warned\n")
    );
    let heard = ears.lock().unwrap();
    assert_eq!(heard.stdin, input);
    assert_eq!(heard.request.args, ["wc", "-c"]);
    assert_eq!(heard.request.env, ["A=1"]);
    assert_eq!(
        (heard.request.cwd.as_deref(), heard.request.user.as_deref()),
        (Some("/srv"), Some("www-data"))
    );
    assert_eq!(heard.request.tty, None);
}

#[test]
fn without_i_standard_input_is_empty() {
    let ears = Ears::default();
    let fake = Fake::start(command(&ears, Vec::new(), at_end));
    let done = fake
        .run_with_input(&["exec", "shop", "web-1", "cat", "-A"], b"not passed")
        .expect(7);
    assert_eq!(done.text(), "0 bytes\n");
    assert_eq!(ears.lock().unwrap().request.args, ["cat", "-A"]);
}

#[test]
fn ctrl_c_goes_to_the_command() {
    let ears = Ears::default();
    let until_signal: Reaction = |heard| {
        heard
            .texts
            .iter()
            .any(|text| text["signal"] == "SIGINT")
            .then(|| vec![exit(130)])
    };
    let fake = Fake::start(command(&ears, Vec::new(), until_signal));
    let program = fake.begin(&["exec", "shop", "web-1", "sleep", "1000"]);
    crate::fake::until(
        || !ears.lock().unwrap().texts.is_empty(),
        "the command to run",
    );
    program.interrupt();
    program.end().expect(130);
}

#[test]
fn a_command_that_does_not_listen_is_given_up_on() {
    let ears = Ears::default();
    let fake = Fake::start(command(&ears, Vec::new(), |_| None));
    let program = fake.begin(&["exec", "shop", "web-1", "sleep", "1000"]);
    let signals = || {
        ears.lock()
            .unwrap()
            .texts
            .iter()
            .filter(|text| !text["signal"].is_null())
            .count()
    };
    crate::fake::until(
        || !ears.lock().unwrap().texts.is_empty(),
        "the command to run",
    );
    for count in 1..=2 {
        program.interrupt();
        crate::fake::until(|| signals() == count, "the signal");
    }
    program.interrupt();
    program.end().expect(130);
}

#[test]
fn a_command_that_cannot_be_run() {
    let ears = Ears::default();
    let refuse: Reaction = |_| {
        let problem = Problem::new(
            Code::ExecFailed,
            Fault::Request,
            "no such program: nope",
            "check the name",
        );
        Some(vec![Message::Text(
            json!({ "problem": problem }).to_string().into(),
        )])
    };
    let fake = Fake::start(command(&ears, Vec::new(), refuse));
    let done = fake.run(&["exec", "shop", "web-1", "nope"]).expect(1);
    assert!(
        done.stderr
            .starts_with("error[exec-failed]: no such program: nope"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_node_that_does_not_exist() {
    let unknown = || async {
        problem(&Problem::new(
            Code::NodeUnknown,
            Fault::Request,
            "there is no node web-9",
            "see `offshoot ps shop`",
        ))
    };
    let fake =
        Fake::start(Router::new().route("/environments/shop/nodes/{node}/exec", any(unknown)));
    let done = fake.run(&["exec", "shop", "web-9", "true"]).expect(1);
    assert!(
        done.stderr
            .starts_with("error[node-unknown]: there is no node web-9"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_connection_that_breaks_is_a_problem() {
    let gone = any(|upgrade: WebSocketUpgrade| async move {
        upgrade.on_upgrade(|socket| async move { drop(socket) })
    });
    let fake = Fake::start(Router::new().route("/environments/shop/nodes/web-1/exec", gone));
    let done = fake.run(&["exec", "shop", "web-1", "true"]).expect(1);
    assert!(
        done.stderr.starts_with("error[daemon-unreachable]"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_terminal_needs_a_terminal() {
    let fake = Fake::absent();
    let done = fake.run(&["exec", "-it", "shop", "web-1", "sh"]).expect(2);
    assert!(done.stderr.contains("leave -t out"), "{}", done.stderr);
}
