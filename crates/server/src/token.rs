//! The token for the API over TCP: random, kept in a file that only root reads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use subtle::ConstantTimeEq as _;

use crate::error::ServeError;

/// Random bytes in a token.
const RANDOM: usize = 32;
/// Shortest and longest token that is accepted from a file.
const LENGTH: std::ops::RangeInclusive<usize> = 32..=512;

/// A secret. Its `Debug` does not show it.
pub(crate) struct Token(String);

impl Token {
    /// Whether `text` is the token, in a time that does not tell how much of it is.
    pub(crate) fn is(&self, text: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(text).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The token in the file; made when there is none.
pub(crate) fn ensure(path: &Path) -> Result<Token, ServeError> {
    match kept(path)? {
        Some(token) => Ok(token),
        None => make(path).map_err(ServeError::file("write the API token", path)),
    }
}

fn kept(path: &Path) -> Result<Option<Token>, ServeError> {
    let bad = |why| ServeError::Token {
        path: path.to_owned(),
        why,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(ServeError::file("read the API token", path))?,
    };
    let meta = file
        .metadata()
        .map_err(ServeError::file("read the API token", path))?;
    if meta.mode() & 0o077 != 0 {
        return Err(bad("can be read by others than root"));
    }
    let mut text = String::new();
    let limit = u64::try_from(*LENGTH.end()).unwrap_or(u64::MAX) + 2;
    file.take(limit)
        .read_to_string(&mut text)
        .map_err(ServeError::file("read the API token", path))?;
    let text = text.trim();
    if !LENGTH.contains(&text.len()) {
        return Err(bad("is too short or too long"));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad("has characters that a header cannot carry"));
    }
    Ok(Some(Token(text.to_owned())))
}

/// Written beside and renamed: a crash leaves no half token.
fn make(path: &Path) -> io::Result<Token> {
    let mut random = [0; RANDOM];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    Ok(Token(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("api-token");
        let made = ensure(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim().len(), 2 * RANDOM);
        assert!(made.is(text.trim().as_bytes()));
        assert!(ensure(&path).unwrap().is(text.trim().as_bytes()));
        assert!(!made.is(b"") && !made.is(&text.as_bytes()[..10]) && !made.is(&[b'x'; 2 * RANDOM]));
        assert_eq!(format!("{made:?}"), "Token(..)");
    }

    #[test]
    fn a_token_that_others_read_or_that_is_no_token_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("api-token");
        for (text, mode, says) in [
            ("x".repeat(64), 0o644, "by others"),
            (String::new(), 0o600, "too short"),
            ("x".repeat(600), 0o600, "too long"),
            (format!("{} {}", "x".repeat(32), "y"), 0o600, "cannot carry"),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = ensure(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
