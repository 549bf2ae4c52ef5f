//! The dashboard's own listener: TCP, with TLS where it has a certificate. Its paths are not the API's, and nobody
//! comes from here to the API.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use offshoot_dashboard::{Dashboard, Peer, Settings, Transport};
use offshoot_operations::SharedPlatform;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use crate::connection::{ACCEPT_PAUSE, DRAIN, admit, talk};
use crate::error::ServeError;

/// Connections at a time: browsers open up to six for a page.
const MAX: usize = 256;
/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where and how the dashboard is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebConfig {
    /// Address to listen on; one that is not on loopback needs `tls`.
    pub listen: SocketAddr,
    /// Host name in its address, when it is not that of `listen`.
    pub host: Option<String>,
    /// Certificate chain and key, PEM files.
    pub tls: Option<TlsFiles>,
    /// File in which sessions are kept over restarts of the daemon; in memory alone when absent.
    pub sessions: Option<PathBuf>,
}

/// PEM files for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, the host's own first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A dashboard that listens but does not answer yet.
pub(crate) struct Web {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    pub(crate) dashboard: Dashboard,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Web")
            .field("dashboard", &self.dashboard)
            .finish_non_exhaustive()
    }
}

impl Web {
    /// Binds the socket and reads the certificate.
    pub(crate) async fn bind(config: &WebConfig, instance: &str) -> Result<Self, ServeError> {
        let tls = config.tls.as_ref().map(acceptor).transpose()?;
        let failed = |source| ServeError::WebListen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let host = config.host.clone().unwrap_or_else(|| match address.ip() {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        });
        let (scheme, transport) = match tls {
            Some(_) => ("https", Transport::Tls),
            None => ("http", Transport::Plain),
        };
        let dashboard = Dashboard::new(Settings {
            instance: instance.to_owned(),
            origin: format!("{scheme}://{host}:{}", address.port()),
            host,
            transport,
        });
        let dashboard = match &config.sessions {
            Some(file) => dashboard.with_sessions_in(file.clone()),
            None => dashboard,
        };
        Ok(Self {
            listener,
            tls,
            dashboard,
        })
    }

    /// Answers until `stop` is cancelled, then until requests have finished.
    pub(crate) async fn run(self, platform: SharedPlatform, stop: CancellationToken) {
        let router = self.dashboard.router(platform, stop.clone());
        let room = Arc::new(Semaphore::new(MAX));
        let mut open = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = open.join_next(), if !open.is_empty() => continue,
                accepted = admit(&room, || self.listener.accept()) => accepted,
            };
            match accepted {
                Ok((room, (stream, peer))) => {
                    let (router, stop, tls) = (router.clone(), stop.clone(), self.tls.clone());
                    open.spawn(async move {
                        // Small messages (events) go at once; a connection that cannot be told so still works.
                        let _ = stream.set_nodelay(true);
                        let peer = Peer(peer.ip());
                        match tls {
                            None => talk(stream, peer, router, stop, room).await,
                            Some(tls) => match handshake(&tls, stream).await {
                                Ok(stream) => talk(stream, peer, router, stop, room).await,
                                Err(error) => tracing::debug!(%error, "no TLS"),
                            },
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the dashboard cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        let drained = async { while open.join_next().await.is_some() {} };
        if timeout(DRAIN, drained).await.is_err() {
            tracing::info!(connections = open.len(), "pages are cut off");
        }
    }
}

fn handshake(
    tls: &TlsAcceptor,
    stream: TcpStream,
) -> impl Future<Output = io::Result<tokio_rustls::server::TlsStream<TcpStream>>> {
    let accept = tls.accept(stream);
    async move { timeout(HANDSHAKE, accept).await? }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ServeError> {
    let bad = |path: &Path, why: String| ServeError::Certificate {
        path: path.to_owned(),
        why,
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad(&files.certificate, error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| bad(&files.key, error.to_string()))?;
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| bad(&files.certificate, error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
