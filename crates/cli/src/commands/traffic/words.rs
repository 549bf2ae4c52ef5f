//! What stands in the options of a policy: sides with their weights, rules, goals, what keeps a visitor.

use offshoot_model::traffic::{Field, Goal, Rule, Sticky, When};

fn pair<'a>(text: &'a str, example: &str) -> Result<(&'a str, &'a str), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.trim(), value.trim())),
        _ => Err(format!(
            "{text:?} has no name and value; write for instance {example}"
        )),
    }
}

/// `next=10`.
pub(super) fn weight(text: &str) -> Result<(String, u32), String> {
    let (name, weight) = pair(text, "next=10")?;
    let weight = weight.parse().map_err(|_| {
        format!("{weight:?} is not a weight; write a number, or use `traffic split` for shares")
    })?;
    Ok((name.to_owned(), weight))
}

/// `next=10%` in ten thousandths.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "within 0 and 10000"
)]
pub(super) fn share(text: &str) -> Result<(String, u32), String> {
    let (name, share) = pair(text, "next=10%")?;
    let percent = super::percent(share)?;
    Ok((name.to_owned(), (percent * 100.0).round() as u32))
}

/// `50` or `50/s`.
pub(super) fn per_second(text: &str) -> Result<u32, String> {
    let number = text.trim().trim_end_matches("/s").parse();
    number.map_err(|_| format!("{text:?} is not a rate; write for instance 50/s"))
}

/// `visitor`, `cookie:session`, ...
pub(super) fn sticky(text: &str) -> Result<Sticky, String> {
    let (kind, name) = text.split_once(':').unwrap_or((text, ""));
    match (kind, name) {
        ("visitor", "") => Ok(Sticky::Visitor),
        ("client", "") => Ok(Sticky::Client),
        ("nothing", "") => Ok(Sticky::Nothing),
        ("cookie", name) if !name.is_empty() => Ok(Sticky::Cookie(name.to_owned())),
        ("header", name) if !name.is_empty() => Ok(Sticky::Header(name.to_owned())),
        ("query", name) if !name.is_empty() => Ok(Sticky::Query(name.to_owned())),
        _ => Err(format!(
            "{text:?} keeps nobody; write visitor, client, cookie:NAME, header:NAME, query:NAME or nothing"
        )),
    }
}

/// `header:x-country=AT,CH & path:/new -> next`; nothing is no rule.
pub(super) fn rule(text: &str) -> Result<Option<Rule>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let Some((conditions, to)) = text.rsplit_once("->") else {
        return Err(format!("{text:?} leads nowhere; write 'CONDITION -> NAME'"));
    };
    let when = conditions.split('&').map(|one| condition(one.trim()));
    Ok(Some(Rule {
        when: when.collect::<Result<_, _>>()?,
        to: to.trim().to_owned(),
    }))
}

fn condition(text: &str) -> Result<When, String> {
    let list = |text: &str| text.split(',').map(|one| one.trim().to_owned()).collect();
    let field = |text: &str| match text.split_once('=') {
        Some((name, values)) => Field {
            name: name.trim().to_owned(),
            values: list(values),
        },
        None => Field {
            name: text.to_owned(),
            values: Vec::new(),
        },
    };
    match text.split_once(':') {
        Some(("path", path)) => Ok(When::Path(path.to_owned())),
        Some(("method", methods)) => Ok(When::Method(list(methods))),
        Some(("client", networks)) => Ok(When::Client(list(networks))),
        Some(("header", text)) => Ok(When::Header(field(text))),
        Some(("cookie", text)) => Ok(When::Cookie(field(text))),
        Some(("query", text)) => Ok(When::Query(field(text))),
        _ => Err(format!(
            "{text:?} is no condition; write path:, method:, client:, header:, cookie: or query: and what it must be"
        )),
    }
}

/// `paid=/thanks`, `ordered=/order:POST:200-299`; nothing is no goal.
pub(super) fn goal(text: &str) -> Result<Option<Goal>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let (name, rest) = pair(text, "paid=/thanks")?;
    let mut parts = rest.split(':');
    let path = parts.next().unwrap_or_default();
    let mut goal = Goal {
        name: name.to_owned(),
        path: (!path.is_empty()).then(|| path.to_owned()),
        method: None,
        statuses: (200, 399),
    };
    for part in parts {
        if part.starts_with(|c: char| c.is_ascii_digit()) {
            goal.statuses = statuses(part)?;
        } else {
            goal.method = Some(part.to_owned());
        }
    }
    Ok(Some(goal))
}

/// `200-299` or `204`.
pub(super) fn statuses(text: &str) -> Result<(u16, u16), String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.trim().parse(), to.trim().parse()) {
        (Ok(from), Ok(to)) => Ok((from, to)),
        _ => Err(format!("{text:?} is no status; write for instance 200-299")),
    }
}
