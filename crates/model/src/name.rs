//! Names that people give. Parsed once at the border; a value of these types is always valid.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest DNS label in bytes (RFC 1035, 2.3.4).
pub const LABEL_MAX: usize = 63;
/// Longest environment name in bytes: leaves room for `-clone123` inside one DNS label.
pub const ENV_NAME_MAX: usize = 48;
/// Longest layer or volume name in bytes: leaves room for `-<number>` inside one DNS label.
pub const LAYER_NAME_MAX: usize = 50;

/// Whether `text` is a lower-case DNS label of at most `max` bytes (RFC 1123, 2.1).
#[must_use]
pub fn is_label(text: &str, max: usize) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= max
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Why a text is no name. The sentence says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind} name: {rule}")]
pub struct NameError {
    /// `environment`, `layer` or `volume`.
    pub kind: &'static str,
    /// What was given.
    pub text: String,
    /// What is allowed.
    pub rule: String,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $max:expr, $valid:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError {
                        kind: $kind,
                        text: text.to_owned(),
                        rule: format!("{}, at most {} characters", $rule, $max),
                    })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// An environment's name: the first label of its domain, unique on a host.
    EnvName, "environment", ENV_NAME_MAX, |t| is_label(t, ENV_NAME_MAX),
    "lower-case letters, digits and hyphens, no hyphen at either end"
);
name_type!(
    /// A layer's name: a Compose service's name. Compose's underscores and dots are allowed by mapping them
    /// to hyphens before this type is made (names resolve as host names inside).
    LayerName, "layer", LAYER_NAME_MAX, |t| is_label(t, LAYER_NAME_MAX),
    "lower-case letters, digits and hyphens, no hyphen at either end"
);
name_type!(
    /// A named volume: letters, digits, `_`, `.`, `-`, beginning with a letter or digit (Compose's rule).
    VolumeName, "volume", LAYER_NAME_MAX, |t| {
        t.len() <= LAYER_NAME_MAX
            && t.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    },
    "letters, digits, '_', '.' and '-', beginning with a letter or digit"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        for good in ["a", "shop", "shop-2", "0a"] {
            assert!(good.parse::<EnvName>().is_ok(), "{good}");
        }
        let long = "a".repeat(ENV_NAME_MAX + 1);
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a/b",
            "ä",
            "a b",
            "a\0",
            long.as_str(),
        ] {
            assert!(bad.parse::<EnvName>().is_err(), "{bad:?}");
        }
        assert!("..".parse::<VolumeName>().is_err());
        assert!("db_data.1".parse::<VolumeName>().is_ok());
    }
}
