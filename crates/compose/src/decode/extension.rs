//! `x-offshoot` of a service: what Compose has no word for.

use offshoot_model::manifest::{CloneMode, ImageSource, Role, Scaling};

use super::{Context, packages};
use crate::diagnostic::Report;
use crate::field::{At, closest};

/// What the extension says; absent parts are `None`.
#[derive(Debug, Default)]
pub(super) struct Extension {
    pub(super) role: Option<Role>,
    pub(super) scaling: Option<Scaling>,
    pub(super) clone: Option<CloneMode>,
    pub(super) entry: Entry,
    pub(super) jobs: bool,
    pub(super) image: Option<ImageSource>,
}

/// Where the edge sends people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Entry {
    /// Not said: may be guessed.
    #[default]
    Unsaid,
    /// `entry: false`: not this layer.
    No,
    /// This port.
    Port(u16),
}

/// Decodes the extension of a service.
pub(super) fn decode(at: &At<'_>, context: &mut Context<'_>, report: &mut Report) -> Extension {
    let mut fields = at.fields(report);
    let mut extension = Extension::default();
    if let Some(at) = fields.get("role") {
        extension.role = choice(&at, &ROLES, report);
    }
    if let Some(at) = fields.get("scaling") {
        extension.scaling = choice(
            &at,
            &[
                ("stateful", Scaling::Stateful),
                ("stateless", Scaling::Stateless),
            ],
            report,
        );
    }
    if let Some(at) = fields.get("clone") {
        let modes = [
            ("each", CloneMode::Each),
            ("master", CloneMode::Master),
            ("image", CloneMode::Image),
        ];
        extension.clone = choice(&at, &modes, report);
    }
    if let Some(at) = fields.get("entry") {
        if at
            .node
            .text()
            .is_some_and(|text| matches!(text, "false" | "no" | "none"))
        {
            extension.entry = Entry::No;
        } else if let Some(port) = at
            .number(report, 1, 65_535)
            .and_then(|n| u16::try_from(n).ok())
        {
            extension.entry = Entry::Port(port);
        }
    }
    if let Some(at) = fields.get("jobs") {
        extension.jobs = at.boolean(report).unwrap_or_default();
    }
    if let Some(at) = fields.get("packages") {
        extension.image = packages::decode(&at, context, report).map(ImageSource::Packages);
    }
    fields.finish(report);
    extension
}

const ROLES: [(&str, Role); 7] = [
    ("balancer", Role::Balancer),
    ("app", Role::App),
    ("sql", Role::Sql),
    ("nosql", Role::Nosql),
    ("cache", Role::Cache),
    ("storage", Role::Storage),
    ("other", Role::Other),
];

fn choice<T: Copy>(at: &At<'_>, choices: &[(&str, T)], report: &mut Report) -> Option<T> {
    at.parse(report, |text| {
        let text = text.trim();
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(*value);
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let hint = closest(text, &names)
            .map(|name| format!("; did you mean {name}?"))
            .unwrap_or_default();
        Err(format!("{text:?} is none of {}{hint}", names.join(", ")))
    })
}
