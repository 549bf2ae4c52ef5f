//! Taking a policy away.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use offshoot_operations::Request as Change;

use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::encode;
use crate::pages::change::{Nothing, to};
use crate::pages::{find, submit as begin};

struct Question {
    name: String,
    href: String,
    csrf: String,
}

#[derive(Template)]
#[template(path = "clear.html")]
struct Page {
    shell: Shell,
    question: Question,
}

#[derive(Template)]
#[template(path = "clear_part.html")]
struct Part {
    question: Question,
}

pub(in crate::pages) async fn form(
    context: Context,
    Path(environment): Path<String>,
) -> Result<Response, Failure> {
    let found = find(&context.web, &environment).await?;
    let question = Question {
        href: format!("/environments/{}", encode(&found.name)),
        csrf: context.session.csrf().to_owned(),
        name: found.name,
    };
    if context.wants_part() {
        return html(&Part { question });
    }
    html(&Page {
        shell: context.shell(format!("Clear policy of {}", question.name)),
        question,
    })
}

/// Takes the policy away: the environment answers all by itself.
pub(in crate::pages) async fn submit(
    context: Context,
    Path(environment): Path<String>,
    _form: Form<Nothing>,
) -> Result<Response, Failure> {
    let found = find(&context.web, &environment).await?;
    Ok(to(
        &begin(&context.web, Change::TrafficClear(found.name)).await?
    ))
}
