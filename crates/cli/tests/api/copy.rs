//! `cp` against tar streams of the test's own making.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::Query;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use offshoot_model::{Code, Fault, Problem};
use serde::Deserialize;
use tar::{Builder, EntryType, Header};

use crate::fake::{Fake, problem};

#[derive(Deserialize)]
struct At {
    path: String,
}

/// What was put where.
type Put = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A node with a directory `/srv`, a file `/etc/hosts` and a hostile answer for `/evil`.
fn node(put: &Put) -> Router {
    let put = Arc::clone(put);
    let files = get(|Query(At { path }): Query<At>| async move { answer(&path) }).put(
        move |Query(At { path }): Query<At>, body: Bytes| async move {
            put.lock().unwrap().push((path, body.to_vec()));
        },
    );
    Router::new().route("/environments/shop/nodes/web/files", files)
}

fn answer(path: &str) -> Response {
    if path == "/var/www" {
        return link("www", "../srv").into_response();
    }
    if path == "/loop" {
        return link("loop", "loop").into_response();
    }
    let items: &[(&str, &str)] = match path {
        "/srv" => &[
            ("srv/", ""),
            ("srv/a", "first"),
            ("srv/deep/", ""),
            ("srv/deep/b", "second"),
        ],
        "/etc/hosts" => &[("hosts", "127.0.0.1 localhost\n")],
        "/evil" => &[("evil/", ""), ("../escaped", "x")],
        _ => {
            let what = format!("there is nothing at {path}");
            return problem(&Problem::new(
                Code::NotFound,
                Fault::Request,
                what,
                "check the path",
            ));
        }
    };
    tar_of(items).into_response()
}

fn tar_of(items: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, content) in items {
        let mut header = Header::new_gnu();
        header.set_entry_type(if path.ends_with('/') {
            EntryType::Directory
        } else {
            EntryType::Regular
        });
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn link(name: &str, to: &str) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, name, to).unwrap();
    builder.into_inner().unwrap()
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect()
}

#[test]
fn out_of_a_node() {
    let fake = Fake::start(node(&Put::default()));
    let read = |path: &str| std::fs::read_to_string(fake.dir().join(path)).unwrap();
    fake.run(&["cp", "shop/web:/etc/hosts", "."]).expect(0);
    assert_eq!(read("hosts"), "127.0.0.1 localhost\n");
    fake.run(&["cp", "shop/web:/srv", "new"]).expect(0);
    assert_eq!(read("new/deep/b"), "second");
    fake.run(&["cp", "shop/web:/srv", "new"]).expect(0);
    assert_eq!(read("new/srv/a"), "first");
    let json = fake
        .run(&["cp", "-o", "json", "shop/web:/srv/.", "new"])
        .expect(0)
        .json();
    assert_eq!(
        json,
        serde_json::json!({"entries": 4, "bytes": 11, "skipped": []})
    );
    assert_eq!(
        names(&fake.run(&["cp", "shop/web:/srv", "-"]).expect(0).stdout).len(),
        4
    );
}

#[test]
fn an_archive_that_reaches_outside_is_refused() {
    let fake = Fake::start(node(&Put::default()));
    std::fs::create_dir(fake.dir().join("in")).unwrap();
    let done = fake.run(&["cp", "shop/web:/evil", "in"]).expect(1);
    assert!(done.stderr.contains("reaches outside"), "{}", done.stderr);
    assert!(!fake.dir().join("escaped").exists() && !fake.dir().join("in/escaped").exists());
}

#[test]
fn what_is_not_there_leaves_nothing_behind() {
    let fake = Fake::start(node(&Put::default()));
    let done = fake.run(&["cp", "shop/web:/nothing", "target"]).expect(1);
    assert!(
        done.stderr
            .starts_with("error[not-found]: there is nothing at /nothing"),
        "{}",
        done.stderr
    );
    assert!(!fake.dir().join("target").exists());
}

#[test]
fn into_a_node() {
    let put = Put::default();
    let fake = Fake::start(node(&put));
    std::fs::create_dir(fake.dir().join("site")).unwrap();
    std::fs::write(fake.dir().join("site/index"), vec![b'x'; 200_000]).unwrap();
    for (args, path, expected) in [
        (
            ["cp", "site", "shop/web:/srv"],
            "/srv",
            &["site", "site/index"][..],
        ),
        (["cp", "site/.", "shop/web:/srv/"], "/srv", &["", "index"]),
        (
            ["cp", "site", "shop/web:/var/new"],
            "/var",
            &["new", "new/index"],
        ),
        (
            ["cp", "site/index", "shop/web:/etc/hosts"],
            "/etc",
            &["hosts"],
        ),
        (["cp", "./site/index", "shop/web:/srv"], "/srv", &["index"]),
        (
            ["cp", "site/index", "shop/web:/var/www"],
            "/srv",
            &["index"],
        ),
    ] {
        fake.run(&args).expect(0);
        let (at, archive) = put.lock().unwrap().pop().unwrap();
        let found = names(&archive);
        let found: Vec<&str> = found
            .iter()
            .map(|name| name.trim_start_matches("./").trim_matches('.'))
            .collect();
        assert_eq!(
            (
                at.as_str(),
                found
                    .iter()
                    .map(|name| name.trim_end_matches('/'))
                    .collect::<Vec<_>>()
            ),
            (path, expected.to_vec()),
            "{args:?}"
        );
    }
    for args in [
        ["cp", "site", "shop/web:/etc/hosts"],
        ["cp", "site/index", "shop/web:/no/"],
        ["cp", "none", "shop/web:/srv"],
        ["cp", "site", "shop/web:/loop"],
    ] {
        fake.run(&args).expect(1);
    }
    assert!(put.lock().unwrap().is_empty());
}

#[test]
fn an_archive_on_standard_input() {
    let put = Put::default();
    let fake = Fake::start(node(&put));
    let archive = tar_of(&[("a", "1")]);
    fake.run_with_input(&["cp", "-", "shop/web:/srv"], &archive)
        .expect(0);
    assert_eq!(*put.lock().unwrap(), [("/srv".to_owned(), archive)]);
}
