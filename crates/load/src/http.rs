//! A small blocking HTTP/1.1 client (RFC 9112): keep-alive, chunked bodies, cookies, forms.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Largest answer that is taken, bytes.
const ANSWER_MAX: u64 = 64 << 20;
/// Longest header line, bytes, and most of them.
const LINE_MAX: u64 = 64 << 10;
const LINES_MAX: usize = 256;
/// A name under `localhost` leads here (RFC 6761, 6.3).
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

/// Whom to ask: where to connect and which host name to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` field.
    pub host: String,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Takes `http://NAME.localhost[:PORT][/PATH]` or `http://IP[:PORT][/PATH]` apart.
    ///
    /// # Errors
    /// When it is no such address.
    pub fn parse(url: &str) -> io::Result<Self> {
        let wrong = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{url:?} is not a local http address"),
            )
        };
        let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => {
                (name, port.parse().map_err(|_| wrong())?)
            }
            _ => (host, 80),
        };
        let ip = if name == "localhost" || name.ends_with(".localhost") {
            LOOPBACK.into()
        } else {
            name.trim_matches(['[', ']']).parse().map_err(|_| wrong())?
        };
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self {
            address: SocketAddr::new(ip, port),
            host: host.to_owned(),
            path: path.to_owned(),
        })
    }

    /// The same server, another path.
    #[must_use]
    pub fn at(&self, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            ..self.clone()
        }
    }
}

/// What was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first field of that name (in lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A kept connection was closed before a byte of the answer came: the server had ended it.
    Stale,
    /// Anything else.
    Other(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Other(error)
    }
}

/// A connection to one server, with cookies; connects by itself.
#[derive(Debug)]
pub struct Client {
    target: Target,
    timeout: Duration,
    connection: Option<BufReader<TcpStream>>,
    cookies: BTreeMap<String, String>,
    /// How often a kept connection had been closed by the server.
    pub reconnects: u64,
}

impl Client {
    /// A client of the target's server; every step of a request may take `timeout`.
    #[must_use]
    pub fn new(target: &Target, timeout: Duration) -> Self {
        Self {
            target: target.clone(),
            timeout,
            connection: None,
            cookies: BTreeMap::new(),
            reconnects: 0,
        }
    }

    /// Asks for a path.
    ///
    /// # Errors
    /// When there is no complete answer.
    pub fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.request("GET", path, None)
    }

    /// Sends a form, as a browser does.
    ///
    /// # Errors
    /// When there is no complete answer.
    pub fn post(&mut self, path: &str, form: &[(&str, &str)]) -> io::Result<Answer> {
        let fields: Vec<_> = form
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
            .collect();
        self.request(
            "POST",
            path,
            Some((
                "application/x-www-form-urlencoded",
                fields.join("&").as_bytes(),
            )),
        )
    }

    /// Sends a body of the given type.
    ///
    /// # Errors
    /// When there is no complete answer.
    pub fn post_as(&mut self, path: &str, content_type: &str, body: &[u8]) -> io::Result<Answer> {
        self.request("POST", path, Some((content_type, body)))
    }

    fn request(
        &mut self,
        method: &str,
        path: &str,
        body: Option<(&str, &[u8])>,
    ) -> io::Result<Answer> {
        loop {
            match self.once(method, path, body) {
                Ok(answer) => return Ok(answer),
                // what every browser does; `once` never says so of a new connection
                Err(Failure::Stale) if method == "GET" => self.reconnects += 1,
                Err(Failure::Stale) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Err(Failure::Other(error)) => return Err(error),
            }
        }
    }

    fn once(
        &mut self,
        method: &str,
        path: &str,
        body: Option<(&str, &[u8])>,
    ) -> Result<Answer, Failure> {
        let (mut connection, kept) = match self.connection.take() {
            Some(connection) => (connection, true),
            None => (self.connect()?, false),
        };
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: offshoot-load\r\n",
            self.target.host
        );
        if !self.cookies.is_empty() {
            let cookies: Vec<_> = self
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let _ = write!(head, "Cookie: {}\r\n", cookies.join("; "));
        }
        if let Some((content_type, body)) = body {
            let _ = write!(
                head,
                "Content-Type: {content_type}\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.extend_from_slice(body.map_or(&[], |(_, body)| body));
        let begun = connection
            .get_mut()
            .write_all(&request)
            .and_then(|()| connection.fill_buf().map(<[u8]>::is_empty));
        match begun {
            Ok(false) => {}
            Ok(true) | Err(_) if kept && !matches!(&begun, Err(e) if timed_out(e)) => {
                return Err(Failure::Stale);
            }
            Ok(true) => return Err(Failure::Other(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => return Err(Failure::Other(error)),
        }
        let (answer, keep) = read_answer(&mut connection)?;
        for (name, value) in &answer.headers {
            if name == "set-cookie"
                && let Some((name, value)) = value
                    .split(';')
                    .next()
                    .and_then(|pair| pair.split_once('='))
            {
                self.cookies
                    .insert(name.trim().to_owned(), value.trim().to_owned());
            }
        }
        if keep {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    fn connect(&self) -> io::Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect_timeout(&self.target.address, self.timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(BufReader::new(stream))
    }
}

fn timed_out(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Reads one answer; whether the connection can be used again.
fn read_answer(from: &mut impl BufRead) -> io::Result<(Answer, bool)> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let line = read_line(from)?;
    let mut words = line.split(' ');
    let (version, status) = (
        words.next().unwrap_or_default(),
        words.next().and_then(|code| code.parse().ok()),
    );
    let status: u16 = status
        .filter(|_| version.starts_with("HTTP/1."))
        .ok_or_else(|| wrong(format!("{line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(from)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| wrong(format!("{line:?}")))?;
        if headers.len() == LINES_MAX {
            return Err(wrong("too many fields".to_owned()));
        }
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if (100..200).contains(&status) {
        return read_answer(from);
    }
    let mut answer = Answer {
        status,
        headers,
        body: Vec::new(),
    };
    let mut keep = version == "HTTP/1.1"
        && answer
            .header("connection")
            .is_none_or(|c| !c.eq_ignore_ascii_case("close"));
    if status == 204 || status == 304 {
        return Ok((answer, keep));
    }
    let chunked = answer
        .header("transfer-encoding")
        .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    let length = answer
        .header("content-length")
        .map(|text| text.parse::<u64>().map_err(|e| wrong(e.to_string())));
    match (chunked, length.transpose()?) {
        (true, _) => read_chunks(from, &mut answer.body)?,
        (false, Some(length)) => read_exactly(from, length, &mut answer.body)?,
        (false, None) => {
            from.take(ANSWER_MAX).read_to_end(&mut answer.body)?;
            keep = false;
        }
    }
    Ok((answer, keep))
}

fn read_chunks(from: &mut impl BufRead, into: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let line = read_line(from)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, format!("chunk of {size:?}"))
        })?;
        read_exactly(from, size, into)?;
        // after the last chunk trailers may come
        while !read_line(from)?.is_empty() {}
        if size == 0 {
            return Ok(());
        }
    }
}

fn read_exactly(from: &mut impl BufRead, length: u64, into: &mut Vec<u8>) -> io::Result<()> {
    let so_far = u64::try_from(into.len()).unwrap_or(u64::MAX);
    if so_far.saturating_add(length) > ANSWER_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the answer is too long",
        ));
    }
    let read = from.take(length).read_to_end(into)?;
    if u64::try_from(read).ok() == Some(length) {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    from.take(LINE_MAX).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// `application/x-www-form-urlencoded` (URL standard, 5).
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => {
                out.push(char::from(byte))
            }
            b' ' => out.push('+'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let target = Target::parse("http://shop.localhost:8080/a?b").unwrap();
        assert_eq!(
            (target.host.as_str(), target.path.as_str()),
            ("shop.localhost:8080", "/a?b")
        );
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(
            Target::parse("http://shop.localhost")
                .unwrap()
                .address
                .port(),
            80
        );
        assert_eq!(
            Target::parse("http://[::1]:81/").unwrap().address,
            "[::1]:81".parse().unwrap()
        );
        for wrong in [
            "https://a.localhost",
            "http://example.org/",
            "http://a.localhost:x/",
            "",
        ] {
            assert!(Target::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn answers_are_read_in_every_framing() {
        let read = |text: &str| {
            read_answer(&mut text.as_bytes())
                .map(|(answer, keep)| (answer.status, answer.text(), keep))
        };
        assert_eq!(
            read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore").unwrap(),
            (200, "ok".into(), true)
        );
        assert_eq!(
            read("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nok\r\n1\r\n!\r\n0\r\nT: 1\r\n\r\n").unwrap(),
            (200, "ok!".into(), true)
        );
        assert_eq!(
            read("HTTP/1.1 200 OK\r\n\r\nall").unwrap(),
            (200, "all".into(), false)
        );
        assert_eq!(
            read("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\nConnection: close\r\n\r\n")
                .unwrap(),
            (204, String::new(), false)
        );
        for wrong in [
            "",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
            "nonsense\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(encode("a b&c=ä/"), "a+b%26c%3D%C3%A4%2F");
    }
}
