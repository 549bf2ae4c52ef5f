use std::time::Duration;

use super::*;

fn error(text: &str) -> String {
    Config::parse(text).unwrap_err()
}

/// Every key stands in the packaged file with its default. Optional keys without one carry an example and end in
/// `(example)`.
#[test]
fn the_packaged_file_shows_the_defaults() {
    let packaged = include_str!("../../../../packaging/offshoot.toml");
    assert_eq!(
        Config::parse(packaged),
        Ok(Config::default()),
        "as packaged"
    );
    let keys = |examples: bool| {
        let line = |line: &str| match line.strip_prefix('#') {
            // Prose begins with a space.
            Some(rest) if rest.starts_with(' ') || rest.is_empty() => String::new(),
            Some(rest) if rest.ends_with("# (example)") && !examples => String::new(),
            Some(rest) => rest.to_owned(),
            None => line.to_owned(),
        };
        packaged
            .lines()
            .map(|text| line(text) + "\n")
            .collect::<String>()
    };
    assert_eq!(
        Config::parse(&keys(false)),
        Ok(Config::default()),
        "with the comments removed"
    );
    Config::parse(&keys(true)).expect("the examples are valid too");

    let shown: toml::Table = keys(true).parse().unwrap();
    let (reference, documentation) = (
        all_keys(),
        include_str!("../../../../docs/configuration.md"),
    );
    let mut missing = Vec::new();
    for key in &reference {
        let mut parts = key.split('.');
        let first = parts.next().and_then(|part| shown.get(part));
        let in_file = parts
            .fold(first, |found, part| found.and_then(|table| table.get(part)))
            .is_some();
        if !in_file {
            missing.push(format!("{key} in packaging/offshoot.toml"));
        }
        if !documentation.contains(&format!("| `{key}` |")) {
            missing.push(format!("{key} in docs/configuration.md"));
        }
    }
    assert!(missing.is_empty(), "not documented: {missing:?}");
}

/// All keys, as serde says them when it meets one that it does not know.
fn all_keys() -> Vec<String> {
    let known = |table: &str| -> Vec<String> {
        let text = if table.is_empty() {
            "unknown = 1".to_owned()
        } else {
            format!("[{table}]\nunknown = 1")
        };
        let error = error(&text);
        let (_, list) = error
            .split_once("expected")
            .unwrap_or_else(|| panic!("{error}"));
        list.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let tables = [
        "api",
        "dashboard",
        "edge",
        "edge.acme",
        "network",
        "ids",
        "pool",
        "images",
        "clone",
        "tools",
    ];
    let mut keys: Vec<String> = known("")
        .into_iter()
        .filter(|key| !tables.contains(&key.as_str()))
        .collect();
    assert!(keys.contains(&"instance".to_owned()), "{keys:?}");
    for table in tables {
        keys.extend(known(table).into_iter().map(|key| format!("{table}.{key}")));
    }
    keys
}

#[test]
fn values_are_understood() {
    let config = Config::parse(
        r#"
        instance = "t1"
        state_dir = "/srv//offshoot/"
        base_domain = "apps.example.org"
        [api]
        listen = "[::1]:7777"
        [edge]
        listen = ["0.0.0.0:80"]
        proxy_from = ["192.0.2.0/24", "2001:db8::/32"]
        metrics = "127.0.0.1:9463"
        access_log = "combined"
        body_bytes = 1048576
        moved_seconds = 0
        [network]
        dns = ["9.9.9.9", "[2620:fe::fe]:5353"]
        [pool]
        backing = "device"
        path = "/dev/vdb"
        size = "1.5t"
        [clone]
        max_freeze = "250ms"
        share_memory = false
        "#,
    )
    .unwrap();
    assert_eq!(config.state_dir, Path::new("/srv/offshoot"));
    assert_eq!(config.database(), Path::new("/srv/offshoot/offshoot.db"));
    assert_eq!(config.server().tcp, Some("[::1]:7777".parse().unwrap()));
    assert_eq!(config.edge_port(), 80);
    assert_eq!(config.edge.proxy_from.len(), 2);
    assert_eq!(config.edge.metrics, Some("127.0.0.1:9463".parse().unwrap()));
    assert_eq!(config.edge.access_log, super::LogFormat::Combined);
    assert_eq!(
        (
            config.edge.body_bytes,
            config.edge.body_rate,
            config.edge.moved_seconds
        ),
        (1 << 20, 64, 0)
    );
    assert_eq!(
        config.network.dns,
        [
            "9.9.9.9:53".parse().unwrap(),
            "[2620:fe::fe]:5353".parse().unwrap()
        ]
    );
    assert_eq!(config.pool_path(), Path::new("/dev/vdb"));
    assert_eq!(config.pool.size, 3 << 39);
    assert_eq!(config.clone.max_freeze, Duration::from_millis(250));
    assert!(!config.clone.share_memory);
    assert_eq!(
        config.server().web.map(|web| web.listen),
        Some("127.0.0.1:9440".parse().unwrap())
    );
    let without = Config::parse("[dashboard]\nlisten = \"\"").unwrap();
    assert_eq!(without.server().web, None);
}

#[test]
fn errors_name_the_line() {
    for (text, line, says) in [
        (
            "instance = \"os\"\nstate_dirr = \"/x\"",
            2,
            "unknown field `state_dirr`",
        ),
        ("\n\ninstance = \"Too Long\"", 3, "is no instance"),
        ("state_dir = \"relative\"", 1, "no absolute path"),
        ("state_dir = \"/a/../b\"", 1, "no absolute path"),
        ("base_domain = \"a..b\"", 1, "is no domain"),
        ("[api]\nlisten = \"0.0.0.0:80\"", 2, "not on loopback"),
        ("[api]\nlisten = \"[::]:80\"", 2, "not on loopback"),
        ("[dashboard]\nlisten = \"9440\"", 2, "is no address"),
        ("[api]\nlisten = \"127.0.0.1\"", 2, "invalid socket address"),
        (
            "[edge]\nmoved_seconds = 86401",
            2,
            "86401 is not between 0 and 86400",
        ),
        ("[edge]\nmoved_seconds = -1", 2, "invalid value"),
        ("[network]\nouter_pool = \"10.0.0.0/33\"", 2, ""),
        ("[network]\nipv6 = \"maybe\"", 2, "unknown variant `maybe`"),
        ("[network]\ndns = [\"dns.example.org\"]", 2, "is no address"),
        ("[ids]\nbase = -1", 2, "invalid value"),
        ("[pool]\nsize = \"big\"", 2, "is not a size"),
        (
            "[clone]\n\nmax_freeze = \"1ms\"",
            3,
            "is not between 10ms and 60s",
        ),
        ("[clone]\nready_timeout = 5", 2, "invalid type"),
        ("[tools]\nrunc = \"runc\"", 2, "no absolute path"),
        ("[tools\n", 1, ""),
    ] {
        let error = error(text);
        assert!(
            error.contains(&format!("line {line}")) && error.contains(says),
            "{text:?} says: {error}"
        );
    }
}

#[test]
fn contradictions_are_refused() {
    for (text, says) in [
        ("run_dir = \"/var/lib/offshoot\"", "must differ"),
        ("[network]\nouter_pool = \"10.208.0.1/12\"", "has host bits"),
        (
            "[network]\nouter_pool = \"10.208.0.0/25\"",
            "is not a /8 to /24",
        ),
        ("[network]\ninner = \"10.209.0.0/24\"", "lies in"),
        ("[network]\ninner = \"10.99.0.0/16\"", "is not a /24"),
        ("[network]\ninner6 = \"fd00::/48\"", "is not a /64"),
        ("[network]\nouter_pool6 = \"fd00::/60\"", "has fewer"),
        (
            "[network]\nouter_pool6 = \"fd6f:6673:686f::/48\"",
            "lies in",
        ),
        ("[ids]\nbase = 1000", "below 65536"),
        ("[ids]\ncount = 1000", "below 65536"),
        ("[ids]\nranges = 0", "no environment"),
        ("[ids]\nranges = 4000000000", "past the last id"),
        ("[dashboard]\nlisten = \"0.0.0.0:9440\"", "needs TLS"),
        ("[dashboard]\ncertificate = \"/c.pem\"", "set both"),
        (
            "[dashboard]\nlisten = \"0.0.0.0:9440\"\ncertificate = \"/c.pem\"\nkey = \"/k.pem\"",
            "set dashboard.host",
        ),
        ("[pool]\nsize = \"1m\"", "of no use"),
        ("[pool]\nbacking = \"device\"", "name the device"),
        ("[pool]\nbacking = \"mounted\"", "name the directory"),
    ] {
        let error = error(text);
        assert!(error.contains(says), "{text:?} says: {error}");
    }
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("offshoot.toml");
    let missing = Config::load(Some(&path)).unwrap_err();
    assert_eq!(missing.problem().code, Code::ConfigInvalid);
    std::fs::write(&path, "instance = 7").unwrap();
    let problem = Config::load(Some(&path)).unwrap_err().problem();
    assert!(problem.details.join("\n").contains("line 1"), "{problem:?}");
    std::fs::write(&path, "instance = \"a\"").unwrap();
    assert_eq!(Config::load(Some(&path)).unwrap().instance.as_str(), "a");
}
