//! Splits a command line as Compose does: quotes and backslashes, no variables, no globs.

/// Splits `line` into words.
///
/// # Errors
/// A sentence, when a quote is not closed.
pub(crate) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err(format!("a ' is not closed in {line:?}")),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        // Inside double quotes a backslash escapes these only (POSIX shell, 2.2.3).
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                            Some('\n') => {}
                            Some(c) => word.extend(['\\', c]),
                            None => return Err(format!("a \" is not closed in {line:?}")),
                        },
                        Some(c) => word.push(c),
                        None => return Err(format!("a \" is not closed in {line:?}")),
                    }
                }
            }
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err(format!("{line:?} ends with a lone backslash")),
            },
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn splits_like_a_shell() {
        for (line, expected) in [
            ("a b  c", vec!["a", "b", "c"]),
            ("a 'b c' \"d e\"", vec!["a", "b c", "d e"]),
            (r#"a\ b "c\"d" "\n""#, vec!["a b", "c\"d", "\\n"]),
            ("a'b'c ''", vec!["abc", ""]),
            ("  ", vec![]),
            ("a \\\n b", vec!["a", "b"]),
        ] {
            assert_eq!(split(line).unwrap(), expected, "{line}");
        }
        for bad in ["'a", "\"a", "a\\", "\"a\\"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
