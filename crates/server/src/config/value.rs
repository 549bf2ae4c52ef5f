//! Values that are parsed where they stand in the file.

use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use offshoot_model::name::{LABEL_MAX, is_label};
use offshoot_model::quantity::{parse_bytes, parse_duration_ms};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Longest instance label: an interface's name holds it beside an environment's id (`IFNAMSIZ`, netdevice(7)).
const INSTANCE_MAX: usize = 6;
/// Longest base domain: a domain name has at most 253 bytes (RFC 1035), one label of which is the environment's.
const DOMAIN_MAX: usize = 253 - LABEL_MAX - 1;

macro_rules! text_value {
    ($(#[$doc:meta])* $type:ident = $default:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $type(String);

        impl $type {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Default for $type {
            fn default() -> Self {
                Self($default.to_owned())
            }
        }

        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(&text).map(|()| Self(text))
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                text.to_owned().try_into()
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_value!(
    /// A daemon's label: one to six lower-case letters and digits.
    Instance = "os",
    |text| {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if !text.is_empty() && text.len() <= INSTANCE_MAX && text.bytes().all(good) {
            Ok(())
        } else {
            Err(format!("{text:?} is no instance: write 1 to {INSTANCE_MAX} lower-case letters and digits"))
        }
    }
);
text_value!(
    /// A domain below which environments have theirs: lower-case labels with dots between.
    BaseDomain = "localhost",
    |text| {
        if text.len() <= DOMAIN_MAX && text.split('.').all(|label| is_label(label, LABEL_MAX)) {
            Ok(())
        } else {
            Err(format!("{text:?} is no domain: write lower-case labels with dots between, for instance apps.example.org"))
        }
    }
);

/// A TCP address on this host only: whoever reaches the API and has the token is root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SocketAddr")]
pub struct LoopbackAddr(SocketAddr);

impl TryFrom<SocketAddr> for LoopbackAddr {
    type Error = String;

    fn try_from(address: SocketAddr) -> Result<Self, String> {
        if is_loopback(address.ip()) {
            Ok(Self(address))
        } else {
            Err(format!(
                "{address} is not on loopback; the API listens on 127.0.0.1 or [::1] only"
            ))
        }
    }
}

impl From<LoopbackAddr> for SocketAddr {
    fn from(address: LoopbackAddr) -> Self {
        address.0
    }
}

/// Whether an address can be reached from this host only.
pub(crate) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Whether a path begins at the root and goes no way back.
fn is_absolute(path: &Path) -> bool {
    path.is_absolute()
        && path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

pub(super) fn absolute<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if is_absolute(&path) {
        // Rebuilt from its parts: no doubled or trailing slashes.
        Ok(path.components().collect())
    } else {
        Err(D::Error::custom(format!(
            "{} is no absolute path without `.` and `..`",
            path.display()
        )))
    }
}

pub(super) fn absolute_or_none<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<PathBuf>, D::Error> {
    absolute(from).map(Some)
}

/// An address with a port; an empty text is none.
pub(super) fn address_or_empty<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        D::Error::custom(format!(
            "{text:?} is no address with a port; write for instance 127.0.0.1:9440, or nothing between the quotes"
        ))
    })
}

pub(super) fn size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    parse_bytes(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// A whole number between two bounds.
pub(super) fn number<'de, D: Deserializer<'de>>(
    from: D,
    least: u64,
    most: u64,
) -> Result<u64, D::Error> {
    let number = u64::deserialize(from)?;
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(D::Error::custom(format!(
            "{number} is not between {least} and {most}"
        )))
    }
}

/// A duration between two bounds in milliseconds.
pub(super) fn duration<'de, D: Deserializer<'de>>(
    from: D,
    least: u64,
    most: u64,
) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let ms = parse_duration_ms(&text).map_err(D::Error::custom)?;
    if (least..=most).contains(&ms) {
        Ok(Duration::from_millis(ms))
    } else {
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
        Err(D::Error::custom(format!(
            "{text:?} is not between {least:?} and {most:?}"
        )))
    }
}
