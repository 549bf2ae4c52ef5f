//! Typed access to the tree: every getter reports what it cannot read, every map reports what nobody asked for.

use offshoot_model::quantity;

use crate::diagnostic::{Place, Report};
use crate::yaml::{Node, Value};

/// A value with its place and its name from the root.
#[derive(Debug, Clone)]
pub(crate) struct At<'a> {
    pub(crate) node: &'a Node,
    /// For instance `services.web.ports[0]`.
    pub(crate) path: String,
    /// Line of the key, or of the item of a list.
    pub(crate) place: Place,
}

impl<'a> At<'a> {
    pub(crate) fn invalid(&self, report: &mut Report, message: impl Into<String>) {
        report.invalid(self.place, &self.path, message);
    }

    pub(crate) fn unsupported(&self, report: &mut Report, message: impl Into<String>) {
        report.unsupported(self.place, &self.path, message);
    }

    pub(crate) fn warn(&self, report: &mut Report, message: impl Into<String>) {
        report.warn(self.place, &self.path, message);
    }

    /// Text as written; numbers and booleans are text too.
    pub(crate) fn text(&self, report: &mut Report) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar(text) if text.contains('\0') => {
                self.invalid(report, "contains a NUL byte");
                None
            }
            Value::Scalar(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.invalid(report, "expected text");
                None
            }
        }
    }

    /// Text that means something: not empty.
    pub(crate) fn word(&self, report: &mut Report) -> Option<&'a str> {
        let text = self.text(report)?;
        if text.trim().is_empty() {
            self.invalid(report, "is empty");
            return None;
        }
        Some(text)
    }

    /// Text read by `parse`, whose error is a sentence.
    pub(crate) fn parse<T>(
        &self,
        report: &mut Report,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match parse(self.word(report)?) {
            Ok(value) => Some(value),
            Err(message) => {
                self.invalid(report, message);
                None
            }
        }
    }

    /// A whole number from `min` to `max`.
    pub(crate) fn number(&self, report: &mut Report, min: u64, max: u64) -> Option<u64> {
        self.parse(report, |text| match text.trim().parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(format!(
                "{text:?} is not a whole number from {min} to {max}"
            )),
        })
    }

    /// `true` or `false`, as YAML 1.1 and Compose write them.
    pub(crate) fn boolean(&self, report: &mut Report) -> Option<bool> {
        self.parse(report, |text| {
            match text.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "y" | "1" => Ok(true),
                "false" | "no" | "off" | "n" | "0" => Ok(false),
                _ => Err(format!("{text:?} is neither true nor false")),
            }
        })
    }

    /// A size in bytes.
    pub(crate) fn bytes(&self, report: &mut Report) -> Option<u64> {
        self.parse(report, quantity::parse_bytes)
    }

    /// A duration in milliseconds.
    pub(crate) fn duration(&self, report: &mut Report) -> Option<u64> {
        self.parse(report, quantity::parse_duration_ms)
    }

    /// Permission bits in octal with a leading zero: without it `440` would be read as decimal by some tools
    /// and as octal by others.
    pub(crate) fn mode(&self, report: &mut Report) -> Option<u32> {
        self.parse(report, |text| {
            let octal = text.trim().strip_prefix("0o").or_else(|| text.trim().strip_prefix('0'));
            match octal.map(|digits| u32::from_str_radix(digits, 8)) {
                Some(Ok(mode)) if mode <= 0o7777 => Ok(mode),
                _ => Err(format!("{text:?} is not a mode; write it in octal with a leading zero, for instance 0440")),
            }
        })
    }

    /// Items of a list.
    pub(crate) fn list(&self, report: &mut Report) -> Vec<At<'a>> {
        match &self.node.value {
            Value::List(items) => {
                let at = |(index, node): (usize, &'a Node)| At {
                    node,
                    path: format!("{}[{index}]", self.path),
                    place: node.place,
                };
                items.iter().enumerate().map(at).collect()
            }
            Value::Null => Vec::new(),
            Value::Scalar(_) | Value::Map(_) => {
                self.invalid(report, "expected a list");
                Vec::new()
            }
        }
    }

    /// A list of texts.
    pub(crate) fn words(&self, report: &mut Report) -> Vec<String> {
        self.list(report)
            .iter()
            .filter_map(|item| item.text(report).map(str::to_owned))
            .collect()
    }

    /// Entries of a map whose keys are names that people choose.
    pub(crate) fn entries(&self, report: &mut Report) -> Vec<(&'a str, At<'a>)> {
        match &self.node.value {
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| {
                    let path = format!("{}.{}", self.path, key.text);
                    (
                        key.text.as_str(),
                        At {
                            node,
                            path,
                            place: key.place,
                        },
                    )
                })
                .collect(),
            Value::Null => Vec::new(),
            Value::Scalar(_) | Value::List(_) => {
                self.invalid(report, "expected a map");
                Vec::new()
            }
        }
    }

    /// A map whose keys are known.
    pub(crate) fn fields(&self, report: &mut Report) -> Fields<'a> {
        if !matches!(self.node.value, Value::Map(_) | Value::Null) {
            self.invalid(report, "expected a map");
        }
        Fields {
            node: self.node,
            path: self.path.clone(),
            place: self.place,
            asked: Vec::new(),
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        self.node.value == Value::Null
    }

    pub(crate) fn is_text(&self) -> bool {
        matches!(self.node.value, Value::Scalar(_))
    }
}

/// A map with known keys. [`Fields::finish`] reports those that nobody asked for.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    node: &'a Node,
    pub(crate) path: String,
    pub(crate) place: Place,
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The value of `name`; a null counts as absent.
    pub(crate) fn get(&mut self, name: &'static str) -> Option<At<'a>> {
        self.get_or_null(name).filter(|at| !at.is_null())
    }

    /// The value of `name`, null or not.
    pub(crate) fn get_or_null(&mut self, name: &'static str) -> Option<At<'a>> {
        self.asked.push(name);
        let (key, node) = self
            .node
            .entries()
            .iter()
            .find(|(key, _)| key.text == name)?;
        Some(At {
            node,
            path: self.join(name),
            place: key.place,
        })
    }

    /// Warns when `name` is there: it has no meaning here and harms nothing.
    pub(crate) fn ignore(&mut self, report: &mut Report, name: &'static str, why: &str) {
        if let Some(at) = self.get(name) {
            at.warn(report, why);
        }
    }

    /// Refuses `name`, which the specification knows.
    pub(crate) fn refuse(&mut self, report: &mut Report, name: &'static str, why: &str) {
        if let Some(at) = self.get(name) {
            at.unsupported(report, why);
        }
    }

    pub(crate) fn invalid(&self, report: &mut Report, message: impl Into<String>) {
        report.invalid(self.place, &self.path, message);
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// Reports every key that was not asked for. Extensions of others (`x-...`) may be there.
    pub(crate) fn finish(self, report: &mut Report) {
        for (key, _) in self.node.entries() {
            if self.asked.contains(&key.text.as_str()) {
                continue;
            }
            let path = self.join(&key.text);
            let close = closest(&key.text, &self.asked);
            match close {
                Some(name) if key.text.starts_with("x-") => {
                    report.warn(
                        key.place,
                        &path,
                        format!("is ignored; did you mean {name}?"),
                    );
                }
                None if key.text.starts_with("x-") => {}
                Some(name) => report.invalid(
                    key.place,
                    &path,
                    format!("is not known here; did you mean {name}?"),
                ),
                None => report.invalid(key.place, &path, "is not known here"),
            }
        }
    }
}

/// The name that `text` is most likely a slip of.
pub(crate) fn closest<'n>(text: &str, names: &[&'n str]) -> Option<&'n str> {
    let most = if text.len() <= 4 { 1 } else { 2 };
    let near = names
        .iter()
        .map(|name| (distance(text, name), *name))
        .filter(|(distance, _)| *distance <= most);
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Levenshtein distance, of short texts only.
fn distance(a: &str, b: &str) -> usize {
    if a.len().max(b.len()) > 40 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (slot, y) in row.iter_mut().skip(1).zip(&b) {
            let above = *slot;
            left = (diagonal + usize::from(x != *y))
                .min(above + 1)
                .min(left + 1);
            diagonal = above;
            *slot = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised() {
        let names = ["image", "environment", "ports", "x-offshoot"];
        assert_eq!(closest("imge", &names), Some("image"));
        assert_eq!(closest("enviroment", &names), Some("environment"));
        assert_eq!(closest("x-offshot", &names), Some("x-offshoot"));
        assert_eq!(closest("gpus", &names), None);
        assert_eq!((distance("", "abc"), distance("kitten", "sitting")), (3, 3));
    }
}
