//! A service as a layer.

use std::collections::BTreeMap;

use offshoot_model::manifest::{Condition, DEFAULT_STOP_GRACE_MS, Dependency, Layer, VolumeSpec};
use offshoot_model::{ImageSource, LayerName, VolumeName};

use super::extension::{self, Entry, Extension};
use super::{Context, guess, image, limits, mounts, network, process};
use crate::diagnostic::Report;
use crate::field::{At, Fields, closest};

/// A layer and what is decided only when all are known.
pub(super) struct Service<'a> {
    pub(super) layer: Layer,
    pub(super) entry: Entry,
    pub(super) at: At<'a>,
    /// Where each entry of `layer.depends_on` stands.
    pub(super) depends: Vec<At<'a>>,
}

/// Fields that have no meaning here and harm nothing, with the reason.
const IGNORED: [(&str, &str); 22] = [
    (
        "container_name",
        "is ignored; nodes are called <service>-<number>",
    ),
    (
        "platform",
        "is ignored; images are taken for the host's platform",
    ),
    (
        "logging",
        "is ignored; Offshoot keeps and rotates the logs itself",
    ),
    (
        "pull_policy",
        "is ignored; an image is fetched once for its digest",
    ),
    ("attach", "is ignored; `offshoot logs -f` shows the output"),
    (
        "stdin_open",
        "is ignored; use `offshoot exec` to type into a node",
    ),
    (
        "tty",
        "is ignored; a node's processes write to pipes, `offshoot exec` has a terminal",
    ),
    ("annotations", "is ignored; use labels"),
    ("develop", "is ignored; it is for building while you edit"),
    ("oom_score_adj", "is ignored; set a memory limit instead"),
    ("oom_kill_disable", "is ignored; set a memory limit instead"),
    (
        "mem_reservation",
        "is ignored; nothing is set aside for a node",
    ),
    (
        "mem_swappiness",
        "is ignored; the host decides about swapping",
    ),
    (
        "memswap_limit",
        "is ignored; the host decides about swapping",
    ),
    ("cpu_shares", "is ignored; use cpus"),
    ("cpu_count", "is ignored; use cpus"),
    ("cpu_percent", "is ignored; use cpus"),
    ("cpu_rt_period", "is ignored; use cpus"),
    ("cpu_rt_runtime", "is ignored; use cpus"),
    ("cpuset", "is ignored; use cpus"),
    (
        "blkio_config",
        "is ignored; there is no limit on disk traffic yet",
    ),
    (
        "storage_opt",
        "is ignored; the pool's free space is the limit",
    ),
];

/// Fields that would change what the application does, with what to do instead.
const REFUSED: [(&str, &str); 22] = [
    ("ipc", "every node has shared memory of its own"),
    ("pid", "every node has processes of its own"),
    ("devices", "nodes get no devices of the host"),
    ("gpus", "nodes get no devices of the host"),
    ("device_cgroup_rules", "nodes get no devices of the host"),
    ("cgroup_parent", "Offshoot manages the control groups"),
    ("cgroup", "nodes have no access to control groups"),
    ("credential_spec", "is for Windows"),
    ("volumes_from", "name the volumes in both services instead"),
    (
        "use_api_socket",
        "nodes get no access to a container engine",
    ),
    ("provider", "services of other providers are not started"),
    (
        "models",
        "language models are not provided; run one as a service",
    ),
    (
        "post_start",
        "commands around start and stop are not run; put them into the entrypoint",
    ),
    (
        "pre_stop",
        "commands around start and stop are not run; put them into the entrypoint",
    ),
    (
        "group_add",
        "additional groups are not supported; put the user into the group in the image",
    ),
    (
        "label_file",
        "is not supported; write the labels under labels",
    ),
    ("uts", "nodes have a host name of their own"),
    (
        "userns_mode",
        "every environment has its own user namespace",
    ),
    ("isolation", "is for Windows"),
    ("runtime", "nodes are run by runc"),
    (
        "dockerfile",
        "images are not built; push one to a registry or use x-offshoot: {packages: ...}",
    ),
    (
        "net",
        "is of an old format; every environment has its own network",
    ),
];

/// Profiles of a service, read before anything else of it.
pub(super) fn profiles(at: &At<'_>, report: &mut Report) -> Vec<String> {
    at.fields(report)
        .get("profiles")
        .map(|at| at.words(report))
        .unwrap_or_default()
}

/// Decodes one service.
pub(super) fn decode<'a>(
    name: &LayerName,
    at: &At<'a>,
    names: &BTreeMap<&str, LayerName>,
    context: &mut Context<'_>,
    volumes: &mut BTreeMap<VolumeName, VolumeSpec>,
    report: &mut Report,
) -> Option<Service<'a>> {
    let mut fields = at.fields(report);
    let _ = fields.get("profiles");
    let extension = fields
        .get("x-offshoot")
        .map(|at| extension::decode(&at, context, report))
        .unwrap_or_default();
    let source = image_source(&mut fields, &extension, at, report);
    let deploy = limits::deploy(&mut fields, report);
    let environment = process::environment(&mut fields, context, report);
    let owner = mounts::Owner {
        layer: name.as_str(),
        replicas: deploy.replicas,
    };
    let mounts = mounts::decode(&mut fields, &owner, context, volumes, report);
    let (depends_on, depends) = dependencies(&mut fields, name, names, report);
    let written = names
        .iter()
        .find(|(_, layer)| *layer == name)
        .map_or(name.as_str(), |(written, _)| written);
    let mut aliases = fields
        .get("networks")
        .map(|at| network::joined(&at, &context.networks, report))
        .unwrap_or_default();
    // `my_db` is layer `my-db`; applications know it by the name in the file.
    aliases.push(written.to_ascii_lowercase());
    aliases.sort();
    aliases.dedup();
    aliases.retain(|alias| alias != name.as_str());
    network::others(&mut fields, report);
    let restart = fields
        .get("restart")
        .and_then(|at| process::restart(&at, report))
        .or(deploy.restart);
    let mut map = |name: &'static str,
                   read: fn(&At<'_>, &mut Report) -> BTreeMap<String, String>| {
        fields
            .get(name)
            .map(|at| read(&at, report))
            .unwrap_or_default()
    };
    let (labels, sysctls) = (map("labels", labels), map("sysctls", limits::sysctls));
    let extra_hosts = map("extra_hosts", network::extra_hosts);
    let layer = Layer {
        aliases,
        name: name.clone(),
        role: extension
            .role
            .unwrap_or_else(|| source.as_ref().map(guess::role).unwrap_or_default()),
        // Without an image there is an error already; the rest is decoded to find more.
        image: source.unwrap_or(ImageSource::Registry {
            reference: String::new(),
        }),
        scaling: extension.scaling.unwrap_or_default(),
        clone: extension.clone.unwrap_or_default(),
        entry: match extension.entry {
            Entry::Port(port) => Some(port),
            Entry::Unsaid | Entry::No => None,
        },
        replicas: deploy.replicas,
        command: fields
            .get("command")
            .and_then(|at| process::command(&at, report)),
        entrypoint: fields
            .get("entrypoint")
            .and_then(|at| process::command(&at, report)),
        environment,
        working_dir: fields
            .get("working_dir")
            .and_then(|at| process::working_dir(&at, report)),
        user: fields.get("user").and_then(|at| process::user(&at, report)),
        hostname: fields
            .get("hostname")
            .and_then(|at| process::hostname(&at, report)),
        init: flag(&mut fields, "init", report),
        jobs: extension.jobs,
        restart: restart.unwrap_or_default(),
        stop_signal: fields
            .get("stop_signal")
            .and_then(|at| at.parse(report, process::signal)),
        stop_grace_ms: fields
            .get("stop_grace_period")
            .and_then(|at| at.duration(report))
            .unwrap_or(DEFAULT_STOP_GRACE_MS),
        healthcheck: fields
            .get("healthcheck")
            .and_then(|at| process::healthcheck(&at, report)),
        depends_on,
        mounts,
        ports: fields
            .get("ports")
            .map(|at| network::ports(&at, report))
            .unwrap_or_default(),
        expose: fields
            .get("expose")
            .map(|at| network::expose(&at, report))
            .unwrap_or_default(),
        limits: deploy.limits,
        sysctls,
        ulimits: fields
            .get("ulimits")
            .map(|at| limits::ulimits(&at, report))
            .unwrap_or_default(),
        cap_add: fields
            .get("cap_add")
            .map(|at| limits::capabilities(&at, report))
            .unwrap_or_default(),
        cap_drop: fields
            .get("cap_drop")
            .map(|at| limits::capabilities(&at, report))
            .unwrap_or_default(),
        extra_hosts,
        labels,
        read_only: flag(&mut fields, "read_only", report),
        allow_new_privileges: fields
            .get("security_opt")
            .map(|at| limits::security_opt(&at, report))
            .unwrap_or_default(),
    };
    the_rest(&mut fields, report);
    fields.finish(report);
    Some(Service {
        layer,
        entry: extension.entry,
        at: at.clone(),
        depends,
    })
}

fn flag(fields: &mut Fields<'_>, name: &'static str, report: &mut Report) -> bool {
    fields
        .get(name)
        .and_then(|at| at.boolean(report))
        .unwrap_or(false)
}

fn image_source(
    fields: &mut Fields<'_>,
    extension: &Extension,
    at: &At<'_>,
    report: &mut Report,
) -> Option<ImageSource> {
    let image = fields.get("image");
    let build = fields.get("build");
    let packages = at
        .node
        .get("x-offshoot")
        .is_some_and(|node| node.get("packages").is_some());
    match (&image, build) {
        (_, Some(build)) if image.is_some() || packages => {
            build.warn(report, "is ignored; the image is used as it is")
        }
        (_, Some(build)) => {
            build.unsupported(report, "images are not built; push one to a registry and name it with image:, or use x-offshoot: {packages: ...}");
            return None;
        }
        (_, None) => {}
    }
    match (image, packages) {
        (Some(image), true) => {
            image.invalid(
                report,
                "give either image or x-offshoot: {packages: ...}, not both",
            );
            None
        }
        (Some(image), false) => image::decode(&image, report),
        (None, true) => extension.image.clone(),
        (None, false) => {
            at.invalid(report, "has no image");
            None
        }
    }
}

/// Fields that are only warned about or refused.
fn the_rest(fields: &mut Fields<'_>, report: &mut Report) {
    for (name, why) in IGNORED {
        fields.ignore(report, name, why);
    }
    for (name, why) in REFUSED {
        let Some(at) = fields.get(name) else { continue };
        // What happens anyway may be asked for.
        let same = match name {
            "runtime" => &["runc"][..],
            "isolation" => &["default"],
            "cgroup" => &["private"],
            "ipc" => &["private", "shareable"],
            _ => &[],
        };
        let harmless =
            super::is_empty(at.node) || at.node.text().is_some_and(|text| same.contains(&text));
        if !harmless {
            at.unsupported(report, why);
        }
    }
    if let Some(at) = fields.get("privileged")
        && at.boolean(report) == Some(true)
    {
        at.unsupported(
            report,
            "nodes are never privileged; name the capabilities that are needed with cap_add",
        );
    }
}

/// `depends_on` and `links`.
fn dependencies<'a>(
    fields: &mut Fields<'a>,
    own: &LayerName,
    names: &BTreeMap<&str, LayerName>,
    report: &mut Report,
) -> (Vec<Dependency>, Vec<At<'a>>) {
    let (mut dependencies, mut places): (Vec<Dependency>, Vec<At<'a>>) = (Vec::new(), Vec::new());
    let mut add = |name: &str, at: At<'a>, condition, required, report: &mut Report| {
        let Some(layer) = names.get(name) else {
            let known: Vec<&str> = names.keys().copied().collect();
            let hint = closest(name, &known)
                .map(|name| format!("; did you mean {name}?"))
                .unwrap_or_default();
            return at.invalid(report, format!("there is no service {name:?}{hint}"));
        };
        if layer == own {
            return at.invalid(report, "a service cannot wait for itself");
        }
        if !dependencies.iter().any(|known| known.layer == *layer) {
            dependencies.push(Dependency {
                layer: layer.clone(),
                condition,
                required,
            });
            places.push(at);
        }
    };
    if let Some(at) = fields.get("depends_on") {
        for (name, at) in at.entries(report) {
            let (mut condition, mut required) = (Condition::Started, true);
            let mut fields = at.fields(report);
            if let Some(at) = fields.get("condition") {
                let parsed = at.parse(report, |text| match text {
                    "service_started" => Ok(Condition::Started),
                    "service_healthy" => Ok(Condition::Healthy),
                    "service_completed_successfully" => Ok(Condition::CompletedSuccessfully),
                    _ => Err(format!(
                        "{text:?} is none of service_started, service_healthy, service_completed_successfully"
                    )),
                });
                condition = parsed.unwrap_or(condition);
            }
            if let Some(at) = fields.get("required") {
                required = at.boolean(report).unwrap_or(true);
            }
            if let Some(at) = fields.get("restart")
                && at.boolean(report) == Some(true)
            {
                at.warn(
                    report,
                    "is ignored; a layer is not restarted together with another",
                );
            }
            fields.finish(report);
            add(name, at, condition, required, report);
        }
    }
    if let Some(at) = fields.get("links") {
        for item in at.list(report) {
            let Some(text) = item.word(report) else {
                continue;
            };
            match text.split_once(':') {
                Some((name, alias)) if name != alias => {
                    item.unsupported(
                        report,
                        "a layer is reached by the service's name only; name the service so",
                    );
                }
                Some((name, _)) => add(name, item.clone(), Condition::Started, true, report),
                None => add(text, item.clone(), Condition::Started, true, report),
            }
        }
    }
    (dependencies, places)
}

/// Takes out optional dependencies on layers that are off, refuses the others, and finds circles.
pub(super) fn check_dependencies(
    services: &mut [Service<'_>],
    off: &[LayerName],
    report: &mut Report,
) {
    for service in services.iter_mut() {
        let mut kept = Vec::new();
        for (dependency, at) in service.layer.depends_on.iter().zip(&service.depends) {
            if !off.contains(&dependency.layer) {
                kept.push((dependency.clone(), at.clone()));
            } else if dependency.required {
                at.invalid(
                    report,
                    format!(
                        "{} belongs to a profile that is off; switch it on with --profile",
                        dependency.layer
                    ),
                );
            } else {
                at.warn(
                    report,
                    format!(
                        "{} belongs to a profile that is off and is not waited for",
                        dependency.layer
                    ),
                );
            }
        }
        (service.layer.depends_on, service.depends) = kept.into_iter().unzip();
    }
    // What has no dependency left is taken away until nothing moves; what stays goes round in a circle or
    // waits for one that does.
    let mut left: Vec<&Service<'_>> = services.iter().collect();
    loop {
        let before = left.len();
        let names: Vec<_> = left.iter().map(|service| &service.layer.name).collect();
        let free = |service: &&Service<'_>| {
            service
                .layer
                .depends_on
                .iter()
                .any(|d| names.contains(&&d.layer))
        };
        left = left.iter().copied().filter(free).collect();
        if left.len() == before {
            break;
        }
    }
    if let Some(first) = left.first() {
        let mut chain = vec![first.layer.name.as_str()];
        let mut at = *first;
        while let Some(next) = left.iter().find(|other| {
            at.layer
                .depends_on
                .iter()
                .any(|d| d.layer == other.layer.name)
        }) {
            let name = next.layer.name.as_str();
            let seen = chain.iter().position(|known| *known == name);
            chain.push(name);
            if let Some(start) = seen {
                chain.drain(..start);
                break;
            }
            at = next;
        }
        report.invalid(
            first.at.place,
            &format!("{}.depends_on", first.at.path),
            format!(
                "services wait for each other in a circle: {}",
                chain.join(" → ")
            ),
        );
    }
}

/// Labels; a label without a value has an empty one.
pub(super) fn labels(at: &At<'_>, report: &mut Report) -> BTreeMap<String, String> {
    if matches!(at.node.value, crate::yaml::Value::List(_)) {
        let pair = |text: String| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (text, String::new()),
        };
        return at.words(report).into_iter().map(pair).collect();
    }
    super::text_map(at, report)
}
