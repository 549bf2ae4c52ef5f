//! Bad input gives one clear error with a stable code, says what to do, and leaves nothing behind.

use std::fs;
use std::process::Command;

use offshoot_e2e::TestDaemon;
use offshoot_e2e::support::{ONE, answers, refused_with};

#[test]
fn bad_names_and_unknown_things_are_refused() {
    let daemon = TestDaemon::start();
    let file = daemon.create("shop", ONE);
    let long = "x".repeat(64);
    for bad in ["Shop", "a_b", "-a", "a-", "a.b", "ä", &long] {
        let named = format!("--name={bad}");
        refused_with(&daemon, "name-invalid", &["create", "-f", &file, &named]);
        refused_with(&daemon, "name-invalid", &["plan", "-f", &file, &named]);
        refused_with(&daemon, "name-invalid", &["clone", "shop", &named]);
        refused_with(&daemon, "name-invalid", &["rename", "shop", "--", bad]);
    }
    refused_with(
        &daemon,
        "name-taken",
        &["create", "-f", &file, "--name", "shop"],
    );
    refused_with(&daemon, "name-taken", &["clone", "shop", "--name", "shop"]);
    daemon.run(&["clone", "shop"]);
    refused_with(&daemon, "name-taken", &["rename", "shop-clone", "shop"]);
    daemon.run(&["rm", "-f", "shop-clone"]);

    for args in [
        &["show", "nobody"][..],
        &["show", "nobody", "--manifest"],
        &["ps", "nobody"],
        &["start", "nobody"],
        &["stop", "nobody"],
        &["rm", "-f", "nobody"],
        &["clone", "nobody"],
        &["clone", "nobody", "--dry-run"],
        &["rename", "nobody", "somebody"],
        &["exec", "nobody", "web", "--", "true"],
        &["logs", "nobody"],
        &["cp", "nobody/web:/etc/passwd", "-"],
    ] {
        refused_with(&daemon, "environment-unknown", args);
    }
    for args in [
        &["exec", "shop", "nobody", "--", "true"][..],
        &["logs", "shop", "nobody"],
        &["cp", "shop/nobody:/etc/passwd", "-"],
        &["exec", "shop", "web-2", "--", "true"],
    ] {
        refused_with(&daemon, "node-unknown", args);
    }
    for args in [
        &["op", "show", "019a0000-0000-7000-8000-000000000000"][..],
        &["op", "cancel", "019a0000-0000-7000-8000-000000000000"],
    ] {
        refused_with(&daemon, "operation-unknown", args);
    }
    refused_with(
        &daemon,
        "exec-failed",
        &["exec", "shop", "web", "--", "/no/such/program"],
    );
    refused_with(
        &daemon,
        "exec-failed",
        &["exec", "-u", "nobody-knows", "shop", "web", "--", "true"],
    );
    refused_with(&daemon, "not-found", &["cp", "shop/web:/no/such/file", "-"]);
    refused_with(&daemon, "image-not-found", &["image", "rm", "0123456789ab"]);
    refused_with(
        &daemon,
        "image-in-use",
        &[
            "image",
            "rm",
            &format!("docker-archive:{}", daemon.path("image.tar").display()),
        ],
    );
    refused_with(&daemon, "bad-request", &["pool", "grow", "1MiB"]);
    assert_eq!(daemon.json(&["ls"]).as_array().map(Vec::len), Some(1));
    answers(&daemon, "shop");
    daemon.finish(&["shop"]);
}

#[test]
fn bad_manifests_and_images_are_refused() {
    let daemon = TestDaemon::start();
    let create = |text: &str, code: &str| {
        let file = daemon.compose("bad.yaml", text);
        refused_with(&daemon, code, &["create", "-f", &file, "--name", "bad"])
    };
    let at = |problem: &serde_json::Value, line: u32| {
        let text = problem.to_string();
        assert!(
            text.contains(&format!("bad.yaml:{line}")),
            "the line {line} is not named: {text}"
        );
    };
    at(
        &create(
            "services:\n  web:\n    image: IMAGE\n    colour: red\n",
            "manifest-invalid",
        ),
        4,
    );
    at(
        &create(
            "services:\n  web:\n    image: IMAGE\n    privileged: true\n",
            "manifest-unsupported",
        ),
        4,
    );
    at(
        &create(
            "services:\n  web:\n    image: IMAGE\n    ports: [\"99999:80\"]\n",
            "manifest-invalid",
        ),
        4,
    );
    at(
        &create(
            "services:\n  web:\n    image: IMAGE\n    deploy:\n      replicas: many\n",
            "manifest-invalid",
        ),
        5,
    );
    at(
        &create(
            "services:\n  web:\n    image: IMAGE\n    depends_on: [nobody]\n",
            "manifest-invalid",
        ),
        4,
    );
    at(
        &create(
            "services:\n  web:\n   image: IMAGE\n  - x\n",
            "manifest-invalid",
        ),
        4,
    );
    create(
        "services:\n  a:\n    image: IMAGE\n    depends_on: [b]\n  b:\n    image: IMAGE\n    depends_on: [a]\n",
        "manifest-invalid",
    );
    create("services: {}\n", "manifest-invalid");
    refused_with(
        &daemon,
        "manifest-invalid",
        &["create", "-f", "/no/such/compose.yaml", "--name", "bad"],
    );

    create(
        "services: {web: {image: 'docker-archive:/no/such/archive.tar'}}\n",
        "image-not-found",
    );
    create(
        "services: {web: {image: 'oci:/no/such/dir'}}\n",
        "image-not-found",
    );
    fs::write(daemon.path("junk.tar"), vec![7; 100_000]).expect("a file");
    create(
        &format!(
            "services: {{web: {{image: 'docker-archive:{}'}}}}\n",
            daemon.path("junk.tar").display()
        ),
        "image-invalid",
    );
    // Port 9 of loopback: nothing listens in the daemon's namespace.
    create(
        "services: {web: {image: '127.0.0.1:9/some/image:1'}}\n",
        "image-unreachable",
    );
    create(
        "services: {web: {image: IMAGE, command: [x], entrypoint: [/no/such/program]}}\n",
        "start-failed",
    );
    create(
        "services: {web: {image: IMAGE, user: nobody-knows}}\n",
        "start-failed",
    );

    assert_eq!(daemon.json(&["ls"]).as_array().map(Vec::len), Some(0));
    assert!(daemon.residue().is_empty(), "{:#?}", daemon.residue());
}

#[test]
fn a_full_pool_is_told_and_nothing_is_left() {
    let daemon = TestDaemon::start();
    daemon.may_complain("No space left on device");
    let file = daemon.create("shop", ONE);
    daemon.node("shop", "/set?v=kept").expect("it answers");
    let status = daemon.json(&["pool", "status"]);
    let free = status["free"].as_u64().expect("free bytes");
    let filler = daemon.path("state/pool/filler");
    let fill = |bytes: u64| {
        let done = Command::new("fallocate")
            .arg("-l")
            .arg(bytes.to_string())
            .arg(&filler)
            .status();
        done.is_ok_and(|status| status.success())
    };
    let filled = (0..40).map(|step| free - step * (16 << 20)).any(fill);
    assert!(filled, "the pool can be filled: {status}");
    refused_with(
        &daemon,
        "pool-full",
        &["create", "-f", &file, "--name", "other"],
    );
    refused_with(&daemon, "pool-full", &["clone", "shop"]);
    let seen = answers(&daemon, "shop");
    assert_eq!(seen["value"], "kept");
    fs::remove_file(&filler).expect("the filler is there");
    daemon.run(&["clone", "shop"]);
    assert_eq!(answers(&daemon, "shop-clone")["value"], "kept");

    // Full again, and larger afterwards.
    let free = daemon.json(&["pool", "status"])["free"]
        .as_u64()
        .expect("free bytes");
    assert!((0..40).map(|step| free - step * (16 << 20)).any(fill));
    refused_with(&daemon, "pool-full", &["clone", "shop", "--name", "late"]);
    daemon.run(&["pool", "grow", "6GiB"]);
    daemon.run(&["clone", "shop", "--name", "late"]);
    daemon.finish(&["shop", "shop-clone", "late"]);
}

#[test]
fn ports_in_use_are_told() {
    let daemon = TestDaemon::start();
    let with_port = |name: &str, port: &str| {
        let text = format!("services:\n  web:\n    image: IMAGE\n    ports: [\"{port}:8080\"]\n");
        daemon.compose(name, &text)
    };
    let first = with_port("first.yaml", "127.0.0.1:18080");
    daemon.run(&["create", "-f", &first, "--name", "first"]);
    let problem = refused_with(
        &daemon,
        "port-in-use",
        &["create", "-f", &first, "--name", "second"],
    );
    assert!(problem.to_string().contains("18080"), "{problem:#}");
    let everywhere = with_port("everywhere.yaml", "18080");
    refused_with(
        &daemon,
        "port-in-use",
        &["create", "-f", &everywhere, "--name", "second"],
    );
    refused_with(
        &daemon,
        "port-in-use",
        &["plan", "-f", &first, "--name", "second"],
    );

    let _other =
        daemon.inside(|| std::net::TcpListener::bind("127.0.0.1:18081").expect("a free port"));
    let taken = with_port("taken.yaml", "127.0.0.1:18081");
    refused_with(
        &daemon,
        "port-in-use",
        &["create", "-f", &taken, "--name", "third"],
    );
    let edge = with_port("edge.yaml", "127.0.0.1:8080");
    refused_with(
        &daemon,
        "port-in-use",
        &["create", "-f", &edge, "--name", "third"],
    );

    daemon.run(&["rm", "-f", "first"]);
    daemon.run(&["create", "-f", &first, "--name", "second"]);
    daemon.finish(&["second"]);
}

#[test]
fn what_the_state_does_not_allow_is_refused() {
    let daemon = TestDaemon::start();
    daemon.create("shop", ONE);
    let done = daemon.json(&["op", "ls"])[0]["id"]
        .as_str()
        .expect("an operation")
        .to_owned();
    refused_with(&daemon, "wrong-state", &["op", "cancel", &done]);
    daemon.run(&["stop", "shop"]);
    refused_with(
        &daemon,
        "wrong-state",
        &["exec", "shop", "web", "--", "true"],
    );
    // Asking for what is so already is no mistake.
    daemon.run(&["stop", "shop"]);
    daemon.run(&["start", "shop"]);
    daemon.run(&["start", "shop"]);
    answers(&daemon, "shop");
    daemon.run(&["rm", "-f", "shop"]);
    refused_with(&daemon, "environment-unknown", &["rm", "-f", "shop"]);
    assert!(daemon.residue().is_empty(), "{:#?}", daemon.residue());
}

#[test]
fn without_a_daemon_it_is_said_what_to_do() {
    let mut daemon = TestDaemon::start();
    daemon.kill();
    for args in [
        &["ls"][..],
        &["show", "x"],
        &["clone", "x"],
        &["pool", "status"],
    ] {
        refused_with(&daemon, "daemon-unreachable", args);
    }
    daemon.launch(&[]);
    daemon.wait_up();
    daemon.run(&["ls"]);
}
