//! `${VARIABLE}` in values (Compose specification, "Interpolation").

/// Deepest nesting of defaults in defaults.
const MAX_DEPTH: usize = 16;
/// Longest result in bytes.
const MAX_LENGTH: usize = 1 << 20;

/// Replaces variables in texts.
pub(crate) struct Interpolator<'a> {
    /// A variable's value, `None` when it is not set.
    pub(crate) lookup: &'a dyn Fn(&str) -> Option<String>,
    /// Variables that were used without being set and without a default.
    pub(crate) unset: Vec<String>,
}

impl Interpolator<'_> {
    /// Replaces every variable in `text`.
    ///
    /// # Errors
    /// A sentence: what is malformed, or the message of `${X:?message}`.
    pub(crate) fn replace(&mut self, text: &str) -> Result<String, String> {
        self.expand(text, 0)
    }

    fn expand(&mut self, text: &str, depth: usize) -> Result<String, String> {
        if depth > MAX_DEPTH {
            return Err("variables are nested too deeply".to_owned());
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let (before, after) = rest.split_at(at);
            out.push_str(before);
            let after = &after[1..];
            if let Some(after) = after.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some(after) = after.strip_prefix('{') {
                let end = closing_brace(after)
                    .ok_or_else(|| format!("\"${{{after}\" has no closing brace"))?;
                let (inner, after) = after.split_at(end);
                let value = self.braced(inner, depth)?;
                out.push_str(&value);
                rest = &after[1..];
            } else {
                let length = name_length(after);
                if length == 0 {
                    return Err(format!("a lone $ in {text:?}; write $$ for a dollar sign"));
                }
                let (name, after) = after.split_at(length);
                let value = self.plain(name);
                out.push_str(&value);
                rest = after;
            }
            if out.len() > MAX_LENGTH {
                return Err("variables make this text too long".to_owned());
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    fn plain(&mut self, name: &str) -> String {
        (self.lookup)(name).unwrap_or_else(|| {
            if !self.unset.iter().any(|known| known == name) {
                self.unset.push(name.to_owned());
            }
            String::new()
        })
    }

    /// What stands between the braces.
    fn braced(&mut self, inner: &str, depth: usize) -> Result<String, String> {
        let (name, operator) = inner.split_at(name_length(inner));
        let malformed = || {
            format!(
                "\"${{{inner}}}\" is not a variable; write ${{NAME}}, ${{NAME:-default}} or ${{NAME:?message}}"
            )
        };
        if name.is_empty() {
            return Err(malformed());
        }
        if operator.is_empty() {
            return Ok(self.plain(name));
        }
        // With a colon an empty value counts as unset.
        let (empty_is_unset, operator) = match operator.strip_prefix(':') {
            Some(operator) => (true, operator),
            None => (false, operator),
        };
        let value = (self.lookup)(name).filter(|value| !(empty_is_unset && value.is_empty()));
        let mut operator = operator.chars();
        match (operator.next(), value) {
            (Some('-'), Some(value)) | (Some('?'), Some(value)) => Ok(value),
            (Some('-'), None) => self.expand(operator.as_str(), depth + 1),
            (Some('+'), Some(_)) => self.expand(operator.as_str(), depth + 1),
            (Some('+'), None) => Ok(String::new()),
            (Some('?'), None) => {
                let message = self.expand(operator.as_str(), depth + 1)?;
                let why = if message.is_empty() {
                    String::new()
                } else {
                    format!(": {message}")
                };
                Err(format!("the variable {name} must be set{why}"))
            }
            _ => Err(malformed()),
        }
    }
}

/// Length of the variable name that `text` begins with.
fn name_length(text: &str) -> usize {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(text.len())
}

/// Where the brace is that closes the one before `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, bytes.get(at + 1)) {
            (b'$', Some(b'$')) => at += 1,
            (b'$', Some(b'{')) => {
                depth += 1;
                at += 1;
            }
            (b'}', _) if depth == 0 => return Some(at),
            (b'}', _) => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replace(text: &str) -> Result<String, String> {
        let lookup = |name: &str| match name {
            "SET" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            "DOLLAR" => Some("${SET}".to_owned()),
            _ => None,
        };
        Interpolator {
            lookup: &lookup,
            unset: Vec::new(),
        }
        .replace(text)
    }

    #[test]
    fn the_specification_s_forms() {
        for (text, expected) in [
            ("$SET-x", "value-x"),
            ("a${SET}b", "avalueb"),
            ("${NONE}", ""),
            ("${NONE:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${NONE-d}", "d"),
            ("${SET:?e}", "value"),
            ("${EMPTY?e}", ""),
            ("${SET:+r}", "r"),
            ("${EMPTY:+r}", ""),
            ("${EMPTY+r}", "r"),
            ("${NONE+r}", ""),
            ("$$SET $${SET}", "$SET ${SET}"),
            ("${NONE:-${SET}}", "value"),
            ("${NONE:-${OTHER:-{}}}", "{}"),
            ("${NONE:-a $$ b}", "a $ b"),
            ("${DOLLAR}", "${SET}"),
            ("ä${SET}ö", "ävalueö"),
        ] {
            assert_eq!(replace(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn mistakes() {
        for text in [
            "$",
            "$ x",
            "$1",
            "${",
            "${}",
            "${SET",
            "${-a}",
            "${SET!x}",
            "${NONE:-${SET}",
            "${SET:}",
        ] {
            assert!(replace(text).is_err(), "{text}");
        }
        assert_eq!(
            replace("${NONE:?set it}").unwrap_err(),
            "the variable NONE must be set: set it"
        );
        assert!(replace(&format!("{}x{}", "${A:-".repeat(1000), "}".repeat(1000))).is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[$a-cA-C{}:?+\\-ä ]{0,60}") {
            let _ = replace(&text);
        }

        #[test]
        fn escaped_text_comes_back(text in "\\PC{0,60}") {
            proptest::prop_assert_eq!(replace(&text.replace('$', "$$")), Ok(text));
        }
    }
}
