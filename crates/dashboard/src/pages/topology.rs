//! The picture of an environment: what leads in, its layers with their nodes, and what is known of their connections.
//!
//! Drawn from the description: `depends_on`, and variables that name another layer where an address is expected.
//! What says neither is drawn unconnected; layers without connections stand where their role puts them.

use std::collections::BTreeMap;

use askama::Template;
use offshoot_model::Manifest;
use offshoot_model::manifest::Role;
use offshoot_model::view::{EnvironmentView, LayerView};

use super::{Mark, node_mark};
use crate::answer::{Failure, rendered};
use crate::format::{bare_address, shortened, web_address};

/// Sizes in pixels of the picture.
const BOX_WIDTH: usize = 204;
const HEAD: usize = 34;
const ROW: usize = 20;
const FOOT: usize = 8;
const GAP: usize = 18;
const CHANNEL: usize = 64;
/// Height of the way of a line below all boxes.
const LANE: usize = 14;
/// Room around everything, for outlines.
const MARGIN: usize = 2;
/// Most rows of a box; what is left is counted.
const ROWS_MAX: usize = 6;
/// Longest texts that fit into a box, characters.
const NAME_MAX: usize = 17;
const ADDRESS_MAX: usize = 26;
/// Parts of the names of variables that hold addresses.
const ADDRESS_NAMES: [&str; 9] = [
    "HOST", "ADDR", "URL", "URI", "SERVER", "UPSTREAM", "DSN", "BROKER", "PEER",
];

#[derive(Template)]
#[template(path = "topology.html")]
struct Picture {
    environment: String,
    width: usize,
    height: usize,
    boxes: Vec<Area>,
    lines: Vec<Line>,
    sentences: Vec<String>,
}

impl Picture {
    /// Whether the description says anything of connections.
    fn is_connected(&self) -> bool {
        self.lines.iter().any(|line| line.known != Known::Way)
    }
}

struct Area {
    x: usize,
    y: usize,
    height: usize,
    /// Shown whole to those who point at it.
    title: String,
    name: String,
    role: &'static str,
    rows: Vec<Row>,
}

struct Row {
    text: String,
    mark: Option<Mark>,
    /// Lower edge of its text, and middle, from the top of the picture.
    y: usize,
    middle: usize,
}

struct Line {
    path: String,
    known: Known,
}

/// How a connection is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    /// The edge or a published port leads there.
    Way,
    /// `depends_on`.
    Depends,
    /// A variable names it.
    Named,
}

impl Known {
    fn class(self) -> &'static str {
        match self {
            Self::Way => "way",
            Self::Depends => "depends",
            Self::Named => "named",
        }
    }
}

/// From one layer to another, by their places in the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Connection {
    from: usize,
    to: usize,
    known: Known,
    sentence: String,
}

/// A box before it has its place.
struct Draft {
    title: String,
    name: String,
    role: &'static str,
    rows: Vec<(String, Option<Mark>)>,
    column: usize,
}

/// The picture as a part of a page.
pub(super) fn picture(
    environment: &EnvironmentView,
    manifest: &Manifest,
) -> Result<String, Failure> {
    let connections = connections(environment, manifest);
    let columns = columns(&environment.layers, &connections);
    let mut sentences = Vec::new();
    let mut drafts: Vec<Draft> = environment
        .layers
        .iter()
        .zip(&columns)
        .map(|(layer, column)| {
            sentences.push(describe(layer));
            Draft {
                title: format!("{}: {}", layer.name, layer.image),
                name: layer.name.clone(),
                role: role_name(layer.role),
                rows: rows(
                    layer
                        .nodes
                        .iter()
                        .map(|node| (node.name.clone(), Some(node_mark(&node.status)))),
                ),
                column: *column,
            }
        })
        .collect();
    let mut links: Vec<_> = connections
        .iter()
        .map(|connection| (connection.from, connection.to, connection.known))
        .collect();
    sentences.extend(
        connections
            .into_iter()
            .map(|connection| connection.sentence),
    );
    ways_in(environment, &mut drafts, &mut links, &mut sentences);
    let (width, mut height, boxes) = place(drafts);
    let mut lines = Vec::with_capacity(links.len());
    for (from, to, known) in links {
        let (Some(from), Some(to)) = (boxes.get(from), boxes.get(to)) else {
            continue;
        };
        // What passes over a column goes round it, below all boxes.
        let lane = (to.x != from.x + BOX_WIDTH + CHANNEL).then(|| {
            height += LANE;
            height - LANE / 2
        });
        lines.push(line(from, to, known, lane));
    }
    rendered(&Picture {
        environment: environment.name.clone(),
        width,
        height,
        boxes,
        lines,
        sentences,
    })
}

/// What a layer is for, in a word; none where nobody said.
pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Balancer => "balancer",
        Role::App => "app",
        Role::Sql => "SQL",
        Role::Nosql => "NoSQL",
        Role::Cache => "cache",
        Role::Storage => "storage",
        Role::Other => "",
    }
}

/// The edge with its addresses and the host's ports, as boxes left of all layers.
fn ways_in(
    environment: &EnvironmentView,
    drafts: &mut Vec<Draft>,
    links: &mut Vec<(usize, usize, Known)>,
    sentences: &mut Vec<String>,
) {
    let layer = |name: &str| {
        environment
            .layers
            .iter()
            .position(|layer| layer.name == name)
    };
    let entry = environment
        .layers
        .iter()
        .position(|layer| layer.entry.is_some());
    if let Some(entry) = entry {
        let url = environment.url.as_deref().and_then(web_address);
        let addresses: Vec<String> = url
            .map(|url| bare_address(url).to_owned())
            .into_iter()
            .chain(
                environment
                    .domains
                    .iter()
                    .map(|domain| domain.domain().to_string()),
            )
            .collect();
        if let Some(to) = environment.layers.get(entry) {
            let port = to.entry.unwrap_or_default();
            let from = addresses.join(", ");
            sentences.push(format!(
                "The edge leads from {from} to {}, port {port}.",
                to.name
            ));
        }
        links.push((drafts.len(), entry, Known::Way));
        drafts.push(Draft {
            title: addresses.join(", "),
            name: "Edge".to_owned(),
            role: "",
            rows: rows(addresses.into_iter().map(|address| (address, None))),
            column: 0,
        });
    }
    if environment.ports.is_empty() {
        return;
    }
    let mut shown = Vec::new();
    for binding in &environment.ports {
        let outside = format!(
            "{}:{}",
            binding.port.host_ip,
            binding.port.host_port.unwrap_or_default()
        );
        if let Some(to) = layer(binding.layer.as_str()) {
            let link = (drafts.len(), to, Known::Way);
            if !links.contains(&link) {
                links.push(link);
            }
        }
        sentences.push(format!(
            "The host's {outside} leads to {}, port {}.",
            binding.layer, binding.port.target
        ));
        shown.push(outside);
    }
    drafts.push(Draft {
        title: shown.join(", "),
        name: "Published ports".to_owned(),
        role: "",
        rows: rows(shown.into_iter().map(|port| (port, None))),
        column: 0,
    });
}

fn describe(layer: &LayerView) -> String {
    let nodes: Vec<_> = layer
        .nodes
        .iter()
        .take(ROWS_MAX)
        .map(|node| format!("{} {}", node.name, node_mark(&node.status).word))
        .collect();
    let more = layer.nodes.len().saturating_sub(ROWS_MAX);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{}: {}{more}.", layer.name, nodes.join(", "))
}

fn rows(all: impl ExactSizeIterator<Item = (String, Option<Mark>)>) -> Vec<(String, Option<Mark>)> {
    let total = all.len();
    let shown = if total > ROWS_MAX {
        ROWS_MAX - 1
    } else {
        total
    };
    let mut rows: Vec<_> = all
        .take(shown)
        .map(|(text, mark)| {
            let most = if mark.is_some() {
                NAME_MAX
            } else {
                ADDRESS_MAX
            };
            (shortened(&text, most), mark)
        })
        .collect();
    if total > shown {
        rows.push((format!("and {} more", total - shown), None));
    }
    rows
}

/// What the description says of who speaks to whom.
fn connections(environment: &EnvironmentView, manifest: &Manifest) -> Vec<Connection> {
    let place = |name: &str| {
        environment
            .layers
            .iter()
            .position(|layer| layer.name == name)
    };
    let mut found: BTreeMap<(usize, usize), Connection> = BTreeMap::new();
    let mut add = |from: &str, to: &str, known, sentence: String| {
        if let (Some(from), Some(to)) = (place(from), place(to))
            && from != to
        {
            found.entry((from, to)).or_insert(Connection {
                from,
                to,
                known,
                sentence,
            });
        }
    };
    for layer in &manifest.layers {
        for dependency in &layer.depends_on {
            let (from, to) = (layer.name.as_str(), dependency.layer.as_str());
            let sentence = format!("{from} depends on {to}.");
            add(from, to, Known::Depends, sentence);
        }
    }
    for layer in &manifest.layers {
        for other in &manifest.layers {
            let names = |(name, value): &(&String, &String)| {
                is_address_of(name, value, other.name.as_str())
            };
            if let Some((variable, _)) = layer.environment.iter().find(names) {
                let (from, to) = (layer.name.as_str(), other.name.as_str());
                let sentence = format!("{from} names {to} in {variable}.");
                add(from, to, Known::Named, sentence);
            }
        }
    }
    found.into_values().collect()
}

/// Whether a variable holds an address at `layer`: its value has the name as a word, and it looks like an address.
fn is_address_of(name: &str, value: &str, layer: &str) -> bool {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    let has_word = value.split(|c| !part_of_name(c)).any(|word| word == layer);
    let upper = name.to_ascii_uppercase();
    has_word
        && (ADDRESS_NAMES.iter().any(|part| upper.contains(part))
            || value.contains("://")
            || value.contains(&format!("{layer}:")))
}

/// The column of each layer, from 1: right of whatever leads to it, else by its role.
fn columns(layers: &[LayerView], connections: &[Connection]) -> Vec<usize> {
    let mut columns: Vec<usize> = layers
        .iter()
        .enumerate()
        .map(|(place, layer)| {
            let led_to = connections.iter().any(|connection| connection.to == place);
            match layer.role {
                _ if led_to => 1,
                _ if layer.entry.is_some() => 1,
                Role::Balancer => 1,
                Role::App | Role::Other => 2,
                Role::Sql | Role::Nosql | Role::Cache | Role::Storage => 3,
            }
        })
        .collect();
    // So often that the longest way without a circle is gone; a circle stops there, too.
    for _ in 0..layers.len() {
        for connection in connections {
            let from = columns.get(connection.from).copied().unwrap_or_default();
            if let Some(to) = columns.get_mut(connection.to) {
                *to = (*to).max(from + 1).min(layers.len() + 2);
            }
        }
    }
    // Without columns that nothing stands in.
    let mut used = columns.clone();
    used.sort_unstable();
    used.dedup();
    columns
        .iter()
        .map(|column| {
            used.iter()
                .position(|known| known == column)
                .unwrap_or_default()
                + 1
        })
        .collect()
}

/// Gives every box its place; columns stand in the middle of the height.
fn place(drafts: Vec<Draft>) -> (usize, usize, Vec<Area>) {
    let first = drafts.iter().map(|draft| draft.column).min().unwrap_or(0);
    let height = |draft: &Draft| HEAD + draft.rows.len() * ROW + FOOT;
    let mut heights: BTreeMap<usize, usize> = BTreeMap::new();
    for draft in &drafts {
        let sum = heights.entry(draft.column).or_default();
        *sum += height(draft) + if *sum > 0 { GAP } else { 0 };
    }
    let tallest = heights.values().copied().max().unwrap_or(0);
    let last = heights.keys().copied().max().unwrap_or(0);
    let mut tops: BTreeMap<usize, usize> = heights
        .into_iter()
        .map(|(column, sum)| (column, MARGIN + (tallest - sum) / 2))
        .collect();
    let boxes = drafts
        .into_iter()
        .map(|draft| {
            let height = height(&draft);
            let top = tops.entry(draft.column).or_default();
            let y = *top;
            *top += height + GAP;
            let rows = draft
                .rows
                .into_iter()
                .enumerate()
                .map(|(number, (text, mark))| {
                    let middle = y + HEAD + number * ROW + ROW / 2;
                    Row {
                        text,
                        mark,
                        y: middle + 4,
                        middle,
                    }
                });
            Area {
                x: MARGIN + (draft.column - first) * (BOX_WIDTH + CHANNEL),
                y,
                height,
                rows: rows.collect(),
                name: shortened(&draft.name, NAME_MAX),
                title: draft.title,
                role: draft.role,
            }
        })
        .collect();
    let width = (last + 1 - first) * (BOX_WIDTH + CHANNEL) - CHANNEL + 2 * MARGIN;
    (width, tallest + 2 * MARGIN, boxes)
}

/// From the right side of one box to the left side of another, with room for the arrow's head.
fn line(from: &Area, to: &Area, known: Known, lane: Option<usize>) -> Line {
    let (x1, y1) = (from.x + BOX_WIDTH, from.y + from.height / 2);
    let (x2, y2) = (to.x.saturating_sub(5), to.y + to.height / 2);
    let bend = CHANNEL / 2;
    let (out, back) = (x1 + bend, x2.saturating_sub(bend));
    let path = match lane {
        None => format!("M{x1} {y1}C{out} {y1} {back} {y2} {x2} {y2}"),
        Some(lane) => {
            let (down, up) = (x1 + CHANNEL, x2.saturating_sub(CHANNEL));
            format!(
                "M{x1} {y1}C{out} {y1} {out} {lane} {down} {lane}H{up}C{back} {lane} {back} {y2} {x2} {y2}"
            )
        }
    };
    Line { path, known }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_layers() {
        for (name, value) in [
            ("DATABASE_HOST", "mariadb"),
            ("DATABASE_URL", "mysql://shop:x@mariadb:3306/shop"),
            ("X", "mariadb:3306,other:3306"),
        ] {
            assert!(is_address_of(name, value, "mariadb"), "{name}");
        }
        for (name, value) in [
            ("DRIVER", "mariadb"),
            ("DATABASE_HOST", "mariadb.example.org"),
            ("DATABASE_HOST", "mariadb-old"),
        ] {
            assert!(!is_address_of(name, value, "mariadb"), "{name}");
        }
    }

    #[test]
    fn circles_end() {
        let link = |from, to| Connection {
            from,
            to,
            known: Known::Named,
            sentence: String::new(),
        };
        let layer = |name: &str| LayerView {
            name: name.to_owned(),
            role: Role::Other,
            scaling: offshoot_model::manifest::Scaling::Stateful,
            image: String::new(),
            entry: None,
            nodes: Vec::new(),
        };
        let layers = [layer("a"), layer("b"), layer("c")];
        let columns = columns(&layers, &[link(0, 1), link(1, 0), link(1, 2)]);
        assert!(
            columns.iter().all(|column| (1..=3).contains(column)),
            "{columns:?}"
        );
    }
}
