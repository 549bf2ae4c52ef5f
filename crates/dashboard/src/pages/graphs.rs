//! Memory and processor time of nodes over the last hour or day, as pictures.

use std::time::Instant;

use askama::Template;
use axum::extract::{Path, Query};
use axum::response::Response;
use offshoot_model::view::NodeView;
use serde::Deserialize;

use super::{Mark, find, node_mark};
use crate::answer::{Failure, html};
use crate::context::{Context, Shell};
use crate::format::{bytes, encode, percent};
use crate::history::{POINTS, Point, Span};

/// Most nodes on a page: each takes up to six kilobytes.
const NODES_MAX: usize = 12;
/// Height of a picture in its own units; the width is [`POINTS`].
const HEIGHT: f32 = 56.0;
/// Room above the highest point.
const HEADROOM: f32 = 4.0;
/// Least that the height of a picture of processor time stands for, percent: an idle node looks idle.
const CPU_LEAST: f32 = 10.0;
const PART: &str = "graphs";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    layer: Option<String>,
    /// `day`, else the hour.
    span: String,
}

#[derive(Template)]
#[template(path = "graphs.html")]
struct Page {
    shell: Shell,
    name: String,
    href: String,
    part: Part,
}

#[derive(Template)]
#[template(path = "graphs_part.html")]
struct Part {
    here: String,
    spans: Vec<Choice>,
    layers: Vec<Choice>,
    nodes: Vec<Graphs>,
    more: usize,
}

struct Choice {
    label: String,
    href: String,
    current: bool,
}

struct Graphs {
    name: String,
    mark: Mark,
    graphs: [Graph; 2],
}

struct Graph {
    title: &'static str,
    class: &'static str,
    /// `None` where nothing was seen in this span.
    drawn: Option<Drawn>,
}

struct Drawn {
    line: String,
    area: String,
    now: String,
    most: String,
}

/// The pictures, or only them where that is wanted.
pub(super) async fn show(
    context: Context,
    Path(environment): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    let found = find(&context.web, &environment).await?;
    let href = format!("/environments/{}", encode(&found.name));
    let span = if asked.span == "day" {
        Span::Day
    } else {
        Span::Hour
    };
    let layer = asked.layer.filter(|layer| !layer.is_empty());
    let address = |span: Span, layer: Option<&str>| {
        let span = match span {
            Span::Hour => "hour",
            Span::Day => "day",
        };
        let layer = layer.map(|layer| format!("&layer={}", encode(layer)));
        format!("{href}/graphs?span={span}{}", layer.unwrap_or_default())
    };
    let choice = |label: &str, href: String, current: bool| Choice {
        label: label.to_owned(),
        href,
        current,
    };
    let nodes: Vec<_> = found
        .layers
        .iter()
        .filter(|known| layer.as_ref().is_none_or(|layer| *layer == known.name))
        .flat_map(|layer| &layer.nodes)
        .collect();
    let now = Instant::now();
    let all = choice("All layers", address(span, None), layer.is_none());
    let layers = found.layers.iter().map(|known| {
        let current = layer.as_ref() == Some(&known.name);
        choice(&known.name, address(span, Some(&known.name)), current)
    });
    let spans = [("Hour", Span::Hour), ("Day", Span::Day)];
    let part = Part {
        here: address(span, layer.as_deref()),
        spans: spans
            .map(|(label, each)| choice(label, address(each, layer.as_deref()), each == span))
            .into(),
        layers: [all].into_iter().chain(layers).collect(),
        more: nodes.len().saturating_sub(NODES_MAX),
        nodes: nodes
            .into_iter()
            .take(NODES_MAX)
            .map(|node| {
                let history = &context.web.history;
                graphs(node, &history.points(&found.id, &node.name, span, now))
            })
            .collect(),
    };
    if context.wants(PART) {
        return html(&part);
    }
    html(&Page {
        shell: context.shell(format!("Graphs of {}", found.name)),
        name: found.name,
        href,
        part,
    })
}

fn graphs(node: &NodeView, points: &[(u32, Point)]) -> Graphs {
    let memory: Vec<_> = points
        .iter()
        .map(|(place, point)| (*place, point.memory))
        .collect();
    let cpu: Vec<_> = points
        .iter()
        .filter_map(|(place, point)| Some((*place, point.cpu?)))
        .collect();
    Graphs {
        name: node.name.clone(),
        mark: node_mark(&node.status),
        graphs: [
            Graph {
                title: "Memory",
                class: "memory",
                drawn: draw(&memory, 1.0, |value| bytes(value as u64)),
            },
            Graph {
                title: "CPU",
                class: "cpu",
                drawn: draw(&cpu, CPU_LEAST, |value| percent(f64::from(value))),
            },
        ],
    }
}

/// A line and the area below it, broken where nothing was seen.
fn draw(points: &[(u32, f32)], least: f32, text: impl Fn(f32) -> String) -> Option<Drawn> {
    let (_, now) = points.last()?;
    let most = points.iter().map(|(_, value)| *value).fold(0.0, f32::max);
    let scale = (HEIGHT - HEADROOM) / most.max(least);
    let mut line = String::new();
    let mut area = String::new();
    let mut before: Option<u32> = None;
    let to_the_ground = format!("V{HEIGHT}Z");
    for (place, value) in points {
        let y = HEIGHT - value * scale;
        match before {
            Some(before) if before + 1 == *place => {
                line.push_str(&format!("L{place} {y:.1}"));
                area.push_str(&format!("L{place} {y:.1}"));
            }
            _ => {
                if before.is_some() {
                    area.push_str(&to_the_ground);
                }
                // A point alone is a dot.
                line.push_str(&format!("M{place} {y:.1}h.5"));
                area.push_str(&format!("M{place} {HEIGHT}V{y:.1}"));
            }
        }
        before = Some(*place);
    }
    area.push_str(&to_the_ground);
    Some(Drawn {
        line,
        area,
        now: text(*now),
        most: text(most),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_where_nothing_was_seen() {
        let points = [(1, 1.0), (2, 2.0), (5, 0.0)];
        let drawn = draw(&points, 0.1, |value| format!("{value}")).unwrap();
        assert_eq!(drawn.line, "M1 30.0h.5L2 4.0M5 56.0h.5");
        assert_eq!(drawn.area, "M1 56V30.0L2 4.0V56ZM5 56V56.0V56Z");
        assert_eq!((drawn.now.as_str(), drawn.most.as_str()), ("0", "2"));
        assert!(draw(&[], 1.0, |_| String::new()).is_none());
    }
}
