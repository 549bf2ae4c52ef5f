//! Files of variables: `.env`, `--env-file`, `env_file` (Compose specification, "Env_file format").

use std::collections::BTreeMap;

use crate::interpolate::Interpolator;

/// How the values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Quotes, comments and variables mean something.
    Dotenv,
    /// Everything after `=` is the value.
    Raw,
}

/// Reads variables in their order. `lookup` answers variables that are not set earlier in the file.
///
/// A name without `=` takes its value from `lookup`, and is left out when that has none.
///
/// # Errors
/// The line (from 1) and a sentence.
pub(crate) fn parse(
    text: &str,
    format: Format,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, (u32, String)> {
    let mut variables = BTreeMap::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1u32;
    while !rest.is_empty() {
        let (first, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let statement = first.trim();
        if statement.is_empty() || statement.starts_with('#') {
            rest = after;
            line += 1;
            continue;
        }
        let Some((name, _)) = first.split_once('=') else {
            let name = check_name(statement.strip_prefix("export ").unwrap_or(statement))
                .map_err(|e| (line, e))?;
            if let Some(value) = lookup(name) {
                variables.insert(name.to_owned(), value);
            }
            rest = after;
            line += 1;
            continue;
        };
        let value_at = name.len() + 1;
        let name = name.trim();
        let name =
            check_name(name.strip_prefix("export ").unwrap_or(name)).map_err(|e| (line, e))?;
        let (value, used) = match format {
            Format::Raw => (
                first[value_at..].trim_end_matches('\r').to_owned(),
                first.len(),
            ),
            Format::Dotenv => {
                let (raw, used) = value(&rest[value_at..]).map_err(|e| (line, e))?;
                (
                    raw.expand(&variables, lookup).map_err(|e| (line, e))?,
                    value_at + used,
                )
            }
        };
        variables.insert(name.to_owned(), value);
        line += u32::try_from(rest[..used].matches('\n').count()).unwrap_or(u32::MAX);
        rest = rest[used..].strip_prefix('\n').unwrap_or(&rest[used..]);
        line += 1;
    }
    Ok(variables)
}

fn check_name(name: &str) -> Result<&str, String> {
    let name = name.trim();
    let valid = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if valid {
        Ok(name)
    } else {
        Err(format!("{name:?} is not the name of a variable"))
    }
}

/// A value as written.
enum Raw {
    /// As it is.
    Literal(String),
    /// With variables in it.
    Expanded(String),
}

impl Raw {
    fn expand(
        self,
        earlier: &BTreeMap<String, String>,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<String, String> {
        match self {
            Self::Literal(text) => Ok(text),
            Self::Expanded(text) => {
                let lookup = |name: &str| lookup(name).or_else(|| earlier.get(name).cloned());
                Interpolator {
                    lookup: &lookup,
                    unset: Vec::new(),
                }
                .replace(&text)
            }
        }
    }
}

/// Reads one value; answers it and how many bytes it took, without the line's end.
fn value(text: &str) -> Result<(Raw, usize), String> {
    let line_end = text.find('\n').unwrap_or(text.len());
    let start = text[..line_end].len() - text[..line_end].trim_start().len();
    let body = &text[start..];
    match body.chars().next() {
        Some('\'') => {
            let end = body[1..].find('\'').ok_or("a ' is not closed")? + 1;
            let used = rest_of_line(body, end + 1)?;
            Ok((Raw::Literal(body[1..end].to_owned()), start + used))
        }
        Some('"') => {
            let mut value = String::new();
            let mut chars = body.char_indices().skip(1);
            let end = loop {
                match chars.next() {
                    Some((at, '"')) => break at,
                    Some((_, '\\')) => match chars.next() {
                        Some((_, 'n')) => value.push('\n'),
                        Some((_, 'r')) => value.push('\r'),
                        Some((_, 't')) => value.push('\t'),
                        // A dollar that the next step must leave alone.
                        Some((_, '$')) => value.push_str("$$"),
                        Some((_, c @ ('"' | '\\'))) => value.push(c),
                        Some((_, c)) => value.extend(['\\', c]),
                        None => return Err("a \" is not closed".to_owned()),
                    },
                    Some((_, c)) => value.push(c),
                    None => return Err("a \" is not closed".to_owned()),
                }
            };
            let used = rest_of_line(body, end + 1)?;
            Ok((Raw::Expanded(value), start + used))
        }
        _ => {
            let line = &text[..line_end];
            // A comment needs a blank before it: `color=#fff` is a value.
            let end = line
                .char_indices()
                .find(|(at, c)| *c == '#' && line[..*at].ends_with([' ', '\t']))
                .map_or(line.len(), |(at, _)| at);
            Ok((Raw::Expanded(line[..end].trim().to_owned()), line_end))
        }
    }
}

/// Only a comment may follow a closing quote.
fn rest_of_line(body: &str, from: usize) -> Result<usize, String> {
    let rest = &body[from..];
    let end = rest.find('\n').unwrap_or(rest.len());
    let tail = rest[..end].trim();
    if tail.is_empty() || tail.starts_with('#') {
        Ok(from + end)
    } else {
        Err(format!("unexpected {tail:?} after the closing quote"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BTreeMap<String, String>, (u32, String)> {
        parse(text, Format::Dotenv, &|name| {
            (name == "HOME").then(|| "/root".to_owned())
        })
    }

    #[test]
    fn reads_what_people_write() {
        let text = "# comment\nA=1\nexport B = two words # comment\nC='$A #x'\nD=\"${A}\\n\\$A\"\nE=\nF=#fff\r\n\
                    G=\"a\nb\"\nH=${A}-${HOME}-${NOPE:-d}\nHOME\nNOPE\n";
        let got = read(text).unwrap();
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "$A #x"),
            ("D", "1\n$A"),
            ("E", ""),
            ("F", "#fff"),
            ("G", "a\nb"),
            ("H", "1-/root-d"),
            ("HOME", "/root"),
        ];
        assert_eq!(
            got,
            expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        );
    }

    #[test]
    fn says_the_line() {
        assert_eq!(read("A=1\n\nB=\"x\ny\"\nC='\n").unwrap_err().0, 5);
        assert_eq!(read("A=1\n2B=3\n").unwrap_err().0, 2);
        assert!(read("A='x' y\n").is_err());
    }

    #[test]
    fn raw_is_raw() {
        let got = parse("A='$B' # x\n", Format::Raw, &|_| None).unwrap();
        assert_eq!(got["A"], "'$B' # x");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[A-Ba\"'\\\\=#$\\{\\} \nä\r]{0,60}") {
            let _ = read(&text);
            let _ = parse(&text, Format::Raw, &|_| None);
        }
    }
}
