//! The files that pages need: built in, and named by their content, so that browsers keep them.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use sha2::{Digest as _, Sha256};

/// A file that is built in.
struct Asset {
    name: &'static str,
    kind: &'static str,
    content: &'static [u8],
}

const ASSETS: [Asset; 9] = [
    Asset {
        name: "style.css",
        kind: "text/css; charset=utf-8",
        content: include_bytes!("../assets/style.css"),
    },
    Asset {
        name: "dashboard.js",
        kind: "text/javascript; charset=utf-8",
        content: include_bytes!("../assets/dashboard.js"),
    },
    Asset {
        name: "htmx.js",
        kind: "text/javascript; charset=utf-8",
        content: include_bytes!("../assets/vendor/htmx-2.0.11.min.js"),
    },
    Asset {
        name: "idiomorph.js",
        kind: "text/javascript; charset=utf-8",
        content: include_bytes!("../assets/vendor/idiomorph-ext-0.7.3.min.js"),
    },
    Asset {
        name: "terminal.js",
        kind: "text/javascript; charset=utf-8",
        content: include_bytes!("../assets/terminal.js"),
    },
    Asset {
        name: "xterm.js",
        kind: "text/javascript; charset=utf-8",
        content: include_bytes!("../assets/vendor/xterm-6.0.0.min.js"),
    },
    Asset {
        name: "xterm-fit.js",
        kind: "text/javascript; charset=utf-8",
        content: include_bytes!("../assets/vendor/xterm-addon-fit-0.11.0.min.js"),
    },
    Asset {
        name: "xterm.css",
        kind: "text/css; charset=utf-8",
        content: include_bytes!("../assets/vendor/xterm-6.0.0.css"),
    },
    Asset {
        name: "icon.svg",
        kind: "image/svg+xml",
        content: include_bytes!("../assets/icon.svg"),
    },
];

/// Of all files together: another build has other addresses.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut digest = Sha256::new();
    for asset in &ASSETS {
        digest.update(asset.content);
    }
    let digest = digest.finalize();
    digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
});

/// Part of the address of every file.
pub(crate) fn version() -> &'static str {
    &VERSION
}

/// Answers a file.
pub(crate) async fn serve(Path((asked, name)): Path<(String, String)>) -> Response {
    let found = ASSETS.iter().find(|asset| asset.name == name);
    match found {
        Some(asset) if asked == *VERSION => (
            [
                (CONTENT_TYPE, asset.kind),
                (CACHE_CONTROL, "public, max-age=31536000, immutable"),
            ],
            asset.content,
        )
            .into_response(),
        // A page of an older build: what it gets is right now and not for ever.
        Some(asset) => ([(CONTENT_TYPE, asset.kind)], asset.content).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
