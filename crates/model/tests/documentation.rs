//! docs/errors.md names every code of an error, and none that does not exist.

use std::collections::BTreeMap;
use std::path::Path;

use offshoot_model::Code;

/// The rows of a page's tables that begin with a code: code to HTTP status.
fn codes_in(page: &str) -> BTreeMap<String, u16> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(page);
    let text = std::fs::read_to_string(&path).expect("the page is there");
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (Some(first), Some(second)) = (cells.next(), cells.next()) else {
            continue;
        };
        let code = first
            .strip_prefix('`')
            .and_then(|code| code.strip_suffix('`'))
            .filter(|code| !code.contains(' '));
        if let (Some(code), Ok(status)) = (code, second.parse()) {
            let before = found.insert(code.to_owned(), status);
            assert_eq!(before, None, "{page} has {code} twice");
        }
    }
    found
}

#[test]
fn every_code_is_documented() {
    let known: BTreeMap<String, u16> = Code::ALL
        .iter()
        .map(|code| (code.as_str().to_owned(), code.http_status()))
        .collect();
    assert_eq!(
        codes_in("errors.md"),
        known,
        "docs/errors.md and the code differ"
    );
}
