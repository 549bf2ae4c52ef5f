//! The dashboard: pages for people, made by the daemon itself.
//!
//! Pages are rendered here and are plain links and forms; scripts only make them live. Handlers call the application
//! layer ([`offshoot_operations::Platform`]) and nothing below it, as those of the API do. docs/dashboard.md says
//! how people come in and what is done to keep others out.

mod answer;
mod assets;
mod context;
mod examples;
mod format;
mod gate;
mod hide;
mod history;
mod kept;
mod live;
mod meter;
mod pages;
mod secret;
mod sessions;
mod tree;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use jiff::Timestamp;
use offshoot_model::view::LoginLink;
use offshoot_operations::SharedPlatform;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use history::History;
use meter::Meter;
use sessions::Sessions;

/// Streams (live pages, logs that are followed) at a time, all people together.
const STREAMS_MAX: usize = 128;

/// How a dashboard is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The daemon's instance: in the title of pages and the name of the cookie.
    pub instance: String,
    /// Where people reach it, without a final slash: `http://127.0.0.1:9440`.
    pub origin: String,
    /// Host name that requests must be addressed to, beside those of loopback where `origin` is one of them.
    pub host: String,
    /// Whether it is spoken to with TLS.
    pub transport: Transport,
}

/// How browsers speak to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Without TLS, on loopback.
    Plain,
    /// With TLS; cookies are sent in no other way.
    Tls,
}

/// Where a request came from; whoever serves connections puts it into a request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// A dashboard. Clones are handles of the same one.
#[derive(Debug, Clone)]
pub struct Dashboard {
    settings: Arc<Settings>,
    sessions: Arc<Sessions>,
}

impl Dashboard {
    /// A dashboard in which nobody is signed in.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            sessions: Arc::default(),
        }
    }

    /// Keeps sessions in this file: who is signed in stays so when the daemon is started anew, until the host is. It is
    /// for root alone, holds no secret, and belongs among what no backup copies (the run directory). A file that cannot
    /// be read is complained of in the log and replaced.
    #[must_use]
    pub fn with_sessions_in(self, file: PathBuf) -> Self {
        if let Err(error) = self.sessions.keep_in(file.clone(), kept::now()) {
            tracing::warn!(path = %file.display(), %error, "sessions of a former daemon cannot be read");
        }
        self
    }

    /// Where people reach it, without what lets them in.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.settings.origin
    }

    /// Makes a link that signs in one person, once.
    ///
    /// # Errors
    /// When the host gives no random numbers.
    pub fn login_link(&self) -> io::Result<LoginLink> {
        let key = self.sessions.link(kept::now())?;
        Ok(LoginLink {
            url: format!("{}/sign-in?key={}", self.settings.origin, key.as_str()),
            expires: Timestamp::now() + sessions::LINK_TIME,
        })
    }

    /// All its paths. Streams end when `stop` is cancelled.
    ///
    /// # Panics
    /// Outside of a tokio runtime: what nodes use is looked at from time to time until `stop`.
    pub fn router(&self, platform: SharedPlatform, stop: CancellationToken) -> Router {
        let history = Arc::new(History::new());
        let looks = history::keep(Arc::clone(&history), Arc::clone(&platform), stop.clone());
        tokio::spawn(looks);
        pages::router(Web {
            dashboard: self.clone(),
            platform,
            stop,
            meter: Arc::default(),
            history,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        })
    }
}

/// What handlers share.
#[derive(Clone)]
pub(crate) struct Web {
    dashboard: Dashboard,
    platform: SharedPlatform,
    stop: CancellationToken,
    meter: Arc<Meter>,
    history: Arc<History>,
    streams: Arc<Semaphore>,
}
