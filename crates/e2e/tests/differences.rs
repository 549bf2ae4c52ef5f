//! What a clone has become: the files that differ from its parent's, and whose change each was.
#![allow(missing_docs)]

use offshoot_e2e::TestDaemon;
use offshoot_e2e::support::sh;
use serde_json::Value;

/// `path: kind, by` of what differs on a disk.
#[track_caller]
fn files(diff: &Value, kind: &str, name: &str) -> Vec<String> {
    let disks = diff["disks"].as_array().expect("disks");
    let disk = disks.iter().find(|disk| disk["disk"][kind] == name);
    let disk = disk.unwrap_or_else(|| panic!("no {kind} {name}: {diff:#}"));
    assert_eq!(disk["complete"], true, "{diff:#}");
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let files = disk["files"].as_array().expect("files").iter();
    files
        .map(|file| {
            format!(
                "{} {} {}",
                text(&file["path"]),
                text(&file["kind"]),
                text(&file["by"])
            )
        })
        .collect()
}

#[test]
fn a_clone_and_its_parent_go_on_and_diff_tells_how() {
    let daemon = TestDaemon::start();
    daemon.create(
        "shop",
        r#"
services:
  web: {image: IMAGE, stop_grace_period: 1s, volumes: ["data:/data"]}
volumes: {data: {}}
"#,
    );
    let files_of =
        "for file in same ours theirs; do echo one > /data/$file; done; mkdir -p /opt/kept";
    sh(&daemon, "shop", "web", files_of);
    let made = daemon.json(&["diff", "shop"]);
    assert_eq!(made["with"], Value::Null);
    let made = files(&made, "node", "web-1");
    assert!(made.contains(&"opt/ added -".to_owned()), "{made:?}");

    daemon.json(&["clone", "shop"]);
    let fresh = daemon.json(&["diff", "shop-clone"]);
    assert_eq!(fresh["with"], "shop");
    assert_eq!(files(&fresh, "volume", "data"), Vec::<String>::new());
    assert!(
        !files(&fresh, "node", "web-1")
            .iter()
            .any(|file| file.starts_with("opt")),
        "{fresh:#}"
    );

    let clone =
        "echo two > /data/ours; mkdir /data/new; echo x > /data/new/file; echo x > /opt/kept/x";
    sh(&daemon, "shop-clone", "web", clone);
    sh(
        &daemon,
        "shop",
        "web",
        "echo two > /data/theirs; echo x > /data/late",
    );
    let after = daemon.json(&["diff", "shop-clone"]);
    assert_eq!(
        files(&after, "volume", "data"),
        [
            "late removed other",
            "new/ added this",
            "ours changed this",
            "theirs changed other",
        ]
    );
    let root = files(&after, "node", "web-1");
    assert!(
        root.contains(&"opt/kept/x added this".to_owned()),
        "{root:?}"
    );
    // Seen from the other side it is the other way round.
    let back = daemon.json(&["diff", "shop", "shop-clone"]);
    let back = files(&back, "volume", "data");
    assert!(back.contains(&"ours changed other".to_owned()), "{back:?}");
    assert!(back.contains(&"late added this".to_owned()), "{back:?}");
}
