//! Single rules, each with the smallest file that shows it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offshoot_compose::{ComposeError, FileData, FileError, FileSource, LoadRequest, Loaded, load};
use offshoot_model::Code;
use offshoot_model::manifest::{Mount, RestartPolicy, Role};

/// Files in memory under `/p`.
#[derive(Default)]
struct Memory(BTreeMap<PathBuf, Vec<u8>>);

impl FileSource for Memory {
    fn read(&self, path: &Path, max: u64) -> Result<FileData, FileError> {
        let bytes = self.0.get(path).ok_or(FileError::Missing)?;
        if bytes.len() as u64 > max {
            return Err(FileError::TooLarge { max });
        }
        Ok(FileData {
            bytes: bytes.clone(),
            mode: 0o600,
        })
    }
}

fn files(files: &[(&str, &str)]) -> Memory {
    Memory(
        files
            .iter()
            .map(|(name, text)| (Path::new("/p").join(name), text.as_bytes().to_vec()))
            .collect(),
    )
}

fn read(all: &[(&str, &str)]) -> Result<Loaded, ComposeError> {
    let request = LoadRequest {
        files: vec!["/p/c.yaml".into()],
        ..LoadRequest::default()
    };
    load(&files(all), &request)
}

fn good(text: &str) -> Loaded {
    read(&[("c.yaml", text)]).unwrap_or_else(|error| panic!("{:?}", error.problem()))
}

fn errors(all: &[(&str, &str)]) -> Vec<String> {
    read(all)
        .map(|loaded| panic!("accepted: {:?}", loaded.manifest))
        .unwrap_or_else(|error| error.problem().details)
}

#[test]
fn a_minimal_file() {
    let loaded = good("services: {web: {image: nginx, ports: ['80:80']}}");
    let web = &loaded.manifest.layers[0];
    assert_eq!(
        (web.role, web.entry, web.replicas),
        (Role::Balancer, Some(80), 1)
    );
    assert_eq!(
        (web.restart, web.stop_grace_ms, web.allow_new_privileges),
        (RestartPolicy::No, 10_000, false)
    );
    assert_eq!(web.ports[0].host_ip, "0.0.0.0");
    assert!(loaded.warnings.is_empty());
}

#[test]
fn unsupported_and_invalid_have_their_own_codes() {
    let code = |text: &str| read(&[("c.yaml", text)]).unwrap_err().problem().code;
    assert_eq!(
        code("services: {a: {image: x, gpus: all}}"),
        Code::ManifestUnsupported
    );
    assert_eq!(
        code("services: {a: {image: x, gpu: all}}"),
        Code::ManifestInvalid
    );
    assert_eq!(
        code("services: {a: {image: x, gpu: all, pid: host}}"),
        Code::ManifestInvalid
    );
}

#[test]
fn broken_files() {
    for (text, expected) in [
        ("", "c.yaml:1: the file is empty"),
        ("- a", "c.yaml:1: a Compose file is a map with `services:`"),
        ("services:", "services: the file has no services"),
        (
            "services: {a: {image: x}, a: {image: y}}",
            "\"a\" is given twice",
        ),
        ("a: [", "not valid YAML"),
        (
            "services: {a: {image: x, environment: [A=$]}}",
            "write $$ for a dollar sign",
        ),
        (
            "services: {a: {image: x, environment: {A: '${B:?is needed}'}}}",
            "the variable B must be set: is needed",
        ),
        ("services: {a: {image: x}, A: {image: x}}", "same host name"),
        (
            "services: {a: {image: x, profiles: [p]}}",
            "profile that is off",
        ),
        (
            "x: 1\nservices: {a: {image: x}}",
            "c.yaml:1: x: is not known here",
        ),
    ] {
        let found = errors(&[("c.yaml", text)]);
        assert!(
            found.iter().any(|error| error.contains(expected)),
            "{text}: {found:?}"
        );
    }
    let missing = read(&[]).unwrap_err().problem();
    assert_eq!(missing.details, ["/p/c.yaml: the file does not exist"]);
}

#[test]
fn errors_are_bounded() {
    let fields: String = (0..500)
        .map(|n| format!("    unknown_field_{n}: 1\n"))
        .collect();
    let error = read(&[(
        "c.yaml",
        &format!("services:\n  a:\n    image: x\n{fields}"),
    )])
    .unwrap_err();
    assert_eq!((error.errors.len(), error.more), (100, 400));
}

#[test]
fn large_input_is_answered_in_no_time() {
    let services: String = (0..9000)
        .map(|n| format!("  s{n}: {{image: x, depends_on: [s{}]}}\n", (n + 1) % 9000))
        .collect();
    assert!(
        errors(&[("c.yaml", &format!("services:\n{services}"))])[0]
            .contains("more than 1000 services")
    );
    let ports: String = (0..9000)
        .map(|n| format!("      - {}-{}\n", n + 1, n + 200))
        .collect();
    assert!(
        errors(&[(
            "c.yaml",
            &format!("services:\n  a:\n    image: x\n    ports:\n{ports}")
        )])[0]
            .contains("at most 1000 ports")
    );
    let long = format!(
        "services: {{a: {{image: x, restart: {}}}}}",
        "ä".repeat(300_000)
    );
    assert!(errors(&[("c.yaml", &long)])[0].len() < 2000);
    let variables: String = (0..9999).map(|n| format!("      - V{n}=1\n")).collect();
    assert_eq!(
        good(&format!(
            "services:\n  a:\n    image: x\n    environment:\n{variables}"
        ))
        .manifest
        .layers[0]
            .environment
            .len(),
        9999
    );
}

#[test]
fn circles_are_found() {
    for all in [
        &[("c.yaml", "include: [c.yaml]\nservices: {a: {image: x}}")][..],
        &[
            ("c.yaml", "include: [d.yaml]\nservices: {a: {image: x}}"),
            ("d.yaml", "include: [c.yaml]\nservices: {b: {image: x}}"),
        ],
    ] {
        assert!(
            errors(all)
                .iter()
                .any(|error| error.contains("includes itself"))
        );
    }
    for all in [
        &[("c.yaml", "services: {a: {image: x, extends: a}}")][..],
        &[
            (
                "c.yaml",
                "services: {a: {extends: {service: b, file: d.yaml}}}",
            ),
            (
                "d.yaml",
                "services: {b: {extends: {service: a, file: c.yaml}}}",
            ),
        ],
    ] {
        assert!(
            errors(all)
                .iter()
                .any(|error| error.contains("in a circle")),
            "{:?}",
            errors(all)
        );
    }
    let waiting = "services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [c]}, c: {image: x, depends_on: [b]}}";
    assert!(errors(&[("c.yaml", waiting)])[0].contains("b → c → b"));
}

#[test]
fn includes_conflict_by_name() {
    let all = [
        ("c.yaml", "include: [d/d.yaml]\nservices: {a: {image: x}}"),
        ("d/d.yaml", "services: {a: {image: y}}"),
    ];
    assert_eq!(
        errors(&all),
        ["/p/c.yaml:2: services.a: is also defined in the included d/d.yaml:1"]
    );
}

#[test]
fn paths_start_from_their_own_file() {
    let all = [
        (
            "c.yaml",
            "include: [d/d.yaml]\nservices: {a: {extends: {service: base, file: e/e.yaml}, image: x}}",
        ),
        (
            "d/d.yaml",
            "services: {b: {image: x, volumes: ['./f:/f:ro']}}",
        ),
        ("d/f", "in d"),
        (
            "e/e.yaml",
            "services: {base: {env_file: v.env, volumes: ['./f:/f:ro']}}",
        ),
        ("e/f", "in e"),
        ("e/v.env", "A=e"),
    ];
    let loaded = read(&all).unwrap();
    let content = |name: &str| {
        let layer = loaded.manifest.layer(&name.parse().unwrap()).unwrap();
        let Mount::File { content, mode, .. } = &layer.mounts[0] else {
            panic!()
        };
        assert_eq!(*mode, 0o600);
        (
            String::from_utf8_lossy(content.as_bytes()).into_owned(),
            layer.environment.get("A").cloned(),
        )
    };
    assert_eq!(content("a"), ("in e".to_owned(), Some("e".to_owned())));
    assert_eq!(content("b"), ("in d".to_owned(), None));
}

#[test]
fn variables_of_the_caller_win() {
    let text = "services: {a: {image: 'x:${TAG}', environment: {TAG: , OTHER: , NONE: }}}";
    let source = files(&[("c.yaml", text), (".env", "TAG=file\nOTHER=file\n")]);
    let request = LoadRequest {
        files: vec!["/p/c.yaml".into()],
        environment: BTreeMap::from([("TAG".to_owned(), "caller".to_owned())]),
        ..LoadRequest::default()
    };
    let loaded = load(&source, &request).unwrap();
    let layer = &loaded.manifest.layers[0];
    assert_eq!(layer.image.display(), "docker.io/library/x:caller");
    let expected =
        [("OTHER", "file"), ("TAG", "caller")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(layer.environment, expected.into());
}

#[test]
fn a_profile_that_is_off_is_not_read() {
    let text = "services: {a: {image: x}, b: {image: x, gpus: all, profiles: [gpu]}}";
    assert_eq!(good(text).manifest.layers.len(), 1);
    let request = LoadRequest {
        files: vec!["/p/c.yaml".into()],
        profiles: vec!["gpu".into()],
        ..LoadRequest::default()
    };
    assert!(load(&files(&[("c.yaml", text)]), &request).is_err());
    let needed = "services: {a: {image: x, depends_on: [b]}, b: {image: x, profiles: [p]}}";
    assert!(errors(&[("c.yaml", needed)])[0].contains("switch it on with --profile"));
    let optional = "services: {a: {image: x, depends_on: {b: {required: false}}}, b: {image: x, profiles: [p]}}";
    let loaded = good(optional);
    assert!(loaded.manifest.layers[0].depends_on.is_empty() && loaded.warnings.len() == 1);
}

#[test]
fn binds() {
    let bind = |volume: &str| {
        errors(&[
            (
                "c.yaml",
                &format!("services: {{a: {{image: x, volumes: ['{volume}']}}}}"),
            ),
            ("f", ""),
        ])
    };
    assert!(bind("./f:/f")[0].contains("add `:ro`"));
    assert!(bind("./nope:/f:ro")[0].contains("/p/nope does not exist"));
    assert!(bind("named:/f")[0].contains("no volume \"named\""));
    assert!(bind("./f:/proc/x:ro")[0].contains("/proc or /sys"));
    assert!(bind("./f:/etc/hosts:ro")[0].contains("extra_hosts"));
    assert!(bind("./f:f:ro")[0].contains("absolute path"));
}

#[test]
fn the_entry_is_guessed_only_when_it_is_clear() {
    let entry = |text: &str| {
        let loaded = good(text);
        (
            loaded
                .manifest
                .entry()
                .map(|(layer, port)| (layer.name.to_string(), port)),
            loaded.warnings.len(),
        )
    };
    let is = |name: &str, port| (Some((name.to_owned(), port)), 0);
    assert_eq!(
        entry("services: {a: {image: x, ports: ['81:8080', '82:9999']}}"),
        is("a", 8080)
    );
    assert_eq!(
        entry("services: {a: {image: x, expose: [3000]}, b: {image: redis}}"),
        is("a", 3000)
    );
    assert_eq!(
        entry("services: {a: {image: x, ports: [80]}, b: {image: nginx, ports: [8080]}}"),
        is("b", 8080)
    );
    assert_eq!(
        entry("services: {a: {image: x, ports: [80]}, b: {image: x, ports: [80]}}"),
        (None, 1)
    );
    assert_eq!(
        entry("services: {a: {image: x, ports: [80], x-offshoot: {entry: false}}}"),
        (None, 0)
    );
    assert_eq!(
        entry("services: {a: {image: x, ports: [80]}, b: {image: x, x-offshoot: {entry: 1234}}}"),
        is("b", 1234)
    );
    assert_eq!(
        entry("services: {a: {image: postgres, ports: [5432]}}"),
        (None, 0)
    );
}

#[test]
fn secrets_are_files_of_their_own_mode() {
    let loaded = good(
        "services: {a: {image: x, secrets: [s, {source: s, target: t, mode: 0400}]}}\nsecrets: {s: {content: geheim}}",
    );
    let mounts = &loaded.manifest.layers[0].mounts;
    let seen: Vec<_> = mounts
        .iter()
        .map(|mount| match mount {
            Mount::File {
                target,
                mode,
                secret,
                ..
            } => (target.as_str(), *mode, *secret),
            _ => panic!(),
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("/run/secrets/s", 0o444, true),
            ("/run/secrets/t", 0o400, true)
        ]
    );
    assert!(!format!("{:?}", loaded.manifest).contains("geheim"));
}

#[test]
fn large_files_are_refused() {
    let huge = format!("services: {{a: {{image: x}}}}\n# {}", "x".repeat(2 << 20));
    assert!(errors(&[("c.yaml", &huge)])[0].contains("is larger than"));
}

mod arbitrary {
    use super::*;
    use proptest::prelude::*;

    /// Text that is often nearly a Compose file.
    fn text() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec![
            "services:",
            "  a:",
            "  b:",
            "    image: x",
            "    image: ${X:-y}",
            "    extends: a",
            "    extends: b",
            "    ports: ['80:80']",
            "    ports: !reset",
            "    volumes: [v:/v, /w, ./c.yaml:/c:ro]",
            "    depends_on: [b]",
            "    environment:",
            "      - A=1",
            "      A: 2",
            "    <<: *x",
            "x-a: &x",
            "volumes: {v: }",
            "include: [c.yaml]",
            "    deploy: {replicas: 2}",
            "    healthcheck: {test: x}",
            "    x-offshoot: {packages: {suite: a}}",
            "    command: 'a b",
            "    secrets: [s]",
            "secrets: {s: {content: x}}",
            "    ulimits: {nofile: 1}",
            "- x",
            "{",
            "]",
            "\t",
            "    sysctls: [net.x=1]",
        ]);
        prop::collection::vec(word, 0..20).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn files_never_panic(first in text(), second in text()) {
            let source = files(&[("c.yaml", &first), ("d.yaml", &second)]);
            let request = LoadRequest { files: vec!["/p/c.yaml".into(), "/p/d.yaml".into()], ..LoadRequest::default() };
            match load(&source, &request) {
                Ok(loaded) => prop_assert!(!loaded.manifest.layers.is_empty()),
                Err(error) => prop_assert!(!error.errors.is_empty()),
            }
        }

        #[test]
        fn any_text_never_panics(text in "\\PC{0,200}", value in "[ -~\\n]{0,40}") {
            let _ = read(&[("c.yaml", &text)]);
            let file = format!("services:\n  a:\n    image: x\n    ports: [{value}]\n    volumes: [{value}]\n");
            let _ = read(&[("c.yaml", &file)]);
        }

        #[test]
        fn an_accepted_manifest_survives_the_database(first in text()) {
            if let Ok(loaded) = read(&[("c.yaml", &first)]) {
                let json = serde_json::to_string(&loaded.manifest).unwrap();
                prop_assert_eq!(serde_json::from_str::<offshoot_model::Manifest>(&json).unwrap(), loaded.manifest);
            }
        }
    }
}

#[test]
fn a_layer_answers_to_its_aliases_and_to_its_name_as_written() {
    let loaded = good(
        "services:\n  my_db:\n    image: a\n    networks: {default: {aliases: [Store.Test, my-db, cache_1]}}\n",
    );
    let layer = &loaded.manifest.layers[0];
    assert_eq!(layer.name.as_str(), "my-db");
    assert_eq!(layer.aliases, ["cache_1", "my_db", "store.test"]);
    let wrong =
        "services:\n  db:\n    image: a\n    networks: {default: {aliases: [\"no such/name\"]}}\n";
    let told = errors(&[("/p/c.yaml", wrong)]);
    assert!(told[0].contains("is not a host name"), "{told:?}");
}
