use super::*;

const DEB822: &str = "\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: https://other.example/tool
Suites: nodistro
Components: main
Enabled: no
";

const LINES: &str = "\
deb http://mirror.example/debian bookworm main # main
deb-src http://mirror.example/debian bookworm main
deb [signed-by=/k.gpg arch=amd64] http://mirror.example/debian-security bookworm-security main
deb [ trusted=yes ] file:/srv/repo ./
deb cdrom:[Debian]/ bookworm main
";

fn shown(sources: &[Source]) -> Vec<String> {
    sources.iter().map(Source::identity).collect()
}

#[test]
fn both_forms_are_read() {
    let found = parse_deb822(DEB822);
    assert_eq!(
        shown(&found),
        [
            "http://mirror.example/debian bookworm main contrib",
            "http://mirror.example/debian bookworm-updates main contrib",
            "http://mirror.example/debian-security bookworm-security main",
        ]
    );
    assert_eq!(
        found[0].signed_by.as_deref(),
        Some("/usr/share/keyrings/debian-archive-keyring.gpg")
    );
    let key = found[2].signed_by.as_deref().unwrap();
    assert!(
        key.starts_with("-----BEGIN") && key.contains("-----\n\nabc\n"),
        "{key}"
    );
    let found = parse_lines(LINES);
    assert_eq!(
        shown(&found),
        [
            "http://mirror.example/debian bookworm main",
            "http://mirror.example/debian-security bookworm-security main",
            "file:/srv/repo ./ ",
        ]
    );
    assert_eq!(found[1].signed_by.as_deref(), Some("/k.gpg"));
    assert!(found[2].trusted && !found[0].trusted);
}

#[test]
fn another_suite_is_looked_for_where_the_host_s_own_is() {
    let all = parse_deb822(DEB822);
    assert_eq!(select(&all, "bookworm", None).len(), 3);
    assert_eq!(
        shown(&select(&all, "trixie", Some("bookworm"))),
        [
            "http://mirror.example/debian trixie main contrib",
            "http://mirror.example/debian trixie-updates main contrib",
            "http://mirror.example/debian-security trixie-security main",
        ]
    );
    assert_eq!(
        shown(&select(&all, "sid", Some("bookworm"))),
        ["http://mirror.example/debian sid main contrib"]
    );
    assert!(select(&all, "trixie", None).is_empty());
    assert!(select(&[], "bookworm", Some("bookworm")).is_empty());
}

#[test]
fn a_suite_is_a_plain_name() {
    for bad in ["", "../x", "book worm", "-o", "a\"b", "A"] {
        assert!(sources(bad).is_err(), "{bad:?}");
    }
}
