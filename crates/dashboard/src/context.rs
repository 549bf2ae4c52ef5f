//! What a page is made for: who asks, how, and what every page shows of that.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::response::Response;
use http::HeaderName;
use http::request::Parts;

use crate::answer::{Failure, html};
use crate::sessions::Session;
use crate::{Web, assets, gate};

/// Name of the cookie that keeps the choice of colours.
pub(crate) const THEME_COOKIE: &str = "offshoot-theme";
/// htmx asks for a page again that it left: all of it.
const HX_HISTORY: HeaderName = HeaderName::from_static("hx-history-restore-request");
/// The element that the answer is for.
const HX_TARGET: HeaderName = HeaderName::from_static("hx-target");

/// Which colours somebody wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Theme {
    /// As their system.
    #[default]
    System,
    Light,
    Dark,
}

impl Theme {
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "light" => Self::Light,
            "dark" => Self::Dark,
            _ => Self::System,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }

    /// What the switch changes to.
    pub(crate) fn next(self) -> &'static str {
        match self {
            Self::System => "dark",
            Self::Dark => "light",
            Self::Light => "system",
        }
    }
}

/// What is wanted: a page, or the part of it that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    /// All of a page.
    Page,
    /// What belongs into the element of this id.
    Part(String),
}

/// A request of somebody who is signed in.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) web: Web,
    pub(crate) session: Session,
    pub(crate) theme: Theme,
    pub(crate) want: Want,
    pub(crate) path: String,
}

impl Context {
    /// Whether only the content of the element of this id is wanted.
    pub(crate) fn wants(&self, part: &str) -> bool {
        matches!(&self.want, Want::Part(id) if id == part)
    }

    /// Whether htmx asks.
    pub(crate) fn wants_part(&self) -> bool {
        self.want != Want::Page
    }

    /// What every page shows.
    pub(crate) fn shell(&self, title: impl Into<String>) -> Shell {
        Shell {
            title: title.into(),
            instance: self.web.dashboard.settings.instance.clone(),
            version: assets::version(),
            theme: self.theme,
            csrf: self.session.csrf().to_owned(),
            path: self.path.clone(),
        }
    }

    /// A page, or its part where that is what is wanted.
    pub(crate) fn page(&self, template: &impl askama::Template) -> Result<Response, Failure> {
        html(template)
    }
}

impl FromRequestParts<Web> for Context {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, web: &Web) -> Result<Self, Failure> {
        let session = parts
            .extensions
            .get::<Session>()
            .cloned()
            .ok_or_else(Failure::signed_out)?;
        Ok(Self {
            web: web.clone(),
            session,
            theme: theme(parts),
            want: want(parts),
            path: parts
                .uri
                .path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string),
        })
    }
}

/// The colours of somebody who need not be signed in.
pub(crate) struct Colours(pub(crate) Theme);

impl<S: Sync> FromRequestParts<S> for Colours {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(theme(parts)))
    }
}

fn theme(parts: &Parts) -> Theme {
    gate::cookie(&parts.headers, THEME_COOKIE).map_or(Theme::System, Theme::parse)
}

fn want(parts: &Parts) -> Want {
    let headers = &parts.headers;
    if !headers.contains_key(gate::HX_REQUEST) || headers.contains_key(HX_HISTORY) {
        return Want::Page;
    }
    let target = headers.get(HX_TARGET).and_then(|id| id.to_str().ok());
    Want::Part(target.unwrap_or_default().to_owned())
}

/// What the frame of every page shows.
#[derive(Debug, Clone)]
pub(crate) struct Shell {
    pub(crate) title: String,
    pub(crate) instance: String,
    pub(crate) version: &'static str,
    pub(crate) theme: Theme,
    pub(crate) csrf: String,
    pub(crate) path: String,
}

impl Shell {
    /// Whether a link of the navigation leads to where the page is.
    pub(crate) fn is_in(&self, part: &str) -> bool {
        match part {
            "/" => {
                self.path == "/"
                    || self.path.starts_with("/?")
                    || self.path.starts_with("/environments")
                    || self.path.starts_with("/compare")
            }
            part => self.path.starts_with(part),
        }
    }
}
