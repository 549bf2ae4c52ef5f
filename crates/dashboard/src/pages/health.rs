//! Health checks of layers, as they are defined and as they stand.

use askama::Template;
use offshoot_model::environment::Health;
use offshoot_model::manifest::Layer;
use offshoot_model::view::{EnvironmentView, NodeView};
use offshoot_model::{Manifest, NodeState};

use super::{Mark, mark};
use crate::answer::{Failure, rendered};
use crate::format::{duration, shortened};
use crate::hide::{conceal, is_secret};

/// Longest command that is shown, characters.
const COMMAND_MAX: usize = 240;

#[derive(Template)]
#[template(path = "health.html")]
struct Checks {
    checks: Vec<Check>,
}

struct Check {
    layer: String,
    command: String,
    every: String,
    timeout: String,
    retries: u32,
    begins: String,
    now: Vec<(usize, Mark)>,
}

/// A card with the checks; `None` where no layer has one.
pub(super) fn checks(
    environment: &EnvironmentView,
    manifest: &Manifest,
) -> Result<Option<String>, Failure> {
    let checks: Vec<_> = manifest
        .layers
        .iter()
        .filter_map(|layer| check(environment, layer))
        .collect();
    if checks.is_empty() {
        return Ok(None);
    }
    rendered(&Checks { checks }).map(Some)
}

fn check(environment: &EnvironmentView, layer: &Layer) -> Option<Check> {
    let check = layer
        .healthcheck
        .as_ref()
        .filter(|check| !check.test.is_empty())?;
    let nodes = environment
        .layers
        .iter()
        .filter(|view| view.name == layer.name.as_str())
        .flat_map(|view| &view.nodes);
    let nodes: Vec<_> = nodes.collect();
    let ms = |ms: u64| duration(ms.saturating_mul(1_000));
    Some(Check {
        layer: layer.name.to_string(),
        command: command(layer, &check.test),
        every: ms(check.interval_ms),
        timeout: ms(check.timeout_ms),
        retries: check.retries,
        begins: ms(check.start_period_ms),
        now: [
            (Health::Healthy, mark("healthy", "good")),
            (Health::Starting, mark("starting", "busy")),
            (Health::Unhealthy, mark("unhealthy", "bad")),
        ]
        .into_iter()
        .map(|(health, mark)| (count(&nodes, health), mark))
        .filter(|(count, _)| *count > 0)
        .collect(),
    })
}

fn count(nodes: &[&NodeView], wanted: Health) -> usize {
    let is = |node: &&&NodeView| matches!(node.status, NodeState::Running { health, .. } if health == wanted);
    nodes.iter().filter(is).count()
}

/// The command without secrets: those of the layer's variables, and what is written like one.
fn command(layer: &Layer, test: &[String]) -> String {
    let words = match test {
        [shell, option, script] if option == "-c" && shell.ends_with("sh") => script.clone(),
        words => words.join(" "),
    };
    let secrets = layer
        .environment
        .iter()
        .filter(|(name, value)| is_secret(name, value))
        .map(|(_, value)| value.as_str());
    shortened(&conceal(&words, secrets), COMMAND_MAX)
}
