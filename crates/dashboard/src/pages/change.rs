//! What is done to environments by a button: start, stop, rename, remove, create an example.

use askama::Template;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use offshoot_model::view::{CreateRequest, RenameRequest};
use offshoot_model::{Hold, Operation};
use offshoot_operations::Request as Change;
use serde::Deserialize;

use super::{find, submit};
use crate::Web;
use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::examples;
use crate::format::encode;

#[derive(Debug, Deserialize)]
pub(super) struct Nothing {}

/// What is said in a page that goes on.
#[derive(Template)]
#[template(path = "notice.html")]
struct Notice {
    text: String,
    operation: String,
}

/// Says that a change began: in the page, or with the page of the operation.
pub(super) fn begun(
    context: &Context,
    operation: &Operation,
    text: String,
) -> Result<Response, Failure> {
    if context.wants_part() {
        return html(&Notice {
            text,
            operation: operation.id.to_string(),
        });
    }
    Ok(to(operation))
}

/// Goes to the page of an operation.
pub(super) fn to(operation: &Operation) -> Response {
    Redirect::to(&format!("/operations/{}", operation.id)).into_response()
}

pub(super) async fn start(
    context: Context,
    Path(environment): Path<String>,
    _form: Form<Nothing>,
) -> Result<Response, Failure> {
    let operation = submit(&context.web, Change::Start(environment)).await?;
    let text = format!("Starting {}.", operation.subject);
    begun(&context, &operation, text)
}

pub(super) async fn stop(
    context: Context,
    Path(environment): Path<String>,
    _form: Form<Nothing>,
) -> Result<Response, Failure> {
    let operation = submit(&context.web, Change::Stop(environment)).await?;
    let text = format!("Stopping {}.", operation.subject);
    begun(&context, &operation, text)
}

/// Lets go of all that is held.
pub(super) async fn release(
    context: Context,
    Path(environment): Path<String>,
    _form: Form<Nothing>,
) -> Result<Response, Failure> {
    let change = Change::Hold(environment, Hold::default());
    let operation = submit(&context.web, change).await?;
    let text = format!("Letting go what {} holds.", operation.subject);
    begun(&context, &operation, text)
}

/// Creates an example, under a name that is free.
pub(super) async fn create_example(
    State(web): State<Web>,
    Path(name): Path<String>,
    _form: Form<Nothing>,
) -> Result<Response, Failure> {
    let example = examples::find(&name)?;
    let taken = web.platform.environments().await?;
    let is_taken = |name: &str| taken.iter().any(|env| env.name == name);
    let free = (2..)
        .map(|number| format!("{}-{number}", example.name))
        .find(|name| !is_taken(name))
        .filter(|_| is_taken(example.name));
    let request = CreateRequest {
        name: free.unwrap_or_else(|| example.name.to_owned()),
        manifest: example.manifest()?,
    };
    Ok(to(&submit(&web, Change::Create(request)).await?))
}

/// A question before a change, as a page or in a dialog.
struct Question {
    name: String,
    href: String,
    csrf: String,
    value: String,
    /// Whether a former name is to lead to the new one.
    redirect: bool,
    /// What was wrong with the last answer.
    wrong: Option<String>,
    children: Vec<String>,
    volumes: usize,
}

#[derive(Template)]
#[template(path = "rename.html")]
struct RenamePage {
    shell: Shell,
    question: Question,
}

#[derive(Template)]
#[template(path = "rename_part.html")]
struct RenamePart {
    question: Question,
}

#[derive(Template)]
#[template(path = "remove.html")]
struct RemovePage {
    shell: Shell,
    question: Question,
}

#[derive(Template)]
#[template(path = "remove_part.html")]
struct RemovePart {
    question: Question,
}

async fn question(context: &Context, environment: &str) -> Result<Question, Failure> {
    let found = find(&context.web, environment).await?;
    let all = context.web.platform.environments().await?;
    let is_child = |lineage: &offshoot_model::view::LineageView| lineage.id == found.id;
    Ok(Question {
        href: format!("/environments/{}", encode(&found.name)),
        csrf: context.session.csrf().to_owned(),
        value: String::new(),
        redirect: false,
        wrong: None,
        children: all
            .iter()
            .filter(|env| env.parent.as_ref().is_some_and(is_child))
            .map(|env| env.name.clone())
            .collect(),
        volumes: found.volumes.len(),
        name: found.name,
    })
}

fn ask_rename(context: &Context, question: Question) -> Result<Response, Failure> {
    if context.wants_part() {
        return html(&RenamePart { question });
    }
    html(&RenamePage {
        shell: context.shell(format!("Rename {}", question.name)),
        question,
    })
}

pub(super) async fn rename_form(
    context: Context,
    Path(environment): Path<String>,
) -> Result<Response, Failure> {
    let question = question(&context, &environment).await?;
    ask_rename(
        &context,
        Question {
            value: question.name.clone(),
            ..question
        },
    )
}

#[derive(Debug, Deserialize)]
pub(super) struct NameForm {
    name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct RenameForm {
    name: String,
    /// Whether the old name leads to the new one.
    #[serde(default)]
    redirect: String,
}

pub(super) async fn rename(
    context: Context,
    Path(environment): Path<String>,
    Form(RenameForm { name, redirect }): Form<RenameForm>,
) -> Result<Response, Failure> {
    let request = RenameRequest {
        name: name.trim().to_owned(),
        redirect: !redirect.is_empty(),
    };
    let change = Change::Rename(environment.clone(), request);
    match submit(&context.web, change).await {
        Ok(operation) => Ok(to(&operation)),
        Err(failure) => {
            let question = question(&context, &environment).await?;
            ask_rename(
                &context,
                Question {
                    value: name,
                    redirect: !redirect.is_empty(),
                    wrong: Some(format!(
                        "{}: {}",
                        failure.problem.what, failure.problem.next
                    )),
                    ..question
                },
            )
        }
    }
}

fn ask_remove(context: &Context, question: Question) -> Result<Response, Failure> {
    if context.wants_part() {
        return html(&RemovePart { question });
    }
    html(&RemovePage {
        shell: context.shell(format!("Remove {}", question.name)),
        question,
    })
}

pub(super) async fn remove_form(
    context: Context,
    Path(environment): Path<String>,
) -> Result<Response, Failure> {
    let question = question(&context, &environment).await?;
    ask_remove(&context, question)
}

/// Removes an environment whose name was typed.
pub(super) async fn remove(
    context: Context,
    Path(environment): Path<String>,
    Form(NameForm { name }): Form<NameForm>,
) -> Result<Response, Failure> {
    let question = question(&context, &environment).await?;
    if name.trim() != question.name {
        let wrong = format!("That is not the name. Type {} to remove it.", question.name);
        return ask_remove(
            &context,
            Question {
                value: name,
                wrong: Some(wrong),
                ..question
            },
        );
    }
    Ok(to(
        &submit(&context.web, Change::Remove(question.name)).await?
    ))
}
