//! What reaches an environment from outside and what it reaches, before and after a clone; daemons side by side.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use offshoot_e2e::support::{self, PAIR, SOON, answers, give_tool, node, sh, tool};
use offshoot_e2e::{TestDaemon, http, program, residue, wait_for};
use serde_json::Value;

/// How many connections to or from this port are open in a node, by its own kernel tables.
fn open(daemon: &TestDaemon, name: &str, node: &str, port: u16) -> usize {
    let port = format!(":{port:04X}");
    let table = sh(
        daemon,
        name,
        node,
        "cat /proc/net/tcp /proc/net/tcp6 2> /dev/null",
    );
    let fields = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .filter(|fields| match fields.as_slice() {
            [_, local, remote, "01", ..] => local.ends_with(&port) || remote.ends_with(&port),
            _ => false,
        })
        .count()
}

#[test]
fn connections_that_leave_an_environment_end_in_its_clone_only() {
    let daemon = TestDaemon::start();
    daemon.create("shop", r#"
services:
  web:
    image: IMAGE
    stop_grace_period: 1s
    x-offshoot: {entry: 8080}
    environment: {PEER: "db:9000", HTTP_PORT: "8080"}
    volumes: ["data:/data"]
    # Talks to the outside, once it is told where that is.
    entrypoint: ["/bin/sh", "-c", "(until test -e /tmp/go; do /bin/sleep 0.05; done; PEER=$$(cat /tmp/peer) HTTP_PORT=8081 exec /bin/testnode) & exec /bin/testnode"]
  db:
    image: IMAGE
    stop_grace_period: 1s
    environment: {PEER_PORT: "9000"}
volumes: {data: {}}
"#);
    answers(&daemon, "shop");

    // In: a client on the host that keeps its connection to the node's outer address.
    let outer = node(&daemon, "shop", "web-1")["outer"]
        .as_str()
        .expect("an address")
        .to_owned();
    let mut inwards = daemon
        .inside(|| TcpStream::connect(format!("{outer}:8080")))
        .expect("the node answers");
    inwards
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a socket");
    let ask = |stream: &mut TcpStream| -> String {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: any\r\n\r\n")
            .expect("it is open");
        let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
        let mut line = String::new();
        while reader.read_line(&mut line).expect("it is open") > 2 {
            line.clear();
        }
        let document = serde_json::Deserializer::from_reader(reader)
            .into_iter::<Value>()
            .next();
        document.expect("an answer").expect("JSON")["hostname"].to_string()
    };
    assert_eq!(ask(&mut inwards), "\"web-1.shop\"");

    // Out: the node talks to a server on the host, at the environment's outer first address.
    let first = format!("{}.1", outer.rsplit_once('.').expect("an address").0);
    let server = daemon
        .inside(|| TcpListener::bind((first.as_str(), 9900)))
        .expect("the host has that address");
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in server.incoming().flatten() {
            let _ = said.send(stream.peer_addr());
            std::thread::spawn(move || {
                let mut copy = stream.try_clone().expect("a socket");
                std::io::copy(&mut stream, &mut copy)
            });
        }
    });
    sh(
        &daemon,
        "shop",
        "web",
        &format!("echo {first}:9900 > /tmp/peer; touch /tmp/go"),
    );
    let peer = heard.recv_timeout(SOON).expect("the node connects");
    println!("seen from outside as {peer:?}");
    wait_for("the connection to be open", SOON, || {
        (open(&daemon, "shop", "web", 9900) == 1).then_some(())
    });
    assert_eq!(open(&daemon, "shop", "web", 9000), 1);

    let before = answers(&daemon, "shop");
    let operation = daemon.json(&["clone", "shop"]);
    assert!(
        support::rungs(&operation)
            .iter()
            .all(|(_, rung)| rung == "live"),
        "{operation:#}"
    );
    // In the clone the inner connection is the old one; what led outside was closed, and made anew by who made it.
    assert_eq!(open(&daemon, "shop-clone", "web", 9000), 1);
    let clone = node(&daemon, "shop-clone", "web-1")["outer"]
        .as_str()
        .expect("an address")
        .to_owned();
    let again = heard.recv_timeout(SOON).expect("the clone connects anew");
    println!("the clone is seen as {again:?}, its node is at {clone}");
    let seen = answers(&daemon, "shop-clone");
    assert_eq!(
        (&seen["boot"], &seen["connects"]),
        (&before["boot"], &1.into())
    );
    // The parent's own are open still, both ways.
    assert_eq!(ask(&mut inwards), "\"web-1.shop\"");
    assert_eq!(open(&daemon, "shop", "web", 9900), 1);
    assert!(
        heard.try_recv().is_err(),
        "the parent did not have to connect again"
    );
    assert_eq!(answers(&daemon, "shop")["connects"], 1);
    let client = inwards.local_addr().expect("a socket").port();
    assert_eq!(open(&daemon, "shop", "web", client), 1);
    assert_eq!(
        open(&daemon, "shop-clone", "web", client),
        0,
        "the client is the parent's"
    );

    // IPv6, where the host has it.
    match node(&daemon, "shop", "db-1")["inner6"].as_str() {
        None => println!("SKIPPED: this host has no IPv6"),
        Some(inner6) => {
            for name in ["shop", "shop-clone"] {
                assert_eq!(
                    node(&daemon, name, "db-1")["inner6"],
                    inner6,
                    "the same inside"
                );
                give_tool(&daemon, name, "web");
                let told = tool(
                    &daemon,
                    name,
                    "web",
                    &["get", &format!("[{inner6}]:8080"), "/"],
                );
                assert!(told.contains(&format!("db-1.{name}\"")), "{told}");
                let outer6 = node(&daemon, name, "db-1")["outer6"]
                    .as_str()
                    .expect("an address")
                    .to_owned();
                let told = support::ask(&daemon, &format!("[{outer6}]:8080")).expect("an answer");
                assert_eq!(told["hostname"], format!("db-1.{name}"));
            }
        }
    }
    daemon.finish(&["shop", "shop-clone"]);
}

/// A second daemon in the namespace of the first.
struct Second<'a> {
    first: &'a TestDaemon,
    dir: tempfile::TempDir,
    instance: String,
    child: Child,
}

impl<'a> Second<'a> {
    fn start(first: &'a TestDaemon) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("offshoot-e2e-")
            .tempdir_in("/var/tmp")
            .expect("a directory");
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("it is ours");
        let instance = format!("s{}", &first.instance[1..]);
        let root = dir.path().display();
        let config = format!(
            "instance = \"{instance}\"\nstate_dir = \"{root}/state\"\nrun_dir = \"{root}/run\"\n\
             [api]\nlisten = \"127.0.0.1:7463\"\n[dashboard]\nlisten = \"127.0.0.1:9441\"\n[edge]\nlisten = [\"127.0.0.1:8090\"]\n[pool]\nsize = \"4g\"\n\
             [network]\nouter_pool = \"10.224.0.0/16\"\nouter_pool6 = \"fd6f:6673:7777::/56\"\n[ids]\nbase = 1610612736\nranges = 100\n"
        );
        fs::write(dir.path().join("offshoot.toml"), config).expect("a file");
        let log = fs::File::create(dir.path().join("daemon.log")).expect("a file");
        let mut command = Command::new(program("offshoot"));
        command
            .arg("--config")
            .arg(dir.path().join("offshoot.toml"))
            .arg("serve")
            .stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        let child = first
            .inside(|| command.spawn())
            .expect("offshoot can be started");
        let second = Self {
            first,
            dir,
            instance,
            child,
        };
        wait_for("the second daemon", SOON, || {
            second.try_run(&["ls"]).status.success().then_some(())
        });
        second
    }

    fn try_run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program("offshoot"));
        command
            .arg("--config")
            .arg(self.dir.path().join("offshoot.toml"))
            .args(args)
            .stdin(Stdio::null());
        self.first
            .inside(|| command.output())
            .expect("offshoot can be run")
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        let output = self.try_run(args);
        let log = fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default();
        assert!(output.status.success(), "{args:?}: {output:?}\n{log}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        residue::remove(self.dir.path(), &self.instance);
    }
}

#[test]
fn daemons_side_by_side_and_the_api_over_tcp() {
    let daemon = TestDaemon::start();
    let file = daemon.compose("compose.yaml", PAIR);
    let second = Second::start(&daemon);
    daemon.run(&["create", "-f", &file, "--name", "shop"]);
    second.run(&["create", "-f", &file, "--name", "shop"]);
    daemon.node("shop", "/set?v=first").expect("it answers");
    let elsewhere = |path: &str| -> Option<Value> {
        let asked =
            daemon.inside(|| http::get(([127, 0, 0, 1], 8090).into(), "shop.localhost", path));
        serde_json::from_str(&asked.ok()?.body).ok()
    };
    wait_for("the second to answer", SOON, || elsewhere("/set?v=second"));
    daemon.run(&["clone", "shop"]);
    second.run(&["clone", "shop"]);
    assert_eq!(answers(&daemon, "shop")["value"], "first");
    assert_eq!(answers(&daemon, "shop-clone")["value"], "first");
    assert_eq!(elsewhere("/").expect("it answers")["value"], "second");
    daemon.run(&["rm", "-f", "shop", "shop-clone"]);
    assert!(
        daemon.residue().processes.is_empty(),
        "{:#?}",
        daemon.residue()
    );
    let seen = wait_for("the second to go on", SOON, || elsewhere("/"));
    assert_eq!(
        (&seen["value"], &seen["connects"]),
        (&"second".into(), &1.into())
    );

    // The second one's API over TCP: with its token only.
    let ask = |authorization: &str| -> String {
        let asked = daemon.inside(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect("127.0.0.1:7463")?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET /api/v1/environments HTTP/1.1\r\nHost: 127.0.0.1:7463\r\n{authorization}Connection: close\r\n\r\n")?;
            let mut answer = String::new();
            std::io::Read::read_to_string(&mut stream, &mut answer)?;
            Ok(answer)
        });
        asked.expect("the API answers")
    };
    assert!(ask("").starts_with("HTTP/1.1 401"), "{}", ask(""));
    assert!(ask("Authorization: Bearer wrong\r\n").starts_with("HTTP/1.1 401"));
    let token = fs::read_to_string(second.dir.path().join("state/api-token")).expect("the token");
    let answer = ask(&format!("Authorization: Bearer {}\r\n", token.trim()));
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("shop-clone"),
        "{answer}"
    );
    second.run(&["rm", "-f", "shop", "shop-clone"]);
    drop(second);
    assert!(daemon.residue().is_empty(), "{:#?}", daemon.residue());
}
