//! The router's control socket: one JSON request a line, one JSON answer a line, for root on this host.
//!
//! A connection that asked for isolation holds it: when it closes, for whatever reason, the isolation is lifted.

use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::{sleep_until, timeout};

use crate::netlink::{PortSwitch, Position};
use crate::router::Running;
use crate::spec::{Gate, Mail, Names, RouterSpec};

/// Longest request or answer, bytes.
pub(crate) const LINE_MAX: u64 = 1 << 20;
/// Longest isolation that can be asked for: a freeze may take a minute, and a cut asks for some seconds more.
pub(crate) const ISOLATION_MAX: Duration = Duration::from_secs(120);
/// Connections served at once.
const CONNECTIONS_MAX: usize = 32;
/// A connection that holds nothing may think this long.
const IDLE: Duration = Duration::from_secs(10);

/// What a router is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub(crate) enum Request {
    /// How are you?
    Status,
    /// Answer for these names and ask these servers for others from now on.
    SetNames {
        names: Names,
        upstream_dns: Option<Vec<std::net::SocketAddr>>,
    },
    /// Be ready for [`Request::Isolate`] on this connection: it cuts off the nodes that are attached now.
    PrepareIsolation,
    /// Cut the nodes off from each other, for at most so long, until [`Request::Lift`] on this connection or its end.
    Isolate { max_ms: u64 },
    /// Lift this connection's isolation; on a connection without one: that of all ports.
    Lift,
    /// Open or close the uplink.
    SetGate { gate: Gate },
    /// Hold mail or let it pass.
    SetMail { mail: Mail },
    /// End.
    Shutdown,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub(crate) enum Response {
    /// Done, nothing to say.
    Done,
    /// To [`Request::Status`].
    Status(Box<RouterStatus>),
    /// To [`Request::Isolate`].
    Isolated { ports: u32, us: u64 },
    /// To [`Request::Lift`]: how long it lasted.
    Lifted { held_us: u64 },
    /// To [`Request::Lift`], when the time had passed before.
    Expired,
    /// Not done, and why.
    Refused { why: String },
}

/// State of a running router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterStatus {
    /// Its pid.
    pub pid: i32,
    /// What it was started with; names, upstream servers, gate and mail as they are now.
    pub spec: RouterSpec,
    /// The nodes' ports.
    pub ports: Vec<PortStatus>,
    /// Whether a cut holds the nodes isolated right now.
    pub isolation_held: bool,
}

/// One node's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Name of the interface in the router's namespace.
    pub name: String,
    /// Whether it is cut off from the other ports.
    pub isolated: bool,
}

/// Serves until a shutdown is asked for.
pub(crate) async fn serve(listener: UnixListener, router: Rc<Running>) {
    let connections = std::sync::Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = std::sync::Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        tokio::select! {
            () = router.shutdown.notified() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let router = Rc::clone(&router);
                    spawn_local(async move {
                        if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
                            let mut connection = Connection { router, prepared: None, lease: None };
                            connection.serve(stream).await;
                            connection.end_lease(Ended::Closed);
                        }
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

struct Connection {
    router: Rc<Running>,
    prepared: Option<PortSwitch>,
    lease: Option<Lease>,
}

/// An isolation that a connection holds.
struct Lease {
    since: Instant,
    until: Instant,
    /// The ports that were not isolated before; none after the time has passed.
    ports: Option<PortSwitch>,
}

impl Connection {
    async fn serve(&mut self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        // Kept between rounds: a deadline may pass in the middle of a line.
        let mut line = Vec::new();
        loop {
            let room = LINE_MAX.saturating_sub(line.len() as u64);
            let mut limited = (&mut read).take(room);
            let reading = limited.read_until(b'\n', &mut line);
            let got = match self
                .lease
                .as_ref()
                .filter(|lease| lease.ports.is_some())
                .map(|lease| lease.until)
            {
                Some(until) => tokio::select! {
                    // An answer that is there in time counts as in time.
                    biased;
                    got = reading => got,
                    () = sleep_until(until.into()) => {
                        self.end_lease(Ended::TimedOut);
                        continue;
                    }
                },
                None => match timeout(IDLE, reading).await {
                    Ok(got) => got,
                    Err(_) => return,
                },
            };
            if !matches!(got, Ok(n) if n > 0) || line.last() != Some(&b'\n') {
                return;
            }
            let response = match serde_json::from_slice(&line) {
                Ok(request) => self.handle(request).await,
                Err(error) => Response::Refused {
                    why: format!("not understood: {error}"),
                },
            };
            line.clear();
            let Ok(mut bytes) = serde_json::to_vec(&response) else {
                return;
            };
            bytes.push(b'\n');
            if !matches!(timeout(IDLE, write.write_all(&bytes)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    async fn handle(&mut self, request: Request) -> Response {
        let done = match request {
            Request::Status => self
                .router
                .status()
                .await
                .map(|status| Response::Status(Box::new(status))),
            Request::SetNames {
                names,
                upstream_dns,
            } => self
                .router
                .set_names(names, upstream_dns)
                .map(|()| Response::Done),
            Request::SetGate { gate } => self.router.set_gate(gate).await.map(|()| Response::Done),
            Request::SetMail { mail } => self.router.set_mail(mail).await.map(|()| Response::Done),
            Request::PrepareIsolation => self.router.prepare_isolation().await.map(|ports| {
                self.prepared = Some(ports);
                Response::Done
            }),
            Request::Isolate { max_ms } => {
                return self.isolate(Duration::from_millis(max_ms)).await;
            }
            Request::Lift => match self.lease.take() {
                Some(lease) => self.lift(lease),
                None => self.router.lift_all().await.map(|()| Response::Done),
            },
            Request::Shutdown => {
                self.router.shutdown.notify_one();
                Ok(Response::Done)
            }
        };
        done.unwrap_or_else(|error| Response::Refused {
            why: crate::error::chain(&error),
        })
    }

    async fn isolate(&mut self, max: Duration) -> Response {
        if max.is_zero() || max > ISOLATION_MAX {
            return Response::Refused {
                why: format!(
                    "isolation for {} ms: 1 to {} are allowed",
                    max.as_millis(),
                    ISOLATION_MAX.as_millis()
                ),
            };
        }
        if self.router.isolation_held.replace(true) {
            return Response::Refused {
                why: "another cut holds the nodes isolated".into(),
            };
        }
        let since = Instant::now();
        let ports = match self.prepared.take() {
            Some(ports) => Ok(ports),
            None => self.router.prepare_isolation().await,
        };
        let isolated = ports.and_then(|ports| match ports.put(Position::Isolated) {
            Ok(()) => Ok(ports),
            Err(error) => {
                let _ = ports.put(Position::Together);
                Err(error)
            }
        });
        match isolated {
            Ok(ports) => {
                let answer = Response::Isolated {
                    ports: ports.len(),
                    us: micros(since),
                };
                self.lease = Some(Lease {
                    since,
                    until: since + max,
                    ports: Some(ports),
                });
                answer
            }
            Err(error) => {
                self.router.isolation_held.set(false);
                Response::Refused {
                    why: crate::error::chain(&error),
                }
            }
        }
    }

    fn lift(&mut self, lease: Lease) -> Result<Response, crate::NetworkError> {
        let Some(ports) = lease.ports else {
            return Ok(Response::Expired);
        };
        let lifted = ports.put(Position::Together);
        self.router.isolation_held.set(false);
        lifted.map(|()| Response::Lifted {
            held_us: micros(lease.since),
        })
    }

    /// Lifts the isolation that nobody lifted, and remembers that.
    fn end_lease(&mut self, why: Ended) {
        if let Some(ports) = self.lease.as_mut().and_then(|lease| lease.ports.take()) {
            tracing::warn!(?why, "the nodes' isolation is lifted without its holder");
            if let Err(error) = ports.put(Position::Together) {
                tracing::error!(
                    error = crate::error::chain(&error),
                    "lifting the isolation failed"
                );
            }
            self.router.isolation_held.set(false);
        }
    }
}

/// Why a lease ended without being lifted.
#[derive(Debug, Clone, Copy)]
enum Ended {
    TimedOut,
    Closed,
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
