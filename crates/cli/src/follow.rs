//! Waiting for an operation: shows it, and lets Ctrl-C cancel it or leave it to the daemon.

use offshoot_model::view::EnvironmentView;
use offshoot_model::{Code, Fault, Operation, OperationState, Problem};

use crate::api::{Client, Route, updates};
use crate::context::{Context, Format};
use crate::failure::{Failure, STATUS_PROBLEM};
use crate::progress::Display;
use crate::signals::Interrupts;

/// Whether a command waits for what it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub(crate) struct Wait {
    /// Return at once with the operation's id; `offshoot op show ID` tells how it goes
    #[arg(short, long)]
    pub(crate) detach: bool,
}

/// Follows an operation to its end and answers it. With `--detach` prints it at once and answers nothing.
///
/// # Errors
/// The problem of an operation that failed or was cancelled; a status when the person left it to the daemon.
pub(crate) async fn complete(
    context: &Context,
    operation: Operation,
    wait: Wait,
) -> Result<Option<Operation>, Failure> {
    if wait.detach {
        context.answer(&operation, || operation.id.to_string())?;
        return Ok(None);
    }
    let operation = follow(context, operation).await?;
    for notice in &operation.notices {
        context.warn(notice);
    }
    outcome(operation).map(Some)
}

/// Follows an operation to its end, then shows the environment that came of it, in words that `summary` finds.
pub(crate) async fn complete_and_show(
    context: &Context,
    operation: Operation,
    wait: Wait,
    summary: impl FnOnce(&Operation, &EnvironmentView) -> String,
) -> Result<(), Failure> {
    let Some(operation) = complete(context, operation, wait).await? else {
        return Ok(());
    };
    if context.format == Format::Json {
        return context.json(&operation);
    }
    if context.is_quiet() {
        return context.print(&operation.subject);
    }
    let route = Route::environment(&operation.subject);
    let view: EnvironmentView = context.client.get(&route).await?;
    context.print(&summary(&operation, &view))
}

/// Follows several operations, all already begun, one after the other. Goes on after a failure; the last failure is
/// answered, those before it are printed. Prints what was done: names for people; for programs the operation, or a
/// list when several were asked for.
pub(crate) async fn complete_all(
    context: &Context,
    begun: Vec<Result<Operation, Problem>>,
    wait: Wait,
) -> Result<(), Failure> {
    let mut done = Vec::new();
    let mut last: Option<Failure> = None;
    for operation in begun {
        let outcome = match operation {
            Ok(operation) => complete(context, operation, wait).await,
            Err(problem) => Err(problem.into()),
        };
        match outcome {
            Ok(operation) => done.extend(operation),
            Err(failure) => {
                if let Some(before) = last.replace(failure) {
                    before.report(context);
                }
            }
        }
    }
    if let Some(failure) = last {
        return Err(failure);
    }
    if wait.detach {
        return Ok(());
    }
    match (context.format, done.as_slice()) {
        (Format::Json, [only]) => context.json(only),
        (Format::Json, several) => context.json(&several),
        (Format::Table, several) => context.print(
            &several
                .iter()
                .map(|operation| format!("{}\n", operation.subject))
                .collect::<String>(),
        ),
    }
}

/// What a finished operation means for the command.
pub(crate) fn outcome(operation: Operation) -> Result<Operation, Failure> {
    if operation.state == OperationState::Done {
        return Ok(operation);
    }
    let how = format!("see `offshoot op show {}`", operation.id);
    let problem = operation.problem.unwrap_or_else(|| match operation.state {
        OperationState::Cancelled => Problem::new(
            Code::Cancelled,
            Fault::Request,
            format!(
                "the operation on {} was cancelled; nothing of it is left",
                operation.subject
            ),
            "",
        ),
        _ => Problem::new(
            Code::Internal,
            Fault::Offshoot,
            "the operation failed without saying why",
            how,
        ),
    });
    Err(problem.into())
}

/// Shows an operation that someone else began until it is final. Ctrl-C only ends the watching.
pub(crate) async fn follow_only(
    context: &Context,
    operation: Operation,
) -> Result<Operation, Failure> {
    let mut display = Display::new(context);
    display.update(&operation);
    let mut news = updates(&context.client, operation.id);
    let mut latest = operation;
    while let Some(update) = news.recv().await {
        match update {
            Ok(operation) => {
                display.update(&operation);
                latest = operation;
            }
            Err(problem) => {
                display.finish();
                return Err(lost(&latest, problem).into());
            }
        }
    }
    display.finish();
    Ok(latest)
}

/// Follows an operation until it is final.
async fn follow(context: &Context, operation: Operation) -> Result<Operation, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let mut display = Display::new(context);
    let id = operation.id;
    let mut latest = operation;
    display.update(&latest);
    let mut news = updates(&context.client, id);
    let mut cancelling = false;
    while !latest.state.is_final() {
        tokio::select! {
            update = news.recv() => match update {
                Some(Ok(operation)) => {
                    display.update(&operation);
                    latest = operation;
                }
                Some(Err(problem)) => {
                    display.finish();
                    return Err(lost(&latest, problem).into());
                }
                None => {
                    display.finish();
                    return Err(lost(&latest, Problem::internal("following the operation ended early")).into());
                }
            },
            _ = interrupts.next() => {
                if cancelling {
                    display.finish();
                    return Err(detached(context, &latest));
                }
                cancelling = true;
                display.line("cancelling; what was done is undone (Ctrl-C again: leave it to the daemon)");
                let client = context.client.clone();
                // Beside the loop, so that a second Ctrl-C is heard while the daemon does not answer.
                let refused = tokio::spawn(async move { cancel(&client, id).await });
                tokio::select! {
                    answer = refused => {
                        if let Ok(Err(problem)) = answer {
                            display.suspend(|| context.warn(&format!("it could not be cancelled: {}", problem.what)));
                        }
                    }
                    _ = interrupts.next() => {
                        display.finish();
                        return Err(detached(context, &latest));
                    }
                }
            }
        }
    }
    display.finish();
    Ok(latest)
}

/// Asks the daemon to cancel an operation.
pub(crate) async fn cancel(
    client: &Client,
    id: offshoot_model::OperationId,
) -> Result<Operation, Problem> {
    client
        .post_empty(&Route::to("operations").then(&id.to_string()).then("cancel"))
        .await
}

fn lost(operation: &Operation, mut problem: Problem) -> Problem {
    problem.details.push(format!(
        "the operation {} goes on as soon as the daemon runs",
        operation.id
    ));
    problem.next = format!(
        "look with `offshoot op show {}`; {}",
        operation.id, problem.next
    );
    problem
}

fn detached(context: &Context, operation: &Operation) -> Failure {
    if context.format == Format::Table {
        context.say(&format!(
            "The operation goes on without this command. Look with: offshoot op show {}",
            operation.id
        ));
    }
    Failure::Status(STATUS_PROBLEM)
}

#[cfg(test)]
mod tests {
    use offshoot_model::{OperationId, OperationKind};

    use super::*;

    fn operation(state: OperationState) -> Operation {
        Operation {
            id: OperationId::new(),
            kind: OperationKind::Create,
            environment: None,
            subject: "shop".to_owned(),
            parent: None,
            state,
            created: jiff::Timestamp::UNIX_EPOCH,
            ended: None,
            steps: Vec::new(),
            problem: None,
            report: None,
            swap: None,
            traffic: None,
            notices: Vec::new(),
        }
    }

    #[test]
    fn an_end_that_is_no_success_is_a_problem() {
        assert!(outcome(operation(OperationState::Done)).is_ok());
        let Err(Failure::Problem(problem)) = outcome(operation(OperationState::Cancelled)) else {
            panic!()
        };
        assert_eq!(problem.code, Code::Cancelled);
        let Err(Failure::Problem(problem)) = outcome(operation(OperationState::Failed)) else {
            panic!()
        };
        assert_eq!(problem.code, Code::Internal);
    }
}
