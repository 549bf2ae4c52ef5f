//! What a manifest can ask for, seen from inside the nodes and from outside.

use std::fs;

use offshoot_e2e::support::{self, SOON, answers, give_tool, node, sh, tool};
use offshoot_e2e::{TestDaemon, wait_for};

#[test]
fn a_node_is_as_the_manifest_says() {
    let daemon = TestDaemon::start();
    fs::write(daemon.path("bound.txt"), "bound\n").expect("a file");
    fs::write(daemon.path("secret.txt"), "S3CRET-of-the-test").expect("a file");
    fs::write(daemon.path("vars.env"), "FROM_FILE=file\nBOTH=file\n").expect("a file");
    fs::write(daemon.path(".env"), "TAG=interpolated\n").expect("a file");
    let file = daemon.create(
        "shop",
        r#"
x-common: &common
  image: IMAGE
services:
  web:
    <<: *common
    x-offshoot: {entry: 8080, role: app}
    user: app
    working_dir: /data
    hostname: fixed
    init: true
    stop_grace_period: 1s
    env_file: vars.env
    environment: {BOTH: here, TAGGED: "${TAG}-${MISSING:-default}", PRICE: "5$$"}
    volumes: ["data:/data", "./bound.txt:/etc/bound.txt:ro"]
    tmpfs: ["/scratch:size=1m,mode=1777"]
    configs: [{source: settings, target: /etc/settings.conf}]
    secrets: [password]
    extra_hosts: ["far.example=203.0.113.9"]
    sysctls: {net.ipv4.ip_unprivileged_port_start: "80"}
    ulimits: {nofile: {soft: 123, hard: 456}}
    cap_drop: [ALL]
    cap_add: [NET_BIND_SERVICE]
    labels: {who: me}
    deploy: {resources: {limits: {memory: 64M, cpus: "0.5", pids: 40}}}
  plain:
    <<: *common
    read_only: true
    stop_grace_period: 1s
configs: {settings: {content: "a = 1\n"}}
secrets: {password: {file: secret.txt}}
volumes: {data: {}}
"#,
    );
    inside(&daemon, "shop");
    daemon.run(&["clone", "shop"]);
    inside(&daemon, "shop-clone");

    // Secrets are inside and nowhere else.
    for told in [
        daemon.run(&["show", "shop"]),
        daemon.json(&["show", "shop"]).to_string(),
        daemon.run(&["show", "shop", "--manifest"]),
        daemon.run(&["plan", "-f", &file, "--name", "other"]),
        daemon.json(&["op", "ls"]).to_string(),
        daemon.log(),
        daemon.run(&["logs", "shop"]),
    ] {
        assert!(!told.contains("S3CRET"), "a secret was told: {told}");
    }

    // Limits: memory and processes, in the parent and in the clone.
    for name in ["shop", "shop-clone"] {
        give_tool(&daemon, name, "web");
        let forked = tool(&daemon, name, "web", &["fork", "200"]);
        let count: u32 = forked
            .split_whitespace()
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a number");
        assert!((10..40).contains(&count), "{name}: {forked}");
        let killed = daemon
            .try_run(&["exec", name, "web", "--", "/tmp/tool", "allocate", "200"])
            .expect("it runs");
        assert_eq!(killed.status.code(), Some(137), "{name}: {killed:?}");
        sh(&daemon, name, "web", "true");
        answers(&daemon, name);
    }
    daemon.finish(&["shop", "shop-clone"]);
}

fn inside(daemon: &TestDaemon, name: &str) {
    let web = |script: &str| sh(daemon, name, "web", script);
    assert_eq!(web("id -u; pwd"), "1000\n/data");
    assert_eq!(web("cat /proc/sys/kernel/hostname"), "fixed");
    assert_eq!(
        web("echo $FROM_FILE $BOTH $TAGGED $PRICE"),
        "file here interpolated-default 5$"
    );
    assert_eq!(
        web("cat /etc/bound.txt /etc/settings.conf /data/seed"),
        "bound\na = 1\nfrom the image"
    );
    assert_eq!(web("cat /run/secrets/password"), "S3CRET-of-the-test");
    assert_eq!(
        web("echo x > /etc/bound.txt || echo refused")
            .lines()
            .last(),
        Some("refused")
    );
    assert_eq!(web("echo kept > /scratch/file; cat /scratch/file"), "kept");
    assert_eq!(
        web("dd if=/dev/zero of=/scratch/big bs=1024 count=2048 2> /dev/null || echo full"),
        "full"
    );
    web("cat /dev/null > /scratch/big");
    assert!(web("cat /etc/hosts").contains("203.0.113.9"));
    assert_eq!(
        web("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"),
        "80"
    );
    // Of the main process: runc 1.1 sometimes gives a session the hard limit as its soft one (Go raises it at start).
    let limits = web("cat /proc/1/limits");
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let files: Vec<_> = files.unwrap_or_default().split_whitespace().collect();
    assert_eq!(files, ["123", "456", "files"]);
    assert_eq!(web("ulimit -Hn"), "456");
    let status = daemon.run(&["exec", name, "plain", "--", "cat", "/proc/1/status"]);
    let field = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(str::trim)
            .unwrap_or_default()
    };
    // Docker's default capabilities, and no other.
    assert_eq!(field("CapBnd:"), "00000000a80425fb");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let bound = web("cat /proc/1/status");
    assert!(bound.contains("CapBnd:\t0000000000000400"), "{bound}");
    assert_eq!(
        sh(daemon, name, "plain", "echo x > /file || echo refused")
            .lines()
            .last(),
        Some("refused")
    );
    assert_eq!(
        sh(
            daemon,
            name,
            "plain",
            "cat /etc/bound.txt 2> /dev/null || echo none"
        ),
        "none"
    );
}

#[test]
fn dependencies_health_and_restarts() {
    let daemon = TestDaemon::start();
    daemon.create("shop", r#"
services:
  job:
    image: IMAGE
    entrypoint: ["/bin/sh", "-c", "echo done > /data/job"]
    volumes: ["data:/data"]
  db:
    image: IMAGE
    stop_grace_period: 1s
    depends_on: {job: {condition: service_completed_successfully}}
    healthcheck: {test: "test $$(cat /tmp/state) = good", interval: 1s, start_interval: 100ms, start_period: 20s, retries: 1}
    entrypoint: ["/bin/sh", "-c", "/bin/sleep 1; echo good > /tmp/state; exec /bin/testnode"]
    restart: always
  web:
    image: IMAGE
    stop_grace_period: 1s
    depends_on: {db: {condition: service_healthy}}
    entrypoint: ["/bin/sh", "-c", "cat /data/job && exec /bin/testnode"]
    volumes: ["data:/data"]
    x-offshoot: {entry: 8080}
    restart: "on-failure:2"
  never:
    image: IMAGE
    stop_grace_period: 1s
volumes: {data: {}}
"#);
    assert!(
        daemon.run(&["logs", "shop", "web"]).contains("done"),
        "the job ended first"
    );
    let job = node(&daemon, "shop", "job-1");
    assert_eq!(
        (&job["status"]["state"], &job["status"]["status"]),
        (&"exited".into(), &0.into()),
        "{job}"
    );
    assert_eq!(node(&daemon, "shop", "db-1")["status"]["health"], "healthy");
    assert_eq!(daemon.json(&["show", "shop"])["healthy"], true);

    for (state, health, well) in [("bad", "unhealthy", false), ("good", "healthy", true)] {
        sh(&daemon, "shop", "db", &format!("echo {state} > /tmp/state"));
        wait_for(&format!("the node to be {health}"), SOON, || {
            (node(&daemon, "shop", "db-1")["status"]["health"] == health).then_some(())
        });
        assert_eq!(daemon.json(&["show", "shop"])["healthy"], well, "{state}");
    }

    let kill = |name: &str| {
        let pid = node(&daemon, "shop", name)["status"]["pid"]
            .as_i64()
            .expect("it runs");
        let process = offshoot_sys::process::Process::open(i32::try_from(pid).expect("a pid"))
            .expect("it is there");
        process.signal(9).expect("it can be ended");
        pid
    };
    let before = answers(&daemon, "shop");
    for name in ["web-1", "db-1"] {
        let pid = kill(name);
        let now = wait_for("the node to be started again", SOON, || {
            let now = node(&daemon, "shop", name);
            (now["status"]["state"] == "running"
                && now["status"]["pid"] != pid
                && now["restarts"] == 1)
                .then_some(now)
        });
        println!("{now}");
    }
    let after = answers(&daemon, "shop");
    assert_ne!(after["boot"], before["boot"]);
    kill("never-1");
    wait_for("the node to be seen as ended", SOON, || {
        (node(&daemon, "shop", "never-1")["status"]["status"] == 137).then_some(())
    });

    // The clone has what ran, and leaves what had ended.
    let operation = daemon.json(&["clone", "shop"]);
    let rungs: std::collections::BTreeMap<_, _> = support::rungs(&operation).into_iter().collect();
    println!("{rungs:?}");
    assert_eq!(
        (rungs["web-1"].as_str(), rungs["db-1"].as_str()),
        ("live", "live"),
        "{operation:#}"
    );
    assert_eq!(answers(&daemon, "shop-clone")["boot"], after["boot"]);
    assert_ne!(
        node(&daemon, "shop-clone", "job-1")["status"]["state"],
        "running"
    );
    assert_ne!(
        node(&daemon, "shop-clone", "never-1")["status"]["state"],
        "running"
    );
    wait_for("the clone's database to be healthy", SOON, || {
        (node(&daemon, "shop-clone", "db-1")["status"]["health"] == "healthy").then_some(())
    });
    assert_eq!(
        node(&daemon, "shop", "never-1")["status"]["state"],
        "exited",
        "it is not started again"
    );
    daemon.finish(&["shop", "shop-clone"]);
}

#[test]
fn published_ports_and_replicas() {
    let daemon = TestDaemon::start();
    daemon.create(
        "shop",
        r#"
services:
  web:
    image: IMAGE
    stop_grace_period: 1s
    x-offshoot: {entry: 8080}
    ports: ["127.0.0.1:18080:8080", "127.0.0.1::8080"]
    deploy: {replicas: 3}
    volumes: ["data:/data"]
volumes: {data: {}}
"#,
    );
    let ports = |name: &str| -> Vec<u16> {
        let view = daemon.json(&["show", name]);
        let ports = view["ports"].as_array().expect("ports");
        ports
            .iter()
            .map(|p| {
                p["port"]["host_port"]
                    .as_u64()
                    .and_then(|n| u16::try_from(n).ok())
                    .expect("a port")
            })
            .collect()
    };
    let ask = |port: u16| support::ask(&daemon, &format!("127.0.0.1:{port}"));
    let parent = ports("shop");
    assert_eq!(parent[0], 18080);
    for port in &parent {
        wait_for("the port to answer", SOON, || ask(*port));
    }

    // Every node is reached by the entry and by the port; the names resolve to all and to each.
    let mut seen = std::collections::BTreeSet::new();
    wait_for("all nodes to be asked", SOON, || {
        seen.insert(daemon.node("shop", "/").ok()?["hostname"].to_string());
        (seen.len() == 3).then_some(())
    });
    let mut seen = std::collections::BTreeSet::new();
    wait_for("all nodes to be asked", SOON, || {
        seen.insert(ask(18080)?["hostname"].to_string());
        (seen.len() == 3).then_some(())
    });
    give_tool(&daemon, "shop", "web-1");
    let mut inner: Vec<_> = (1..=3)
        .map(|n| {
            node(&daemon, "shop", &format!("web-{n}"))["inner"]
                .as_str()
                .expect("an address")
                .to_owned()
        })
        .collect();
    inner.sort();
    assert_eq!(
        tool(&daemon, "shop", "web-1", &["resolve", "web"])
            .lines()
            .collect::<Vec<_>>(),
        inner
    );
    for n in 1..=3 {
        let name = format!("web-{n}");
        let address = node(&daemon, "shop", &name)["inner"].clone();
        assert_eq!(
            tool(&daemon, "shop", "web-1", &["resolve", &name]),
            address.as_str().expect("an address")
        );
        let told = tool(
            &daemon,
            "shop",
            "web-1",
            &["get", &format!("{name}:8080"), "/"],
        );
        assert!(told.contains(&format!("{name}.shop")), "{told}");
        // The volume is one for all of them.
        sh(&daemon, "shop", &name, &format!("echo {n} > /data/{n}"));
    }
    assert_eq!(
        sh(&daemon, "shop", "web-2", "cat /data/1 /data/2 /data/3"),
        "1\n2\n3"
    );

    // A host reaches each node by its outer address.
    let outer = node(&daemon, "shop", "web-2")["outer"]
        .as_str()
        .expect("an address")
        .to_owned();
    let told = support::ask(&daemon, &format!("{outer}:8080")).expect("an answer");
    assert_eq!(told["hostname"], "web-2.shop");

    let operation = daemon.json(&["clone", "shop"]);
    let clone = ports("shop-clone");
    assert!(
        clone.iter().all(|port| !parent.contains(port)),
        "{parent:?} {clone:?}"
    );
    let notices = operation["notices"].to_string();
    for (before, after) in parent.iter().zip(&clone) {
        assert!(
            notices.contains(&before.to_string()) && notices.contains(&after.to_string()),
            "{notices}"
        );
        let told = wait_for("the clone's port to answer", SOON, || ask(*after));
        assert!(
            told["hostname"]
                .as_str()
                .is_some_and(|name| name.ends_with(".shop-clone")),
            "{told}"
        );
        let told = ask(*before).expect("the parent's port answers");
        assert!(
            told["hostname"]
                .as_str()
                .is_some_and(|name| name.ends_with(".shop")),
            "{told}"
        );
    }
    let boots = |name: &str| -> std::collections::BTreeSet<String> {
        (1..=3)
            .map(|n| {
                let outer = node(&daemon, name, &format!("web-{n}"))["outer"]
                    .as_str()
                    .expect("an address")
                    .to_owned();
                support::ask(&daemon, &format!("{outer}:8080")).expect("an answer")["boot"]
                    .to_string()
            })
            .collect()
    };
    assert_eq!(
        boots("shop"),
        boots("shop-clone"),
        "each node from its own counterpart"
    );

    // Ports follow a stop, a start and a removal.
    daemon.run(&["stop", "shop"]);
    assert!(ask(18080).is_none());
    assert!(ask(clone[0]).is_some());
    daemon.run(&["start", "shop"]);
    wait_for("the port to answer again", SOON, || ask(18080));
    daemon.run(&["rm", "-f", "shop", "shop-clone"]);
    wait_for("the ports to be free", SOON, || {
        daemon
            .inside(|| std::net::TcpListener::bind(("127.0.0.1", clone[0])))
            .ok()
    });
    assert!(daemon.residue().is_empty(), "{:#?}", daemon.residue());
}
