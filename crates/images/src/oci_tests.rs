use super::*;

#[test]
fn digests_are_exact() {
    let good = format!("sha256:{}", "a1".repeat(32));
    assert_eq!(Digest::parse(&good).unwrap().to_string(), good);
    let bad = [
        "",
        "sha256:",
        "sha256:../../etc",
        "sha512:aa",
        &good.to_uppercase(),
        &format!("{good}0"),
    ];
    for bad in bad {
        assert!(Digest::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(
        Digest::of(b"").hex(),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
}

fn entry(os: &str, architecture: &str, variant: Option<&str>, digest: &str) -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest: digest.into(),
        size: 0,
        annotations: BTreeMap::new(),
        platform: Some(Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(str::to_owned),
        }),
    }
}

#[test]
fn an_index_leads_to_this_machine() {
    let entries = [
        entry("windows", "amd64", None, "w"),
        entry("linux", "amd64", Some("v3"), "v3"),
        entry("linux", "amd64", None, "right"),
        entry("linux", "arm64", Some("v8"), "arm"),
        entry("unknown", "unknown", None, "attestation"),
    ];
    assert_eq!(choose(&entries, "amd64").unwrap().digest, "right");
    assert_eq!(choose(&entries, "arm64").unwrap().digest, "arm");
    let why = choose(&entries, "riscv64").unwrap_err();
    assert!(
        why.contains("linux/arm64") && !why.contains("unknown"),
        "{why}"
    );
}

#[test]
fn a_configuration_is_taken_over() {
    let text = r#"{
        "architecture": "amd64", "os": "linux",
        "config": {
            "Env": ["PATH=/bin", "A=b"], "Entrypoint": null, "Cmd": ["nginx", "-g", "daemon off;"],
            "WorkingDir": "", "User": "1000:1000", "StopSignal": "SIGQUIT",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8080": {}}, "Volumes": {"/data": {}},
            "Healthcheck": {"Test": ["CMD-SHELL", "curl -f localhost"], "Interval": 5000000000, "Retries": 2},
            "Labels": null, "ArgsEscaped": true
        },
        "rootfs": {"type": "layers", "diff_ids": []}, "history": []
    }"#;
    let config = parse_config(text.as_bytes(), 0, "amd64").unwrap().config;
    assert_eq!(config.command, ["nginx", "-g", "daemon off;"]);
    assert!(config.entrypoint.is_empty() && config.working_dir.is_none());
    assert_eq!(
        (config.user.as_deref(), config.stop_signal.as_deref()),
        (Some("1000:1000"), Some("SIGQUIT"))
    );
    assert_eq!(config.exposed_ports, [80, 8080]);
    assert_eq!(config.volumes, ["/data"]);
    let health = config.healthcheck.unwrap();
    assert_eq!(health.test, ["/bin/sh", "-c", "curl -f localhost"]);
    assert_eq!(
        (health.interval_ms, health.timeout_ms, health.retries),
        (5_000, 30_000, 2)
    );

    assert!(
        parse_config(text.as_bytes(), 1, "amd64")
            .unwrap_err()
            .contains("1 layers")
    );
    assert!(
        parse_config(text.as_bytes(), 0, "arm64")
            .unwrap_err()
            .contains("linux/amd64")
    );
    assert!(parse_config(b"[]", 0, "amd64").is_err());
}

#[test]
fn documents_are_checked() {
    assert!(parse_document(b"{}").is_err());
    assert!(
        parse_document(br#"{"schemaVersion": 1, "fsLayers": []}"#)
            .unwrap_err()
            .contains("version 1")
    );
    assert!(parse_document(br#"{"schemaVersion": 2}"#).is_err());
    let bad = br#"{"schemaVersion": 2, "config": {"digest": "sha256:../x"}, "layers": []}"#;
    assert!(parse_document(bad).is_err());
}
