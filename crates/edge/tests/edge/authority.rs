//! Certificates for tests, and clients that trust them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::Request;
use offshoot_edge_api::Certificate;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error as TlsError, RootCertStore,
    SupportedProtocolVersion,
};

use crate::kit::{self, Answer, Http1, Http2, SOON, empty, get};

/// A certificate authority, and where its certificates are written.
pub(crate) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: CertificateDer<'static>,
    pub(crate) directory: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = parameters.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: rcgen::Issuer::new(parameters, key),
            root,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn certificate(&self, name: &str, hosts: &[&str]) -> Certificate {
        self.certificate_until(name, hosts, 4_000)
    }

    pub(crate) fn certificate_until(&self, name: &str, hosts: &[&str], year: i32) -> Certificate {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(hosts.clone()).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let write = |ending: &str, text: String| -> PathBuf {
            let path = self.directory.path().join(format!("{name}.{ending}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Certificate {
            hosts,
            chain: write("pem", certificate.pem()),
            key: write("key", key.serialize_pem()),
        }
    }

    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
        how: Client,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await.unwrap();
        self.handshake(stream, name, how).await
    }

    /// A client's first message.
    pub(crate) fn hello(&self, name: &str) -> Vec<u8> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let client = ClientConnection::new(Arc::new(self.config(HTTP1)), name);
        let mut hello = Vec::new();
        client.unwrap().write_tls(&mut hello).unwrap();
        hello
    }

    /// On a connection that is there.
    pub(crate) async fn handshake(
        &self,
        stream: TcpStream,
        name: &str,
        how: Client,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let handshake = TlsConnector::from(Arc::new(self.config(how))).connect(name, stream);
        tokio::time::timeout(SOON, handshake).await.unwrap()
    }

    fn config(&self, how: Client) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(how.versions)
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = how
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        config.enable_sni = how.sni;
        config
    }

    pub(crate) async fn http1(&self, address: SocketAddr, host: &str) -> Http1 {
        let stream = self.connect(address, host, HTTP1).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        kit::http1_on(stream).await
    }

    pub(crate) async fn http2(&self, address: SocketAddr, host: &str) -> Http2 {
        let stream = self.connect(address, host, HTTP2).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        kit::http2_on(stream).await
    }

    pub(crate) async fn ask(&self, address: SocketAddr, host: &str, path: &str) -> Answer {
        let mut client = self.http1(address, host).await;
        Answer::read(client.send_request(get(host, path)).await.unwrap()).await
    }

    pub(crate) async fn ask2(&self, address: SocketAddr, host: &str, path: &str) -> Answer {
        let mut client = self.http2(address, host).await;
        let request = Request::get(format!("https://{host}{path}"));
        let request = request.body(empty()).unwrap();
        Answer::read(client.send_request(request).await.unwrap()).await
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Client {
    pub(crate) versions: &'static [&'static SupportedProtocolVersion],
    pub(crate) alpn: &'static [&'static str],
    pub(crate) sni: bool,
}

pub(crate) const HTTP1: Client = Client {
    versions: &[&TLS13, &TLS12],
    alpn: &["http/1.1"],
    sni: true,
};
pub(crate) const HTTP2: Client = Client {
    alpn: &["h2", "http/1.1"],
    ..HTTP1
};

/// The alert that ended a handshake.
pub(crate) fn alert(handshake: std::io::Result<TlsStream<TcpStream>>) -> AlertDescription {
    let error = handshake.expect_err("a handshake that was to fail");
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<TlsError>());
    match inner {
        Some(TlsError::AlertReceived(alert)) => *alert,
        _ => panic!("{error:?}"),
    }
}
