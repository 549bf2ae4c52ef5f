//! Volumes, captured files and temporary file systems.

use std::collections::BTreeMap;

use offshoot_model::VolumeName;
use offshoot_model::manifest::{FileContent, Mount, VolumeSpec};

use super::{Context, paths};
use crate::diagnostic::Report;
use crate::field::{At, Fields};
use crate::source::{FileData, FileError};

/// Largest captured file in bytes: captured files are part of the manifest, which the database keeps.
pub(super) const MAX_CAPTURED: u64 = 4 << 20;
/// Most bytes of captured files in one manifest.
const MAX_CAPTURED_TOTAL: u64 = 16 << 20;
/// Mode of configs and secrets when none is named.
const GRANT_MODE: u32 = 0o444;

/// The service whose mounts are read.
pub(super) struct Owner<'a> {
    pub(super) layer: &'a str,
    pub(super) replicas: u32,
}

/// Everything that is mounted into a layer's nodes.
pub(super) fn decode(
    fields: &mut Fields<'_>,
    owner: &Owner<'_>,
    context: &mut Context<'_>,
    volumes: &mut BTreeMap<VolumeName, VolumeSpec>,
    report: &mut Report,
) -> Vec<Mount> {
    let mut mounts: Vec<(Mount, At<'_>)> = Vec::new();
    if let Some(at) = fields.get("volumes") {
        for item in at.list(report) {
            let read = if item.is_text() {
                short(&item, report)
            } else {
                long(&item, report)
            };
            let mount = read.and_then(|read| volume(read, &item, owner, context, volumes, report));
            mounts.extend(mount.map(|mount| (mount, item)));
        }
    }
    if let Some(at) = fields.get("tmpfs") {
        for item in at.list(report) {
            let mount = tmpfs(&item, report);
            mounts.extend(mount.map(|mount| (mount, item)));
        }
    }
    for kind in [Grant::Config, Grant::Secret] {
        let Some(at) = fields.get(kind.field()) else {
            continue;
        };
        for item in at.list(report) {
            let mount = grant(kind, &item, context, report);
            mounts.extend(mount.map(|mount| (mount, item)));
        }
    }
    if let Some(at) = fields.get("shm_size") {
        let size = at.bytes(report);
        mounts.push((
            Mount::Tmpfs {
                target: "/dev/shm".to_owned(),
                size,
                mode: Some(0o1777),
            },
            at,
        ));
    }
    let mut out: Vec<Mount> = Vec::new();
    for (mount, at) in mounts {
        if out.iter().any(|other| other.target() == mount.target()) {
            at.invalid(
                report,
                format!("something is mounted at {} already", mount.target()),
            );
        } else {
            out.push(mount);
        }
    }
    out
}

/// An entry of `volumes` in either form.
struct Read<'a> {
    kind: Source<'a>,
    target: String,
    read_only: bool,
}

enum Source<'a> {
    Anonymous,
    Named(&'a str),
    Bind(&'a str),
    Tmpfs {
        size: Option<u64>,
        mode: Option<u32>,
    },
}

/// `[SOURCE:]TARGET[:OPTIONS]`.
fn short<'a>(at: &At<'a>, report: &mut Report) -> Option<Read<'a>> {
    let text = at.word(report)?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, *target, ""),
        // The middle part of `a:b` is the target; `/data:ro` names an anonymous volume's options.
        [target, options] if !options.starts_with('/') && target.starts_with('/') => {
            (None, *target, *options)
        }
        [source, target] => (Some(*source), *target, ""),
        [source, target, options] => (Some(*source), *target, *options),
        _ => {
            at.invalid(
                report,
                format!("{text:?} has too many colons; write source:target[:options]"),
            );
            return None;
        }
    };
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "z" | "Z" | "cached" | "delegated" | "consistent" => {
                at.warn(
                    report,
                    format!("the option {option:?} has no meaning here and is ignored"),
                );
            }
            "nocopy" => at.unsupported(
                report,
                "a new volume always begins with what the image has at its place",
            ),
            other => at.unsupported(
                report,
                format!("the option {other:?} is not supported; ro and rw are"),
            ),
        }
    }
    let target = mount_target(at, target, report)?;
    let kind = match source {
        None => Source::Anonymous,
        Some("") => {
            at.invalid(report, format!("{text:?} has no source"));
            return None;
        }
        Some(source) if source.starts_with(['.', '/', '~']) => Source::Bind(source),
        Some(source) => Source::Named(source),
    };
    Some(Read {
        kind,
        target,
        read_only,
    })
}

fn mount_target(at: &At<'_>, text: &str, report: &mut Report) -> Option<String> {
    match paths::mount_target(text) {
        Ok(target) => Some(target),
        Err(message) => {
            at.invalid(report, message);
            None
        }
    }
}

fn long<'a>(at: &At<'a>, report: &mut Report) -> Option<Read<'a>> {
    let mut fields = at.fields(report);
    let kind = fields
        .get("type")
        .and_then(|at| at.word(report))
        .unwrap_or("volume");
    let source = fields.get("source").and_then(|at| at.word(report));
    let target = fields
        .get("target")
        .and_then(|at| at.parse(report, paths::mount_target));
    let read_only = fields
        .get("read_only")
        .and_then(|at| at.boolean(report))
        .unwrap_or(false);
    fields.ignore(report, "consistency", "has no meaning here and is ignored");
    if let Some(at) = fields.get("bind") {
        let mut fields = at.fields(report);
        for name in ["propagation", "create_host_path", "selinux", "recursive"] {
            fields.ignore(
                report,
                name,
                "has no meaning for a captured file and is ignored",
            );
        }
        fields.finish(report);
    }
    if let Some(at) = fields.get("volume") {
        let mut fields = at.fields(report);
        if let Some(at) = fields.get("nocopy")
            && at.boolean(report) == Some(true)
        {
            at.unsupported(
                report,
                "a new volume always begins with what the image has at its place",
            );
        }
        fields.refuse(
            report,
            "subpath",
            "a volume is mounted as a whole; use one volume for each path",
        );
        fields.ignore(
            report,
            "labels",
            "is ignored; put labels on the volume itself",
        );
        fields.finish(report);
    }
    let mut options = (None, None);
    if let Some(at) = fields.get("tmpfs") {
        let mut fields = at.fields(report);
        options.0 = fields
            .get("size")
            .and_then(|at| at.bytes(report))
            .filter(|size| *size > 0);
        options.1 = fields.get("mode").and_then(|at| at.mode(report));
        fields.finish(report);
    }
    fields.finish(report);
    let kind = match (kind, source) {
        ("volume", None) => Source::Anonymous,
        ("volume", Some(name)) => Source::Named(name),
        ("bind", Some(path)) => Source::Bind(path),
        ("bind", None) => {
            at.invalid(report, "a bind needs a source");
            return None;
        }
        ("tmpfs", _) => Source::Tmpfs {
            size: options.0,
            mode: options.1,
        },
        (other, _) => {
            at.unsupported(
                report,
                format!("the type {other:?} is not supported; volume, bind and tmpfs are"),
            );
            return None;
        }
    };
    if target.is_none() && at.node.get("target").is_none() {
        at.invalid(report, "has no target");
    }
    Some(Read {
        kind,
        target: target?,
        read_only,
    })
}

fn volume(
    read: Read<'_>,
    at: &At<'_>,
    owner: &Owner<'_>,
    context: &mut Context<'_>,
    volumes: &mut BTreeMap<VolumeName, VolumeSpec>,
    report: &mut Report,
) -> Option<Mount> {
    let Read {
        kind,
        target,
        read_only,
    } = read;
    match kind {
        Source::Tmpfs { size, mode } => Some(Mount::Tmpfs { target, size, mode }),
        Source::Bind(source) => bind(source, target, read_only, at, context, report),
        Source::Named(name) => match context.volumes.get(name) {
            Some(volume) => Some(Mount::Volume {
                volume: volume.clone(),
                target,
                read_only,
            }),
            None => {
                at.invalid(report, format!("there is no volume {name:?} under the top-level volumes; a path begins with . or /"));
                None
            }
        },
        Source::Anonymous if owner.replicas > 1 => {
            // A volume would be shared by the nodes, which Compose's anonymous ones are not.
            at.warn(report, "each node keeps this path in its own root file system, which is kept and cloned as well");
            None
        }
        Source::Anonymous => {
            let volume = anonymous(owner.layer, &target, volumes);
            volumes.insert(volume.clone(), VolumeSpec::default());
            Some(Mount::Volume {
                volume,
                target,
                read_only,
            })
        }
    }
}

/// A name that stays the same as long as the layer and the path do.
fn anonymous(layer: &str, target: &str, taken: &BTreeMap<VolumeName, VolumeSpec>) -> VolumeName {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '_'
        }
    };
    let path: String = target.trim_start_matches('/').chars().map(safe).collect();
    // The end of a path tells more than its beginning; the digits tell apart what was cut.
    let layer: String = layer.chars().take(16).collect();
    let start = path.len().saturating_sub(24);
    let stem = format!("{layer}.{}", path.get(start..).unwrap_or_default());
    let names = (0u32..).map(|n| {
        if n == 0 {
            stem.clone()
        } else {
            format!("{stem}.{n}")
        }
    });
    let mut free = names
        .filter_map(|name| name.parse::<VolumeName>().ok())
        .filter(|name| !taken.contains_key(name));
    free.next()
        .unwrap_or_else(|| unreachable!("a label, a dot and safe characters are a volume's name"))
}

fn bind(
    source: &str,
    target: String,
    read_only: bool,
    at: &At<'_>,
    context: &mut Context<'_>,
    report: &mut Report,
) -> Option<Mount> {
    let path = report.path_of(at.node.place, source);
    let data = match context.source.read(&path, MAX_CAPTURED) {
        Ok(data) => data,
        Err(error) => {
            match error {
                FileError::Directory => at.unsupported(
                    report,
                    format!(
                        "{source} is a directory of the host, which a clone could not have for itself; use a named volume and \
                         copy the files in with `offshoot cp`, or put them into the image"
                    ),
                ),
                FileError::Special => {
                    at.unsupported(report, format!("{source} is a device, socket or pipe of the host, which nodes do not get"));
                }
                FileError::Missing | FileError::TooLarge { .. } | FileError::Other(_) => {
                    at.invalid(report, format!("{} {error}", path.display()));
                }
            }
            return None;
        }
    };
    if !read_only {
        at.unsupported(
            report,
            format!(
                "{source} is a file of the host, which a clone could not have for itself; add `:ro` (`read_only: true`) to have \
                 it copied in as it is now, or use a named volume"
            ),
        );
        return None;
    }
    count(&data, at, context, report)?;
    let FileData { bytes, mode } = data;
    Some(Mount::File {
        target,
        content: bytes.into(),
        mode: mode & 0o777,
        uid: 0,
        gid: 0,
        secret: false,
    })
}

/// Keeps the sum of captured files bounded.
fn count(
    data: &FileData,
    at: &At<'_>,
    context: &mut Context<'_>,
    report: &mut Report,
) -> Option<()> {
    context.captured += data.bytes.len() as u64;
    if context.captured > MAX_CAPTURED_TOTAL {
        at.invalid(
            report,
            format!(
                "the files that are copied in have more than {MAX_CAPTURED_TOTAL} bytes together"
            ),
        );
        return None;
    }
    Some(())
}

/// Reads a file that becomes part of the manifest.
pub(super) fn capture(
    at: &At<'_>,
    context: &mut Context<'_>,
    report: &mut Report,
) -> Option<FileData> {
    let text = at.word(report)?;
    let path = report.path_of(at.node.place, text);
    match context.source.read(&path, MAX_CAPTURED) {
        Ok(data) => count(&data, at, context, report).map(|()| data),
        Err(error) => {
            at.invalid(report, format!("{} {error}", path.display()));
            None
        }
    }
}

/// `PATH[:OPTIONS]`.
fn tmpfs(at: &At<'_>, report: &mut Report) -> Option<Mount> {
    let text = at.word(report)?;
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let (mut size, mut mode) = (None, None);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let result = match option.split_once('=') {
            Some(("size", value)) => {
                offshoot_model::quantity::parse_bytes(value).map(|bytes| size = Some(bytes))
            }
            Some(("mode", value)) => u32::from_str_radix(value, 8)
                .ok()
                .filter(|mode| *mode <= 0o7777)
                .map(|bits| mode = Some(bits))
                .ok_or_else(|| format!("{value:?} is not a mode in octal")),
            None if ["rw", "noexec", "nosuid", "nodev"].contains(&option) => Ok(()),
            _ => {
                at.unsupported(report, format!("the option {option:?} is not supported; size, mode, rw, noexec, nosuid, nodev are"));
                Ok(())
            }
        };
        if let Err(message) = result {
            at.invalid(report, message);
        }
    }
    let target = mount_target(at, target, report)?;
    Some(Mount::Tmpfs {
        target,
        size: size.filter(|size| *size > 0),
        mode,
    })
}

/// What a service is given from the top level.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grant {
    Config,
    Secret,
}

impl Grant {
    fn field(self) -> &'static str {
        match self {
            Self::Config => "configs",
            Self::Secret => "secrets",
        }
    }

    /// Directory that a name or a relative target is under.
    fn dir(self) -> &'static str {
        match self {
            Self::Config => "/",
            Self::Secret => "/run/secrets/",
        }
    }
}

/// A config or secret as a file inside.
fn grant(
    kind: Grant,
    at: &At<'_>,
    context: &mut Context<'_>,
    report: &mut Report,
) -> Option<Mount> {
    let (mut target, mut mode, mut uid, mut gid) = (None, GRANT_MODE, 0, 0);
    let source = if at.is_text() {
        at.word(report)?
    } else {
        let mut fields = at.fields(report);
        let source = fields.get("source").and_then(|at| at.word(report));
        target = fields.get("target").and_then(|at| at.word(report));
        let mut id = |name| {
            let number = fields.get(name).and_then(|at| at.number(report, 0, 65_535));
            number.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
        };
        (uid, gid) = (id("uid"), id("gid"));
        if let Some(at) = fields.get("mode") {
            mode = at.mode(report).unwrap_or(GRANT_MODE);
        }
        if source.is_none() {
            fields.invalid(report, "has no source");
        }
        fields.finish(report);
        source?
    };
    let defined = match kind {
        Grant::Config => context.configs.get(source),
        Grant::Secret => context.secrets.get(source),
    };
    let Some(definition) = defined.cloned() else {
        at.invalid(
            report,
            format!(
                "there is no {source:?} under the top-level {}",
                kind.field()
            ),
        );
        return None;
    };
    let content = content(&definition, context, report)?;
    let target = target.unwrap_or(source);
    let target = if target.starts_with('/') {
        target.to_owned()
    } else {
        format!("{}{target}", kind.dir())
    };
    let target = mount_target(at, &target, report)?;
    Some(Mount::File {
        target,
        content,
        mode,
        uid,
        gid,
        secret: kind == Grant::Secret,
    })
}

/// The content of a top-level config or secret: `file`, `environment` or `content`.
fn content(at: &At<'_>, context: &mut Context<'_>, report: &mut Report) -> Option<FileContent> {
    let mut fields = at.fields(report);
    if let Some(external) = fields.get("external")
        && (!external.is_text() || external.boolean(report) == Some(true))
    {
        external.unsupported(
            report,
            "there is no store outside; name a file, an environment variable or the content",
        );
        return None;
    }
    fields.ignore(
        report,
        "name",
        "is not used; configs and secrets belong to the environment",
    );
    fields.ignore(report, "labels", "is ignored; nothing carries them");
    fields.refuse(
        report,
        "driver",
        "there are no drivers; name a file, an environment variable or the content",
    );
    fields.refuse(
        report,
        "template_driver",
        "there are no drivers; name a file, an environment variable or the content",
    );
    let (file, variable, inline) = (
        fields.get("file"),
        fields.get("environment"),
        fields.get_or_null("content"),
    );
    let given = usize::from(file.is_some())
        + usize::from(variable.is_some())
        + usize::from(inline.is_some());
    if given != 1 {
        fields.invalid(report, "needs exactly one of file, environment and content");
    }
    fields.finish(report);
    if let Some(at) = file {
        return capture(&at, context, report).map(|data| data.bytes.into());
    }
    if let Some(at) = variable {
        let name = at.word(report)?;
        let Some(value) = report.variables_of(at.node.place).get(name).cloned() else {
            at.invalid(
                report,
                format!("the environment variable {name} is not set"),
            );
            return None;
        };
        return Some(FileContent::Text(value));
    }
    let at = inline?;
    let text = if at.is_null() { "" } else { at.text(report)? };
    Some(FileContent::Text(text.to_owned()))
}
