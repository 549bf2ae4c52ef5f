//! The three proxies that are compared, and what stands behind all of them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use offshoot_edge_api::{Certificate, EdgeConfig, Route, RoutesFile};
use offshoot_load::{Client, Target};
use offshoot_model::EnvId;

use crate::commands::output;
use crate::interrupt;

/// Host name of all requests that are not about host names. wrk names it to TLS servers, and the resolver knows it.
pub(super) const HOST: &str = "localhost";
/// Bodies that the server behind has, and their paths.
pub(super) const BODIES: [(&str, usize); 3] =
    [("/1k", 1 << 10), ("/10k", 10 << 10), ("/1m", 1 << 20)];
/// Connections that any of them must hold.
pub(super) const CONNECTIONS: usize = 8_000;
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Host names that all proxies know.
pub(super) fn domains() -> impl Iterator<Item = String> {
    (0..1_000).map(|number| format!("shop{number}.example.org"))
}

/// A proxy under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Which {
    Edge,
    Nginx,
    Haproxy,
}

impl Which {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Edge => "offshoot",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }
}

/// A server that runs, until this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    /// Without TLS.
    pub(super) http: SocketAddr,
    /// With it.
    pub(super) https: SocketAddr,
    /// The edge's control socket.
    pub(super) control: Option<PathBuf>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for process in self.processes() {
            // its own group: nothing else has it
            let _ = Command::new("kill")
                .args(["-KILL", &process.to_string()])
                .status();
        }
        let _ = self.process.wait();
    }
}

impl Server {
    /// Itself, and then its workers: whoever ends the workers first gets new ones.
    pub(super) fn processes(&self) -> Vec<u32> {
        let main = self.process.id();
        let children = fs::read_to_string(format!("/proc/{main}/task/{main}/children"));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace();
        let children = children.filter_map(|id| id.parse().ok());
        [main].into_iter().chain(children).collect()
    }

    /// Processor time so far.
    pub(super) fn processor(&self) -> Duration {
        self.processes().into_iter().map(processor).sum()
    }

    /// Memory of its own: what the kernel would get back, bytes (`Private_*` in smaps_rollup).
    pub(super) fn memory(&self) -> u64 {
        self.processes().into_iter().map(private).sum()
    }
}

/// Processor time of a process (proc(5), stat, fields 14 and 15), in steps of 10 ms.
fn processor(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn private(id: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    let kib = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.sum::<u64>() * 1024
}

/// Makes files and starts servers below one directory.
#[derive(Debug)]
pub(super) struct Stage {
    directory: PathBuf,
    edge: PathBuf,
    /// The server behind.
    backend: SocketAddr,
    threads: usize,
}

impl Stage {
    /// Starts what stands behind all proxies: nginx with one worker and files of known sizes.
    pub(super) fn set(directory: &Path, programs: &Path) -> anyhow::Result<(Self, Server)> {
        let files = directory.join("files");
        fs::create_dir_all(&files).with_context(|| files.display().to_string())?;
        for (path, size) in BODIES {
            fs::write(files.join(path.trim_start_matches('/')), vec![b'x'; size])?;
        }
        output(Command::new("openssl").args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,DNS:*.example.org",
            "-keyout",
            &text(&directory.join("key.pem"))?,
            "-out",
            &text(&directory.join("chain.pem"))?,
        ]))?;
        let both = [
            fs::read(directory.join("chain.pem"))?,
            fs::read(directory.join("key.pem"))?,
        ]
        .concat();
        fs::write(directory.join("both.pem"), both)?;
        let backend = free()?;
        let stage = Self {
            directory: directory.to_owned(),
            edge: programs.join("offshoot-edge"),
            backend,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        };
        let config = format!(
            "{}http {{ access_log off; sendfile on; tcp_nopush on; open_file_cache max=10;\n\
             server {{ listen {backend} backlog=4096 reuseport; root {}; keepalive_requests 1000000000; keepalive_timeout 600; }} }}\n",
            stage.nginx_head("backend", 1)?,
            text(&files)?,
        );
        let server = stage.nginx("backend", &config, backend, backend)?;
        Ok((stage, server))
    }

    /// Starts a proxy and waits until it answers as the server behind does.
    pub(super) fn start(&self, which: Which) -> anyhow::Result<Server> {
        let (http, https) = (free()?, free()?);
        let server = match which {
            Which::Edge => self.start_edge(http, https),
            Which::Nginx => self.start_nginx(http, https),
            Which::Haproxy => self.start_haproxy(http, https),
        }
        .with_context(|| which.name())?;
        for (path, size) in BODIES {
            let target = Target {
                address: http,
                host: HOST.to_owned(),
                path: path.to_owned(),
            };
            let answer = Client::new(&target, Duration::from_secs(10)).get(path)?;
            if answer.status != 200 || answer.body.len() != size {
                bail!(
                    "{} answers {path} with {} and {} bytes",
                    which.name(),
                    answer.status,
                    answer.body.len()
                );
            }
        }
        Ok(server)
    }

    fn start_edge(&self, http: SocketAddr, https: SocketAddr) -> anyhow::Result<Server> {
        let directory = self.directory.join("edge");
        fs::create_dir_all(&directory)?;
        let config = EdgeConfig {
            listen: vec![http],
            listen_tls: vec![https],
            ..EdgeConfig::new(
                directory.join("routes.json"),
                directory.join("control.sock"),
            )
        };
        self.routes(domains().chain([HOST.to_owned()]))
            .write_atomically(&config.routes)?;
        config.write(&config.path())?;
        let mut command = Command::new(&self.edge);
        command.arg("--config").arg(config.path());
        let mut server = self.spawn("edge", &mut command, http, https)?;
        server.control = Some(config.control);
        Ok(server)
    }

    /// Routes of these hosts to the server behind, an environment for each hundred.
    pub(super) fn routes(&self, hosts: impl Iterator<Item = String>) -> RoutesFile {
        let route = |(number, host): (usize, String)| {
            let id: EnvId = format!("{:a>8}", letters(number / 100)).parse().ok()?;
            Some(Route::new(host, id, vec![self.backend]))
        };
        RoutesFile {
            version: 1,
            routes: hosts.enumerate().filter_map(route).collect(),
            certificates: vec![Certificate {
                hosts: vec![HOST.to_owned(), "*.example.org".to_owned()],
                chain: self.directory.join("chain.pem"),
                key: self.directory.join("key.pem"),
            }],
            ..RoutesFile::default()
        }
    }

    fn start_nginx(&self, http: SocketAddr, https: SocketAddr) -> anyhow::Result<Server> {
        let names: Vec<_> = domains().collect();
        let config = format!(
            "{head}http {{ access_log off; server_names_hash_max_size 8192; server_names_hash_bucket_size 128;\n\
             upstream behind {{ server {backend}; keepalive 256; keepalive_requests 1000000000; }}\n\
             server {{ listen {http} backlog=4096; listen {https} ssl http2 backlog=4096; server_name {HOST} {names};\n\
             ssl_certificate {directory}/chain.pem; ssl_certificate_key {directory}/key.pem; ssl_protocols TLSv1.2 TLSv1.3;\n\
             keepalive_requests 1000000000; keepalive_timeout 600;\n\
             location / {{ proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;\n\
             proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host; }} }} }}\n",
            head = self.nginx_head("proxy", self.threads)?,
            backend = self.backend,
            names = names.join(" "),
            directory = text(&self.directory)?,
        );
        self.nginx("proxy", &config, http, https)
    }

    fn nginx_head(&self, name: &str, workers: usize) -> anyhow::Result<String> {
        let directory = text(&self.directory)?;
        Ok(format!(
            "user root; daemon off; worker_processes {workers}; pid {directory}/{name}.pid; error_log {directory}/{name}.log crit;\n\
             worker_rlimit_nofile {files}; events {{ worker_connections {CONNECTIONS}; }}\n",
            files = CONNECTIONS * 2 + 100,
        ))
    }

    fn nginx(
        &self,
        name: &str,
        config: &str,
        http: SocketAddr,
        https: SocketAddr,
    ) -> anyhow::Result<Server> {
        let path = self.directory.join(format!("{name}.conf"));
        fs::write(&path, config)?;
        self.spawn(
            name,
            Command::new("/usr/sbin/nginx").arg("-c").arg(path),
            http,
            https,
        )
    }

    fn start_haproxy(&self, http: SocketAddr, https: SocketAddr) -> anyhow::Result<Server> {
        let directory = text(&self.directory)?;
        let lines: String = domains()
            .chain([HOST.to_owned()])
            .map(|name| format!("{name} behind\n"))
            .collect();
        fs::write(self.directory.join("hosts.map"), lines)?;
        let config = format!(
            "global\n nbthread {threads}\n maxconn {CONNECTIONS}\n tune.ssl.default-dh-param 2048\n\
             defaults\n mode http\n timeout connect 15s\n timeout client 600s\n timeout server 600s\n\
              timeout http-keep-alive 600s\n http-reuse always\n\
             frontend all\n bind {http} backlog 4096\n\
              bind {https} backlog 4096 ssl crt {directory}/both.pem alpn h2,http/1.1 ssl-min-ver TLSv1.2\n\
              option forwardfor\n http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}\n\
              http-request set-header X-Forwarded-Host %[req.hdr(host)]\n\
              use_backend %[req.hdr(host),field(1,:),lower,map({directory}/hosts.map,none)]\n\
             backend none\n http-request deny deny_status 404\n\
             backend behind\n server one {backend}\n",
            threads = self.threads,
            backend = self.backend,
        );
        let path = self.directory.join("haproxy.cfg");
        fs::write(&path, config)?;
        let mut command = Command::new("/usr/sbin/haproxy");
        command.args(["-db", "-f"]).arg(path);
        self.spawn("haproxy", &mut command, http, https)
    }

    fn spawn(
        &self,
        name: &str,
        command: &mut Command,
        http: SocketAddr,
        https: SocketAddr,
    ) -> anyhow::Result<Server> {
        let log = self.directory.join(format!("{name}.out"));
        let out = fs::File::create(&log)?;
        // a group of its own, so that Ctrl-C reaches only who cleans up
        let process = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let mut server = Server {
            process,
            http,
            https,
            control: None,
        };
        let deadline = Instant::now() + START_TIMEOUT;
        while [http, https]
            .iter()
            .any(|address| TcpStream::connect(address).is_err())
        {
            interrupt::check()?;
            if server.process.try_wait()?.is_some() || Instant::now() > deadline {
                bail!(
                    "it does not listen: {}",
                    fs::read_to_string(&log).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

/// A number in letters, so that an id can have it.
fn letters(number: usize) -> String {
    let digits = number.to_string();
    digits
        .bytes()
        .map(|digit| char::from(digit - b'0' + b'b'))
        .collect()
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path
        .to_str()
        .context("the directory's path is not text")?
        .to_owned())
}

/// An address that nobody has now.
pub(super) fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
