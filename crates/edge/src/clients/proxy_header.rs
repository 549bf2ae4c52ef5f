//! The header that begins connections from load balancers (HAProxy's `proxy-protocol.txt`, versions 1 and 2), and
//! connections to nodes that want one.
//!
//! Exactly the header is read: the byte after it is the client's. What is not strictly as the specification says ends
//! the connection, since a header that is misread is an address that anyone may claim.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use offshoot_model::traffic::ProxyVersion;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest line of version 1, with its end (section 2.1).
const LINE_MAX: usize = 107;
/// How version 2 begins (section 2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest content of version 2 that is read: addresses and additional fields, which are passed over. Amazon's and
/// Azure's take some hundred bytes.
const CONTENT_MAX: u16 = 4_096;

/// Why a connection has no header that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    /// The connection ended or broke.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    /// It begins otherwise, or contradicts itself.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Reads a header; returns the client that it tells, or `None` when the other side speaks for itself (`LOCAL`,
/// `UNKNOWN`, addresses that are none of the internet).
pub(super) async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SocketAddr>, HeaderError> {
    // no header is shorter: `PROXY UNKNOWN\r\n` has 15 bytes
    let mut begin = [0; SIGNATURE.len()];
    stream.read_exact(&mut begin).await?;
    if begin == SIGNATURE {
        return binary(stream).await;
    }
    let mut line = begin.to_vec();
    while !line.ends_with(b"\r\n") {
        // told as soon as it is clear, so that no other protocol's bytes are waited for
        if !line.starts_with(b"PROXY ") || line.len() == LINE_MAX {
            return Err(HeaderError::Malformed("it does not begin with a header"));
        }
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line).ok();
    line.and_then(text)
        .ok_or(HeaderError::Malformed("the line of version 1 is malformed"))
}

/// A line of version 1.
fn text(line: &str) -> Option<Option<SocketAddr>> {
    let words: Vec<&str> = line.strip_suffix("\r\n")?.split(' ').collect();
    match *words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Some(None),
        [
            "PROXY",
            family,
            source,
            destination,
            source_port,
            destination_port,
        ] => {
            let address = |text: &str| -> Option<IpAddr> {
                match family {
                    "TCP4" => text.parse::<Ipv4Addr>().ok().map(Into::into),
                    "TCP6" => text.parse::<Ipv6Addr>().ok().map(Into::into),
                    _ => None,
                }
            };
            address(destination)?;
            port(destination_port)?;
            Some(Some((address(source)?, port(source_port)?).into()))
        }
        _ => None,
    }
}

/// Digits only, no leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// What follows the signature of version 2.
async fn binary(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, HeaderError> {
    let version_and_command = stream.read_u8().await?;
    let family = stream.read_u8().await?;
    let length = stream.read_u16().await?;
    if !matches!(version_and_command, 0x20 | 0x21) {
        return Err(HeaderError::Malformed(
            "another version or command than of version 2",
        ));
    }
    if length > CONTENT_MAX {
        return Err(HeaderError::Malformed("the header is too long"));
    }
    let mut content = vec![0; usize::from(length)];
    stream.read_exact(&mut content).await?;
    if version_and_command == 0x20 {
        // LOCAL: a health check of the load balancer's
        return Ok(None);
    }
    let short = HeaderError::Malformed("the header is too short for its addresses");
    // family and transport: TCP over IPv4 and IPv6; others are to be taken as unknown
    match family {
        0x11 => match content.first_chunk::<12>() {
            Some([a, b, c, d, _, _, _, _, high, low, _, _]) => {
                let port = u16::from_be_bytes([*high, *low]);
                Ok(Some((Ipv4Addr::new(*a, *b, *c, *d), port).into()))
            }
            None => Err(short),
        },
        0x21 => match (
            content.first_chunk::<16>(),
            content.get(32..34),
            content.len(),
        ) {
            (Some(source), Some([high, low]), 36..) => {
                let port = u16::from_be_bytes([*high, *low]);
                Ok(Some((Ipv6Addr::from(*source), port).into()))
            }
            _ => Err(short),
        },
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => Ok(None),
        _ => Err(HeaderError::Malformed("an unknown family or transport")),
    }
}

/// The header of a connection that is made for a client, with its address and the one at which it came; without them
/// the edge speaks for itself.
pub(crate) fn write(version: ProxyVersion, ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    // both of one family, or what was told of the client would be lost
    let ends = ends.map(|(client, here)| match (client, here) {
        (SocketAddr::V4(v4), SocketAddr::V6(_)) => (mapped(v4), here),
        (SocketAddr::V6(_), SocketAddr::V4(v4)) => (client, mapped(v4)),
        same => same,
    });
    match version {
        ProxyVersion::V1 => match ends {
            None => b"PROXY UNKNOWN\r\n".to_vec(),
            Some((client, here)) => {
                let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
                let ports = (client.port(), here.port());
                let (client, here) = (client.ip(), here.ip());
                format!("PROXY {family} {client} {here} {} {}\r\n", ports.0, ports.1).into_bytes()
            }
        },
        ProxyVersion::V2 => {
            let mut header = SIGNATURE.to_vec();
            match ends {
                None => header.extend([0x20, 0x00, 0, 0]),
                Some((client, here)) => {
                    let (family, length) = if client.is_ipv4() {
                        (0x11, 12)
                    } else {
                        (0x21, 36)
                    };
                    header.extend([0x21, family, 0, length]);
                    for end in [client, here] {
                        match end.ip() {
                            IpAddr::V4(v4) => header.extend(v4.octets()),
                            IpAddr::V6(v6) => header.extend(v6.octets()),
                        }
                    }
                    header.extend(client.port().to_be_bytes());
                    header.extend(here.port().to_be_bytes());
                }
            }
            header
        }
    }
}

fn mapped(address: SocketAddrV4) -> SocketAddr {
    (address.ip().to_ipv6_mapped(), address.port()).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds bytes; returns what was told and what was left.
    fn read(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, String>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let told = runtime.block_on(receive(&mut bytes));
        (told.map_err(|error| error.to_string()), bytes.len())
    }

    fn told(bytes: &[u8]) -> Option<SocketAddr> {
        let (told, left) = read(&[bytes, b"GET /"].concat());
        assert_eq!(left, 5, "{bytes:?}");
        told.unwrap()
    }

    #[test]
    fn headers_are_read_to_their_last_byte() {
        let address = Some("192.0.2.7:4711".parse().unwrap());
        assert_eq!(
            told(b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n"),
            address
        );
        assert_eq!(told(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(told(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"), None);
        let six = Some("[2001:db8::7]:4711".parse().unwrap());
        assert_eq!(told(b"PROXY TCP6 2001:db8::7 ::1 4711 80\r\n"), six);
        let mut binary = SIGNATURE.to_vec();
        // three bytes of an additional field follow the addresses
        binary.extend([
            0x21, 0x11, 0, 15, 192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x67, 0, 80, 4, 0, 0,
        ]);
        assert_eq!(told(&binary), address);
        binary[12] = 0x20;
        assert_eq!(told(&binary), None, "LOCAL");
        binary[12] = 0x21;
        binary[13] = 0x12;
        assert_eq!(told(&binary), None, "UDP");
    }

    #[test]
    fn what_is_written_is_understood() {
        let four = "192.0.2.7:4711".parse().unwrap();
        let six = "[2001:db8::7]:0".parse().unwrap();
        let here4 = "198.51.100.1:80".parse().unwrap();
        let here6 = "[::1]:65535".parse().unwrap();
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            assert_eq!(told(&write(version, None)), None);
            assert_eq!(told(&write(version, Some((four, here4)))), Some(four));
            assert_eq!(told(&write(version, Some((six, here6)))), Some(six));
            assert_eq!(told(&write(version, Some((six, here4)))), Some(six));
            let mixed = told(&write(version, Some((four, here6)))).unwrap();
            assert_eq!(mixed.ip().to_canonical(), four.ip());
        }
        let line = write(ProxyVersion::V1, Some((four, here4)));
        assert_eq!(line, b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n");
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        let lines: [&[u8]; 16] = [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4711\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80 9\r\n",
            b"PROXY TCP4  192.0.2.7 198.51.100.1 4711 80\r\n",
            b"PROXY TCP4 192.0.2.07 198.51.100.1 4711 80\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 04711 80\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +4711 80\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 65536\r\n",
            b"PROXY TCP4 2001:db8::7 ::1 4711 80\r\n",
            b"PROXY TCP6 192.0.2.7 198.51.100.1 4711 80\r\n",
            b"PROXY UDP4 192.0.2.7 198.51.100.1 4711 80\r\n",
            b"proxy TCP4 192.0.2.7 198.51.100.1 4711 80\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\n\r\n",
            b"PROXY TCP4 192.0.2.7\r198.51.100.1 4711 80\r\n",
            b"PROXY UNKNOWN",
            long.as_bytes(),
        ];
        for line in lines {
            assert!(read(line).0.is_err(), "{:?}", String::from_utf8_lossy(line));
        }
        let tails: [&[u8]; 6] = [
            &[0x31, 0x11, 0, 12],
            &[0x22, 0x11, 0, 12],
            &[0x21, 0x11, 0, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            &[0x21, 0x11, 0xff, 0xff],
            &[0x21, 0x41, 0, 0],
            &[0x21, 0x21, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        ];
        for tail in tails {
            assert!(read(&[&SIGNATURE, tail].concat()).0.is_err(), "{tail:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256), how in 0..3u8) {
            let begin: &[u8] = match how { 0 => b"", 1 => b"PROXY TCP", _ => &SIGNATURE };
            let _ = read(&[begin, &bytes].concat());
        }

        #[test]
        fn a_line_tells_one_address(ip: [u8; 4], port: u16, at in 0..40usize, change: u8) {
            let ip = Ipv4Addr::from(ip);
            let line = format!("PROXY TCP4 {ip} 198.51.100.1 {port} 80\r\n");
            prop_assert_eq!(told(line.as_bytes()), Some((ip, port).into()));
            // one changed byte: refused, or a line that says exactly what was understood
            let mut changed = line.into_bytes();
            let at = at % changed.len();
            changed[at] = change;
            if let (Ok(Some(SocketAddr::V4(v4))), _) = read(&changed) {
                let words = format!(" {} ", v4.ip());
                prop_assert!(String::from_utf8_lossy(&changed).contains(&words));
            }
        }
    }
}
