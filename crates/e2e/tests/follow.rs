//! Whoever follows an operation hears of its end, also when the daemon goes and comes back in between.

use std::process::Stdio;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use offshoot_e2e::support::{SOON, answers, ask_for, command, id_of, node};
use offshoot_e2e::{TestDaemon, wait_for};
use serde_json::Value;

/// Its first node is well once it was told something, and its second waits for that.
const PATIENT: &str = r#"
services:
  web:
    image: IMAGE
    stop_grace_period: 1s
    volumes: ["data:/data"]
    healthcheck: {test: ["CMD", "/bin/sh", "-c", "test -e /data/value"], interval: 1s, start_period: 1m}
    x-offshoot: {entry: 8080}
  late:
    image: IMAGE
    stop_grace_period: 1s
    depends_on: {web: {condition: service_healthy}}
volumes: {data: {}}
"#;

/// Events of an operation as the API streams them, with their positions; the channel ends with the connection.
fn events(daemon: &TestDaemon, operation: &str, after: Option<u64>) -> Receiver<(u64, Value)> {
    let socket = daemon.path("run/offshoot.sock");
    let mut request = Request::get(format!("/api/v1/events?operation={operation}"))
        .header("host", "offshoot")
        .header("accept", "text/event-stream");
    if let Some(after) = after {
        request = request.header("last-event-id", after.to_string());
    }
    let request = request.body(Empty::<Bytes>::new()).expect("a request");
    let (sender, receiver) = mpsc::channel();
    let follow = async move {
        let stream = tokio::net::UnixStream::connect(socket).await?;
        let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut body = client.send_request(request).await?.into_body();
        let mut text = String::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            text.push_str(std::str::from_utf8(&data)?);
            while let Some((message, rest)) = text.split_once("\n\n") {
                let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
                if let (Some(id), Some(data)) = (field("id: "), field("data: ")) {
                    sender.send((id.parse()?, serde_json::from_str(data)?))?;
                }
                text = rest.to_owned();
            }
        }
        anyhow::Ok(())
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        // A daemon that is killed breaks its connections off.
        let _ = runtime.expect("a runtime").block_on(follow);
    });
    receiver
}

/// The events from here to the end of the connection or the operation.
#[track_caller]
fn to_the_end(events: &Receiver<(u64, Value)>) -> Vec<(u64, Value)> {
    let mut all = Vec::new();
    loop {
        match events.recv_timeout(SOON) {
            Ok(event) => all.push(event),
            Err(RecvTimeoutError::Disconnected) => return all,
            Err(RecvTimeoutError::Timeout) => panic!("no event and no end after {all:#?}"),
        }
        let last = &all[all.len() - 1].1["operation"]["state"];
        if matches!(last.as_str(), Some("done" | "failed" | "cancelled")) {
            return all;
        }
    }
}

#[test]
fn followers_hear_of_the_end_over_a_restart_of_the_daemon() {
    let mut daemon = TestDaemon::start();
    let file = daemon.compose("patient.yaml", PATIENT);
    for (name, end) in [
        ("killed", TestDaemon::kill as fn(&mut TestDaemon)),
        ("ended", TestDaemon::terminate),
    ] {
        let streams = |daemon: &TestDaemon| daemon.log().matches("path=\"/api/v1/events\"").count();
        let before = streams(&daemon);
        let mut waiting = command(&daemon, &["create", "-f", &file, "--name", name]);
        let mut waiting = waiting
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("offshoot can be started");
        let (id, web) = wait_for("the first node to start", SOON, || {
            let all = daemon.json(&["op", "ls"]);
            let ours = all
                .as_array()?
                .iter()
                .find(|operation| operation["subject"] == name)?;
            let show = daemon.try_run(&["-o", "json", "show", name]).ok()?;
            if !String::from_utf8_lossy(&show.stdout).contains("\"starting\"") {
                return None;
            }
            Some((
                id_of(ours),
                node(&daemon, name, "web-1")["outer"].as_str()?.to_owned(),
            ))
        });
        let mut following = command(&daemon, &["-o", "json", "op", "show", "--follow", &id]);
        let following = following
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("offshoot can be started");
        wait_for("both to follow", SOON, || {
            (streams(&daemon) >= before + 2).then_some(())
        });
        let stream = events(&daemon, &id, None);
        let first = stream.recv_timeout(SOON).expect("an event");

        end(&mut daemon);
        let mut heard = vec![first];
        heard.extend(to_the_end(&stream));
        let last = heard[heard.len() - 1].0;
        assert!(
            waiting.try_wait().expect("it is ours").is_none(),
            "it waits on"
        );
        daemon.launch(&[]);
        daemon.wait_up();
        let stream = events(&daemon, &id, Some(last));
        let told = wait_for("the node to answer", SOON, || {
            ask_for(&daemon, &format!("{web}:8080"), "/set?v=go")
        });
        assert_eq!(told["value"], "go");

        heard.extend(to_the_end(&stream));
        assert!(
            heard.windows(2).all(|two| two[0].0 < two[1].0),
            "each once, in order"
        );
        assert_eq!(
            heard[heard.len() - 1].1["operation"]["state"],
            "done",
            "{heard:#?}"
        );
        let again = to_the_end(&events(&daemon, &id, None));
        let positions =
            |events: &[(u64, Value)]| events.iter().map(|event| event.0).collect::<Vec<_>>();
        assert_eq!(positions(&heard), positions(&again), "nothing was left out");
        let output = waiting.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}\n{}", daemon.log());
        let output = following.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
        let seen: Value = serde_json::from_slice(&output.stdout).expect("a document");
        assert_eq!(
            (&seen["id"], &seen["state"]),
            (&id.as_str().into(), &"done".into())
        );
        assert_eq!(answers(&daemon, name)["value"], "go");
    }
    daemon.finish(&["killed", "ended"]);
}
