//! Isolating all ports of a bridge in one system call: this happens while the nodes stand still.
//!
//! Every request (`IFLA_BRPORT_ISOLATED`, Linux 4.18) is made beforehand. The kernel works through all that came in one
//! message before the send returns, some microseconds for each.

use std::io;

use rtnetlink::LinkBridgePort;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use crate::error::NetworkError;

/// Where a switch is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    /// The ports are cut off from each other.
    Isolated,
    /// They are not.
    Together,
}

/// A set of ports with the requests that isolate them and those that lift it.
pub(crate) struct PortSwitch {
    socket: Socket,
    isolate: Vec<u8>,
    lift: Vec<u8>,
    ports: u32,
}

impl PortSwitch {
    /// Prepares a switch for these ports of a bridge in the calling thread's namespace.
    pub(crate) fn new(ports: &[u32]) -> Result<Self, NetworkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Answers do not repeat their requests.
            socket.set_cap_ack(true)?;
            // They are there when the send returns.
            socket.set_non_blocking(true)?;
            io::Result::Ok(socket)
        };
        let socket = open().map_err(|e| NetworkError::io("opening a netlink socket", e))?;
        let (isolate, lift) = (requests(ports, true), requests(ports, false));
        Ok(Self {
            socket,
            isolate,
            lift,
            ports: u32::try_from(ports.len()).unwrap_or(u32::MAX),
        })
    }

    /// Number of ports.
    pub(crate) fn len(&self) -> u32 {
        self.ports
    }

    /// Puts the switch. Ports that are gone are passed over.
    pub(crate) fn put(&self, position: Position) -> Result<(), NetworkError> {
        let (requests, what) = match position {
            Position::Isolated => (&self.isolate, "isolating the nodes"),
            Position::Together => (&self.lift, "lifting the nodes' isolation"),
        };
        if self.ports == 0 {
            return Ok(());
        }
        self.exchange(requests)
            .map_err(|e| NetworkError::io(what, e))
    }

    /// Sends the requests and reads what the kernel says: errors, and the acknowledgement of the last request.
    fn exchange(&self, requests: &[u8]) -> io::Result<()> {
        self.socket.send(requests, 0)?;
        let mut outcome = Ok(());
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
                .map_err(io::Error::other)?;
            let NetlinkPayload::Error(error) = answer.payload else {
                continue;
            };
            if error.code.is_some() {
                let error = error.to_io();
                if !super::is_gone(&error) && outcome.is_ok() {
                    outcome = Err(error);
                }
            }
            if answer.header.sequence_number == self.ports {
                return outcome;
            }
        }
    }
}

/// The request that isolates a port or lifts that.
pub(super) fn isolation_message(port: u32, isolated: bool) -> LinkMessage {
    LinkBridgePort::new(port).isolated(isolated).build()
}

/// All requests, numbered from 1; only the last is acknowledged (errors are always reported).
fn requests(ports: &[u32], isolated: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (&port, number) in ports.iter().zip(1..) {
        let message = RouteNetlinkMessage::NewLink(isolation_message(port, isolated));
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST;
        message.header.sequence_number = number;
        if usize::try_from(number).is_ok_and(|number| number == ports.len()) {
            message.header.flags |= NLM_F_ACK;
        }
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        if let Some(room) = bytes.get_mut(start..) {
            message.serialize(room);
        }
    }
    bytes
}
