use super::*;

fn env(text: &str) -> EnvId {
    text.parse().unwrap()
}

fn route(host: &str, environment: &str) -> Route {
    let upstreams = vec!["10.0.0.1:80".parse().unwrap()];
    Route::new(host.into(), env(environment), upstreams)
}

#[test]
fn the_contract_s_example_is_read() {
    let text = r#"{"version": 7, "routes":[{"host":"shop.localhost","environment":"k3xq2mzd","upstreams":["10.208.0.10:80"]}],
        "ports":[{"listen":"127.0.0.1:8081","protocol":"tcp","environment":"k3xq2mzd","upstreams":["10.208.0.11:5432"]}]}"#;
    let routes: RoutesFile = serde_json::from_str(text).unwrap();
    assert_eq!(routes.version, 7);
    assert_eq!(routes.ports[0].protocol, Protocol::Tcp);
    routes.check().unwrap();
}

#[test]
fn contradictions_are_named() {
    let twice = RoutesFile {
        routes: vec![
            route("a.localhost", "aaaaaaaa"),
            route("A.localhost.", "bbbbbbbb"),
        ],
        ..RoutesFile::default()
    };
    let message = twice.check().unwrap_err().to_string();
    assert_eq!(
        message,
        "a.localhost is routed to both aaaaaaaa and bbbbbbbb"
    );
    let port = |environment| PortRoute {
        listen: "127.0.0.1:1".parse().unwrap(),
        protocol: Protocol::Udp,
        environment: env(environment),
        upstreams: vec![],
    };
    let twice = RoutesFile {
        ports: vec![port("aaaaaaaa"), port("bbbbbbbb")],
        ..RoutesFile::default()
    };
    assert_eq!(
        twice.check().unwrap_err().to_string(),
        "127.0.0.1:1/udp is published by both aaaaaaaa and bbbbbbbb"
    );
}

#[test]
fn a_file_is_replaced_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("routes.json");
    assert_eq!(RoutesFile::read(&path).unwrap(), RoutesFile::default());
    let routes = RoutesFile {
        version: 3,
        routes: vec![route("a.localhost", "aaaaaaaa")],
        ..RoutesFile::default()
    };
    routes.write_atomically(&path).unwrap();
    assert_eq!(RoutesFile::read(&path).unwrap(), routes);
    std::fs::write(&path, b"{\"version\":").unwrap();
    assert!(matches!(
        RoutesFile::read(&path),
        Err(RoutesError::Shape { .. })
    ));
}

fn refused(change: impl FnOnce(&mut RoutesFile)) -> String {
    let mut file = RoutesFile {
        routes: vec![
            route("a.localhost", "aaaaaaaa"),
            route("a.localhost", "bbbbbbbb"),
        ],
        certificates: vec![Certificate {
            hosts: vec!["a.localhost".into(), "*.localhost".into()],
            chain: "/a.pem".into(),
            key: "/a.key".into(),
        }],
        ..RoutesFile::default()
    };
    file.routes[1].path = "/shop".into();
    file.check().unwrap();
    change(&mut file);
    file.check().unwrap_err().to_string()
}

#[test]
fn a_path_is_routed_once() {
    let message = refused(|file| {
        file.routes[0].path = "/%73hop".into();
        file.routes[1].path = "/shop/".into();
    });
    assert_eq!(
        message,
        "a.localhost/shop is routed to both aaaaaaaa and bbbbbbbb"
    );
    let message = refused(|file| file.routes[1].path = "/a/../b".into());
    assert!(
        message.contains("bbbbbbbb") && message.contains("/a/../b"),
        "{message}"
    );
    let message = refused(|file| file.routes[1].host = "*".into());
    assert!(message.contains("\"*\" is not a host name"), "{message}");
}

#[test]
fn redirects_lead_somewhere() {
    let redirect = |to: &str, status| {
        let redirect = Some(Redirect {
            to: to.into(),
            status,
        });
        refused(|file| {
            file.routes[0].redirect = redirect;
            if status != 307 {
                file.routes[0].upstreams.clear();
            }
        })
    };
    for (to, status, part) in [
        ("https://b.org/x", 308, "https://b.org/x"),
        ("https://b.org\r\nx: y", 308, "is not http:// or https://"),
        ("https://b.org", 200, "200 is not"),
        ("https://b.org", 307, "both a redirect and upstreams"),
    ] {
        let message = redirect(to, status);
        assert!(
            message.contains(part) && message.contains("aaaaaaaa"),
            "{message}"
        );
    }
}

#[test]
fn a_text_stands_alone() {
    let text = |length: usize, upstreams: bool| {
        refused(|file| {
            file.routes[0].text = Some("x".repeat(length));
            if !upstreams {
                file.routes[0].upstreams.clear();
            }
        })
    };
    assert!(text(1, true).contains("a text beside"));
    assert!(text(TEXT_MAX + 1, false).contains("longer than 4096 bytes"));
}

#[test]
fn certificates_are_for_host_names() {
    for (hosts, part) in [
        (&[][..], "no host name"),
        (&["127.0.0.1"], "\"127.0.0.1\" is not a host name"),
        (&["[::1]"], "is not a host name"),
        (&["a.*.org"], "is not a host name"),
        (&["b.org", "B.org."], "another certificate"),
    ] {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let message = refused(|file| file.certificates[0].hosts = hosts);
        assert!(
            message.contains(part) && message.contains("/a.pem"),
            "{message}"
        );
    }
}

#[test]
fn what_is_new_is_not_written_until_it_is_used() {
    let mut file = RoutesFile {
        version: 1,
        routes: vec![route("a.localhost", "aaaaaaaa")],
        ..RoutesFile::default()
    };
    assert_eq!(
        serde_json::to_string(&file).unwrap(),
        r#"{"version":1,"routes":[{"host":"a.localhost","environment":"aaaaaaaa","upstreams":["10.0.0.1:80"]}],"ports":[]}"#
    );
    let text = r#"{"version":1,"routes":[{"host":"a.localhost","path":"/x","environment":"aaaaaaaa",
        "redirect":{"to":"https://b.org","status":308},"https":"redirect"}],
        "certificates":[{"hosts":["a.localhost"],"chain":"/c","key":"/k"}]}"#;
    let read: RoutesFile = serde_json::from_str(text).unwrap();
    file.routes[0].path = "/x".into();
    file.routes[0].upstreams.clear();
    file.routes[0].redirect = Some(Redirect {
        to: "https://b.org".into(),
        status: 308,
    });
    file.routes[0].https = Https::Redirect;
    file.certificates.push(Certificate {
        hosts: vec!["a.localhost".into()],
        chain: "/c".into(),
        key: "/k".into(),
    });
    assert_eq!(read, file);
    let again: RoutesFile = serde_json::from_str(&serde_json::to_string(&file).unwrap()).unwrap();
    assert_eq!(again, file);
}
