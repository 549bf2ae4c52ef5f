//! Credentials for registries, from a file of the form that `docker login` writes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use crate::ImageError;

#[derive(Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Login>,
}

#[derive(Default, Deserialize)]
struct Login {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    registrytoken: Option<String>,
}

/// Largest file that is read.
const FILE_MAX: u64 = 1 << 20;

/// What the file has for this registry; anonymous without a file or an entry. Read anew each time, so that a
/// new login needs no restart.
pub(crate) fn find(file: Option<&Path>, registry: &str) -> Result<RegistryAuth, ImageError> {
    let Some(path) = file else {
        return Ok(RegistryAuth::Anonymous);
    };
    let text = match fs::metadata(path) {
        Ok(meta) if meta.len() > FILE_MAX => {
            return Err(ImageError::io("read", path)(io::Error::other(
                "it is too large",
            )));
        }
        Ok(_) => fs::read(path).map_err(ImageError::io("read", path))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(RegistryAuth::Anonymous),
        Err(e) => return Err(ImageError::io("read", path)(e)),
    };
    // Never the file's words in the error: they are secrets.
    let broken = || {
        ImageError::io("understand", path)(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not of the form of docker's config.json",
        ))
    };
    let file: AuthFile = serde_json::from_slice(&text).map_err(|_| broken())?;
    let Some((_, login)) = file
        .auths
        .iter()
        .find(|(name, _)| same_registry(name, registry))
    else {
        return Ok(RegistryAuth::Anonymous);
    };
    if let Some(token) = login
        .registrytoken
        .as_ref()
        .filter(|token| !token.is_empty())
    {
        return Ok(RegistryAuth::Bearer(token.clone()));
    }
    if let (Some(user), Some(password)) = (&login.username, &login.password) {
        return Ok(RegistryAuth::Basic(user.clone(), password.clone()));
    }
    let Some(auth) = login.auth.as_ref().filter(|auth| !auth.is_empty()) else {
        return Ok(RegistryAuth::Anonymous);
    };
    let plain = decode_base64(auth)
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(broken)?;
    let (user, password) = plain.split_once(':').ok_or_else(broken)?;
    Ok(RegistryAuth::Basic(
        user.to_owned(),
        password.trim_end_matches('\0').to_owned(),
    ))
}

/// Entries may be whole addresses; Docker's own registry has three names.
fn same_registry(entry: &str, registry: &str) -> bool {
    let host = |text: &str| {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        let host = text
            .split('/')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        match host.as_str() {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
            _ => host,
        }
    };
    host(entry) == host(registry)
}

/// Base64 (RFC 4648 section 4), with or without padding.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0u32);
    for byte in text.trim().trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_found_by_registry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(
            &path,
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpwYTpzcw=="},
                "registry.example:5000": {"username": "u", "password": "p"}, "token.example": {"registrytoken": "t"}},
               "credsStore": "desktop"}"#,
        )
        .unwrap();
        let find = |registry: &str| find(Some(&path), registry).unwrap();
        assert_eq!(
            find("docker.io"),
            RegistryAuth::Basic("user".into(), "pa:ss".into())
        );
        assert_eq!(
            find("registry.example:5000"),
            RegistryAuth::Basic("u".into(), "p".into())
        );
        assert_eq!(find("token.example"), RegistryAuth::Bearer("t".into()));
        assert_eq!(find("registry.example"), RegistryAuth::Anonymous);
        fs::write(&path, "{\"auths\": {\"a\": {\"auth\": \"!secret!\"}}}").unwrap();
        let error = super::find(Some(&path), "a").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("secret"));
        assert_eq!(
            super::find(Some(&dir.path().join("none")), "a").unwrap(),
            RegistryAuth::Anonymous
        );
    }
}
