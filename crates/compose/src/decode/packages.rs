//! `x-offshoot: {packages: ...}`: an image from a distribution's packages.

use std::collections::BTreeMap;

use offshoot_model::manifest::{ImageConfig, ImageFile, PackageImage};

use super::{Context, mounts, network, paths, process};
use crate::diagnostic::Report;
use crate::field::At;

/// Decodes the description of an image.
pub(super) fn decode(
    at: &At<'_>,
    context: &mut Context<'_>,
    report: &mut Report,
) -> Option<PackageImage> {
    let mut fields = at.fields(report);
    let suite = fields
        .get("suite")
        .and_then(|at| at.parse(report, |text| suite(text.trim())));
    if suite.is_none() && at.node.get("suite").is_none() {
        fields.invalid(
            report,
            "has no suite; name the distribution's release, for instance bookworm",
        );
    }
    let mut packages = Vec::new();
    if let Some(at) = fields.get("packages") {
        for item in at.list(report) {
            let Some(name) = item.parse(report, |text| package(text.trim())) else {
                continue;
            };
            if packages.contains(&name) {
                item.warn(report, "is named twice");
            } else {
                packages.push(name);
            }
        }
    }
    let mut files = BTreeMap::new();
    if let Some(at) = fields.get("files") {
        for (path, at) in at.entries(report) {
            let target = match paths::inside(path) {
                Ok(target) if target != "/" => target,
                Ok(_) => {
                    at.invalid(report, "/ is not a file");
                    continue;
                }
                Err(message) => {
                    at.invalid(report, message);
                    continue;
                }
            };
            if let Some(file) = file(&at, context, report) {
                files.insert(target, file);
            }
        }
    }
    let run = fields
        .get("run")
        .map(|at| at.words(report))
        .unwrap_or_default();
    let config = fields
        .get("config")
        .map(|at| config(&at, report))
        .unwrap_or_default();
    fields.finish(report);
    Some(PackageImage {
        suite: suite?,
        packages,
        files,
        run,
        config,
    })
}

/// A release's name (Debian policy has none; deb-src(5) suites are words like this).
fn suite(text: &str) -> Result<String, String> {
    let valid = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && text.len() <= 40
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if valid {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is not the name of a release, for instance bookworm"
        ))
    }
}

/// `name`, with an optional `=version` (Debian policy 5.6.1 and 5.6.12).
fn package(text: &str) -> Result<String, String> {
    let (name, version) = text
        .split_once('=')
        .map_or((text, None), |(name, version)| (name, Some(version)));
    let name_valid = name.len() >= 2
        && name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    let version_valid = version.is_none_or(|version| {
        version.bytes().next().is_some_and(|b| b.is_ascii_digit())
            && version
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+-.~:".contains(&b))
    });
    if name_valid && version_valid && text.len() <= 200 {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not the name of a package"))
    }
}

/// The content itself, or `content` or `file` with a `mode`.
fn file(at: &At<'_>, context: &mut Context<'_>, report: &mut Report) -> Option<ImageFile> {
    if at.is_text() {
        return at.text(report).map(|text| ImageFile {
            content: text.to_owned(),
            mode: 0o644,
        });
    }
    let mut fields = at.fields(report);
    let mode = fields.get("mode").and_then(|at| at.mode(report));
    let (content, file) = (fields.get("content"), fields.get("file"));
    fields.finish(report);
    match (content, file) {
        (Some(content), None) => content.text(report).map(|text| ImageFile {
            content: text.to_owned(),
            mode: mode.unwrap_or(0o644),
        }),
        (None, Some(file)) => {
            let data = mounts::capture(&file, context, report)?;
            match String::from_utf8(data.bytes) {
                // Only whether it may be executed is taken from the host: the rest is the writer's umask.
                Ok(content) => {
                    let own = if data.mode & 0o111 == 0 { 0o644 } else { 0o755 };
                    Some(ImageFile {
                        content,
                        mode: mode.unwrap_or(own),
                    })
                }
                Err(_) => {
                    file.unsupported(report, "files of an image must be UTF-8 text");
                    None
                }
            }
        }
        _ => {
            at.invalid(report, "needs either content or file");
            None
        }
    }
}

fn config(at: &At<'_>, report: &mut Report) -> ImageConfig {
    let mut fields = at.fields(report);
    let mut config = ImageConfig::default();
    for (name, slot) in [
        ("entrypoint", &mut config.entrypoint),
        ("command", &mut config.command),
    ] {
        if let Some(at) = fields.get(name) {
            *slot = process::command(&at, report).unwrap_or_default();
        }
    }
    if let Some(at) = fields.get("env") {
        config.env = env(&at, report);
    }
    config.user = fields.get("user").and_then(|at| process::user(&at, report));
    config.working_dir = fields
        .get("working_dir")
        .and_then(|at| process::working_dir(&at, report));
    config.stop_signal = fields
        .get("stop_signal")
        .and_then(|at| at.parse(report, process::signal));
    if let Some(at) = fields.get("exposed_ports") {
        config.exposed_ports = network::expose(&at, report);
    }
    if let Some(at) = fields.get("volumes") {
        config.volumes = at
            .list(report)
            .iter()
            .filter_map(|at| at.parse(report, paths::inside))
            .collect();
    }
    config.healthcheck = fields
        .get("healthcheck")
        .and_then(|at| process::healthcheck(&at, report));
    fields.finish(report);
    config
}

/// A map, or a list of `NAME=value`.
fn env(at: &At<'_>, report: &mut Report) -> Vec<String> {
    if matches!(at.node.value, crate::yaml::Value::Map(_)) {
        return super::text_map(at, report)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
    }
    let mut env = at.words(report);
    env.retain(|line| {
        let valid = line
            .split_once('=')
            .is_some_and(|(name, _)| !name.is_empty());
        if !valid {
            at.invalid(report, format!("{line:?} is not NAME=value"));
        }
        valid
    });
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_be_options_or_paths() {
        for good in [
            "nginx",
            "php8.2-fpm",
            "libstdc++6",
            "redis-server=5:7.0.15-1~deb12u1",
        ] {
            assert!(package(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "x",
            "-o",
            "--option",
            "a b",
            "./x.deb",
            "a/bookworm",
            "A",
            "ab=",
            "ab=;x",
        ] {
            assert!(package(bad).is_err(), "{bad}");
        }
        for bad in ["", "-x", "http://x", "a b", "../x"] {
            assert!(suite(bad).is_err(), "{bad}");
        }
    }
}
