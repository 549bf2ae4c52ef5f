//! Forms that each change one matter of a policy and leave the rest: what they have in common. A matter tells its fields and takes what was
//! typed; what is wrong with it is said beside the field, with what was typed kept.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use askama::Template;
use axum::Router;
use axum::extract::Path;
use axum::response::Response;
use axum::routing::get;
use offshoot_model::traffic::Policy;
use offshoot_model::{Code, Fault, Operation, Problem};
use offshoot_operations::Request as Change;
use serde::Serialize;

use super::others;
use crate::Web;
use crate::answer::{Failure, Form, html};
use crate::context::{Context, Shell};
use crate::format::encode;
use crate::pages::change::to;
use crate::pages::find;

/// Most environments that a field offers; others are typed at the command line.
const OFFERED_MAX: usize = 200;
/// Name of the field that tells which state of the policy a form was made from.
pub(super) const SEEN: &str = "seen";

/// A part of a policy that has a page of its own.
pub(super) struct Matter {
    /// Last part of its address.
    pub(super) path: &'static str,
    /// What it is called.
    pub(super) title: &'static str,
    /// What it is for, in a sentence or two.
    pub(super) about: &'static str,
    /// What of a policy it is about: when this changed, somebody else was here.
    pub(super) part: fn(&Policy) -> String,
    /// What its fields say for a policy.
    pub(super) typed: fn(&Policy) -> Typed,
    /// Its fields, with environments that can be chosen.
    pub(super) groups: fn(&[String]) -> Vec<Group>,
    /// Changes a policy; what is wrong, by field.
    pub(super) edit: fn(&Typed, &mut Policy) -> Result<(), Wrong>,
}

/// What was typed, by the name of its field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Typed(HashMap<String, String>);

impl Typed {
    pub(super) fn put(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// What stands in a field, without space around it.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", |text| text.trim())
    }

    /// Whether a switch is on.
    pub(super) fn is_on(&self, name: &str) -> bool {
        !self.get(name).is_empty()
    }
}

impl<const N: usize> From<[(&str, String); N]> for Typed {
    fn from(fields: [(&str, String); N]) -> Self {
        let owned = fields.map(|(name, value)| (name.to_owned(), value));
        Self(owned.into())
    }
}

/// What is wrong, by the name of the field.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wrong(Vec<(&'static str, String)>);

impl Wrong {
    pub(super) fn add(&mut self, field: &'static str, why: impl Into<String>) {
        self.0.push((field, why.into()));
    }

    /// What was read; otherwise what is usual, and it is noted why.
    pub(super) fn or<T>(&mut self, field: &'static str, read: Result<T, String>, usual: T) -> T {
        read.unwrap_or_else(|why| {
            self.add(field, why);
            usual
        })
    }

    /// Notes what a policy with only this field in it says about it.
    pub(super) fn judge(&mut self, field: &'static str, policy: &Policy) {
        let said = self.0.iter().any(|(name, _)| *name == field);
        if let (Err(why), false) = (policy.check(), said) {
            self.add(field, why);
        }
    }

    pub(super) fn end(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// What is wrong with a field.
    pub(super) fn of(&self, field: &str) -> Option<String> {
        let found = self.0.iter().find(|(name, _)| *name == field);
        found.map(|(_, why)| why.clone())
    }
}

/// Fields that belong together.
pub(super) struct Group {
    /// What they are about; empty where the page says it.
    pub(super) legend: &'static str,
    pub(super) fields: Vec<Field>,
}

/// A field of a form.
pub(super) struct Field {
    name: &'static str,
    label: &'static str,
    hint: &'static str,
    usual: &'static str,
    kind: Kind,
    value: String,
    wrong: Option<String>,
}

enum Kind {
    /// One line of text.
    Line,
    /// Yes or no.
    Switch,
    /// One of these: value and text.
    Choice(Vec<(String, String)>),
}

impl Field {
    fn new(name: &'static str, label: &'static str, kind: Kind) -> Self {
        Self {
            name,
            label,
            hint: "",
            usual: "",
            kind,
            value: String::new(),
            wrong: None,
        }
    }

    /// A line of text; `usual` stands in it while it is empty.
    pub(super) fn line(name: &'static str, label: &'static str, usual: &'static str) -> Self {
        let field = Self::new(name, label, Kind::Line);
        Self { usual, ..field }
    }

    pub(super) fn switch(name: &'static str, label: &'static str) -> Self {
        Self::new(name, label, Kind::Switch)
    }

    pub(super) fn choice(
        name: &'static str,
        label: &'static str,
        of: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        Self::new(name, label, Kind::Choice(of.into_iter().collect()))
    }

    pub(super) fn hint(self, hint: &'static str) -> Self {
        Self { hint, ..self }
    }

    fn is_line(&self) -> bool {
        matches!(self.kind, Kind::Line)
    }

    fn is_switch(&self) -> bool {
        matches!(self.kind, Kind::Switch)
    }

    fn choices(&self) -> &[(String, String)] {
        match &self.kind {
            Kind::Choice(choices) => choices,
            _ => &[],
        }
    }
}

struct MatterForm {
    name: String,
    href: String,
    csrf: String,
    seen: String,
    path: &'static str,
    title: &'static str,
    about: &'static str,
    groups: Vec<Group>,
    problem: Option<Problem>,
}

#[derive(Template)]
#[template(path = "matter.html")]
struct Page {
    shell: Shell,
    form: MatterForm,
}

#[derive(Template)]
#[template(path = "matter_part.html")]
struct Part {
    form: MatterForm,
}

/// A mark of a state: another state has another one.
pub(super) fn mark_of(part: &str) -> String {
    let mut hasher = DefaultHasher::new();
    part.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// A part of a policy as text, for [`mark_of`].
pub(super) fn text_of(part: &impl Serialize) -> String {
    serde_json::to_string(part).unwrap_or_default()
}

/// Somebody else changed the same since the form was made.
pub(super) fn changed_meanwhile(what: &str, name: &str) -> Problem {
    Problem::new(
        Code::WrongState,
        Fault::Request,
        format!(
            "{what} of {name} changed since you began, by somebody else or by you in another window"
        ),
        "open the page anew to see what it is now; what you typed is still here, and is what it will be if you send it again",
    )
}

/// Something in a form has to be corrected.
pub(super) fn to_be_corrected() -> Problem {
    Problem::new(
        Code::PolicyInvalid,
        Fault::Request,
        "not all of it can be carried out",
        "correct what is marked",
    )
}

/// Has a policy take the place of the one that was seen.
pub(super) async fn replace(
    context: &Context,
    environment: String,
    before: Policy,
    after: Policy,
) -> Result<Operation, Failure> {
    after.check().map_err(|why| {
        Problem::new(
            Code::PolicyInvalid,
            Fault::Request,
            why,
            "correct it; `offshoot traffic set --help` tells all that a policy can have",
        )
    })?;
    let change = Change::TrafficReplace {
        environment,
        before: Box::new(before),
        after,
    };
    crate::pages::submit(&context.web, change).await
}

/// Adds the page of a matter.
pub(super) fn route(router: Router<Web>, matter: &'static Matter) -> Router<Web> {
    let path = format!("/environments/{{environment}}/traffic/{}", matter.path);
    let form = async move |context: Context, Path(environment): Path<String>| {
        show(&context, &environment, matter, None).await
    };
    let submit = async move |context: Context,
                             Path(environment): Path<String>,
                             Form(fields): Form<HashMap<String, String>>| {
        submit(&context, &environment, matter, fields).await
    };
    router.route(&path, get(form).post(submit))
}

async fn submit(
    context: &Context,
    environment: &str,
    matter: &Matter,
    fields: HashMap<String, String>,
) -> Result<Response, Failure> {
    let typed = Typed(fields);
    let found = find(&context.web, environment).await?;
    let before = context.web.platform.traffic(&found.name).await?.policy;
    let mut after = before.clone();
    let (wrong, problem) = if typed.get(SEEN) != mark_of(&(matter.part)(&before)) {
        let problem = changed_meanwhile(matter.title, &found.name);
        (Wrong::default(), problem)
    } else if let Err(wrong) = (matter.edit)(&typed, &mut after) {
        (wrong, to_be_corrected())
    } else {
        match replace(context, found.name, before, after).await {
            Ok(operation) => return Ok(to(&operation)),
            Err(failure) => (Wrong::default(), failure.problem),
        }
    };
    show(context, environment, matter, Some((typed, wrong, problem))).await
}

async fn show(
    context: &Context,
    environment: &str,
    matter: &Matter,
    sent: Option<(Typed, Wrong, Problem)>,
) -> Result<Response, Failure> {
    let found = find(&context.web, environment).await?;
    let policy = context.web.platform.traffic(&found.name).await?.policy;
    let mut offered = others(context, &found).await?;
    offered.truncate(OFFERED_MAX);
    let (typed, wrong, problem) = match sent {
        Some((typed, wrong, problem)) => (typed, wrong, Some(problem)),
        None => ((matter.typed)(&policy), Wrong::default(), None),
    };
    let mut groups = (matter.groups)(&offered);
    for field in groups.iter_mut().flat_map(|group| &mut group.fields) {
        field.value = typed.get(field.name).to_owned();
        field.wrong = wrong.of(field.name);
        if let Kind::Choice(choices) = &mut field.kind
            && !choices.iter().any(|(value, _)| *value == field.value)
        {
            choices.push((field.value.clone(), field.value.clone()));
        }
    }
    let form = MatterForm {
        href: format!("/environments/{}", encode(&found.name)),
        csrf: context.session.csrf().to_owned(),
        seen: mark_of(&(matter.part)(&policy)),
        path: matter.path,
        title: matter.title,
        about: matter.about,
        groups,
        problem,
        name: found.name,
    };
    if context.wants_part() {
        return html(&Part { form });
    }
    html(&Page {
        shell: context.shell(format!("{} of {}", form.title, form.name)),
        form,
    })
}
