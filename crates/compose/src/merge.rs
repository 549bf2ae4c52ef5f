//! One file over another (Compose specification, "Merge").
//!
//! Maps are merged key by key, lists are appended, single values replaced; commands are replaced as a whole,
//! and ports, mounts, secrets and configs are one per port or target. [`normalise`] brings the short forms
//! that take part in merging (`- A=1`) into their map form first.

use crate::diagnostic::Report;
use crate::yaml::{Key, Merge, Node, Value};

/// Brings a service's list forms into map forms.
pub(crate) fn normalise(service: &mut Node, path: &str, report: &mut Report) {
    let Value::Map(entries) = &mut service.value else {
        return;
    };
    for (key, node) in entries {
        let path = format!("{path}.{}", key.text);
        match key.text.as_str() {
            "environment" | "labels" | "annotations" | "sysctls" => {
                pairs(node, &path, &['='], report)
            }
            "extra_hosts" => pairs(node, &path, &['=', ':'], report),
            "depends_on" | "networks" => pairs(node, &path, &[], report),
            "env_file" | "tmpfs" | "dns" | "dns_search" | "label_file" if node.text().is_some() => {
                let place = node.place;
                let scalar = Node {
                    merge: Merge::Normal,
                    ..node.clone()
                };
                *node = Node {
                    merge: node.merge,
                    ..Node::new(place, Value::List(vec![scalar]))
                };
            }
            _ => {}
        }
    }
}

/// A list of `name<separator>value` to a map; a bare name gets null.
fn pairs(node: &mut Node, path: &str, separators: &[char], report: &mut Report) {
    let Value::List(items) = &mut node.value else {
        return;
    };
    let mut entries: Vec<(Key, Node)> = Vec::new();
    for item in std::mem::take(items) {
        let Value::Scalar(text) = item.value else {
            report.invalid(item.place, path, "expected text in this list");
            continue;
        };
        let (name, value) = match text.split_once(separators) {
            Some((name, value)) if !separators.is_empty() => {
                (name, Value::Scalar(value.to_owned()))
            }
            _ => (text.as_str(), Value::Null),
        };
        let key = Key {
            text: name.to_owned(),
            place: item.place,
        };
        let value = Node::new(item.place, value);
        // Within one list the last one counts, as in Docker.
        match entries.iter_mut().find(|(known, _)| known.text == key.text) {
            Some(entry) => *entry = (key, value),
            None => entries.push((key, value)),
        }
    }
    node.value = Value::Map(entries);
}

/// Puts `over` on top of `base`. `path` is where both stand, from the file's root.
pub(crate) fn merge(base: Node, over: Node, path: &mut Vec<String>) -> Node {
    if over.merge != Merge::Normal {
        return over;
    }
    let rule = Rule::at(path);
    match (rule, base.value, over.value) {
        (Rule::Replace, _, value) => Node { value, ..over },
        (Rule::Keep, value, Value::Null) => Node { value, ..base },
        (_, Value::Map(mut entries), Value::Map(over_entries)) => {
            for (key, node) in over_entries {
                match entries.iter_mut().find(|(known, _)| known.text == key.text) {
                    Some((known, slot)) => {
                        path.push(key.text.clone());
                        let old = std::mem::replace(slot, Node::new(key.place, Value::Null));
                        *slot = merge(old, node, path);
                        path.pop();
                        // The place of what counts now is what people need to see.
                        if matches!(slot.value, Value::Scalar(_) | Value::Null) {
                            *known = key;
                        }
                    }
                    None => entries.push((key, node)),
                }
            }
            Node {
                value: Value::Map(entries),
                ..base
            }
        }
        (Rule::Unique(identity), Value::List(mut items), Value::List(over_items)) => {
            for item in over_items {
                let id = identity(&item);
                match items
                    .iter_mut()
                    .find(|known| id.is_some() && identity(known) == id)
                {
                    Some(known) => *known = item,
                    None => items.push(item),
                }
            }
            Node {
                value: Value::List(items),
                ..base
            }
        }
        (_, Value::List(mut items), Value::List(over_items)) => {
            items.extend(over_items);
            Node {
                value: Value::List(items),
                ..base
            }
        }
        (_, _, value) => Node { value, ..over },
    }
}

/// Takes away what `!reset` marks.
pub(crate) fn apply_resets(node: &mut Node) {
    match &mut node.value {
        Value::Map(entries) => {
            entries.retain(|(_, node)| node.merge != Merge::Reset);
            entries.iter_mut().for_each(|(_, node)| apply_resets(node));
        }
        Value::List(items) => {
            items.retain(|node| node.merge != Merge::Reset);
            items.iter_mut().for_each(apply_resets);
        }
        Value::Null | Value::Scalar(_) => {}
    }
}

/// How a field is merged.
#[derive(Clone, Copy)]
enum Rule {
    /// The later one counts, as a whole.
    Replace,
    /// By its kind; an empty later value changes nothing.
    Keep,
    /// By its kind; an empty later value counts.
    Plain,
    /// A list with one item per identity.
    Unique(fn(&Node) -> Option<String>),
}

impl Rule {
    fn at(path: &[String]) -> Self {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let ["services", _, field @ ..] = path.as_slice() else {
            return Self::Keep;
        };
        match field {
            ["command" | "entrypoint"] | ["healthcheck", "test"] => Self::Replace,
            ["x-offshoot", "packages", "config", "command" | "entrypoint"] => Self::Replace,
            ["environment", _] => Self::Plain,
            ["ports"] => Self::Unique(port_identity),
            ["volumes"] => Self::Unique(volume_target),
            ["secrets" | "configs"] => Self::Unique(grant_target),
            [
                "expose" | "cap_add" | "cap_drop" | "profiles" | "security_opt" | "group_add"
                | "dns" | "dns_search" | "dns_opt" | "tmpfs" | "devices",
            ] => Self::Unique(|node| node.text().map(str::to_owned)),
            _ => Self::Keep,
        }
    }
}

fn port_identity(node: &Node) -> Option<String> {
    if let Some(text) = node.text() {
        return Some(text.strip_suffix("/tcp").unwrap_or(text).to_owned());
    }
    let part = |key: &str| node.get(key).and_then(Node::text);
    let mut text = part("host_ip")
        .map(|ip| format!("{ip}:"))
        .unwrap_or_default();
    if let Some(published) = part("published") {
        text += &format!("{published}:");
    }
    text += part("target")?;
    match part("protocol") {
        None | Some("tcp") => Some(text),
        Some(protocol) => Some(format!("{text}/{protocol}")),
    }
}

fn volume_target(node: &Node) -> Option<String> {
    if let Some(text) = node.text() {
        let mut parts = text.split(':');
        let first = parts.next()?;
        return Some(
            parts
                .next()
                .unwrap_or(first)
                .trim_end_matches('/')
                .to_owned(),
        );
    }
    node.get("target")
        .and_then(Node::text)
        .map(|target| target.trim_end_matches('/').to_owned())
}

fn grant_target(node: &Node) -> Option<String> {
    let long = || {
        node.get("target")
            .or_else(|| node.get("source"))
            .and_then(Node::text)
    };
    node.text().or_else(long).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    /// Merges services `s` of two texts and shows the result in one line.
    fn merged(base: &str, over: &str) -> String {
        let mut report = Report::default();
        let mut read = |text: &str| {
            let mut node = parse(text, 0).unwrap().remove(0);
            normalise(&mut node, "services.s", &mut report);
            node
        };
        let mut node = merge(
            read(base),
            read(over),
            &mut vec!["services".into(), "s".into()],
        );
        apply_resets(&mut node);
        show(&node)
    }

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Null => "~".to_owned(),
            Value::Scalar(text) => text.clone(),
            Value::List(items) => {
                format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(","))
            }
            Value::Map(entries) => {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|(k, n)| format!("{}:{}", k.text, show(n)))
                    .collect();
                format!("{{{}}}", entries.join(","))
            }
        }
    }

    #[test]
    fn the_specification_s_rules() {
        for (base, over, expected) in [
            ("image: a", "image: b", "{image:b}"),
            (
                "environment: [A=1, B=2]",
                "environment: {B: 3, C: }",
                "{environment:{A:1,B:3,C:~}}",
            ),
            (
                "environment: {A: 1}",
                "environment: [A]",
                "{environment:{A:~}}",
            ),
            ("command: [a, b]", "command: [c]", "{command:[c]}"),
            ("dns: a", "dns: [b, a]", "{dns:[a,b]}"),
            (
                "ports: ['80:80', '81:81']",
                "ports: ['80:80/tcp', '82:82']",
                "{ports:[80:80/tcp,81:81,82:82]}",
            ),
            (
                "ports: ['80:80']",
                "ports: [{target: 80, published: 80}]",
                "{ports:[{target:80,published:80}]}",
            ),
            (
                "volumes: ['a:/x', 'b:/y']",
                "volumes: ['c:/x/:ro']",
                "{volumes:[c:/x/:ro,b:/y]}",
            ),
            ("labels: [a=1]", "labels: {b: 2}", "{labels:{a:1,b:2}}"),
            (
                "depends_on: [a]",
                "depends_on: {b: {condition: service_healthy}}",
                "{depends_on:{a:~,b:{condition:service_healthy}}}",
            ),
            (
                "healthcheck: {test: [CMD, a], retries: 2}",
                "healthcheck: {test: b}",
                "{healthcheck:{test:b,retries:2}}",
            ),
            ("image: a\nports: ['1:1']", "ports: !reset []", "{image:a}"),
            (
                "ports: ['1:1']",
                "ports: !override ['2:2']",
                "{ports:[2:2]}",
            ),
            (
                "environment: {A: 1, B: 2}",
                "environment: {A: !reset null}",
                "{environment:{B:2}}",
            ),
            ("image: a", "image:", "{image:a}"),
            ("env_file: a", "env_file: [b]", "{env_file:[a,b]}"),
            (
                "ulimits: {nofile: 5}",
                "ulimits: {nofile: {soft: 1, hard: 2}}",
                "{ulimits:{nofile:{soft:1,hard:2}}}",
            ),
        ] {
            assert_eq!(merged(base, over), expected, "{base} + {over}");
        }
    }
}
