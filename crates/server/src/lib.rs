//! The daemon's face: its configuration, the API over HTTP, and where the dashboard listens.
//!
//! The API is HTTP and JSON below `/api/v1`, on a unix socket that only root can use and, when configured, on
//! loopback TCP with a token. Handlers call the application layer ([`offshoot_operations::Platform`]) and
//! nothing below it. docs/api.md says how to use it; `docs/openapi.json` is made from the handlers.

mod answer;
pub mod config;
mod connection;
mod error;
mod gate;
mod listen;
mod routes;
mod systemd;
mod token;
mod web;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use offshoot_operations::SharedPlatform;
use tokio::net::TcpListener;

pub use config::Config;
pub use error::ServeError;
pub use offshoot_dashboard::Dashboard;
pub use routes::openapi;
pub use web::{TlsFiles, WebConfig};

use gate::Gate;
use listen::PrivateSocket;
use routes::Api;
use web::Web;

/// Where the API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// The daemon's instance, for `GET /version`.
    pub instance: String,
    /// The unix socket.
    pub socket: PathBuf,
    /// A loopback TCP address; port 0 lets the kernel choose.
    pub tcp: Option<SocketAddr>,
    /// File that keeps the token for TCP; made when it is not there.
    pub token_file: PathBuf,
    /// Where the dashboard listens, unless there shall be none.
    pub web: Option<WebConfig>,
}

/// A server that listens but does not answer yet: clients that connect wait.
#[derive(Debug)]
pub struct Server {
    socket: PrivateSocket,
    tcp: Option<TcpListener>,
    gate: Gate,
    instance: String,
    web: Option<Web>,
}

impl Server {
    /// Binds the sockets. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When a socket cannot be bound, the token cannot be kept, or an address is not on loopback.
    pub async fn bind(config: &ServerConfig) -> Result<Self, ServeError> {
        let token = match config.tcp {
            Some(_) => Some(token::ensure(&config.token_file)?),
            None => None,
        };
        let tcp = match config.tcp {
            Some(address) => Some(listen::loopback(address).await?),
            None => None,
        };
        let web = match &config.web {
            Some(web) => Some(Web::bind(web, &config.instance).await?),
            None => None,
        };
        let socket = PrivateSocket::bind(&config.socket).await?;
        let gate = Gate::new(socket.owner(), token);
        Ok(Self {
            socket,
            tcp,
            gate,
            instance: config.instance.clone(),
            web,
        })
    }

    /// The dashboard, unless there is none: for a link to sign in.
    #[must_use]
    pub fn dashboard(&self) -> Option<&Dashboard> {
        self.web.as_ref().map(|web| &web.dashboard)
    }

    /// The TCP address, with the port that the kernel chose.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }

    /// Answers until `shutdown` resolves; then lets requests finish, ends streams, and takes the socket away.
    ///
    /// # Errors
    /// None at present: a connection that breaks ends that connection.
    pub async fn run(
        self,
        platform: SharedPlatform,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let dashboard = self.dashboard().cloned();
        let api = Api::new(Arc::clone(&platform), self.instance, dashboard);
        let stop = api.stop();
        let streams = api.streams();
        let router = routes::router(api, Arc::new(self.gate));
        systemd::notify(systemd::State::Ready);
        let web = async {
            if let Some(web) = self.web {
                web.run(platform, stop.clone()).await;
            }
        };
        let api = connection::accept(
            &self.socket,
            self.tcp.as_ref(),
            router,
            stop.clone(),
            streams,
            shutdown,
        );
        tokio::join!(api, web);
        self.socket.remove();
        Ok(())
    }
}
