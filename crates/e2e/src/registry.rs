//! A real registry (Debian's docker-registry) beside a test daemon, on loopback of its network namespace.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::image::TestImage;
use crate::{TestDaemon, http, wait_for};

/// Where it listens: namespaces keep registries apart.
const ADDRESS: &str = "127.0.0.1:5000";
/// What people must know: base64 of `user:secret`.
pub const LOGIN: &str = "dXNlcjpzZWNyZXQ=";
/// The same for the registry: bcrypt of `secret`.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry that wants a password, gone when dropped.
pub struct Registry<'a> {
    daemon: &'a TestDaemon,
    child: Child,
    _dir: TempDir,
}

impl<'a> Registry<'a> {
    /// Starts it; `None` (said and counted) where it is not installed.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(daemon: &'a TestDaemon) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("htpasswd"), HTPASSWD).expect("a file");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"{ADDRESS}\"}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            at("data"),
            at("htpasswd")
        );
        fs::write(at("config.yml"), config).expect("a file");
        let mut command = Command::new("docker-registry");
        command
            .args(["serve", &at("config.yml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = match daemon.inside(|| command.spawn()) {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("SKIPPED: docker-registry is not installed");
                return None;
            }
            Err(error) => panic!("docker-registry cannot be started: {error}"),
        };
        let registry = Self {
            daemon,
            child,
            _dir: dir,
        };
        wait_for("the registry", Duration::from_secs(20), || {
            registry.send("GET", "/v2/", &[], b"").ok()
        });
        Some(registry)
    }

    /// The reference under which the daemon finds an image here.
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("{ADDRESS}/{name}")
    }

    /// Puts an image there, in place of one of the same tag.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn push(&self, repository: &str, tag: &str, image: &TestImage) -> Result<()> {
        let mut descriptors = Vec::new();
        for (kind, blob) in [
            ("image.config.v1+json", image.config.as_bytes()),
            ("image.layer.v1.tar", &image.layer[..]),
        ] {
            let digest = format!("sha256:{}", crate::image::sha256(blob)?);
            let uploads = format!("/v2/{repository}/blobs/uploads/");
            let begun = self.send("POST", &uploads, &[], b"")?;
            let place = begun.header("location").context("no place for a blob")?;
            let place = place.split_once(ADDRESS).map_or(place, |(_, path)| path);
            let kept = self.send("PUT", &format!("{place}&digest={digest}"), &[], blob)?;
            ensure!(kept.status == 201, "a blob was refused: {kept:?}");
            descriptors.push(serde_json::json!({
                "mediaType": format!("application/vnd.oci.{kind}"), "digest": digest, "size": blob.len(),
            }));
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptors[0], "layers": [descriptors[1]],
        });
        let path = format!("/v2/{repository}/manifests/{tag}");
        let header = [("Content-Type", MANIFEST)];
        let kept = self.send("PUT", &path, &header, manifest.to_string().as_bytes())?;
        if kept.status != 201 {
            bail!("the manifest was refused: {kept:?}");
        }
        Ok(())
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<http::Answer> {
        let address: SocketAddr = ADDRESS.parse()?;
        let login = format!("Basic {LOGIN}");
        let mut all = vec![("Authorization", login.as_str())];
        all.extend(headers);
        self.daemon
            .inside(|| http::send(address, ADDRESS, method, path, &all, body))
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
