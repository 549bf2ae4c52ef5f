//! Images on their way to a whole daemon: from a registry, by a tag that moves, and from packages, cancelled.

use std::fs;
use std::time::Duration;

use offshoot_e2e::registry::{LOGIN, Registry};
use offshoot_e2e::support::{ONE, answers, ended, id_of, nothing_new, refused_with, sh};
use offshoot_e2e::{TestDaemon, image, program, wait_for};
use serde_json::Value;

#[test]
fn images_come_from_a_registry_and_a_pull_follows_the_tag() {
    let daemon = TestDaemon::start();
    let Some(registry) = Registry::start(&daemon) else {
        return;
    };
    let push = |tag: &str, seed: &str| {
        let image = image::make(&program("offshoot-testnode"), seed).expect("an image");
        registry.push("shop/web", tag, &image).expect("it is taken");
    };
    push("1", "the first");
    let web = registry.reference("shop/web:1");

    // Without a login, with a wrong one, with the right one but nothing of this name there.
    refused_with(&daemon, "image-access-denied", &["image", "pull", &web]);
    let login = |auth: &str| {
        let text = serde_json::json!({"auths": {"127.0.0.1:5000": {"auth": auth}}}).to_string();
        fs::write(daemon.path("auth.json"), text).expect("a file");
    };
    login("dXNlcjp3cm9uZy1zZWNyZXQ=");
    refused_with(&daemon, "image-access-denied", &["image", "pull", &web]);
    login(LOGIN);
    for missing in ["shop/web:none", "shop/none:1"] {
        let missing = registry.reference(missing);
        let told = refused_with(&daemon, "image-not-found", &["image", "pull", &missing]);
        assert!(
            told["what"]
                .as_str()
                .is_some_and(|what| what.contains(&missing)),
            "{told:#}"
        );
    }
    for secret in [LOGIN, "wrong-secret"] {
        assert!(!daemon.log().contains(secret), "a secret is in the log");
    }

    daemon.run(&["image", "pull", &web]);
    let listed = daemon.json(&["image", "ls"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert_eq!(listed[0]["source"], web.as_str());
    let compose = ONE.replace("IMAGE", &web).replace("/data\"", "/kept\"");
    let file = daemon.create("first", &compose);
    let seed = |name: &str| sh(&daemon, name, "web", "cat /data/seed");
    answers(&daemon, "first");
    assert_eq!(seed("first"), "the first");

    // The tag moves: who only needs an image takes the one that is there, who pulls gets the new one.
    push("1", "the second");
    daemon.run(&["create", "-f", &file, "--name", "before"]);
    assert_eq!(seed("before"), "the first");
    daemon.run(&["image", "pull", &web]);
    daemon.run(&["image", "pull", &web]);
    let listed = daemon.json(&["image", "ls"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed:#}");
    daemon.run(&["create", "-f", &file, "--name", "after"]);
    assert_eq!(seed("after"), "the second");

    // What runs keeps what it has, also over a stop and without the registry.
    drop(registry);
    daemon.run(&["stop", "first"]);
    daemon.run(&["start", "first"]);
    daemon.run(&["clone", "first", "--rung", "image", "--name", "copy"]);
    for (name, text) in [
        ("first", "the first"),
        ("copy", "the first"),
        ("after", "the second"),
    ] {
        answers(&daemon, name);
        assert_eq!(seed(name), text, "{name}");
    }
    daemon.run(&["create", "-f", &file, "--name", "offline"]);
    assert_eq!(seed("offline"), "the second");
    refused_with(&daemon, "image-unreachable", &["image", "pull", &web]);
    daemon.finish(&["first", "before", "after", "copy", "offline"]);
}

#[test]
fn a_cancelled_build_from_packages_leaves_nothing() {
    let daemon = TestDaemon::start_with_packages();
    let manifest = |name: &str, run: &str| {
        let text = format!(
            "services:\n  web:\n    stop_grace_period: 1s\n    x-offshoot:\n      packages:\n        suite: bookworm\n        \
             packages: [hello]\n        run: [\"{run}\"]\n        config: {{entrypoint: [/bin/sleep, infinity]}}\n"
        );
        daemon.compose(name, &text)
    };
    let mark = format!("{}.125", 40_000 + std::process::id());
    let endless = manifest("endless.yaml", &format!("sleep {mark}"));
    let nothing = daemon.residue();

    // While the packages of the base are fetched, then while a command in the image itself runs.
    for moment in ["the base", "a command"] {
        let id = id_of(&daemon.json(&["create", "-f", &endless, "--name", "bad", "--detach"]));
        let reached = wait_for(moment, Duration::from_secs(120), || {
            let operation = daemon.json(&["op", "show", &id]);
            let over = operation["state"] != "running";
            let reached = match moment {
                "the base" => operation["steps"][0]["progress"]["done"].as_u64() > Some(20),
                _ => running(&mark) > 0,
            };
            (over || reached).then_some(operation)
        });
        if no_archive(&reached) {
            return println!("SKIPPED: the package archive cannot be reached");
        }
        assert_eq!(reached["state"], "running", "{reached:#}");
        daemon.run(&["op", "cancel", &id]);
        let operation = ended(&daemon, &id);
        assert_eq!(operation["state"], "cancelled", "{moment}: {operation:#}");
        assert_eq!(running(&mark), 0, "{moment}");
        nothing_new(&daemon, &nothing);
        assert_eq!(daemon.json(&["ls"]).as_array().map(Vec::len), Some(0));
    }
    // The base, which was whole when the second was cancelled, is all there is.
    assert_eq!(
        daemon.json(&["image", "ls"]).as_array().map(Vec::len),
        Some(1)
    );

    let quick = manifest("quick.yaml", "hello > /greeting");
    daemon.run(&["create", "-f", &quick, "--name", "good"]);
    assert_eq!(sh(&daemon, "good", "web", "cat /greeting"), "Hello, world!");
    daemon.finish(&["good"]);
}

/// How many processes have this as an argument.
fn running(mark: &str) -> usize {
    let has = |pid: &i32| {
        let words = offshoot_sys::process::arguments(*pid).unwrap_or_default();
        words.iter().any(|word| word == mark.as_bytes())
    };
    let all = offshoot_sys::process::all().expect("processes");
    all.iter().filter(|pid| has(pid)).count()
}

/// Whether this failed because no packages can be had here.
fn no_archive(operation: &Value) -> bool {
    let said = operation["problem"].to_string();
    let unreachable = [
        "Could not resolve",
        "Could not connect",
        "Unable to connect",
        "Failed to fetch",
    ];
    unreachable.iter().any(|words| said.contains(words))
}
