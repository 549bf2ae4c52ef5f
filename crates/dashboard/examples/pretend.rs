//! The dashboard over a platform that only pretends, with as many environments as one likes: what `cargo xtask bench
//! dashboard` measures, and a place to look at pages while one changes them.
//!
//!     cargo run -p offshoot-dashboard --example pretend -- 100
//!
//! At `/smallest` is a page of a few words, to tell a browser's own part. From a look at `/watch/N` on, browsers are asked to tell when the
//! list's row N (from 0) was painted. It prints a link to sign in, and ends with its standard input.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, missing_docs)]

#[path = "../tests/common/fake.rs"]
mod fake;
#[path = "../tests/common/sample.rs"]
mod sample;
#[path = "../tests/common/traffic.rs"]
mod traffic;

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, Response};
use axum::routing::get;
use fake::Fake;
use offshoot_dashboard::{Dashboard, Settings, Transport};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The row that is watched.
static WATCHED: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Marks the name in the row that is watched (W3C Element Timing).
async fn mark(request: Request, next: Next) -> Response {
    let is_list = request.uri().path() == "/";
    let response = next.run(request).await;
    if !is_list {
        return response;
    }
    let (parts, body) = response.into_parts();
    let page = to_bytes(body, usize::MAX).await.unwrap();
    let page = String::from_utf8(page.to_vec()).unwrap();
    let name = "<th scope=\"row\"";
    let row = page
        .match_indices(name)
        .nth(WATCHED.load(Ordering::Relaxed));
    let page = match row {
        Some((at, _)) => {
            let (before, after) = page.split_at(at + name.len());
            format!("{before} elementtiming=\"row\"{after}")
        }
        None => page,
    };
    Response::from_parts(parts, Body::from(page))
}

async fn watch(Path(row): Path<usize>) -> &'static str {
    WATCHED.store(row, Ordering::Relaxed);
    "watched\n"
}

#[tokio::main]
async fn main() {
    let count = std::env::args().nth(1).map_or(Ok(5), |text| text.parse());
    let count: usize = count.expect("a number of environments");
    let environments = (0..count).map(|number| {
        // families of five: a first one, its clones, and a clone of one of these
        let (family, member) = (number / 5, number % 5);
        let parent = match member {
            0 => None,
            4 => Some(format!("shop-{family}-3")),
            _ => Some(format!("shop-{family}-0")),
        };
        sample::environment(&format!("shop-{family}-{member}"), parent.as_deref())
    });
    let operations = vec![sample::cloned("shop-0-0", "shop-0-1"), sample::failed()];
    let fake = Fake::new(environments.collect(), operations);
    *fake.manifest.lock().unwrap() = sample::manifest();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let dashboard = Dashboard::new(Settings {
        instance: "pretend".to_owned(),
        origin,
        host: "127.0.0.1".to_owned(),
        transport: Transport::Plain,
    });
    println!("{}", dashboard.login_link().unwrap().url);
    let smallest = "<!doctype html><html lang=\"en\"><title>Smallest</title><p>smallest";
    let router = dashboard
        .router(Arc::new(fake), CancellationToken::new())
        .layer(from_fn(mark))
        .route("/smallest", get(async move || Html(smallest)))
        .route("/watch/{row}", get(watch));
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    tokio::select! {
        served = axum::serve(listener, router) => served.unwrap(),
        _ = end => {}
    }
    // the thread that reads may still wait
    std::process::exit(0);
}
