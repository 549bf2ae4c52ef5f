//! From the merged tree to the model.

mod extension;
mod guess;
mod image;
mod limits;
mod mounts;
mod network;
mod packages;
mod paths;
mod process;
mod service;

use std::collections::BTreeMap;

use offshoot_model::manifest::{MAX_NODES, Manifest, VolumeClone, VolumeSpec};
use offshoot_model::{LayerName, VolumeName};

use crate::diagnostic::Report;
use crate::field::{At, Fields};
use crate::project::Project;
use crate::source::FileSource;
use crate::yaml::{Node, Value};

/// Most services of one file, those that are off counted.
const MAX_SERVICES: usize = 1000;

/// What services refer to.
struct Context<'a> {
    source: &'a dyn FileSource,
    volumes: BTreeMap<String, VolumeName>,
    networks: Vec<&'a str>,
    configs: BTreeMap<&'a str, At<'a>>,
    secrets: BTreeMap<&'a str, At<'a>>,
    /// Bytes of captured files so far.
    captured: u64,
}

/// Decodes the project; what cannot be decoded is in `report`.
pub(crate) fn manifest(
    source: &dyn FileSource,
    project: &Project,
    report: &mut Report,
) -> Manifest {
    let mut manifest = Manifest::default();
    if project.root.value == Value::Null {
        return manifest;
    }
    let root = At {
        node: &project.root,
        path: String::new(),
        place: project.root.place,
    };
    let mut fields = root.fields(report);
    fields.ignore(report, "version", "is obsolete and ignored");
    let _ = fields.get("name").and_then(|at| at.word(report));
    fields.refuse(
        report,
        "models",
        "language models are not provided; run one as a service",
    );
    if let Some(at) = fields.get("x-offshoot") {
        at.invalid(
            report,
            "x-offshoot belongs to a service or a volume, not to the whole file",
        );
    }

    let mut context = Context {
        source,
        volumes: BTreeMap::new(),
        networks: vec!["default"],
        configs: definitions(&mut fields, "configs", report),
        secrets: definitions(&mut fields, "secrets", report),
        captured: 0,
    };
    if let Some(at) = fields.get("volumes") {
        volumes(&at, &mut context, &mut manifest, report);
    }
    if let Some(at) = fields.get("networks") {
        for (name, network) in at.entries(report) {
            network::top_level(name, &network, report);
            context.networks.push(name);
        }
    }
    let services = fields
        .get("services")
        .map(|at| (at.place, at.entries(report)));
    fields.finish(report);

    let (place, services) = services.unwrap_or((project.root.place, Vec::new()));
    if services.is_empty() {
        report.invalid(place, "services", "the file has no services");
        return manifest;
    }
    if services.len() > MAX_SERVICES {
        report.unsupported(
            place,
            "services",
            format!("more than {MAX_SERVICES} services"),
        );
        return manifest;
    }
    let names = service_names(&services, report);
    let (mut active, mut off) = (Vec::new(), Vec::new());
    for (name, at) in &services {
        let Some(layer) = names.get(*name) else {
            continue;
        };
        if !is_on(&service::profiles(at, report), &project.profiles) {
            off.push(layer.clone());
        } else if let Some(service) = service::decode(
            layer,
            at,
            &names,
            &mut context,
            &mut manifest.volumes,
            report,
        ) {
            active.push(service);
        }
    }
    service::check_dependencies(&mut active, &off, report);
    guess::entry(&mut active, report);
    if active.is_empty() && !off.is_empty() {
        report.invalid(
            place,
            "services",
            "every service belongs to a profile that is off; switch one on with --profile",
        );
    }
    let nodes: usize = active
        .iter()
        .map(|service| service.layer.replicas as usize)
        .sum();
    if nodes > MAX_NODES {
        report.unsupported(
            place,
            "services",
            format!("{nodes} nodes are more than the {MAX_NODES} of one environment"),
        );
    }
    manifest.layers = active.into_iter().map(|service| service.layer).collect();
    keep_used_volumes(&mut manifest);
    manifest
}

fn definitions<'a>(
    fields: &mut Fields<'a>,
    name: &'static str,
    report: &mut Report,
) -> BTreeMap<&'a str, At<'a>> {
    fields
        .get(name)
        .map(|at| at.entries(report).into_iter().collect())
        .unwrap_or_default()
}

/// A service without profiles is always on.
fn is_on(profiles: &[String], on: &[String]) -> bool {
    profiles.is_empty()
        || profiles
            .iter()
            .any(|p| on.iter().any(|o| o == "*" || o == p))
}

/// Names of services as names of layers: Compose allows more than a host name may have.
fn service_names<'a>(
    services: &[(&'a str, At<'a>)],
    report: &mut Report,
) -> BTreeMap<&'a str, LayerName> {
    let mut names: BTreeMap<&str, LayerName> = BTreeMap::new();
    for (name, at) in services {
        let host_name = name.replace(['_', '.'], "-").to_ascii_lowercase();
        match host_name.parse::<LayerName>() {
            Err(error) => at.invalid(report, error.to_string()),
            Ok(layer) => {
                if let Some((other, _)) = names.iter().find(|(_, known)| **known == layer) {
                    at.invalid(
                        report,
                        format!("has the same host name as the service {other:?}: {layer}"),
                    );
                } else if layer.as_str() != *name {
                    at.warn(report, format!("becomes {layer}, because layers are reached by their names and {name:?} is no host name"));
                }
                names.insert(name, layer);
            }
        }
    }
    names
}

fn volumes<'a>(
    at: &At<'a>,
    context: &mut Context<'a>,
    manifest: &mut Manifest,
    report: &mut Report,
) {
    for (name, at) in at.entries(report) {
        let mut fields = at.fields(report);
        let mut spec = VolumeSpec::default();
        fields.ignore(
            report,
            "name",
            "every environment has volumes of its own, so the name is not used",
        );
        if let Some(external) = fields.get("external") {
            // Either a boolean or, in old files, a map with a name.
            if !external.is_text() || external.boolean(report) == Some(true) {
                external.unsupported(report, "volumes of others cannot be used; an environment has its own, copy the data in");
            }
        }
        if let Some(driver) = fields.get("driver")
            && driver.word(report).is_some_and(|driver| driver != "local")
        {
            driver.unsupported(report, "volumes are local; leave the driver out");
        }
        fields.refuse(
            report,
            "driver_opts",
            "volumes have no driver options; leave them out",
        );
        if let Some(labels) = fields.get("labels") {
            spec.labels = service::labels(&labels, report);
        }
        if let Some(extension) = fields.get("x-offshoot") {
            let mut extension = extension.fields(report);
            if let Some(at) = extension.get("clone") {
                spec.clone = at
                    .parse(report, |text| match text {
                        "copy" => Ok(VolumeClone::Copy),
                        "empty" => Ok(VolumeClone::Empty),
                        "shared" => Ok(VolumeClone::Shared),
                        _ => Err(format!("{text:?} is none of copy, empty, shared")),
                    })
                    .unwrap_or_default();
            }
            extension.finish(report);
        }
        fields.finish(report);
        match name.parse::<VolumeName>() {
            Err(error) => at.invalid(report, error.to_string()),
            Ok(volume) => {
                manifest.volumes.insert(volume.clone(), spec);
                context.volumes.insert(name.to_owned(), volume);
            }
        }
    }
}

/// A volume of a service that is off is not made.
fn keep_used_volumes(manifest: &mut Manifest) {
    use offshoot_model::manifest::Mount;
    let mounts = manifest.layers.iter().flat_map(|layer| &layer.mounts);
    let used: Vec<VolumeName> = mounts
        .filter_map(|mount| match mount {
            Mount::Volume { volume, .. } => Some(volume.clone()),
            Mount::File { .. } | Mount::Tmpfs { .. } => None,
        })
        .collect();
    manifest.volumes.retain(|name, _| used.contains(name));
}

/// A map of names to texts; a null becomes the empty text.
fn text_map(at: &At<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for (name, value) in at.entries(report) {
        let text = if value.is_null() {
            Some("")
        } else {
            value.text(report)
        };
        map.extend(text.map(|text| (name.to_owned(), text.to_owned())));
    }
    map
}

/// Whether the tree has anything at all under `node`.
fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::Null => true,
        Value::Scalar(text) => text.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty(),
    }
}
