//! What runs in a node, and how it is started, watched and stopped.

use std::collections::BTreeMap;

use offshoot_model::manifest::{HealthCheck, RestartPolicy};

use super::Context;
use super::paths;
use crate::diagnostic::Report;
use crate::dotenv::{self, Format};
use crate::field::{At, Fields};
use crate::shellwords;

/// Largest file of variables in bytes.
const MAX_ENV_FILE: u64 = 1 << 20;

/// argv from a list, or from a text split at blanks and quotes. An empty one is meant: it switches the image's off.
pub(super) fn command(at: &At<'_>, report: &mut Report) -> Option<Vec<String>> {
    if !at.is_text() {
        return Some(at.words(report));
    }
    match shellwords::split(at.text(report)?) {
        Ok(words) => Some(words),
        Err(message) => {
            at.invalid(report, message);
            None
        }
    }
}

/// `env_file` and, over it, `environment`.
pub(super) fn environment(
    fields: &mut Fields<'_>,
    context: &Context<'_>,
    report: &mut Report,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    if let Some(at) = fields.get("env_file") {
        for item in at.list(report) {
            env_file(&item, context, &mut variables, report);
        }
    }
    if let Some(at) = fields.get("environment") {
        for (name, value) in at.entries(report) {
            if name.is_empty() || name.contains(['=', '\0']) {
                value.invalid(report, format!("{name:?} is not the name of a variable"));
                continue;
            }
            if value.is_null() {
                // No value: the caller's, and without one the variable is not set at all.
                match report.variables_of(value.node.place).get(name) {
                    Some(found) => variables.insert(name.to_owned(), found.clone()),
                    None => variables.remove(name),
                };
            } else if let Some(text) = value.text(report) {
                variables.insert(name.to_owned(), text.to_owned());
            }
        }
    }
    variables
}

fn env_file(
    at: &At<'_>,
    context: &Context<'_>,
    variables: &mut BTreeMap<String, String>,
    report: &mut Report,
) {
    let (mut required, mut format) = (true, Format::Dotenv);
    let path = if at.is_text() {
        Some(at.clone())
    } else {
        let mut fields = at.fields(report);
        if let Some(at) = fields.get("required") {
            required = at.boolean(report).unwrap_or(true);
        }
        if let Some(at) = fields.get("format") {
            match at.text(report) {
                Some("raw") => format = Format::Raw,
                Some(other) => {
                    at.invalid(report, format!("{other:?} is not a format; only raw is"))
                }
                None => {}
            }
        }
        let path = fields.get("path");
        if path.is_none() {
            fields.invalid(report, "has no path");
        }
        fields.finish(report);
        path
    };
    let Some(path) = path else { return };
    let Some(text) = path.word(report) else {
        return;
    };
    let file = report.path_of(path.node.place, text);
    let bytes = match context.source.read(&file, MAX_ENV_FILE) {
        Ok(data) => data.bytes,
        Err(crate::FileError::Missing) if !required => return,
        Err(error) => return path.invalid(report, format!("{} {error}", file.display())),
    };
    let Ok(content) = String::from_utf8(bytes) else {
        return path.invalid(report, format!("{} is not UTF-8 text", file.display()));
    };
    let outer = report.variables_of(path.node.place);
    match dotenv::parse(&content, format, &|name| outer.get(name).cloned()) {
        Ok(read) => variables.extend(read),
        Err((line, message)) => {
            path.invalid(report, format!("{}:{line}: {message}", file.display()))
        }
    }
}

/// `name`, `uid`, each with an optional `:group`.
pub(super) fn user(at: &At<'_>, report: &mut Report) -> Option<String> {
    at.parse(report, |text| {
        let part = |text: &str| {
            !text.is_empty()
                && text.len() <= 64
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_.-$".contains(c))
        };
        let valid = match text.split_once(':') {
            Some((user, group)) => part(user) && part(group),
            None => part(text),
        };
        if valid {
            Ok(text.to_owned())
        } else {
            Err(format!(
                "{text:?} is not a user; write name, uid, name:group or uid:gid"
            ))
        }
    })
}

pub(super) fn working_dir(at: &At<'_>, report: &mut Report) -> Option<String> {
    at.parse(report, paths::inside)
}

/// A fixed host name: one or more labels (RFC 1123), at most 63 bytes as the kernel allows 64 (sethostname(2)).
pub(super) fn hostname(at: &At<'_>, report: &mut Report) -> Option<String> {
    at.parse(report, |text| {
        let label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= 63 && text.split('.').all(label) {
            Ok(text.to_owned())
        } else {
            Err(format!(
                "{text:?} is not a host name: letters, digits and hyphens, at most 63 characters"
            ))
        }
    })
}

/// `restart:`.
pub(super) fn restart(at: &At<'_>, report: &mut Report) -> Option<RestartPolicy> {
    at.parse(report, |text| match text.split_once(':') {
        Some(("on-failure", count)) => match count.parse::<u32>() {
            Ok(count) => Ok(RestartPolicy::OnFailure {
                max_attempts: (count > 0).then_some(count),
            }),
            Err(_) => Err(format!("{count:?} is not a number of attempts")),
        },
        None if text == "on-failure" => Ok(RestartPolicy::OnFailure { max_attempts: None }),
        None if text == "always" => Ok(RestartPolicy::Always),
        None if text == "unless-stopped" => Ok(RestartPolicy::UnlessStopped),
        // Unquoted `no` is a boolean for some YAML writers.
        None if text == "no" || text == "false" => Ok(RestartPolicy::No),
        _ => Err(format!(
            "{text:?} is none of \"no\", always, on-failure, on-failure:N, unless-stopped"
        )),
    })
}

/// `deploy.restart_policy`, which counts when there is no `restart`.
pub(super) fn restart_policy(at: &At<'_>, report: &mut Report) -> RestartPolicy {
    let mut fields = at.fields(report);
    let max_attempts = fields
        .get("max_attempts")
        .and_then(|at| at.number(report, 0, u64::from(u32::MAX)));
    let max_attempts = max_attempts
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n > 0);
    let policy = match fields.get("condition") {
        None => RestartPolicy::Always,
        Some(at) => at
            .parse(report, |text| match text {
                "none" => Ok(RestartPolicy::No),
                "any" => Ok(RestartPolicy::Always),
                "on-failure" => Ok(RestartPolicy::OnFailure { max_attempts }),
                _ => Err(format!("{text:?} is none of none, on-failure, any")),
            })
            .unwrap_or_default(),
    };
    for name in ["delay", "window"] {
        fields.ignore(
            report,
            name,
            "is ignored; the time between attempts grows by itself",
        );
    }
    fields.finish(report);
    policy
}

/// Signals by number 1 to 31 on Linux (signal(7), x86 and ARM).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// A signal as `SIGNAME`, from a name with or without `SIG`, or a number.
pub(super) fn signal(text: &str) -> Result<String, String> {
    let bad = || format!("{text:?} is not a signal; write for instance SIGTERM");
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<usize>() {
        let name = number.checked_sub(1).and_then(|index| SIGNALS.get(index));
        return name.map(|name| format!("SIG{name}")).ok_or_else(bad);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = name
        .strip_prefix("RTMIN+")
        .and_then(|n| n.parse::<u8>().ok())
        .is_some_and(|n| n <= 30)
        || name
            .strip_prefix("RTMAX-")
            .and_then(|n| n.parse::<u8>().ok())
            .is_some_and(|n| n <= 30);
    if SIGNALS.contains(&name) || real_time {
        Ok(format!("SIG{name}"))
    } else {
        Err(bad())
    }
}

/// `healthcheck:`. Defaults are Docker's.
pub(super) fn healthcheck(at: &At<'_>, report: &mut Report) -> Option<HealthCheck> {
    let mut fields = at.fields(report);
    let mut check = HealthCheck {
        test: Vec::new(),
        interval_ms: 30_000,
        timeout_ms: 30_000,
        retries: 3,
        start_period_ms: 0,
        start_interval_ms: 5_000,
    };
    let disabled = fields
        .get("disable")
        .and_then(|at| at.boolean(report))
        .unwrap_or(false);
    let test = fields.get("test");
    let tested = test.as_ref().and_then(|at| health_test(at, report));
    for (name, slot) in [
        ("interval", &mut check.interval_ms),
        ("timeout", &mut check.timeout_ms),
        ("start_period", &mut check.start_period_ms),
        ("start_interval", &mut check.start_interval_ms),
    ] {
        let Some(at) = fields.get(name) else { continue };
        let Some(value) = at.duration(report) else {
            continue;
        };
        // Zero means the default in Docker; for the start period it is the default.
        if value > 0 {
            *slot = value;
        }
    }
    if let Some(retries) = fields
        .get("retries")
        .and_then(|at| at.number(report, 0, 1000))
        && retries > 0
    {
        check.retries = u32::try_from(retries).unwrap_or(u32::MAX);
    }
    fields.finish(report);
    if !disabled {
        match (test, tested) {
            (Some(_), tested) => check.test = tested?,
            (None, _) => {
                at.unsupported(
                    report,
                    "name the test too; the image's own check cannot be changed in part",
                );
                return None;
            }
        }
    }
    Some(check)
}

fn health_test(at: &At<'_>, report: &mut Report) -> Option<Vec<String>> {
    let shell = |line: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()];
    if at.is_text() {
        return at.word(report).map(shell);
    }
    let words = at.words(report);
    match words.split_first() {
        Some((first, [])) if first == "NONE" => Some(Vec::new()),
        Some((first, rest)) if first == "CMD" && !rest.is_empty() => Some(rest.to_vec()),
        Some((first, [line])) if first == "CMD-SHELL" => Some(shell(line)),
        _ => {
            at.invalid(
                report,
                "begins with CMD and a command, CMD-SHELL and one line, or is [NONE]",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::signal;

    #[test]
    fn signals() {
        for (text, name) in [
            ("TERM", "SIGTERM"),
            ("sigquit", "SIGQUIT"),
            ("15", "SIGTERM"),
            ("SIGRTMIN+3", "SIGRTMIN+3"),
        ] {
            assert_eq!(signal(text).as_deref(), Ok(name));
        }
        for bad in ["", "0", "32", "SIGX", "RTMIN+40", "SIG"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
