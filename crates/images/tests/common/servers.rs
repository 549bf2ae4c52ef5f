//! Registries for tests: a real one, one whose connections break, and one that wants a token.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tempfile::TempDir;

use super::{MadeUp, digest};

/// Debian's docker-registry on a free port, gone when the test ends.
pub struct Registry {
    child: Child,
    pub address: String,
    auth: RegistryAuth,
    _dir: TempDir,
}

/// bcrypt of `secret`.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

impl Registry {
    pub fn start(auth: RegistryAuth) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("htpasswd"), HTPASSWD).unwrap();
        let wanted = match auth {
            RegistryAuth::Anonymous => String::new(),
            _ => format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                at("htpasswd")
            ),
        };
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:0\"}}\n{wanted}",
            at("data")
        );
        fs::write(at("config.yml"), config).unwrap();
        // It dies with this process, also when that is killed.
        let child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "docker-registry",
                "serve",
                &at("config.yml"),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.unwrap();
        let stderr = child.stderr.take().unwrap();
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let _ = send.send(rest.split('"').next().unwrap_or_default().to_owned());
                }
            }
        });
        match receive.recv_timeout(Duration::from_secs(20)) {
            Ok(address) => Some(Self {
                child,
                address,
                auth,
                _dir: dir,
            }),
            Err(_) => {
                let status = child.try_wait().unwrap();
                assert!(
                    status.is_some_and(|s| s.code() == Some(127)),
                    "the registry did not start: {status:?}"
                );
                println!("SKIPPED: docker-registry is not installed");
                None
            }
        }
    }

    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub fn client(&self) -> Client {
        Client::new(ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        })
    }

    pub async fn push(&self, name: &str, image: &MadeUp) -> String {
        let client = self.client();
        let reference: Reference = self.reference(name).parse().unwrap();
        client
            .auth(&reference, &self.auth, RegistryOperation::Push)
            .await
            .unwrap();
        for blob in image.layers.iter().chain([&image.config]) {
            client
                .push_blob(&reference, blob.clone(), &digest(blob))
                .await
                .unwrap();
        }
        self.push_manifest(
            name,
            &image.manifest,
            "application/vnd.oci.image.manifest.v1+json",
        )
        .await
    }

    pub async fn push_manifest(&self, name: &str, manifest: &[u8], kind: &str) -> String {
        let reference: Reference = self.reference(name).parse().unwrap();
        let client = self.client();
        client
            .auth(&reference, &self.auth, RegistryOperation::Push)
            .await
            .unwrap();
        client
            .push_manifest_raw(&reference, manifest.to_vec(), kind.parse().unwrap())
            .await
            .unwrap();
        digest(manifest)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes requests on, and cuts answers for layers short as often as asked.
pub struct Cutter {
    pub address: String,
    /// Answers still to be cut, and after how many bytes.
    pub cuts: Arc<AtomicU32>,
    pub after: Arc<AtomicU64>,
    /// Requests that asked for the rest of something.
    pub ranges: Arc<AtomicU32>,
    /// Bytes to be changed in the next answers.
    pub spoils: Arc<AtomicU32>,
}

impl Cutter {
    pub fn start(upstream: String, blob: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cutter = Self {
            address: listener.local_addr().unwrap().to_string(),
            cuts: Arc::default(),
            after: Arc::default(),
            ranges: Arc::default(),
            spoils: Arc::default(),
        };
        let (cuts, after, ranges, spoils) = (
            cutter.cuts.clone(),
            cutter.after.clone(),
            cutter.ranges.clone(),
            cutter.spoils.clone(),
        );
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (upstream, blob) = (upstream.clone(), blob.clone());
                let (cuts, after, ranges, spoils) =
                    (cuts.clone(), after.clone(), ranges.clone(), spoils.clone());
                std::thread::spawn(move || {
                    let _ = serve(client, &upstream, &blob, &cuts, &after, &ranges, &spoils);
                });
            }
        });
        cutter
    }
}

fn serve(
    mut client: TcpStream,
    upstream: &str,
    blob: &str,
    cuts: &AtomicU32,
    after: &AtomicU64,
    ranges: &AtomicU32,
    spoils: &AtomicU32,
) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(client.try_clone()?);
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let is_blob = head.contains(blob);
    if is_blob && head.to_lowercase().contains("\r\nrange:") {
        ranges.fetch_add(1, Ordering::Relaxed);
    }
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(
        head.replacen("\r\n", "\r\nConnection: close\r\n", 1)
            .as_bytes(),
    )?;
    let take = |counter: &AtomicU32| {
        counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
    };
    if is_blob && take(cuts) {
        std::io::copy(&mut server.take(after.load(Ordering::Relaxed)), &mut client)?;
    } else if is_blob && take(spoils) {
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        if let Some(last) = answer.last_mut() {
            *last ^= 1;
        }
        client.write_all(&answer)?;
    } else {
        std::io::copy(&mut server, &mut client)?;
    }
    client.shutdown(std::net::Shutdown::Both)
}

/// A registry that wants a token, as the public ones do, in front of the real one: `/token` gives it for a password.
pub fn start_token_front(upstream: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let own = address.clone();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (upstream, own) = (upstream.clone(), own.clone());
            std::thread::spawn(move || {
                let _ = serve_with_token(client, &upstream, &own);
            });
        }
    });
    address
}

fn serve_with_token(mut client: TcpStream, upstream: &str, own: &str) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(client.try_clone()?);
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let answer = |status: &str, header: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    };
    let lower = head.to_lowercase();
    if head.starts_with("GET /token?") {
        // base64 of user:secret; the scope must be the wanted one and no more.
        let fine =
            head.contains("dXNlcjpzZWNyZXQ=") && head.contains("scope=repository%3Aprivate%3Apull");
        let text = if fine {
            answer(
                "200 OK",
                "Content-Type: application/json\r\n",
                r#"{"token": "t0ken", "expires_in": 300}"#,
            )
        } else {
            answer("401 Unauthorized", "", "{}")
        };
        client.write_all(text.as_bytes())?;
    } else if lower.contains("authorization: bearer t0ken") {
        let mut server = TcpStream::connect(upstream)?;
        server.write_all(
            head.replacen("\r\n", "\r\nConnection: close\r\n", 1)
                .as_bytes(),
        )?;
        std::io::copy(&mut server, &mut client)?;
    } else {
        let header =
            format!("WWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"test\"\r\n");
        let body =
            r#"{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}"#;
        client.write_all(answer("401 Unauthorized", &header, body).as_bytes())?;
    }
    client.shutdown(std::net::Shutdown::Both)
}
