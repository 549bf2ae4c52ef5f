//! Shares: who answers how much, what keeps a visitor on a side, and what counts as a success.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use offshoot_model::traffic::{Goal, Policy, Side, Sticky, WEIGHT_MAX};
use offshoot_model::{Code, Fault, Operation, Problem};

use super::matter::{self, mark_of};
use super::{bad, figures, others};
use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::encode;
use crate::pages::change::to;
use crate::pages::find;

/// What one sends, in its order: fields repeat.
type Fields = Vec<(String, String)>;

/// A side as it is typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Typed {
    environment: String,
    weight: String,
    /// Whether it is to leave.
    leaves: bool,
}

/// What was typed or chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Choice {
    sides: Vec<Typed>,
    add: String,
    add_weight: String,
    sticky: String,
    sticky_name: String,
    goals: String,
    /// Which state of the policy it was made from.
    seen: String,
}

impl Choice {
    /// What a policy has now; without sides the environment answers all.
    fn of(policy: &Policy, own: &str) -> Self {
        let sum: u64 = policy.sides.iter().map(|side| u64::from(side.weight)).sum();
        let typed = |side: &Side| Typed {
            environment: side.environment.clone(),
            weight: weight_text(side.weight, sum),
            leaves: false,
        };
        let own = Typed {
            environment: own.to_owned(),
            weight: "100".to_owned(),
            leaves: false,
        };
        let (sticky, name) = match &policy.sticky {
            Sticky::Visitor => ("visitor", ""),
            Sticky::Client => ("client", ""),
            Sticky::Cookie(name) => ("cookie", name.as_str()),
            Sticky::Header(name) => ("header", name.as_str()),
            Sticky::Query(name) => ("query", name.as_str()),
            Sticky::Nothing => ("nothing", ""),
        };
        Self {
            sides: if policy.sides.is_empty() {
                vec![own]
            } else {
                policy.sides.iter().map(typed).collect()
            },
            sticky: sticky.to_owned(),
            sticky_name: name.to_owned(),
            goals: policy.goals.iter().map(goal_line).collect(),
            seen: mark_of(&part(policy)),
            ..Self::default()
        }
    }

    fn read(fields: Fields) -> Self {
        let mut choice = Self::default();
        let mut leaving = Vec::new();
        for (name, value) in fields {
            match name.as_str() {
                "side" => choice.sides.push(Typed {
                    environment: value,
                    ..Typed::default()
                }),
                "weight" => {
                    if let Some(side) = choice.sides.last_mut() {
                        side.weight = value;
                    }
                }
                "leaves" => leaving.push(value),
                matter::SEEN => choice.seen = value,
                "add" => choice.add = value,
                "add_weight" => choice.add_weight = value,
                "sticky" => choice.sticky = value,
                "sticky_name" => choice.sticky_name = value,
                "goals" => choice.goals = value,
                _ => {}
            }
        }
        for side in &mut choice.sides {
            side.leaves = leaving.contains(&side.environment);
        }
        choice
    }

    /// Changes what it is about and leaves the rest of a policy.
    fn edit(&self, policy: &mut Policy, own: &str) -> Result<(), Problem> {
        let staying = self.sides.iter().filter(|side| !side.leaves);
        let mut typed: Vec<_> = staying
            .map(|side| (side.environment.clone(), side.weight.as_str()))
            .collect();
        if !self.add.is_empty() {
            typed.push((self.add.clone(), self.add_weight.as_str()));
        }
        let numbers = typed.iter().map(|(name, text)| hundredths(name, text));
        let mut weights = numbers.collect::<Result<Vec<_>, _>>()?;
        if weights.iter().all(|weight| weight % 100 == 0) {
            weights.iter_mut().for_each(|weight| *weight /= 100);
        }
        let sides = typed.into_iter().zip(weights);
        policy.sides = sides
            .map(|((environment, _), weight)| Side {
                environment,
                weight,
            })
            .collect();
        let alone = matches!(policy.sides.as_slice(), [side] if side.environment == own);
        if alone && policy.rules.is_empty() && policy.failover.is_none() {
            policy.sides.clear();
        }
        policy.sticky = self.sticky()?;
        policy.goals = self
            .goals
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(goal)
            .collect::<Result<_, _>>()?;
        policy.check().map_err(|why| {
            Problem::new(
                Code::PolicyInvalid,
                Fault::Request,
                why,
                "correct the shares; `offshoot traffic set --help` tells all that a policy can have",
            )
        })
    }

    fn sticky(&self) -> Result<Sticky, Problem> {
        let name = self.sticky_name.trim().to_owned();
        match (self.sticky.as_str(), name.is_empty()) {
            ("visitor" | "", _) => Ok(Sticky::Visitor),
            ("client", _) => Ok(Sticky::Client),
            ("nothing", _) => Ok(Sticky::Nothing),
            ("cookie", false) => Ok(Sticky::Cookie(name)),
            ("header", false) => Ok(Sticky::Header(name)),
            ("query", false) => Ok(Sticky::Query(name)),
            ("cookie" | "header" | "query", true) => Err(bad(
                format!(
                    "the {} that keeps a visitor on a side has no name",
                    self.sticky
                ),
                "write its name",
            )),
            (other, _) => Err(bad(
                format!("{other:?} keeps nobody on a side"),
                "choose one of those that are offered",
            )),
        }
    }
}

/// Weights with a large sum are shares in ten thousandths, as the command line sets them.
fn weight_text(weight: u32, sum: u64) -> String {
    if sum <= 100 {
        return weight.to_string();
    }
    let percent = f64::from(weight) * 100.0 / sum as f64;
    let text = format!("{percent:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A weight with up to two decimals.
fn hundredths(side: &str, text: &str) -> Result<u32, Problem> {
    let text = text.trim().trim_end_matches('%').trim_end();
    let most = f64::from(WEIGHT_MAX / 100);
    match text.parse::<f64>() {
        Ok(number) if (0.0..=most).contains(&number) => Ok((number * 100.0).round() as u32),
        _ => Err(bad(
            format!("{text:?} is no share for {side}"),
            "write a number from 0 on, with two decimals at most",
        )),
    }
}

/// `paid /thanks POST 200-299`.
fn goal_line(goal: &Goal) -> String {
    let mut line = format!("{} {}", goal.name, goal.path.as_deref().unwrap_or("*"));
    if let Some(method) = &goal.method {
        line.push_str(&format!(" {method}"));
    }
    if goal.statuses != (200, 399) {
        line.push_str(&format!(" {}-{}", goal.statuses.0, goal.statuses.1));
    }
    line.push('\n');
    line
}

fn goal(line: &str) -> Result<Goal, Problem> {
    let wrong = || {
        bad(
            format!("{line:?} is no goal"),
            "write a name and a path (* is any), then a method and statuses if it has some: paid /thanks POST 200-299",
        )
    };
    let mut words = line.split_whitespace();
    let name = words.next().ok_or_else(wrong)?.to_owned();
    let path = words
        .next()
        .filter(|path| *path == "*" || path.starts_with('/'));
    let path = path.ok_or_else(wrong)?;
    let mut goal = Goal {
        name,
        path: (path != "*").then(|| path.to_owned()),
        method: None,
        statuses: (200, 399),
    };
    for word in words {
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let (from, to) = word.split_once('-').unwrap_or((word, word));
            goal.statuses = from.parse().ok().zip(to.parse().ok()).ok_or_else(wrong)?;
        } else {
            goal.method = Some(word.to_owned());
        }
    }
    Ok(goal)
}

struct Line {
    typed: Typed,
    share: String,
}

struct SplitForm {
    name: String,
    href: String,
    csrf: String,
    lines: Vec<Line>,
    /// Where sliders end.
    most: String,
    /// Who could be added.
    others: Vec<String>,
    choice: Choice,
    options_open: bool,
    /// Rules that go before shares.
    rules: usize,
    /// Which state of the policy it is made from.
    seen: String,
    problem: Option<Problem>,
}

#[derive(Template)]
#[template(path = "split.html")]
struct Page {
    shell: Shell,
    form: SplitForm,
}

#[derive(Template)]
#[template(path = "split_part.html")]
struct Part {
    form: SplitForm,
}

pub(in crate::pages) async fn form(
    context: Context,
    Path(environment): Path<String>,
) -> Result<Response, Failure> {
    show(&context, &environment, None, None).await
}

/// Takes the form. What is wrong with it is said in it.
pub(in crate::pages) async fn submit(
    context: Context,
    Path(environment): Path<String>,
    Form(fields): Form<Fields>,
) -> Result<Response, Failure> {
    let choice = Choice::read(fields);
    match begin(&context, &environment, &choice).await {
        Ok(operation) => Ok(to(&operation)),
        Err(failure) => show(&context, &environment, Some(choice), Some(failure.problem)).await,
    }
}

/// What of a policy the page is about.
fn part(policy: &Policy) -> String {
    matter::text_of(&(&policy.sides, &policy.sticky, &policy.goals))
}

async fn begin(
    context: &Context,
    environment: &str,
    choice: &Choice,
) -> Result<Operation, Failure> {
    let found = find(&context.web, environment).await?;
    let before = context.web.platform.traffic(&found.name).await?.policy;
    if choice.seen != mark_of(&part(&before)) {
        return Err(matter::changed_meanwhile("the shares", &found.name).into());
    }
    let mut after = before.clone();
    choice.edit(&mut after, &found.name)?;
    matter::replace(context, found.name, before, after).await
}

async fn show(
    context: &Context,
    environment: &str,
    choice: Option<Choice>,
    problem: Option<Problem>,
) -> Result<Response, Failure> {
    let found = find(&context.web, environment).await?;
    let policy = context.web.platform.traffic(&found.name).await?.policy;
    let choice = choice.unwrap_or_else(|| Choice::of(&policy, &found.name));
    let seen = mark_of(&part(&policy));
    let numbers = choice.sides.iter().map(|side| {
        let number = side.weight.trim().parse::<f64>().ok();
        number.filter(|number| number.is_finite() && *number >= 0.0)
    });
    let numbers: Vec<_> = numbers.map(Option::unwrap_or_default).collect();
    let sum: f64 = numbers.iter().sum();
    let lines = choice
        .sides
        .iter()
        .zip(&numbers)
        .map(|(typed, number)| Line {
            typed: typed.clone(),
            share: figures::percent(if sum > 0.0 { number / sum } else { 0.0 }),
        });
    let others = others(context, &found).await?;
    let is_side = |name: &String| choice.sides.iter().any(|side| side.environment == *name);
    let mut addable: Vec<_> = others.into_iter().filter(|name| !is_side(name)).collect();
    if !is_side(&found.name) {
        addable.insert(0, found.name.clone());
    }
    let form = SplitForm {
        href: format!("/environments/{}", encode(&found.name)),
        csrf: context.session.csrf().to_owned(),
        lines: lines.collect(),
        most: numbers.iter().copied().fold(100.0, f64::max).to_string(),
        others: addable,
        options_open: !choice.goals.trim().is_empty(),
        rules: policy.rules.len(),
        seen,
        choice,
        problem,
        name: found.name,
    };
    if context.wants_part() {
        return html(&Part { form });
    }
    html(&Page {
        shell: context.shell(format!("Shares of {}", form.name)),
        form,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(pair).collect()
    }

    fn weights(policy: &Policy) -> Vec<(&str, u32)> {
        let side = |side: &'_ Side| side.weight;
        let names = policy.sides.iter().map(|side| side.environment.as_str());
        names.zip(policy.sides.iter().map(side)).collect()
    }

    #[test]
    fn sides_are_changed_added_and_leave() {
        let mut policy = Policy::default();
        let choice = Choice::of(&policy, "shop");
        assert_eq!(choice.sides[0].weight, "100");
        let choice = Choice::read(fields(&[
            ("csrf", "x"),
            ("side", "shop"),
            ("weight", "89.5"),
            ("add", "next"),
            ("add_weight", "10.5"),
            ("sticky", "cookie"),
            ("sticky_name", " sid "),
            ("goals", "paid /thanks\r\n\r\nordered * POST 201"),
        ]));
        choice.edit(&mut policy, "shop").unwrap();
        assert_eq!(weights(&policy), [("shop", 8_950), ("next", 1_050)]);
        assert_eq!(policy.sticky, Sticky::Cookie("sid".to_owned()));
        assert_eq!(policy.goals[1].statuses, (201, 201));
        // What is shown is what was typed, and the same again when it is sent.
        let shown = Choice::of(&policy, "shop");
        assert_eq!(shown.sides[0].weight, "89.5");
        assert_eq!(shown.goals, "paid /thanks\nordered * POST 201-201\n");
        let mut again = policy.clone();
        shown.edit(&mut again, "shop").unwrap();
        assert_eq!(again, policy);
        let choice = Choice::read(fields(&[
            ("side", "shop"),
            ("weight", "90"),
            ("side", "next"),
            ("weight", "10"),
            ("leaves", "next"),
        ]));
        choice.edit(&mut policy, "shop").unwrap();
        assert_eq!(policy, Policy::default(), "it answers all by itself");
    }

    #[test]
    fn what_cannot_be_is_said() {
        for (typed, says) in [
            (
                &[("side", "shop"), ("weight", "-1")][..],
                "no share for shop",
            ),
            (
                &[("side", "shop"), ("weight", "NaN")][..],
                "no share for shop",
            ),
            (&[("side", "shop"), ("weight", "0")][..], "needs a weight"),
            (&[("sticky", "cookie")][..], "has no name"),
            (&[("sticky", "luck")][..], "keeps nobody"),
            (&[("goals", "paid")][..], "is no goal"),
            (&[("goals", "paid thanks")][..], "is no goal"),
            (
                &[
                    ("side", "shop"),
                    ("weight", "1"),
                    ("add", "shop"),
                    ("add_weight", "1"),
                ][..],
                "twice",
            ),
        ] {
            let choice = Choice::read(fields(typed));
            let mut policy = Policy::default();
            let outcome = choice.edit(&mut policy, "other");
            assert!(outcome.unwrap_err().what.contains(says), "{typed:?}");
        }
    }

    #[test]
    fn sides_that_are_checked_stay_sides() {
        let mut policy = Policy {
            failover: Some(offshoot_model::traffic::Failover::default()),
            ..Policy::default()
        };
        let choice = Choice::of(&policy, "shop");
        choice.edit(&mut policy, "shop").unwrap();
        assert_eq!(weights(&policy), [("shop", 100)]);
    }
}
