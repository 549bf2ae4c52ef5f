//! Ways to lead people to another environment while it is watched: a ramp, and a promotion.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use offshoot_model::Problem;
use offshoot_model::traffic::compare::Guard;
use offshoot_model::traffic::view::{PromoteRequest, RampRequest};
use offshoot_operations::Request as Change;
use serde::Deserialize;

use super::{bad, number, others, swap, time};
use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::encode;
use crate::pages::change::to;
use crate::pages::find;

/// What was typed or chosen in either form; empty is what is usual.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::pages) struct Choice {
    of: String,
    to: String,
    steps: String,
    every: String,
    watch: String,
    baseline: String,
    keep: String,
    fence: String,
    paths: String,
    answers: String,
    timeout: String,
    errors: String,
    latency: String,
    min: String,
}

impl Choice {
    fn guard(&self) -> Result<Guard, Problem> {
        let usual = Guard::default();
        let latency = self.latency.trim().trim_end_matches(['x', '×']);
        let guard = Guard {
            errors_percent: number("more errors", &self.errors)?.unwrap_or(usual.errors_percent),
            latency_factor: number("a longer p95", latency)?.unwrap_or(usual.latency_factor),
            min_requests: number("requests to judge by", &self.min)?.unwrap_or(usual.min_requests),
        };
        match guard.check() {
            Ok(()) => Ok(guard),
            Err(why) => Err(bad(why, "correct it, or leave it empty for what is usual")),
        }
    }

    fn ramp(&self) -> Result<RampRequest, Problem> {
        let words = self.steps.split([',', ' ', ';', '%']);
        let steps = words.filter(|word| !word.is_empty()).map(|word| {
            word.parse().map_err(|_| {
                bad(
                    format!("{word:?} is no share"),
                    "write shares in percent, growing: 1, 10, 50, 100",
                )
            })
        });
        let mut request = RampRequest {
            to: self.to.clone(),
            steps: steps.collect::<Result<_, _>>()?,
            every_ms: time("the time at each share", &self.every)?.unwrap_or(600_000),
            guard: self.guard()?,
        };
        if request.steps.is_empty() {
            request.steps = vec![1, 10, 50, 100];
        }
        Ok(request)
    }

    fn promote(&self) -> Result<PromoteRequest, Problem> {
        let usual = PromoteRequest::default();
        Ok(PromoteRequest {
            of: Some(self.of.clone()).filter(|of| !of.is_empty()),
            warm: swap::warm(&self.paths, &self.answers, &self.timeout)?,
            baseline_ms: time("the time before", &self.baseline)?.unwrap_or(usual.baseline_ms),
            watch_ms: time("the watch", &self.watch)?.unwrap_or(usual.watch_ms),
            guard: self.guard()?,
            keep_ms: time("how long the old side is kept", &self.keep)?,
            fence: !self.fence.is_empty(),
        })
    }

    /// Whether something else than what is usual stands in the options.
    fn has_options(&self) -> bool {
        let typed = [
            &self.baseline,
            &self.keep,
            &self.fence,
            &self.paths,
            &self.answers,
            &self.timeout,
            &self.errors,
            &self.latency,
            &self.min,
        ];
        typed.iter().any(|typed| !typed.trim().is_empty())
    }
}

struct WayForm {
    name: String,
    href: String,
    csrf: String,
    others: Vec<String>,
    /// For a promotion, whose domains it would get.
    parent: Option<String>,
    /// Whether options are to be seen.
    options_open: bool,
    choice: Choice,
    problem: Option<Problem>,
}

#[derive(Template)]
#[template(path = "ramp.html")]
struct RampPage {
    shell: Shell,
    form: WayForm,
}

#[derive(Template)]
#[template(path = "ramp_part.html")]
struct RampPart {
    form: WayForm,
}

#[derive(Template)]
#[template(path = "promote.html")]
struct PromotePage {
    shell: Shell,
    form: WayForm,
}

#[derive(Template)]
#[template(path = "promote_part.html")]
struct PromotePart {
    form: WayForm,
}

async fn way(
    context: &Context,
    environment: &str,
    choice: Choice,
    problem: Option<Problem>,
) -> Result<WayForm, Failure> {
    let found = find(&context.web, environment).await?;
    let others = others(context, &found).await?;
    let parent = found.parent.map(|parent| parent.name);
    Ok(WayForm {
        href: format!("/environments/{}", encode(&found.name)),
        csrf: context.session.csrf().to_owned(),
        parent: parent.filter(|parent| others.contains(parent)),
        others,
        options_open: choice.has_options(),
        choice,
        problem,
        name: found.name,
    })
}

/// Begins what was asked for, or shows the form again with what is wrong.
async fn begin(
    context: &Context,
    environment: &str,
    choice: Choice,
    change: Result<Change, Problem>,
    show: fn(&Context, WayForm) -> Result<Response, Failure>,
) -> Result<Response, Failure> {
    let begun = match change {
        Ok(change) => crate::pages::submit(&context.web, change).await,
        Err(problem) => Err(problem.into()),
    };
    match begun {
        Ok(operation) => Ok(to(&operation)),
        Err(failure) => {
            let form = way(context, environment, choice, Some(failure.problem)).await?;
            show(context, form)
        }
    }
}

fn show_ramp(context: &Context, form: WayForm) -> Result<Response, Failure> {
    if context.wants_part() {
        return html(&RampPart { form });
    }
    html(&RampPage {
        shell: context.shell(format!("Ramp from {}", form.name)),
        form,
    })
}

fn show_promote(context: &Context, form: WayForm) -> Result<Response, Failure> {
    if context.wants_part() {
        return html(&PromotePart { form });
    }
    html(&PromotePage {
        shell: context.shell(format!("Promote {}", form.name)),
        form,
    })
}

pub(in crate::pages) async fn ramp_form(
    context: Context,
    Path(environment): Path<String>,
) -> Result<Response, Failure> {
    let choice = Choice {
        steps: "1, 10, 50, 100".to_owned(),
        ..Choice::default()
    };
    show_ramp(&context, way(&context, &environment, choice, None).await?)
}

/// Sends more and more requests to another environment.
pub(in crate::pages) async fn ramp(
    context: Context,
    Path(environment): Path<String>,
    Form(choice): Form<Choice>,
) -> Result<Response, Failure> {
    let request = choice.ramp();
    let change = request.map(|request| Change::TrafficRamp(environment.clone(), request));
    begin(&context, &environment, choice, change, show_ramp).await
}

pub(in crate::pages) async fn promote_form(
    context: Context,
    Path(environment): Path<String>,
) -> Result<Response, Failure> {
    let form = way(&context, &environment, Choice::default(), None).await?;
    show_promote(&context, form)
}

/// Gives an environment its parent's domains, and watches how it does.
pub(in crate::pages) async fn promote(
    context: Context,
    Path(environment): Path<String>,
    Form(choice): Form<Choice>,
) -> Result<Response, Failure> {
    let request = choice.promote();
    let change = request.map(|request| Change::Promote(environment.clone(), request));
    begin(&context, &environment, choice, change, show_promote).await
}
