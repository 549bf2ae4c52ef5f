//! YAML text to a tree that knows its lines.
//!
//! Built from the parser's events rather than with a ready loader: every node keeps its place, scalars keep
//! their text (Compose means `0440` and `1.10` as written), duplicate keys are errors, and depth and the
//! growth through aliases are bounded while the tree is built, so a YAML bomb never goes off.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};

use crate::diagnostic::Place;

/// Deepest nesting.
const MAX_DEPTH: usize = 50;
/// Most bytes a file may become through aliases and merge keys, counting 64 for every node.
const MAX_WEIGHT: usize = 16 << 20;

/// Most entries of one list or map: comparing all with all must stay cheap.
const MAX_ENTRIES: usize = 10_000;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
    pub(crate) merge: Merge,
}

/// Compose's tags that change how a value is merged over an earlier file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Merge {
    /// By the rules of the field.
    #[default]
    Normal,
    /// `!reset`: take the earlier value away.
    Reset,
    /// `!override`: replace the earlier value.
    Override,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) place: Place,
}

impl Node {
    pub(crate) fn new(place: Place, value: Value) -> Self {
        Self {
            place,
            value,
            merge: Merge::Normal,
        }
    }

    /// The value of `key`, when this is a map that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(k, _)| k.text == key)
                .map(|(_, node)| node),
            _ => None,
        }
    }

    /// Entries of a map; none when it is something else.
    pub(crate) fn entries(&self) -> &[(Key, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Text of a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(text) => Some(text),
            _ => None,
        }
    }

    /// Bytes this would take, roughly. Recursion is bounded by [`MAX_DEPTH`].
    fn weight(&self) -> usize {
        64 + match &self.value {
            Value::Null => 0,
            Value::Scalar(text) => text.len(),
            Value::List(items) => items.iter().map(Node::weight).sum(),
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| key.text.len() + node.weight())
                .sum(),
        }
    }

    fn depth(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Scalar(_) => 0,
            Value::List(items) => items.iter().map(Node::depth).max().unwrap_or(0),
            Value::Map(entries) => entries
                .iter()
                .map(|(_, node)| node.depth())
                .max()
                .unwrap_or(0),
        }
    }
}

/// Why a text is no YAML that is accepted here.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct YamlError {
    pub(crate) line: u32,
    pub(crate) message: String,
}

/// A collection that is being read.
struct Open {
    node: Node,
    anchor: usize,
    /// The key whose value comes next, when the node is a map.
    key: Option<Key>,
    /// Keys seen so far.
    seen: HashSet<String>,
    /// Values of `<<`, applied when the map ends so that its own keys win wherever they stand.
    merges: Vec<Node>,
}

impl Open {
    fn count(&self) -> usize {
        match &self.node.value {
            Value::List(items) => items.len(),
            Value::Map(entries) => entries.len(),
            Value::Null | Value::Scalar(_) => 0,
        }
    }
}

struct Builder {
    file: u16,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    documents: Vec<Node>,
    weight: usize,
}

/// Reads every document in `text`.
pub(crate) fn parse(text: &str, file: u16) -> Result<Vec<Node>, YamlError> {
    let mut builder = Builder {
        file,
        open: Vec::new(),
        anchors: HashMap::new(),
        documents: Vec::new(),
        weight: 0,
    };
    let mut parser = Parser::new(StrInput::new(text.strip_prefix('\u{feff}').unwrap_or(text)));
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| YamlError {
            line: line(error.marker().line()),
            message: format!("not valid YAML: {}", error.info()),
        })?;
        builder.event(event, line(span.start.line()))?;
    }
    Ok(builder.documents)
}

fn line(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: u32) -> Result<(), YamlError> {
        let place = Place {
            file: self.file,
            line,
        };
        let fail = |message: &str| {
            Err(YamlError {
                line,
                message: message.to_owned(),
            })
        };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let merge = self.tag(tag.as_deref(), line)?;
                let string =
                    tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let null = style == ScalarStyle::Plain && !string && is_null(&text);
                // A key is its text, whatever it looks like.
                let value = if null && !self.expects_key() {
                    Value::Null
                } else {
                    Value::Scalar(text.into_owned())
                };
                let node = Node {
                    place,
                    value,
                    merge,
                };
                let weight = node.weight();
                self.add(node, anchor, weight)
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(place, Value::List(Vec::new()), anchor, tag.as_deref())
            }
            Event::MappingStart(anchor, tag) => {
                self.begin(place, Value::Map(Vec::new()), anchor, tag.as_deref())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(mut open) = self.open.pop() else {
                    return fail("not valid YAML: unexpected end");
                };
                for merge in std::mem::take(&mut open.merges) {
                    apply_merge_key(&mut open, merge)?;
                }
                self.add(open.node, open.anchor, 64)
            }
            Event::Alias(anchor) => {
                let Some((node, depth)) = self.anchors.get(&anchor) else {
                    return fail("this alias stands inside its own anchor");
                };
                if self.open.len() + depth > MAX_DEPTH {
                    return fail("nested too deeply");
                }
                let node = node.clone();
                let weight = node.weight();
                self.add(node, 0, weight)
            }
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn expects_key(&self) -> bool {
        self.open
            .last()
            .is_some_and(|open| matches!(open.node.value, Value::Map(_)) && open.key.is_none())
    }

    fn tag(&self, tag: Option<&Tag>, line: u32) -> Result<Merge, YamlError> {
        match tag {
            None => Ok(Merge::Normal),
            Some(tag) if tag.is_yaml_core_schema() => Ok(Merge::Normal),
            Some(tag) => match (tag.handle.as_str(), tag.suffix.as_str()) {
                ("!", "reset") => Ok(Merge::Reset),
                ("!", "override") => Ok(Merge::Override),
                ("" | "!", "" | "!") => Ok(Merge::Normal),
                _ => Err(YamlError {
                    line,
                    message: format!("the tag {tag} has no meaning in a Compose file"),
                }),
            },
        }
    }

    fn begin(
        &mut self,
        place: Place,
        value: Value,
        anchor: usize,
        tag: Option<&Tag>,
    ) -> Result<(), YamlError> {
        let fail = |message: &str| {
            Err(YamlError {
                line: place.line,
                message: message.to_owned(),
            })
        };
        if self.expects_key() {
            return fail("a key must be a plain word, not a list or map");
        }
        if self.open.len() >= MAX_DEPTH {
            return fail("nested too deeply");
        }
        let merge = self.tag(tag, place.line)?;
        let node = Node {
            place,
            value,
            merge,
        };
        self.open.push(Open {
            node,
            anchor,
            key: None,
            seen: HashSet::new(),
            merges: Vec::new(),
        });
        Ok(())
    }

    /// Puts a finished node where it belongs. `weight` is what it adds: the items of a collection were counted
    /// one by one, those that an alias brings were not.
    fn add(&mut self, node: Node, anchor: usize, weight: usize) -> Result<(), YamlError> {
        let line = node.place.line;
        let fail = |message: String| Err(YamlError { line, message });
        self.weight += weight;
        if anchor > 0 {
            self.weight += node.weight();
            self.anchors.insert(anchor, (node.clone(), node.depth()));
        }
        if self.weight > MAX_WEIGHT {
            return fail("aliases make this file too large".to_owned());
        }
        let Some(open) = self.open.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        if open.count() >= MAX_ENTRIES {
            return fail(format!(
                "more than {MAX_ENTRIES} entries in one list or map"
            ));
        }
        match (&mut open.node.value, open.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(_), None) => {
                let Value::Scalar(text) = node.value else {
                    return fail("a key must be a plain word, not a list or map".to_owned());
                };
                if text != "<<" && !open.seen.insert(text.clone()) {
                    return fail(format!("{text:?} is given twice in the same map"));
                }
                open.key = Some(Key {
                    text,
                    place: node.place,
                });
            }
            (Value::Map(_), Some(key)) if key.text == "<<" => open.merges.push(node),
            (Value::Map(entries), Some(key)) => entries.push((key, node)),
            (Value::Null | Value::Scalar(_), _) => return fail("not valid YAML".to_owned()),
        }
        Ok(())
    }
}

/// The merge key (yaml.org/type/merge.html): entries of another map, unless the map has them itself.
fn apply_merge_key(open: &mut Open, merge: Node) -> Result<(), YamlError> {
    let line = merge.place.line;
    let maps = match merge.value {
        Value::List(items) => items,
        value => vec![Node { value, ..merge }],
    };
    for map in maps {
        let Value::Map(from) = map.value else {
            return Err(YamlError {
                line,
                message: "`<<` takes a map or a list of maps".to_owned(),
            });
        };
        if let Value::Map(entries) = &mut open.node.value {
            entries.extend(
                from.into_iter()
                    .filter(|(key, _)| open.seen.insert(key.text.clone())),
            );
        }
    }
    Ok(())
}

/// Null in YAML's core schema.
fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Node {
        parse(text, 0).unwrap().remove(0)
    }

    #[test]
    fn keeps_text_and_lines() {
        let node = one("a: 0440\nb:\n  - 1.10\n  - 'yes'\nc: ~\nd: ''\n");
        assert_eq!(node.get("a").unwrap().text(), Some("0440"));
        let Value::List(items) = &node.get("b").unwrap().value else {
            panic!()
        };
        assert_eq!((items[1].text(), items[1].place.line), (Some("yes"), 4));
        assert_eq!(node.get("c").unwrap().value, Value::Null);
        assert_eq!(node.get("d").unwrap().text(), Some(""));
    }

    #[test]
    fn merge_keys_and_anchors() {
        let node = one("x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz:\n  <<: [*x, *y]\n  a: 9\n");
        let z = node.get("z").unwrap();
        let got: Vec<_> = z
            .entries()
            .iter()
            .map(|(k, n)| (k.text.as_str(), n.text().unwrap()))
            .collect();
        assert_eq!(got, [("a", "9"), ("b", "2"), ("c", "4")]);
    }

    #[test]
    fn duplicate_keys_are_errors() {
        let error = parse("a: 1\nb: 2\na: 3\n", 0).unwrap_err();
        assert_eq!(
            (error.line, error.message.as_str()),
            (3, "\"a\" is given twice in the same map")
        );
    }

    #[test]
    fn a_bomb_is_found_before_it_goes_off() {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..30 {
            let alias = format!("*a{}", i - 1);
            text += &format!("a{i}: &a{i} [{}]\n", [alias.as_str(); 9].join(","));
        }
        assert!(parse(&text, 0).unwrap_err().message.contains("too large"));
    }

    #[test]
    fn depth_is_bounded() {
        for text in [
            "[".repeat(100_000),
            "{a: ".repeat(100_000),
            "- ".repeat(100_000),
        ] {
            assert!(parse(&text, 0).is_err());
        }
        assert!(parse("a: &a [*a]", 0).is_err());
    }

    #[test]
    fn long_lists_are_refused() {
        assert!(parse(&"- a\n".repeat(MAX_ENTRIES), 0).is_ok());
        assert!(parse(&"- a\n".repeat(MAX_ENTRIES + 1), 0).is_err());
    }

    #[test]
    fn tags() {
        assert_eq!(one("a: !reset null").get("a").unwrap().merge, Merge::Reset);
        assert_eq!(
            one("a: !override [b]").get("a").unwrap().merge,
            Merge::Override
        );
        assert_eq!(one("a: !!str null").get("a").unwrap().text(), Some("null"));
        assert!(parse("a: !python/object x", 0).is_err());
    }
}
