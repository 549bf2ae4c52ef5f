//! A dashboard over a platform that only pretends, and somebody who asks it.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod axe;
pub mod browser;
pub mod fake;
pub mod sample;
pub mod traffic;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use offshoot_dashboard::{Dashboard, Settings, Transport};
use offshoot_model::Operation;
use offshoot_model::view::EnvironmentView;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub use fake::Fake;

pub const HOST: &str = "127.0.0.1:9440";

pub struct Site {
    pub fake: Arc<Fake>,
    pub dashboard: Dashboard,
    pub router: Router,
    pub cookie: String,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// The field that tells which state of a policy the form on it was made from.
    pub fn seen(&self) -> String {
        let (_, rest) = self.text.split_once("name=\"seen\" value=\"").unwrap();
        format!("seen={}", rest.split('"').next().unwrap())
    }

    pub fn location(&self) -> &str {
        self.headers["location"].to_str().unwrap()
    }
}

/// Largest page in bytes.
pub const PAGE_MAX: usize = 100_000;
/// What people may call things, and must come into pages as text only.
pub const HOSTILE: &str = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>";

/// A whole page, with all that is wanted on it.
#[track_caller]
pub fn has(answer: &Answer, wanted: &[&str]) {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert!(answer.text.starts_with("<!doctype html>"));
    assert!(answer.text.len() < PAGE_MAX, "{} bytes", answer.text.len());
    for wanted in wanted {
        assert!(answer.text.contains(wanted), "{wanted}: {}", answer.text);
    }
}

/// The form was taken, and the page of the operation comes.
#[track_caller]
pub fn is_begun(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    assert!(answer.location().starts_with("/operations/"));
}

pub fn settings() -> Settings {
    Settings {
        instance: "t1".to_owned(),
        origin: format!("http://{HOST}"),
        host: "127.0.0.1".to_owned(),
        transport: Transport::Plain,
    }
}

impl Site {
    /// With nobody signed in.
    pub fn new(fake: Fake) -> Self {
        let fake = Arc::new(fake);
        let dashboard = Dashboard::new(settings());
        let platform = Arc::clone(&fake);
        let router = dashboard.router(platform, CancellationToken::new());
        Self {
            fake,
            dashboard,
            router,
            cookie: String::new(),
        }
    }

    /// With somebody signed in.
    pub async fn open(environments: Vec<EnvironmentView>, operations: Vec<Operation>) -> Self {
        let mut site = Self::new(Fake::new(environments, operations));
        let answer = site.send(Method::POST, "/sign-in", &site.key(), &[]).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
        let cookie = answer.headers["set-cookie"].to_str().unwrap();
        site.cookie = cookie.split(';').next().unwrap().to_owned();
        site
    }

    /// The body of a sign-in.
    pub fn key(&self) -> String {
        let link = self.dashboard.login_link().unwrap();
        link.url.split_once('?').unwrap().1.to_owned()
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("cookie", &self.cookie);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", HOST);
        }
        if method == Method::POST && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status,
            headers: head.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "", &[]).await
    }

    /// What htmx gets that asks for the element of this id.
    pub async fn part(&self, path: &str, target: &str) -> Answer {
        let headers = [("hx-request", "true"), ("hx-target", target)];
        self.send(Method::GET, path, "", &headers).await
    }

    /// The token of this person's forms.
    pub async fn csrf(&self) -> String {
        let page = self.get("/operations").await.text;
        let (_, rest) = page.split_once("name=\"csrf\" value=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    }

    /// The field that tells which state of a policy the form of a page was made from.
    pub async fn seen(&self, path: &str) -> String {
        let page = self.get(path).await;
        assert_eq!(page.status, StatusCode::OK, "{}", page.text);
        page.seen()
    }

    /// Sends a form of one of this person's pages.
    pub async fn post(&self, path: &str, fields: &str) -> Answer {
        let body = format!("csrf={}&{fields}", self.csrf().await);
        self.send(Method::POST, path, &body, &[]).await
    }
}
