//! The router's thread that stays in the host's network namespace: it makes the uplink and asks the host's name servers,
//! which may listen on the host's loopback and need no forwarding this way.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use offshoot_sys::netns::{Netns, keep_only_net_admin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::error::NetworkError;
use crate::netlink::Links;
use crate::setup;
use crate::spec::{RouterSpec, host_link_name};

/// Most questions under way at once; more are answered with a failure.
const QUESTIONS_MAX: usize = 256;
/// One server, one transport. Stub resolvers wait 5 s (resolv.conf(5)).
const SERVER_TIMEOUT: Duration = Duration::from_millis(1500);
/// The largest answer over UDP that is not fragmented on common links (DNS Flag Day 2020).
pub(crate) const UDP_PAYLOAD: u16 = 1232;
/// Servers tried for one question.
const SERVERS_TRIED: usize = 3;

/// What the thread is asked to do.
enum Job {
    /// Make the uplink, with its far end in the router's namespace.
    Uplink {
        router: Netns,
        reply: oneshot::Sender<Result<(), NetworkError>>,
    },
    /// The far end is up: wait until the near one can send.
    Settle {
        reply: oneshot::Sender<Result<(), NetworkError>>,
    },
    /// Ask upstream.
    Ask {
        question: Box<Message>,
        servers: Arc<[SocketAddr]>,
        reply: oneshot::Sender<Option<Message>>,
    },
}

/// The thread, as the router sees it.
#[derive(Clone)]
pub(crate) struct HostSide(mpsc::Sender<Job>);

impl HostSide {
    /// Starts the thread in the calling thread's network namespace; it ends with the process.
    pub(crate) fn start(spec: RouterSpec) -> Result<Self, NetworkError> {
        let (sender, jobs) = mpsc::channel(QUESTIONS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| NetworkError::io("starting the host side's runtime", e))?;
        std::thread::Builder::new()
            .name("host-side".into())
            .spawn(move || runtime.block_on(work(spec, jobs)))
            .map_err(|e| NetworkError::io("starting the host side's thread", e))?;
        Ok(Self(sender))
    }

    /// A host side that answers nothing.
    #[cfg(test)]
    pub(crate) fn nobody() -> Self {
        Self(mpsc::channel(1).0)
    }

    /// Makes the uplink into `router`'s namespace.
    pub(crate) async fn make_uplink(&self, router: Netns) -> Result<(), NetworkError> {
        self.order(|reply| Job::Uplink { router, reply }).await
    }

    /// Waits until the uplink, whose far end is up by now, can send. The thread then keeps no capability that it does not need.
    pub(crate) async fn settle_uplink(&self) -> Result<(), NetworkError> {
        self.order(|reply| Job::Settle { reply }).await
    }

    async fn order(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<(), NetworkError>>) -> Job,
    ) -> Result<(), NetworkError> {
        let (reply, answer) = oneshot::channel();
        let gone = || NetworkError::Invalid("the router's host side ended".into());
        self.0.send(job(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Asks upstream; `None` when there is no answer or too much is under way.
    pub(crate) async fn ask(
        &self,
        question: Message,
        servers: Arc<[SocketAddr]>,
    ) -> Option<Message> {
        let (reply, answer) = oneshot::channel();
        self.0
            .try_send(Job::Ask {
                question: Box::new(question),
                servers,
                reply,
            })
            .ok()?;
        answer.await.ok()?
    }
}

async fn work(spec: RouterSpec, mut jobs: mpsc::Receiver<Job>) {
    let questions = Arc::new(Semaphore::new(QUESTIONS_MAX));
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Uplink { router, reply } => {
                let made = async { setup::make_uplink(&Links::open()?, &spec, &router).await };
                let _ = reply.send(made.await);
            }
            Job::Settle { reply } => {
                let settled = async {
                    Links::open()?
                        .settle(&host_link_name(&spec.instance, &spec.env))
                        .await?;
                    // All that follows is asking name servers.
                    keep_only_net_admin().map_err(|e| NetworkError::io("giving up capabilities", e))
                };
                let _ = reply.send(settled.await);
            }
            Job::Ask {
                question,
                servers,
                reply,
            } => {
                let Ok(permit) = Arc::clone(&questions).try_acquire_owned() else {
                    continue;
                };
                tokio::spawn(async move {
                    let _ = reply.send(ask_servers(&question, &servers).await);
                    drop(permit);
                });
            }
        }
    }
}

async fn ask_servers(question: &Message, servers: &[SocketAddr]) -> Option<Message> {
    let bytes = question.to_vec().ok()?;
    for &server in servers.iter().take(SERVERS_TRIED) {
        let answer = timeout(SERVER_TIMEOUT, over_udp(question, &bytes, server)).await;
        let answer = match answer {
            Ok(Ok(answer)) if answer.metadata.truncation => {
                timeout(SERVER_TIMEOUT, over_tcp(question, &bytes, server)).await
            }
            other => other,
        };
        match answer {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%server, %error, "name server failed"),
            Err(_) => tracing::debug!(%server, "name server did not answer in time"),
        }
    }
    None
}

async fn over_udp(question: &Message, bytes: &[u8], server: SocketAddr) -> io::Result<Message> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A socket for each question: its port is as hard to guess as its id.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; 4096];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if let Some(answer) = buffer
            .get(..len)
            .and_then(|bytes| matching(question, bytes))
        {
            return Ok(answer);
        }
    }
}

async fn over_tcp(question: &Message, bytes: &[u8], server: SocketAddr) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&len.to_be_bytes(), bytes].concat())
        .await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; len.into()];
    stream.read_exact(&mut answer).await?;
    matching(question, &answer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The answer to our question, unless it is somebody else's guess.
fn matching(question: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    (answer.metadata.id == question.metadata.id && answer.queries == question.queries)
        .then_some(answer)
}
