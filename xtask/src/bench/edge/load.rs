//! Load by wrk and h2load, and what these saw.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use offshoot_load::percentile;

use super::servers::HOST;
use crate::commands::output;

/// How a proxy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// wrk: HTTP/1.1, as fast as the connections go.
    Http1,
    /// The same through TLS.
    Tls,
    /// The same, each request with a connection and a handshake of its own.
    Handshakes,
    /// wrk with one of a thousand host names in each request.
    Domains,
    /// h2load: HTTP/2 through TLS, ten streams a connection, as fast as these go.
    Http2,
    /// h2load: HTTP/1.1 at a pace of this many requests per second.
    Paced(u32),
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) client: Client,
    pub(super) path: &'static str,
    pub(super) connections: u32,
}

/// All of them.
pub(super) const CASES: [Case; 10] = [
    case("http1", Client::Http1, "/1k", 64),
    case("http1-10KiB", Client::Http1, "/10k", 64),
    case("http1-1MiB", Client::Http1, "/1m", 16),
    case("http1-1000-domains", Client::Domains, "/1k", 64),
    case("tls", Client::Tls, "/1k", 64),
    case("tls-10KiB", Client::Tls, "/10k", 64),
    case("tls-handshakes", Client::Handshakes, "/1k", 16),
    case("http2", Client::Http2, "/1k", 16),
    case("http2-10KiB", Client::Http2, "/10k", 16),
    case("http1-2000rps", Client::Paced(2_000), "/1k", 20),
];

const fn case(name: &'static str, client: Client, path: &'static str, connections: u32) -> Case {
    Case {
        name,
        client,
        path,
        connections,
    }
}

/// What a client saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seen {
    pub(super) requests: f64,
    pub(super) requests_per_s: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Case {
    /// Asks for so long. Any request that fails is an error.
    pub(super) fn run(
        &self,
        http: SocketAddr,
        https: SocketAddr,
        seconds: u32,
        scratch: &Path,
    ) -> anyhow::Result<Seen> {
        match self.client {
            Client::Http1 => self.wrk(&format!("http://{http}{}", self.path), seconds, &[]),
            Client::Domains => {
                let script = scratch.join("domains.lua");
                fs::write(&script, DOMAINS)?;
                let script = script
                    .to_str()
                    .context("the directory's path is not text")?;
                self.wrk(
                    &format!("http://{http}{}", self.path),
                    seconds,
                    &["-s", script],
                )
            }
            Client::Tls => self.wrk(&self.tls_url(https), seconds, &[]),
            Client::Handshakes => {
                self.wrk(&self.tls_url(https), seconds, &["-H", "Connection: close"])
            }
            Client::Http2 => {
                self.h2load(https, seconds, scratch, &["-m", "10"], &self.tls_url(https))
            }
            Client::Paced(rate) => {
                let each = (rate / self.connections).to_string();
                let url = format!("http://{HOST}:{}{}", http.port(), self.path);
                self.h2load(http, seconds, scratch, &["--h1", "--rps", &each], &url)
            }
        }
    }

    fn tls_url(&self, https: SocketAddr) -> String {
        format!("https://{HOST}:{}{}", https.port(), self.path)
    }

    fn wrk(&self, url: &str, seconds: u32, more: &[&str]) -> anyhow::Result<Seen> {
        let mut command = Command::new("wrk");
        command.args([
            "-t",
            "2",
            "-c",
            &self.connections.to_string(),
            "-d",
            &format!("{seconds}s"),
            "--latency",
        ]);
        if self.client != Client::Domains {
            command.args(["-H", &format!("Host: {HOST}")]);
        }
        wrk_said(&output(command.args(more).arg(url))?)
    }

    fn h2load(
        &self,
        to: SocketAddr,
        seconds: u32,
        scratch: &Path,
        more: &[&str],
        url: &str,
    ) -> anyhow::Result<Seen> {
        let log = scratch.join("h2load.tsv");
        let _ = fs::remove_file(&log);
        let mut command = Command::new("h2load");
        command.args([
            "-t",
            "1",
            "-c",
            &self.connections.to_string(),
            "-D",
            &seconds.to_string(),
            "--warm-up-time",
            "1",
        ]);
        command
            .arg(format!("--connect-to={to}"))
            .arg("--log-file")
            .arg(&log);
        let said = output(command.args(more).arg(url))?;
        h2load_said(&said, &fs::read_to_string(&log)?)
    }
}

const DOMAINS: &str = "math.randomseed(os.time())
request = function()
  return wrk.format('GET', nil, { Host = 'shop' .. math.random(0, 999) .. '.example.org' })
end
";

fn wrk_said(text: &str) -> anyhow::Result<Seen> {
    let after = |begin: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(begin))
            .map(str::trim)
    };
    if let Some(bad) = after("Non-2xx or 3xx responses:").or(after("Socket errors:")) {
        bail!("requests failed: {bad}");
    }
    let ms = |begin: &str| {
        after(begin)
            .and_then(wrk_ms)
            .with_context(|| format!("wrk does not tell {begin}: {text}"))
    };
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    Ok(Seen {
        requests: requests.context("wrk does not tell the number of requests")?,
        requests_per_s: after("Requests/sec:")
            .and_then(|number| number.parse().ok())
            .context("wrk tells no requests per second")?,
        p50_ms: ms("50%")?,
        p99_ms: ms("99%")?,
    })
}

/// A time as wrk writes it: `312.00us`, `1.20ms`, `1.02s`.
fn wrk_ms(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit);
    let scale = match unit {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

/// `log` has a line for each request: microseconds of its begin, status, microseconds until its end.
fn h2load_said(text: &str, log: &str) -> anyhow::Result<Seen> {
    let line = text
        .lines()
        .find(|line| line.starts_with("requests:"))
        .with_context(|| format!("h2load tells no requests: {text}"))?;
    let count = |what: &str| -> Option<f64> {
        let part = line
            .trim_start_matches("requests:")
            .split(',')
            .find(|part| part.trim().ends_with(what))?;
        part.split_whitespace().next()?.parse().ok()
    };
    if count(" failed") != Some(0.0)
        || count(" errored") != Some(0.0)
        || count(" timeout") != Some(0.0)
    {
        bail!("requests failed: {line}");
    }
    let finished = text.lines().find_map(|line| {
        line.strip_prefix("finished in ")?
            .split(", ")
            .nth(1)?
            .strip_suffix(" req/s")?
            .parse()
            .ok()
    });
    let mut latencies = Vec::new();
    for line in log.lines() {
        let mut fields = line.split('\t').skip(1);
        let (status, us) = (
            fields.next().unwrap_or_default(),
            fields.next().and_then(|us| us.parse().ok()),
        );
        if status == "0" {
            // on its way when the time was over
            continue;
        }
        if status != "200" {
            bail!("a request was answered {status}");
        }
        latencies.extend(us.map(Duration::from_micros));
    }
    latencies.sort_unstable();
    let ms = |percent| {
        percentile(&latencies, percent)
            .map(|took| took.as_secs_f64() * 1e3)
            .context("h2load logged nothing")
    };
    Ok(Seen {
        requests: count(" done").context("h2load does not tell how many requests were done")?,
        requests_per_s: finished.context("h2load tells no requests per second")?,
        p50_ms: ms(50)?,
        p99_ms: ms(99)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 2s test @ http://127.0.0.1:8000/1k\n  2 threads and 64 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency     1.97ms  512.00us  12.01ms   80.00%\n  Latency Distribution\n     50%  980.00us\n     75%    2.20ms\n     90%    2.63ms\n     99%    3.82ms\n  32404 requests in 2.01s, 41.23MB read\nRequests/sec:  16121.39\nTransfer/sec:     20.51MB\n";

    #[test]
    fn wrk_is_understood() {
        let seen = wrk_said(WRK).unwrap();
        assert_eq!(
            seen,
            Seen {
                requests: 32_404.0,
                requests_per_s: 16_121.39,
                p50_ms: 0.98,
                p99_ms: 3.82
            }
        );
        let failed = format!("{WRK}  Non-2xx or 3xx responses: 12\n");
        assert!(wrk_said(&failed).unwrap_err().to_string().contains("12"));
        let failed = format!("{WRK}  Socket errors: connect 0, read 3, write 0, timeout 0\n");
        assert!(wrk_said(&failed).is_err());
        assert!(wrk_said("nothing").is_err());
    }

    #[test]
    fn h2load_is_understood() {
        let text = "finished in 3.01s, 1998.50 req/s, 2.40MB/s\nrequests: 4000 total, 4000 started, 4000 done, 4000 succeeded, 0 failed, 0 errored, 0 timeout\n";
        let log = "1700000000000000\t200\t300\n1700000000000001\t200\t100\n";
        let seen = h2load_said(text, log).unwrap();
        assert_eq!(
            seen,
            Seen {
                requests: 4_000.0,
                requests_per_s: 1_998.5,
                p50_ms: 0.1,
                p99_ms: 0.3
            }
        );
        assert!(h2load_said(text, "1\t503\t300\n").is_err());
        assert!(h2load_said(&text.replace("0 failed", "2 failed"), log).is_err());
    }
}
