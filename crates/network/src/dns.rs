//! The environment's name server, on the gateway's address: names of the environment from its [`Zone`], all others by way
//! of the host side. Its clients are whatever runs in the nodes, so every amount is bounded.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::error::NetworkError;
use crate::forward::{HostSide, UDP_PAYLOAD};
use crate::spec::Gate;
use crate::zone::{Answer, Zone};

const PORT: u16 = 53;
/// TCP connections served at once; more wait in the listen queue.
const CONNECTIONS_MAX: usize = 32;
/// A TCP client may think this long between questions (RFC 7766 wants seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Questions of UDP clients that wait for upstream at once; more are dropped, and asked again by their clients.
const WAITING_MAX: usize = 256;
/// What every DNS client can take over UDP (RFC 1035).
const UDP_LEAST: u16 = 512;

/// What the name server knows; changed while it runs.
pub(crate) struct Directory {
    pub(crate) zone: RefCell<Zone>,
    pub(crate) upstream: RefCell<Arc<[SocketAddr]>>,
    pub(crate) gate: Cell<Gate>,
    pub(crate) host: HostSide,
}

/// Starts serving on `address`, UDP and TCP. Needs a local task set.
pub(crate) async fn serve(address: IpAddr, directory: &Rc<Directory>) -> Result<(), NetworkError> {
    let failed = |e| NetworkError::io(format!("listening on {address} port {PORT}"), e);
    let socket = UdpSocket::bind((address, PORT)).await.map_err(failed)?;
    let listener = TcpListener::bind((address, PORT)).await.map_err(failed)?;
    spawn_local(serve_udp(Rc::new(socket), Rc::clone(directory)));
    spawn_local(serve_tcp(listener, Rc::clone(directory)));
    Ok(())
}

async fn serve_udp(socket: Rc<UdpSocket>, directory: Rc<Directory>) {
    let waiting = Arc::new(Semaphore::new(WAITING_MAX));
    let mut buffer = [0; 4096];
    loop {
        // Errors here are those of earlier answers (a client that is gone).
        let Ok((len, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Some(request) = Request::parse(buffer.get(..len).unwrap_or_default()) else {
            continue;
        };
        match request.answer_here(&directory) {
            Some(response) => send(&socket, client, &request, response).await,
            None => {
                let Ok(permit) = Arc::clone(&waiting).try_acquire_owned() else {
                    continue;
                };
                let (socket, directory) = (Rc::clone(&socket), Rc::clone(&directory));
                spawn_local(async move {
                    let response = request.answer_elsewhere(&directory).await;
                    send(&socket, client, &request, response).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, client: SocketAddr, request: &Request, response: Message) {
    if let Some(bytes) = request.encode(response, request.udp_payload) {
        let _ = socket.send_to(&bytes, client).await;
    }
}

async fn serve_tcp(listener: TcpListener, directory: Rc<Directory>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let directory = Rc::clone(&directory);
                spawn_local(async move {
                    let _ = serve_connection(stream, &directory).await;
                    drop(permit);
                });
            }
            // Out of descriptors or memory: it passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_connection(mut stream: TcpStream, directory: &Directory) -> io::Result<()> {
    loop {
        let question = timeout(IDLE, async {
            let len = stream.read_u16().await?;
            let mut bytes = vec![0; len.into()];
            stream.read_exact(&mut bytes).await?;
            io::Result::Ok(bytes)
        });
        let Some(request) = Request::parse(&question.await??) else {
            return Ok(());
        };
        let response = match request.answer_here(directory) {
            Some(response) => response,
            None => request.answer_elsewhere(directory).await,
        };
        let Some(bytes) = request.encode(response, u16::MAX) else {
            return Ok(());
        };
        let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        timeout(
            IDLE,
            stream.write_all(&[&len.to_be_bytes(), bytes.as_slice()].concat()),
        )
        .await??;
    }
}

/// A question that a client sent.
struct Request {
    message: Message,
    udp_payload: u16,
}

impl Request {
    /// `None` for what deserves no answer: noise, and answers (two servers must not talk to each other for ever).
    fn parse(bytes: &[u8]) -> Option<Self> {
        let message = match Message::from_vec(bytes) {
            Ok(message) => message,
            Err(_) => {
                let &[high, low, flags, ..] = bytes else {
                    return None;
                };
                let kind = if flags & 0x80 == 0 {
                    MessageType::Query
                } else {
                    MessageType::Response
                };
                Message::new(u16::from_be_bytes([high, low]), kind, OpCode::Query)
            }
        };
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let asked = message.edns.as_ref().map_or(UDP_LEAST, Edns::max_payload);
        Some(Self {
            message,
            udp_payload: asked.clamp(UDP_LEAST, UDP_PAYLOAD),
        })
    }

    /// The answer, unless it must come from upstream.
    fn answer_here(&self, directory: &Directory) -> Option<Message> {
        if self.message.metadata.op_code != OpCode::Query {
            return Some(self.response(ResponseCode::NotImp));
        }
        let [query] = self.message.queries.as_slice() else {
            return Some(self.response(ResponseCode::FormErr));
        };
        match directory
            .zone
            .borrow()
            .answer(query.name(), query.query_type())
        {
            Answer::Records(records) => {
                let mut response = self.response(ResponseCode::NoError);
                response.metadata.authoritative = true;
                response.add_answers(records);
                Some(response)
            }
            Answer::NoSuchName => {
                let mut response = self.response(ResponseCode::NXDomain);
                response.metadata.authoritative = true;
                Some(response)
            }
            Answer::Elsewhere if directory.upstream.borrow().is_empty() => {
                Some(self.response(ResponseCode::NXDomain))
            }
            Answer::Elsewhere => match directory.gate.get() {
                Gate::Open => None,
                Gate::Closed => Some(self.response(ResponseCode::ServFail)),
            },
        }
    }

    async fn answer_elsewhere(&self, directory: &Directory) -> Message {
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.metadata.checking_disabled = self.message.metadata.checking_disabled;
        question.add_queries(self.message.queries.iter().cloned());
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        edns.set_dnssec_ok(
            self.message
                .edns
                .as_ref()
                .is_some_and(|edns| edns.flags().dnssec_ok),
        );
        question.set_edns(edns);
        let servers = Arc::clone(&directory.upstream.borrow());
        match directory.host.ask(question, servers).await {
            Some(mut answer) => {
                let mut response = self.response(answer.metadata.response_code);
                response.metadata.authentic_data = answer.metadata.authentic_data;
                response.answers = std::mem::take(&mut answer.answers);
                response.authorities = std::mem::take(&mut answer.authorities);
                response.additionals = std::mem::take(&mut answer.additionals);
                response
            }
            None => self.response(ResponseCode::ServFail),
        }
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut response = Message::error_msg(
            self.message.metadata.id,
            self.message.metadata.op_code,
            code,
        );
        response.metadata.recursion_desired = self.message.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(self.message.queries.iter().cloned());
        if self.message.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD);
            response.set_edns(edns);
        }
        response
    }

    /// The response as bytes, cut to its head when it is longer than `max` (the client then asks over TCP).
    fn encode(&self, response: Message, max: u16) -> Option<Vec<u8>> {
        let bytes = response.to_vec().ok()?;
        if bytes.len() <= max.into() {
            Some(bytes)
        } else {
            response.truncate().to_vec().ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::{Name, RecordType};
    use offshoot_model::environment::Placement;
    use proptest::prelude::*;

    use super::*;

    fn directory(hosts: u8) -> Directory {
        let placement = Placement {
            id_base: 0,
            id_count: 1,
            inner: "10.9.0.0/24".parse().unwrap(),
            outer: "10.208.0.0/24".parse().unwrap(),
            inner6: None,
            outer6: None,
        };
        let names = vec![("web".to_owned(), (10..10 + hosts).collect())];
        Directory {
            zone: Zone::new(&names, &placement).into(),
            upstream: RefCell::new(Arc::from([])),
            gate: Cell::new(Gate::Open),
            host: HostSide::nobody(),
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_the_answer_is_short_and_no_answer_is_answered(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
            is_response: bool,
        ) {
            if let Some(flags) = bytes.get_mut(2) {
                *flags = if is_response { *flags | 0x80 } else { *flags & 0x7f };
            }
            let request = Request::parse(&bytes);
            prop_assert!(!(is_response && request.is_some()));
            if let Some(request) = request {
                let response = request.answer_here(&directory(2)).expect("nothing to ask upstream");
                let encoded = request.encode(response, request.udp_payload).expect("an answer");
                prop_assert!(encoded.len() <= request.udp_payload.into());
                prop_assert_eq!(&encoded[..2], &bytes[..2]);
            }
        }
    }

    #[test]
    fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
        let mut question = Message::query();
        question.add_query(Query::query(
            Name::from_ascii("web.").unwrap(),
            RecordType::A,
        ));
        let request = Request::parse(&question.to_vec().unwrap()).unwrap();
        let directory = directory(200);
        let over = |max| {
            let response = request.answer_here(&directory).unwrap();
            Message::from_vec(&request.encode(response, max).unwrap()).unwrap()
        };
        let udp = over(request.udp_payload);
        assert!(udp.metadata.truncation && udp.answers.is_empty());
        let tcp = over(u16::MAX);
        assert!(!tcp.metadata.truncation && tcp.answers.len() == 200);
    }
}
