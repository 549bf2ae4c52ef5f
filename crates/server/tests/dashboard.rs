//! The dashboard's listener: who gets a link, what is answered there, TLS.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Answer, Fake, TestServer, connect, full, send, web};
use http::{Method, Request};
use offshoot_model::Code;
use offshoot_model::view::LoginLink;
use offshoot_server::{ServeError, Server, ServerConfig, TlsFiles};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

fn request(method: Method, path: &str, host: &str, body: &str) -> Request<common::Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", host)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(full(body.to_owned()))
        .unwrap()
}

async fn page(server: &TestServer, method: Method, path: &str, body: &str) -> Answer {
    let host = server.web.strip_prefix("http://").unwrap();
    let stream = TcpStream::connect(host).await.unwrap();
    send(
        &mut connect(stream).await,
        request(method, path, host, body),
    )
    .await
}

#[tokio::test]
async fn a_link_of_the_api_signs_in() {
    let server = TestServer::start().await;
    let answer = server.post("login-links", "").await;
    assert_eq!(answer.status.as_u16(), 201);
    let link: LoginLink = serde_json::from_slice(&answer.body).unwrap();
    let path = link.url.strip_prefix(&server.web).unwrap();
    assert_eq!(
        page(&server, Method::GET, path, "").await.status.as_u16(),
        200
    );
    let (path, key) = path.split_once('?').unwrap();
    let signed_in = page(&server, Method::POST, path, key).await;
    assert_eq!(signed_in.status.as_u16(), 303);
    assert!(signed_in.headers.contains_key("set-cookie"));
    // The API is not there, and the pages are not where the API is.
    let api = page(&server, Method::GET, "/api/v1/environments", "").await;
    assert_eq!(api.headers["location"], "/sign-in");
    assert_eq!(server.get("/sign-in").await.status.as_u16(), 404);
    assert!(server.fake.calls().is_empty());
    server.ended().await;
}

fn config(dir: &Path, tls: Option<TlsFiles>) -> ServerConfig {
    ServerConfig {
        instance: "t3".to_owned(),
        socket: dir.join("run/offshoot.sock"),
        tcp: None,
        token_file: dir.join("token"),
        web: Some(web(tls)),
    }
}

#[tokio::test]
async fn without_a_dashboard_there_is_no_link() {
    let dir = TempDir::new().unwrap();
    let config = ServerConfig {
        web: None,
        ..config(dir.path(), None)
    };
    let server = Server::bind(&config).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(server.run(Arc::new(Fake::default()), async { drop(stopped.await) }));
    let stream = tokio::net::UnixStream::connect(&config.socket)
        .await
        .unwrap();
    let request = common::request(Method::POST, "login-links", "");
    let answer = send(&mut connect(stream).await, request).await;
    assert_eq!(answer.problem(500).code, Code::ConfigInvalid);
    drop(stop);
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn with_a_certificate_it_speaks_tls() {
    let dir = TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = TlsFiles {
        certificate: dir.path().join("dashboard.crt"),
        key: dir.path().join("dashboard.key"),
    };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let config = config(dir.path(), Some(files.clone()));
    let server = Server::bind(&config).await.unwrap();
    let origin = server.dashboard().unwrap().origin().to_owned();
    let link = server.dashboard().unwrap().login_link().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(server.run(Arc::new(Fake::default()), async { drop(stopped.await) }));

    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(&files.certificate).unwrap())
        .unwrap();
    let client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let host = origin.strip_prefix("https://").unwrap();
    let stream = TcpStream::connect(host).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(client))
        .connect(name, stream)
        .await;
    let (_, key) = link.url.split_once('?').unwrap();
    let answer = send(
        &mut connect(stream.unwrap()).await,
        request(Method::POST, "/sign-in", host, key),
    )
    .await;
    assert_eq!(answer.status.as_u16(), 303);
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("__Host-offshoot-t3="), "{cookie}");
    assert!(cookie.ends_with("; Secure"), "{cookie}");
    assert!(answer.headers.contains_key("strict-transport-security"));
    drop(stop);
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_certificate_that_is_none_is_said() {
    let dir = TempDir::new().unwrap();
    let files = TlsFiles {
        certificate: dir.path().join("none.crt"),
        key: dir.path().join("none.key"),
    };
    let config = config(dir.path(), Some(files));
    let error = Server::bind(&config).await.unwrap_err();
    assert!(matches!(error, ServeError::Certificate { .. }), "{error}");
    assert!(error.to_string().contains("none.crt"), "{error}");
    assert_eq!(error.problem().code, Code::ConfigInvalid);
}
