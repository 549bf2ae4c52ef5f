//! `extends:`: a service on top of another, of the same file or of another one.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{MAX_CHAIN, Reader};
use crate::diagnostic::{Place, normal};
use crate::merge::merge;
use crate::yaml::{Merge, Node, Value};

/// A service of a file, for finding circles.
type Origin = (PathBuf, String);

impl Reader<'_> {
    /// Replaces every service that has `extends:` by its base with the service on top.
    pub(super) fn extend(&mut self, document: &mut Node, file: &Path, earlier: Option<&Node>) {
        let names: Vec<_> = match document.get("services").map(Node::entries) {
            Some(services) => services
                .iter()
                .filter(|(_, node)| node.get("extends").is_some())
                .map(|(k, _)| k.text.clone())
                .collect(),
            None => return,
        };
        let resolved: Vec<_> = names
            .into_iter()
            .filter_map(|name| {
                let node = self.resolve(document, file, &name, earlier, &mut Vec::new())?;
                Some((name, node))
            })
            .collect();
        let Value::Map(sections) = &mut document.value else {
            return;
        };
        let services = sections.iter_mut().find(|(key, _)| key.text == "services");
        let Some((
            _,
            Node {
                value: Value::Map(services),
                ..
            },
        )) = services
        else {
            return;
        };
        for (name, node) in resolved {
            if let Some((_, slot)) = services.iter_mut().find(|(key, _)| key.text == name) {
                *slot = node;
            }
        }
    }

    /// The service `name` of `document` with everything it extends.
    fn resolve(
        &mut self,
        document: &Node,
        file: &Path,
        name: &str,
        earlier: Option<&Node>,
        stack: &mut Vec<Origin>,
    ) -> Option<Node> {
        let find = |node: &Node| {
            node.get("services")
                .and_then(|services| services.get(name))
                .cloned()
        };
        let mut service = find(document).or_else(|| earlier.and_then(find))?;
        let path = format!("services.{name}.extends");
        let Value::Map(entries) = &mut service.value else {
            return Some(service);
        };
        let Some(at) = entries.iter().position(|(key, _)| key.text == "extends") else {
            return Some(service);
        };
        let (key, extends) = entries.remove(at);
        if extends.merge == Merge::Reset || extends.value == Value::Null {
            return Some(service);
        }
        let origin = (file.to_owned(), name.to_owned());
        if stack.contains(&origin) || stack.len() >= MAX_CHAIN {
            let chain: Vec<_> = stack
                .iter()
                .map(|(_, name)| name.as_str())
                .chain([name])
                .collect();
            self.report.invalid(
                key.place,
                &path,
                format!("goes round in a circle: {}", chain.join(" → ")),
            );
            return Some(service);
        }
        let Some((base, other)) = self.extends_entry(&extends, &path) else {
            return Some(service);
        };
        stack.push(origin);
        let found = match other {
            None => self.resolve(document, file, &base, earlier, stack),
            Some((other, place)) => {
                let tree = self.extended_file(&other, place);
                tree.and_then(|tree| self.resolve(&tree, &other, &base, None, stack))
            }
        };
        stack.pop();
        match found {
            Some(base) => Some(merge(
                base,
                service,
                &mut vec!["services".to_owned(), name.to_owned()],
            )),
            None => {
                self.report.invalid(
                    key.place,
                    &path,
                    format!("there is no service {base:?} to extend"),
                );
                Some(service)
            }
        }
    }

    /// Name of the base and the file it is in.
    #[allow(clippy::type_complexity)]
    fn extends_entry(
        &mut self,
        node: &Node,
        path: &str,
    ) -> Option<(String, Option<(PathBuf, Place)>)> {
        if let Some(text) = node.text() {
            return Some((text.to_owned(), None));
        }
        let (mut service, mut file) = (None, None);
        for (key, value) in node.entries() {
            match (key.text.as_str(), value.text()) {
                ("service", Some(text)) => service = Some(text.to_owned()),
                ("file", Some(text)) => {
                    file = Some((self.report.path_of(value.place, text), value.place))
                }
                (other, _) => {
                    self.report.invalid(
                        key.place,
                        &format!("{path}.{other}"),
                        "expected `service:` and `file:` with text",
                    );
                }
            }
        }
        if service.is_none() {
            self.report.invalid(node.place, path, "has no `service:`");
        }
        service.map(|service| (service, file))
    }

    fn extended_file(&mut self, path: &Path, place: Place) -> Option<Rc<Node>> {
        if let Some(tree) = self.extended.get(path) {
            return Some(Rc::clone(tree));
        }
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let variables = self.report.variables_of(place);
        let mut documents = self
            .documents(path, &dir, &variables, Some(place))
            .into_iter();
        let first = documents.next()?;
        let tree = documents.fold(first, |base, over| merge(base, over, &mut Vec::new()));
        let tree = Rc::new(tree);
        self.extended.insert(normal(path), Rc::clone(&tree));
        Some(tree)
    }
}
