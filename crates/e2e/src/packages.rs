//! The way to a distribution's packages out of a test daemon's network namespace, which has none of its own.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};

use crate::TestDaemon;

/// Where packages are asked for in the namespace.
const PROXY: &str = "127.0.0.1:3142";

impl TestDaemon {
    /// As [`Self::start`], for images made from packages: apt's requests are passed on by the test's own process.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_with_packages() -> Self {
        Self::start_with_packages_changed(|config| config)
    }

    /// As [`Self::start_with_packages`], with a changed configuration.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_with_packages_changed(change: impl FnOnce(String) -> String) -> Self {
        let text = format!(
            "Acquire::http::Proxy \"http://{PROXY}\";\nAcquire::https::Proxy \"http://{PROXY}\";\n\
             Acquire::http::Pipeline-Depth \"0\";\n"
        );
        let mut daemon = Self::prepare().expect("a place for a daemon");
        let file = daemon.path("offshoot.toml");
        let config = fs::read_to_string(&file).expect("a configuration");
        fs::write(file, change(config)).expect("a configuration");
        let settings = daemon.path("apt.conf");
        fs::write(&settings, text).expect("a file");
        daemon.launch(&[("APT_CONFIG", &settings.display().to_string())]);
        daemon.wait_up();
        let proxy = daemon.inside(|| TcpListener::bind(PROXY).expect("a free port"));
        std::thread::spawn(move || relay(&proxy));
        daemon
    }
}

/// Fetches for the daemon what it asks for: each connection one request, or a tunnel.
fn relay(proxy: &TcpListener) {
    for client in proxy.incoming().flatten() {
        std::thread::spawn(move || drop(pass_on(&client)));
    }
}

fn pass_on(client: &TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim_end().is_empty() {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let request = head.first().cloned().ok_or_else(invalid)?;
    let mut words = request.split(' ');
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().ok_or_else(invalid)?,
    );
    let mut writer = client.try_clone()?;
    if method == "CONNECT" {
        let server = TcpStream::connect(target)?;
        writer.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let (mut up, mut down) = (server.try_clone()?, server);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut reader, &mut up);
            let _ = up.shutdown(std::net::Shutdown::Write);
        });
        std::io::copy(&mut down, &mut writer)?;
        return Ok(());
    }
    let rest = target.strip_prefix("http://").ok_or_else(invalid)?;
    let (host, path) = rest.split_once('/').ok_or_else(invalid)?;
    let address = if host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut server = TcpStream::connect(address)?;
    let kept = head.iter().skip(1).filter(|line| {
        let line = line.to_ascii_lowercase();
        !line.starts_with("connection:") && !line.starts_with("proxy-")
    });
    let mut ask = format!("{method} /{path} HTTP/1.1\r\nConnection: close\r\n");
    kept.for_each(|line| ask.push_str(&format!("{line}\r\n")));
    ask.push_str("\r\n");
    server.write_all(ask.as_bytes())?;
    std::io::copy(&mut server, &mut writer)?;
    writer.shutdown(std::net::Shutdown::Both)
}
