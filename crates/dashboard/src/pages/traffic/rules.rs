//! Rules: which requests go to which side whatever the shares are. Rules and conditions are added, moved and removed by buttons that send
//! the form, so that it needs no script.

use std::collections::HashSet;

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use offshoot_model::Problem;
use offshoot_model::traffic::{Field, Policy, Rule, Side, TRAFFIC_MAX, When};

use super::matter::{SEEN, changed_meanwhile, mark_of, replace, text_of, to_be_corrected};
use super::{bad, others, read};
use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::encode;
use crate::pages::change::to;
use crate::pages::find;

/// Most conditions of all rules together, and most bytes of their names and values: what one page holds.
const CONDITIONS_MAX: usize = 40;
const TEXT_MAX: usize = 4 << 10;
/// Most environments that are offered; others are typed.
const OFFERED_MAX: usize = 100;
/// What conditions are about: value and text.
const KINDS: [(&str, &str); 6] = [
    ("path", "path below"),
    ("method", "method"),
    ("header", "header field"),
    ("cookie", "cookie"),
    ("query", "query parameter"),
    ("client", "client's network"),
];

/// What one sends, in its order: fields repeat.
type Fields = Vec<(String, String)>;

/// A condition as it is typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Condition {
    kind: String,
    /// Of a header field, cookie or query parameter.
    name: String,
    /// One a line.
    values: String,
    wrong: Option<String>,
}

/// A rule as it is typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Line {
    to: String,
    conditions: Vec<Condition>,
    wrong: Option<String>,
}

/// What a button of the form does before anything is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    AddRule,
    Drop(usize),
    Up(usize),
    Down(usize),
    AddCondition(usize),
    DropCondition(usize, usize),
}

impl Act {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let what = words.next()?;
        let mut number = || words.next().and_then(|word| word.parse::<usize>().ok());
        Some(match what {
            "rule" => Self::AddRule,
            "drop" => Self::Drop(number()?),
            "up" => Self::Up(number()?),
            "down" => Self::Down(number()?),
            "condition" => Self::AddCondition(number()?),
            "without" => Self::DropCondition(number()?, number()?),
            _ => return None,
        })
    }
}

/// All that was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Typed {
    seen: String,
    lines: Vec<Line>,
    act: Option<Act>,
    /// The rule that was just changed, for the focus.
    at: Option<usize>,
}

impl Typed {
    fn of(policy: &Policy) -> Self {
        Self {
            seen: mark_of(&part(policy)),
            lines: policy.rules.iter().map(line).collect(),
            ..Self::default()
        }
    }

    /// The conditions of a rule come before who answers.
    fn read(fields: Fields) -> Self {
        let mut typed = Self::default();
        let mut conditions: Vec<Condition> = Vec::new();
        for (name, value) in fields {
            let last = conditions.last_mut();
            match (name.as_str(), last) {
                (SEEN, _) => typed.seen = value,
                ("act", _) => typed.act = Act::parse(&value),
                ("kind", _) => conditions.push(Condition {
                    kind: value,
                    ..Condition::default()
                }),
                ("name", Some(last)) => last.name = value.trim().to_owned(),
                // Forms send lines as on a teletype (HTML, 4.10.22.4).
                ("values", Some(last)) => last.values = value.replace("\r\n", "\n"),
                ("to", _) => typed.lines.push(Line {
                    to: value.trim().to_owned(),
                    conditions: std::mem::take(&mut conditions),
                    wrong: None,
                }),
                _ => {}
            }
        }
        typed
    }

    /// Does what a button says.
    fn act(&mut self, act: Act) -> Result<(), Problem> {
        let fresh = || Condition {
            kind: "path".to_owned(),
            ..Condition::default()
        };
        match act {
            Act::AddRule => {
                self.at = Some(self.lines.len());
                self.lines.push(Line {
                    conditions: vec![fresh()],
                    ..Line::default()
                });
            }
            Act::Drop(rule) if rule < self.lines.len() => {
                self.lines.remove(rule);
            }
            Act::Up(rule) if rule > 0 && rule < self.lines.len() => {
                self.lines.swap(rule, rule - 1);
                self.at = Some(rule - 1);
            }
            Act::Down(rule) if rule + 1 < self.lines.len() => {
                self.lines.swap(rule, rule + 1);
                self.at = Some(rule + 1);
            }
            Act::AddCondition(rule) => {
                if let Some(line) = self.lines.get_mut(rule) {
                    line.conditions.push(fresh());
                    self.at = Some(rule);
                }
            }
            Act::DropCondition(rule, condition) => {
                if let Some(line) = self.lines.get_mut(rule)
                    && condition < line.conditions.len()
                {
                    line.conditions.remove(condition);
                    self.at = Some(rule);
                }
            }
            Act::Drop(_) | Act::Up(_) | Act::Down(_) => {}
        }
        if self.fits() { Ok(()) } else { Err(too_many()) }
    }

    /// Whether a page has room for it.
    fn fits(&self) -> bool {
        let conditions = || self.lines.iter().flat_map(|line| &line.conditions);
        let text = conditions().map(|it| it.name.len() + it.values.len());
        let to = self.lines.iter().map(|line| line.to.len());
        self.lines.len() <= TRAFFIC_MAX
            && conditions().count() <= CONDITIONS_MAX
            && text.chain(to).sum::<usize>() <= TEXT_MAX
    }

    /// Changes the rules of a policy, and makes sides of those that they lead to: a side without a share answers by rules only. What is
    /// wrong is noted beside it.
    fn edit(&mut self, policy: &mut Policy, own: &str, others: &[String]) -> Result<(), Problem> {
        let known: HashSet<&str> = others
            .iter()
            .map(String::as_str)
            .chain(policy.sides.iter().map(|side| side.environment.as_str()))
            .chain([own])
            .collect();
        let mut rules = Vec::new();
        let mut wrong = false;
        for line in &mut self.lines {
            line.wrong = match () {
                () if line.conditions.is_empty() => Some("it needs a condition".to_owned()),
                () if line.to.is_empty() => Some("say which environment answers".to_owned()),
                () if !known.contains(line.to.as_str()) => Some(format!(
                    "there is no environment {:?} that could answer",
                    line.to
                )),
                () => None,
            };
            wrong |= line.wrong.is_some();
            let mut when = Vec::new();
            for condition in &mut line.conditions {
                match condition.read() {
                    Ok(read) => when.push(read),
                    Err(why) => {
                        condition.wrong = Some(why);
                        wrong = true;
                    }
                }
            }
            let to = line.to.clone();
            rules.push(Rule { when, to });
        }
        if wrong {
            return Err(to_be_corrected());
        }
        let answers_all = policy.sides.is_empty();
        let mut add = |name: &str, weight| {
            if !policy.sides.iter().any(|side| side.environment == name) {
                let environment = name.to_owned();
                policy.sides.push(Side {
                    environment,
                    weight,
                });
            }
        };
        if !rules.is_empty() && answers_all {
            add(own, 100);
        }
        for rule in &rules {
            add(&rule.to, 0);
        }
        policy.rules = rules;
        let alone = matches!(policy.sides.as_slice(), [side] if side.environment == own);
        if alone && policy.rules.is_empty() && policy.failover.is_none() {
            policy.sides.clear();
        }
        Ok(())
    }
}

impl Condition {
    fn read(&self) -> Result<When, String> {
        let lines = self.values.lines();
        let values = |trim: fn(&str) -> &str| {
            let values = lines.clone().map(trim).filter(|line| !line.is_empty());
            values.map(str::to_owned).collect::<Vec<_>>()
        };
        let field = |trim| Field {
            name: self.name.clone(),
            values: values(trim),
        };
        let when = match self.kind.as_str() {
            "path" => When::Path(self.values.trim().to_owned()),
            "method" => When::Method(read::words(&self.values.to_ascii_uppercase())),
            "header" => When::Header(field(str::trim)),
            "cookie" => When::Cookie(field(str::trim)),
            // Space is part of what a query parameter may be.
            "query" => When::Query(field(|line| line)),
            "client" => When::Client(read::words(&self.values)),
            other => return Err(format!("{other:?} is none of those that are offered")),
        };
        // The model judges a policy with nothing else in it, so what it says is about this condition.
        let alone = Policy {
            sides: vec![Side {
                environment: (),
                weight: 1,
            }],
            rules: vec![Rule {
                when: vec![when.clone()],
                to: (),
            }],
            ..Policy::default()
        };
        alone.check().map(|()| when)
    }

    /// Whether it has a name.
    fn is_named(&self) -> bool {
        matches!(self.kind.as_str(), "header" | "cookie" | "query")
    }
}

fn line(rule: &Rule) -> Line {
    let condition = |kind: &str, name: &str, values: &[String]| Condition {
        kind: kind.to_owned(),
        name: name.to_owned(),
        values: values.join("\n"),
        wrong: None,
    };
    let conditions = rule.when.iter().map(|when| match when {
        When::Path(path) => condition("path", "", std::slice::from_ref(path)),
        When::Method(methods) => condition("method", "", methods),
        When::Header(of) => condition("header", &of.name, &of.values),
        When::Cookie(of) => condition("cookie", &of.name, &of.values),
        When::Query(of) => condition("query", &of.name, &of.values),
        When::Client(networks) => condition("client", "", networks),
    });
    Line {
        to: rule.to.clone(),
        conditions: conditions.collect(),
        wrong: None,
    }
}

/// What of a policy the page is about.
fn part(policy: &Policy) -> String {
    let sides: Vec<_> = policy.sides.iter().map(|side| &side.environment).collect();
    text_of(&(&policy.rules, sides))
}

fn too_many() -> Problem {
    bad(
        format!(
            "a page has room for {TRAFFIC_MAX} rules with {CONDITIONS_MAX} conditions and {TEXT_MAX} bytes together"
        ),
        "set more of them with `offshoot traffic set -f`",
    )
}

/// A rule on the page.
struct Shown {
    /// Its place, from 0.
    place: usize,
    /// What people call it.
    number: usize,
    line: Line,
    is_last: bool,
    /// Whether it was just changed.
    focus: bool,
}

struct RulesForm {
    name: String,
    href: String,
    csrf: String,
    seen: String,
    rules: Vec<Shown>,
    /// Who could answer.
    offered: Vec<String>,
    /// Whether the policy has more rules than a page can hold.
    too_many: bool,
    problem: Option<Problem>,
}

#[derive(Template)]
#[template(path = "rules.html")]
struct Page {
    shell: Shell,
    form: RulesForm,
}

#[derive(Template)]
#[template(path = "rules_part.html")]
struct Part {
    form: RulesForm,
}

pub(in crate::pages) async fn form(
    context: Context,
    Path(environment): Path<String>,
) -> Result<Response, Failure> {
    show(&context, &environment, None).await
}

/// Takes the form: sets the rules, or does what one of its buttons says and shows it again.
pub(in crate::pages) async fn submit(
    context: Context,
    Path(environment): Path<String>,
    Form(fields): Form<Fields>,
) -> Result<Response, Failure> {
    let mut typed = Typed::read(fields);
    if let Some(act) = typed.act {
        let before = typed.clone();
        return match typed.act(act) {
            Ok(()) => show(&context, &environment, Some((typed, None))).await,
            Err(problem) => show(&context, &environment, Some((before, Some(problem)))).await,
        };
    }
    let found = find(&context.web, &environment).await?;
    let before = context.web.platform.traffic(&found.name).await?.policy;
    let others = others(&context, &found).await?;
    let mut after = before.clone();
    let now = mark_of(&part(&before));
    let problem = if typed.seen != now {
        typed.seen = now;
        changed_meanwhile("the rules", &found.name)
    } else if let Err(problem) = typed.edit(&mut after, &found.name, &others) {
        problem
    } else {
        match replace(&context, found.name, before, after).await {
            Ok(operation) => return Ok(to(&operation)),
            Err(failure) => failure.problem,
        }
    };
    show(&context, &environment, Some((typed, Some(problem)))).await
}

async fn show(
    context: &Context,
    environment: &str,
    sent: Option<(Typed, Option<Problem>)>,
) -> Result<Response, Failure> {
    let found = find(&context.web, environment).await?;
    let (typed, problem) = match sent {
        Some(sent) => sent,
        None => {
            let policy = context.web.platform.traffic(&found.name).await?.policy;
            (Typed::of(&policy), None)
        }
    };
    let mut offered = others(context, &found).await?;
    offered.insert(0, found.name.clone());
    offered.truncate(OFFERED_MAX);
    let form = RulesForm {
        href: format!("/environments/{}", encode(&found.name)),
        csrf: context.session.csrf().to_owned(),
        too_many: !typed.fits(),
        problem: problem.or_else(|| (!typed.fits()).then(too_many)),
        seen: typed.seen,
        rules: shown(typed.lines, typed.at),
        offered,
        name: found.name,
    };
    if context.wants_part() {
        return html(&Part { form });
    }
    html(&Page {
        shell: context.shell(format!("Rules of {}", form.name)),
        form,
    })
}

fn shown(lines: Vec<Line>, at: Option<usize>) -> Vec<Shown> {
    let count = lines.len();
    let lines = lines.into_iter().enumerate();
    lines
        .map(|(place, line)| Shown {
            place,
            number: place + 1,
            line,
            is_last: place + 1 == count,
            focus: at == Some(place),
        })
        .collect()
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
