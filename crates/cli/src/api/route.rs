//! Paths of the API, with what people typed made harmless.

use std::fmt::{self, Write as _};

/// A path under `/api/v1`, and its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    text: String,
    query: bool,
}

impl Route {
    /// `/api/v1`.
    pub(crate) fn root() -> Self {
        Self {
            text: "/api/v1".to_owned(),
            query: false,
        }
    }

    /// `/api/v1/<collection>`.
    pub(crate) fn to(collection: &str) -> Self {
        Self::root().then(collection)
    }

    /// An environment.
    pub(crate) fn environment(environment: &str) -> Self {
        Self::to("environments").then(environment)
    }

    /// A node of an environment, or a layer.
    pub(crate) fn node(environment: &str, node: &str) -> Self {
        Self::environment(environment).then("nodes").then(node)
    }

    /// Adds a segment, percent-encoded (RFC 3986, 2.1): a `/` in it does not make two.
    pub(crate) fn then(mut self, segment: &str) -> Self {
        self.text.push('/');
        encode(segment, &mut self.text);
        self
    }

    /// Adds a query parameter.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.text.push(if self.query { '&' } else { '?' });
        self.query = true;
        encode(name, &mut self.text);
        self.text.push('=');
        encode(value, &mut self.text);
        self
    }

    /// The path and query.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn encode(text: &str, into: &mut String) {
    // A segment of dots alone would be a step in the tree for some readers of the path.
    let dots = !text.is_empty() && text.bytes().all(|byte| byte == b'.');
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) || (byte == b'.' && !dots) {
            into.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_stays_one_segment() {
        assert_eq!(
            Route::environment("shop").as_str(),
            "/api/v1/environments/shop"
        );
        assert_eq!(
            Route::environment("../pool").as_str(),
            "/api/v1/environments/..%2Fpool"
        );
        assert_eq!(
            Route::environment("..").as_str(),
            "/api/v1/environments/%2E%2E"
        );
        assert_eq!(
            Route::node("shop", "web-1")
                .then("files")
                .with("path", "/a b?&=")
                .with("x", "ä")
                .as_str(),
            "/api/v1/environments/shop/nodes/web-1/files?path=%2Fa%20b%3F%26%3D&x=%C3%A4"
        );
    }
}
