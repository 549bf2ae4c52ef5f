//! The examples that are built in are what the command line makes of their Compose files.
//!
//! `OFFSHOOT_UPDATE=1 cargo nextest run -p offshoot-dashboard --test examples` writes them anew.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use offshoot_compose::{DiskFiles, LoadRequest, load};

#[test]
fn examples_are_current() {
    for (name, folder) in [("visitors", "visitors"), ("blog", "wordpress")] {
        is_current(name, folder);
    }
}

fn is_current(name: &str, folder: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join(format!("../../examples/{folder}/compose.yaml"));
    let request = LoadRequest {
        files: vec![file],
        ..LoadRequest::default()
    };
    let loaded = load(&DiskFiles, &request).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let made = serde_json::to_string_pretty(&loaded.manifest).unwrap() + "\n";
    let kept = root.join(format!("examples/{name}.json"));
    if std::env::var_os("OFFSHOOT_UPDATE").is_some() {
        std::fs::write(&kept, &made).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&kept).unwrap_or_default(), made);
}
