//! A plan for people, and the little that can be planned without a daemon.

use std::collections::BTreeMap;

use offshoot_model::environment::PortBinding;
use offshoot_model::manifest::VolumeClone;
use offshoot_model::view::{CreateRequest, PlanView, PlannedNode, PlannedVolume};
use offshoot_model::{Memory, MemoryWay, Rung};

use crate::human;
use crate::table::{Grid, Mood, fields, optional, state, text};
use crate::term::{Paint, safe};

/// Where something is decided only when it is made.
const LATER: &str = "chosen later";

/// What the manifest alone says.
pub(crate) fn offline(request: &CreateRequest) -> PlanView {
    let manifest = &request.manifest;
    let nodes = manifest.layers.iter().flat_map(|layer| {
        (1..=layer.replicas).map(move |number| PlannedNode {
            name: format!("{}-{number}", layer.name),
            image: layer.image.display(),
            inner: LATER.to_owned(),
            outer: LATER.to_owned(),
            hostname: layer
                .hostname
                .clone()
                .unwrap_or_else(|| format!("{}-{number}.{}", layer.name, request.name)),
            rung: None,
            why: None,
            memory: None,
            memory_bytes: None,
            held: None,
        })
    });
    let ports = manifest.layers.iter().flat_map(|layer| {
        layer.ports.iter().map(move |port| PortBinding {
            port: port.clone(),
            layer: layer.name.clone(),
        })
    });
    PlanView {
        name: request.name.clone(),
        url: None,
        nodes: nodes.collect(),
        volumes: manifest
            .volumes
            .keys()
            .map(|name| PlannedVolume {
                name: name.to_string(),
                clone: VolumeClone::Empty,
            })
            .collect(),
        ports: ports.collect(),
        steps: Vec::new(),
        predicted_freeze_us: None,
        notices: vec![
            "read from the files alone; the daemon was not asked whether it can be done".to_owned(),
        ],
    }
}

/// The plan as text.
pub(crate) fn render(plan: &PlanView, paint: Paint) -> String {
    let is_clone = plan.nodes.iter().any(|node| node.rung.is_some());
    let mut about = vec![
        ("Name", plan.name.clone()),
        ("Address", optional(plan.url.clone())),
    ];
    if is_clone {
        about.push(("Freeze", freeze(plan)));
    }
    let mut out = fields(&about, paint);
    out.push('\n');
    let mut nodes = if is_clone {
        Grid::new(
            &["NODE", "RUNG", "MEMORY", "TAKEN", "INNER", "OUTER", "WHY"],
            paint,
        )
        .right(&[2])
    } else {
        Grid::new(&["NODE", "IMAGE", "HOST NAME", "INNER", "OUTER"], paint)
    };
    for node in &plan.nodes {
        if is_clone {
            nodes.cells([
                text(&node.name),
                node.rung.map_or_else(|| text("-"), rung_cell),
                text(optional(node.memory_bytes.map(human::bytes))),
                text(way(node.memory.as_ref())),
                text(&node.inner),
                text(&node.outer),
                text(node.why.as_deref().unwrap_or("")),
            ]);
        } else {
            nodes.row([
                node.name.clone(),
                node.image.clone(),
                node.hostname.clone(),
                node.inner.clone(),
                node.outer.clone(),
            ]);
        }
    }
    out.push_str(&nodes.render());
    out.push_str(&why_not_better(
        plan.nodes
            .iter()
            .filter_map(|node| Some((node.name.as_str(), node.memory.as_ref()?))),
        paint,
    ));
    if !plan.volumes.is_empty() {
        let mut volumes = Grid::new(&["VOLUME", "MADE AS"], paint);
        for volume in &plan.volumes {
            volumes.row([volume.name.clone(), volume_clone(volume.clone).to_owned()]);
        }
        out.push('\n');
        out.push_str(&volumes.render());
    }
    if !plan.ports.is_empty() {
        out.push('\n');
        out.push_str(&ports(&plan.ports, paint));
    }
    if !plan.steps.is_empty() {
        out.push_str(&format!("\n{}\n", paint.bold("Steps")));
        for (index, step) in plan.steps.iter().enumerate() {
            out.push_str(&format!("  {:>2}. {}\n", index + 1, safe(step)));
        }
    }
    if !plan.notices.is_empty() {
        out.push('\n');
        for notice in &plan.notices {
            out.push_str(&format!("{} {}\n", paint.yellow("note:"), safe(notice)));
        }
    }
    out
}

/// How long the parent is expected to stand still.
fn freeze(plan: &PlanView) -> String {
    let stands = |node: &PlannedNode| node.rung != Some(Rung::Stopped);
    match plan.predicted_freeze_us {
        Some(us) => format!("about {}, all nodes together", human::duration(us)),
        None if plan.nodes.iter().any(stands) => "not known beforehand".to_owned(),
        None => "none: nothing runs".to_owned(),
    }
}

/// Published ports as a table.
pub(crate) fn ports(bindings: &[PortBinding], paint: Paint) -> String {
    let mut grid = Grid::new(&["PORT ON THE HOST", "LEADS TO"], paint);
    for PortBinding { port, layer } in bindings {
        let protocol = match port.protocol {
            offshoot_model::manifest::Protocol::Tcp => "tcp",
            offshoot_model::manifest::Protocol::Udp => "udp",
        };
        let host = port
            .host_port
            .map_or_else(|| LATER.to_owned(), |number| number.to_string());
        let ip = if port.host_ip.contains(':') {
            format!("[{}]", port.host_ip)
        } else {
            port.host_ip.clone()
        };
        grid.row([
            format!("{ip}:{host}/{protocol}"),
            format!("{layer}:{}", port.target),
        ]);
    }
    grid.render()
}

/// How a node is cloned, as a cell.
pub(crate) fn rung_cell(rung: Rung) -> comfy_table::Cell {
    match rung {
        Rung::Live => state("live", Mood::Good),
        Rung::Disk => state("disk", Mood::Waiting),
        Rung::Image => state("image", Mood::Neutral),
        Rung::Stopped => state("stopped", Mood::Neutral),
    }
}

/// How a node's memory is taken, as a word.
pub(crate) fn way(memory: Option<&Memory>) -> &'static str {
    memory.map_or("-", |memory| memory.way.name())
}

/// Why memory is not taken in a better way: a line for each reason, with the nodes that have it.
pub(crate) fn why_not_better<'a>(
    nodes: impl Iterator<Item = (&'a str, &'a Memory)>,
    paint: Paint,
) -> String {
    let mut reasons: BTreeMap<(MemoryWay, &str), Vec<&str>> = BTreeMap::new();
    for (node, memory) in nodes {
        if let Some(why) = &memory.why {
            reasons.entry((memory.way, why)).or_default().push(node);
        }
    }
    let line = |((way, why), nodes): (&(MemoryWay, &str), &Vec<&str>)| {
        format!(
            "{} memory of {} is taken by {}: {}\n",
            paint.yellow("note:"),
            safe(&nodes.join(", ")),
            way.name(),
            safe(why)
        )
    };
    let lines: String = reasons.iter().map(line).collect();
    if lines.is_empty() {
        lines
    } else {
        format!("\n{lines}")
    }
}

/// What a clone gets for a volume, as a word.
pub(crate) fn volume_clone(clone: VolumeClone) -> &'static str {
    match clone {
        VolumeClone::Copy => "copy",
        VolumeClone::Empty => "empty",
        VolumeClone::Shared => "shared",
    }
}
