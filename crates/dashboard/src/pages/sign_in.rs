//! Coming in, going out, and the choice of colours.

use askama::Template;
use axum::Extension;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::header::{HeaderValue, SET_COOKIE};
use http::{Extensions, StatusCode};
use offshoot_model::Problem;
use serde::Deserialize;

use crate::answer::{Failure, Form, OpenForm, html};
use crate::context::{Colours, Context, THEME_COOKIE, Theme};
use crate::gate;
use crate::kept;
use crate::sessions::{Refusal, Session};
use crate::{Settings, Transport, Web, assets};

/// How long a browser keeps the choice of colours, seconds.
const THEME_AGE: u32 = 365 * 86_400;

#[derive(Template)]
#[template(path = "sign_in.html")]
struct Page {
    instance: String,
    version: &'static str,
    theme: Theme,
    key: Option<String>,
    refusal: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Key {
    #[serde(default)]
    key: Option<String>,
}

/// The page that a link leads to. Nothing happens before its button is pressed: programs that look at links do not
/// use them up, and the cookie comes from a page of the dashboard itself.
pub(super) async fn form(
    State(web): State<Web>,
    Colours(theme): Colours,
    session: Option<Extension<Session>>,
    Query(Key { key }): Query<Key>,
) -> Result<Response, Failure> {
    if session.is_some() {
        return Ok(Redirect::to("/").into_response());
    }
    page(&web, theme, key, None)
}

fn page(
    web: &Web,
    theme: Theme,
    key: Option<String>,
    refusal: Option<Refusal>,
) -> Result<Response, Failure> {
    let mut response = html(&Page {
        instance: web.dashboard.settings.instance.clone(),
        version: assets::version(),
        theme,
        key,
        refusal: refusal.map(|refusal| refusal.to_string()),
    })?;
    *response.status_mut() = match refusal {
        None => StatusCode::OK,
        Some(Refusal::NoLink) => StatusCode::FORBIDDEN,
        Some(Refusal::TooMany) => StatusCode::TOO_MANY_REQUESTS,
        Some(Refusal::NoRandomness) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Ok(response)
}

/// Uses a link.
pub(super) async fn sign_in(
    State(web): State<Web>,
    Colours(theme): Colours,
    extensions: Extensions,
    OpenForm(Key { key }): OpenForm<Key>,
) -> Result<Response, Failure> {
    let from = gate::peer(&extensions);
    let key = key.unwrap_or_default();
    match web.dashboard.sessions.sign_in(&key, from, kept::now()) {
        Ok(secret) => {
            let settings = &web.dashboard.settings;
            let value = format!(
                "{}={}; Path=/; HttpOnly; SameSite=Strict{}",
                gate::cookie_name(settings),
                secret.as_str(),
                secure(settings)
            );
            tracing::info!(%from, "somebody signed in to the dashboard");
            with_cookie(Redirect::to("/").into_response(), &value)
        }
        Err(refusal) => {
            tracing::info!(%from, %refusal, "a sign-in to the dashboard was refused");
            page(&web, theme, None, Some(refusal))
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Nothing {}

/// Ends the session.
pub(super) async fn sign_out(context: Context, _form: Form<Nothing>) -> Result<Response, Failure> {
    context
        .web
        .dashboard
        .sessions
        .sign_out(&context.session, kept::now());
    let settings = &context.web.dashboard.settings;
    let value = format!(
        "{}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0{}",
        gate::cookie_name(settings),
        secure(settings)
    );
    with_cookie(Redirect::to(gate::SIGN_IN).into_response(), &value)
}

#[derive(Debug, Deserialize)]
pub(super) struct ThemeForm {
    theme: String,
    back: String,
}

/// Remembers a choice of colours in the browser, and goes back to the page.
pub(super) async fn theme(
    context: Context,
    Form(form): Form<ThemeForm>,
) -> Result<Response, Failure> {
    let value = format!(
        "{THEME_COOKIE}={}; Path=/; HttpOnly; SameSite=Strict; Max-Age={THEME_AGE}{}",
        Theme::parse(&form.theme).name(),
        secure(&context.web.dashboard.settings)
    );
    // Only a path of this dashboard: `//host` and `/\host` would lead away.
    let is_path = form.back.starts_with('/')
        && !form.back[1..].starts_with(['/', '\\'])
        && form.back.bytes().all(|byte| byte.is_ascii_graphic());
    let back = if is_path { form.back.as_str() } else { "/" };
    with_cookie(Redirect::to(back).into_response(), &value)
}

fn secure(settings: &Settings) -> &'static str {
    match settings.transport {
        Transport::Plain => "",
        Transport::Tls => "; Secure",
    }
}

fn with_cookie(mut response: Response, value: &str) -> Result<Response, Failure> {
    let value = HeaderValue::from_str(value)
        .map_err(|error| Problem::internal(format!("a cookie cannot be sent: {error}")))?;
    response.headers_mut().append(SET_COOKIE, value);
    Ok(response)
}
