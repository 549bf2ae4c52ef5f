//! The checked-in OpenAPI document is the one that the handlers make.
//!
//! `OFFSHOOT_UPDATE=1 cargo nextest run -p offshoot-server --test openapi` writes it anew.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

#[test]
fn the_document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let made = offshoot_server::openapi().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("OFFSHOOT_UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == made,
        "docs/openapi.json is not current: OFFSHOOT_UPDATE=1 cargo nextest run -p offshoot-server --test openapi"
    );
}

#[test]
fn the_document_is_3_1_and_whole() {
    let document: serde_json::Value =
        serde_json::from_str(&offshoot_server::openapi().to_json().unwrap()).unwrap();
    assert!(
        document["openapi"].as_str().unwrap().starts_with("3.1."),
        "{}",
        document["openapi"]
    );
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(
            schemas.contains_key(name),
            "{name} is referred to and not there"
        );
    }
    let api = include_str!("../../../docs/api.md");
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(
                operation["summary"].is_string() || operation["description"].is_string(),
                "{method} {path}"
            );
            assert!(
                operation["responses"]["default"].is_object(),
                "{method} {path} has no problems"
            );
            let line = format!(
                "`{} {}`",
                method.to_uppercase(),
                path.strip_prefix("/api/v1").unwrap()
            );
            assert!(api.contains(&line), "docs/api.md does not have {line}");
        }
    }
    assert_eq!(
        schemas["Code"]["enum"].as_array().unwrap().len(),
        offshoot_model::Code::ALL.len()
    );
}
