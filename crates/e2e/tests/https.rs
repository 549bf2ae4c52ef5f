//! HTTPS as people's browsers see it: certificates that are brought, signed by the instance and by an ACME server (Debian's
//! pebble), redirects, and a swap.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use offshoot_e2e::support::{ONE, SOON, answers, ended, refused_with};
use offshoot_e2e::{TestDaemon, wait_for};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use serde_json::Value;

const HOST: &str = "shop.example.test";
const TLS: &str = "listen_tls = [\"127.0.0.1:8443\"]";

/// An authority that nobody here knows.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: PathBuf,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let root = dir.join(format!("{name}.pem"));
        let certificate = params.self_signed(&key).expect("a root");
        fs::write(&root, certificate.pem()).expect("a file");
        Self {
            issuer: Issuer::new(params, key),
            root,
        }
    }

    /// Files of a certificate and its key.
    fn sign(&self, dir: &Path, name: &str, until: i32) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("parameters");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let id = uuid(dir);
        let (chain, key_file) = (
            dir.join(format!("{id}.crt")),
            dir.join(format!("{id}.pkey")),
        );
        fs::write(&chain, certificate.pem()).expect("a file");
        fs::write(&key_file, key.serialize_pem()).expect("a file");
        (chain.display().to_string(), key_file.display().to_string())
    }
}

/// A number that no file of the directory has.
fn uuid(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// What curl says of an address on loopback: exit status, and what was asked for by `what`.
fn curl(daemon: &TestDaemon, root: Option<&Path>, url: &str, what: &str) -> (i32, String) {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", "--noproxy", "*", "-w", what]);
    for port in [8080, 8443] {
        let host = url.split('/').nth(2).unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default();
        command.args(["--resolve", &format!("{host}:{port}:127.0.0.1")]);
    }
    if let Some(root) = root {
        command.arg("--cacert").arg(root);
    }
    let output = daemon
        .inside(|| command.arg(url).output())
        .expect("curl can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

/// Who answers at an address, over TLS that is believed by this root alone; `None` when it is not believed.
fn who(daemon: &TestDaemon, root: &Path, host: &str) -> Option<String> {
    let (status, body) = curl(daemon, Some(root), &format!("https://{host}:8443/"), "");
    if status != 0 {
        // 35: no handshake. 60: not believed.
        assert!(
            [35, 60].contains(&status),
            "curl ended with {status}: {body}"
        );
        return None;
    }
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    Some(body["value"].as_str().unwrap_or_default().to_owned())
}

/// Status and address of a redirect.
fn sent_to(daemon: &TestDaemon, url: &str) -> String {
    curl(daemon, None, url, "\n%{http_code} %{redirect_url}")
        .1
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

fn two(daemon: &TestDaemon) {
    for name in ["shop", "next"] {
        daemon.create(name, ONE);
        answers(daemon, name);
        let set = format!("/set?v={name}");
        daemon.node(name, &set).expect("the environment answers");
    }
}

fn own_root(daemon: &TestDaemon) -> PathBuf {
    let root = daemon.path("own-root.pem");
    fs::write(&root, daemon.run(&["cert", "ca"])).expect("a file");
    root
}

fn serving(_: &Path, config: String) -> String {
    config.replace("[edge]\n", &format!("[edge]\n{TLS}\n"))
}

#[test]
fn certificates_follow_their_hosts() {
    let mut daemon = TestDaemon::start_changed(serving);
    two(&daemon);
    let own = own_root(&daemon);
    assert_eq!(
        who(&daemon, &own, "shop.localhost").as_deref(),
        Some("shop")
    );
    daemon.run(&["domain", "add", "shop", HOST]);
    assert_eq!(who(&daemon, &own, HOST), None);

    // What cannot be used is refused, with the file, and nothing changes.
    let before = daemon.json(&["cert", "ls"]);
    let dir = daemon.path("bought");
    fs::create_dir(&dir).expect("a directory");
    let authority = Authority::new(&dir, "Some authority");
    let (chain, key) = authority.sign(&dir, HOST, 2099);
    let (expired, expired_key) = authority.sign(&dir, HOST, 2021);
    for (chain, key, domains, part) in [
        (&chain, &expired_key, &[][..], "is not the key"),
        (&expired, &expired_key, &[], "expired"),
        (
            &chain,
            &key,
            &["www.example.test"],
            "not for www.example.test",
        ),
        (&key, &key, &[], "no certificate is in it"),
    ] {
        let mut args = vec!["cert", "add", chain, key];
        args.extend(domains);
        let problem = refused_with(&daemon, "certificate-invalid", &args);
        assert!(problem["what"].to_string().contains(part), "{problem:#}");
        assert!(
            problem["details"].to_string().contains(chain.as_str()),
            "{problem:#}"
        );
    }
    assert_eq!(daemon.json(&["cert", "ls"]), before);
    assert_eq!(
        who(&daemon, &own, "shop.localhost").as_deref(),
        Some("shop")
    );

    let operation = daemon.json(&["cert", "add", &chain, &key]);
    assert_eq!(operation["state"], "done", "{operation:#}");
    assert_eq!(who(&daemon, &authority.root, HOST).as_deref(), Some("shop"));
    assert_eq!(who(&daemon, &own, HOST), None);
    let secret = fs::read_to_string(&key).expect("the key");
    let line = secret.lines().nth(1).expect("a line of it");
    for text in [
        daemon.json(&["cert", "ls"]).to_string(),
        operation.to_string(),
        daemon.log(),
    ] {
        assert!(!text.contains(line));
    }
    for entry in fs::read_dir(daemon.path("state/certificates")).expect("files") {
        let mode = entry.and_then(|entry| entry.metadata()).expect("a file");
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }

    let url = format!("http://{HOST}:8080/a?b=c");
    assert!(sent_to(&daemon, &url).starts_with("404") || sent_to(&daemon, &url).starts_with("200"));
    daemon.run(&["domain", "https", HOST, "redirect"]);
    let to = format!("308 https://{HOST}:8443/a?b=c");
    assert_eq!(sent_to(&daemon, &url), to);

    // The certificate and the redirect are the host's, whoever has it; and outlive the daemon.
    daemon.run(&["swap", "shop", "next"]);
    assert_eq!(who(&daemon, &authority.root, HOST).as_deref(), Some("next"));
    assert_eq!(sent_to(&daemon, &url), to);
    daemon.kill();
    assert_eq!(who(&daemon, &authority.root, HOST).as_deref(), Some("next"));
    daemon.restart();
    assert_eq!(who(&daemon, &authority.root, HOST).as_deref(), Some("next"));
    daemon.run(&["swap", "--back", "shop", "next"]);
    assert_eq!(who(&daemon, &authority.root, HOST).as_deref(), Some("shop"));
    daemon.run(&["domain", "https", HOST, "offer"]);

    daemon.run(&["cert", "self-signed", HOST]);
    assert_eq!(who(&daemon, &authority.root, HOST), None);
    assert_eq!(who(&daemon, &own, HOST).as_deref(), Some("shop"));
    daemon.run(&["cert", "rm", HOST]);
    assert_eq!(who(&daemon, &own, HOST), None);

    // A former name leads on, and its successor has a certificate.
    daemon.run(&["rename", "shop", "store", "--redirect"]);
    let former = "http://shop.localhost:8080/x";
    assert_eq!(
        sent_to(&daemon, former),
        "308 http://store.localhost:8080/x"
    );
    assert_eq!(
        who(&daemon, &own, "store.localhost").as_deref(),
        Some("shop")
    );
    assert!(
        daemon
            .run(&["domain", "ls", "store"])
            .contains("leads to http://store.localhost:8080/")
    );
    daemon.run(&["domain", "rm", "store", "shop.localhost"]);
    assert!(sent_to(&daemon, former).starts_with("404"));
    daemon.finish(&["store", "next"]);
}

/// Programs of the test, which end with it.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// An ACME server in the daemon's namespace that looks where a name server of its own says.
fn acme_server(daemon: &TestDaemon) -> Running {
    let dir = daemon.path("acme");
    fs::create_dir(&dir).expect("a directory");
    let authority = Authority::new(&dir, "acme");
    let (chain, key) = authority.sign(&dir, "localhost", 2099);
    let config = serde_json::json!({"pebble": {
        "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
        "certificate": chain, "privateKey": key, "httpPort": 8080, "tlsPort": 8443,
        "ocspResponderURL": "", "externalAccountBindingRequired": false,
    }});
    let file = dir.join("pebble.json");
    fs::write(&file, config.to_string()).expect("a file");
    let log = |name: &str| fs::File::create(dir.join(name)).expect("a log");
    let mut names = Command::new("pebble-challtestsrv");
    names.args([
        "-defaultIPv4",
        "127.0.0.1",
        "-defaultIPv6",
        "",
        "-dns01",
        "127.0.0.1:8053",
    ]);
    names.args([
        "-http01",
        "",
        "-https01",
        "",
        "-tlsalpn01",
        "",
        "-management",
        "127.0.0.1:8055",
    ]);
    let mut pebble = Command::new("pebble");
    pebble
        .arg("-config")
        .arg(&file)
        .args(["-dnsserver", "127.0.0.1:8053"]);
    pebble.env("PEBBLE_VA_NOSLEEP", "1");
    let start = |command: &mut Command, name: &str| {
        command
            .stdin(Stdio::null())
            .stdout(log(name))
            .stderr(log(&format!("{name}.err")));
        daemon
            .inside(|| command.spawn())
            .expect("it can be started")
    };
    let running = Running(vec![
        start(&mut names, "names.log"),
        start(&mut pebble, "pebble.log"),
    ]);
    wait_for("the ACME server", SOON, || {
        let root = Some(authority.root.as_path());
        let (status, _) = curl(daemon, root, "https://localhost:14000/dir", "");
        (status == 0).then_some(())
    });
    running
}

fn with_acme(dir: &Path, config: String) -> String {
    let acme = format!(
        "[edge.acme]\ndirectory = \"https://localhost:14000/dir\"\nemail = \"a@example.test\"\nagree_to_terms = true\nca_file = \"{}\"\n",
        dir.join("acme/acme.pem").display()
    );
    serving(dir, config).replace("[images]\n", &format!("{acme}[images]\n"))
}

#[test]
fn an_acme_server_signs_what_the_edge_proves() {
    if Command::new("pebble").arg("-h").output().is_err() {
        println!("SKIPPED: there is no pebble here (Debian's package of that name)");
        return;
    }
    let mut daemon = TestDaemon::start_changed(with_acme);
    two(&daemon);
    daemon.run(&["domain", "add", "shop", HOST, "*.wild.test"]);
    daemon.run(&["domain", "https", HOST, "redirect"]);
    let problem = refused_with(&daemon, "acme-failed", &["cert", "acme", HOST]);
    assert!(
        problem["next"].to_string().contains("edge.acme"),
        "{problem:#}"
    );
    refused_with(&daemon, "domain-invalid", &["cert", "acme", "*.wild.test"]);
    refused_with(&daemon, "domain-unknown", &["cert", "acme", "nobody.test"]);

    let server = acme_server(&daemon);
    let operation = daemon.json(&["cert", "acme", HOST, "a.wild.test"]);
    println!("{operation:#}");
    assert_eq!(operation["state"], "done");
    let root = daemon.path("pebble-root.pem");
    let (status, text) = curl(
        &daemon,
        Some(&daemon.path("acme/acme.pem")),
        "https://localhost:15000/roots/0",
        "",
    );
    assert_eq!(status, 0, "{text}");
    fs::write(&root, text).expect("a file");
    for host in [HOST, "a.wild.test"] {
        assert_eq!(who(&daemon, &root, host).as_deref(), Some("shop"));
    }
    daemon.run(&["swap", "shop", "next"]);
    assert_eq!(who(&daemon, &root, HOST).as_deref(), Some("next"));
    let id = |daemon: &TestDaemon| {
        let all = daemon.json(&["cert", "ls"])["certificates"].clone();
        let all = all.as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|one| one["kind"] == "acme");
        found.expect("a certificate")
    };
    let first = id(&daemon);
    assert_eq!(first["names"].as_array().map(Vec::len), Some(2));
    daemon.run(&["cert", "renew", "a.wild.test"]);
    assert_ne!(id(&daemon)["id"], first["id"]);
    assert_eq!(who(&daemon, &root, HOST).as_deref(), Some("next"));

    // A name that leads elsewhere cannot be proven; the certificate that is there stays.
    let elsewhere = r#"{"host": "bad.wild.test", "addresses": ["127.0.0.9"]}"#;
    let told = daemon.inside(|| {
        Command::new("curl")
            .args(["-sS", "-d", elsewhere, "http://127.0.0.1:8055/add-a"])
            .status()
    });
    assert!(told.expect("curl can be run").success());
    let before = id(&daemon);
    let problem = refused_with(
        &daemon,
        "acme-failed",
        &["cert", "acme", "bad.wild.test", HOST],
    );
    println!("{problem:#}");
    assert!(
        problem["details"].to_string().contains("bad.wild.test"),
        "{problem:#}"
    );
    assert_eq!(id(&daemon), before);
    assert_eq!(who(&daemon, &root, HOST).as_deref(), Some("next"));
    let routes = fs::read_to_string(daemon.path("run/edge/routes.json")).expect("routes");
    assert!(!routes.contains("acme-challenge"), "{routes}");

    // An order that the daemon's end cuts short is begun again.
    for at in [
        "order.after",
        "validate.before",
        "validate.after",
        "finalise.after",
        "route.before",
    ] {
        daemon.kill();
        daemon.launch(&[("OFFSHOOT_FAILPOINT", &format!("certificate-add.{at}"))]);
        daemon.wait_up();
        let begun = daemon.json(&["cert", "acme", "--detach", "b.wild.test"]);
        daemon.wait_dead();
        daemon.restart();
        let operation = begun["id"].as_str().expect("an id");
        assert_eq!(ended(&daemon, operation)["state"], "done", "{at}");
        assert_eq!(who(&daemon, &root, "b.wild.test").as_deref(), Some("next"));
        daemon.run(&["cert", "rm", "b.wild.test"]);
    }
    drop(server);
    daemon.finish(&["shop", "next"]);
}
