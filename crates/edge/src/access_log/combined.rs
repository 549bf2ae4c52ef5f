//! The format that Apache and nginx call `combined`, for programs that read such logs.

use std::fmt::Write;

use super::Record;

/// A request as a line without its end.
pub(super) fn line(record: &Record) -> String {
    let client = record.client.as_deref().unwrap_or("-");
    // without the port
    let address = client.parse::<std::net::SocketAddr>();
    let client = address.map_or_else(|_| client.to_owned(), |address| address.ip().to_string());
    let time = record.time.strftime("%d/%b/%Y:%H:%M:%S +0000");
    let mut line = format!(
        "{client} - - [{time}] \"{} {}",
        record.method,
        escape(&record.path)
    );
    if let Some(query) = &record.query {
        let _ = write!(line, "?{}", escape(query));
    }
    let protocol = if record.protocol == "h2" {
        "HTTP/2.0"
    } else {
        "HTTP/1.1"
    };
    let _ = write!(line, " {protocol}\" {} ", record.status);
    match record.bytes {
        0 => line.push('-'),
        bytes => {
            let _ = write!(line, "{bytes}");
        }
    }
    for field in [&record.referer, &record.agent] {
        let field = field.as_deref().map_or_else(|| "-".to_owned(), escape);
        let _ = write!(line, " \"{field}\"");
    }
    line
}

/// As Apache's `ap_escape_logitem`: quotes and backslashes get a backslash, and what is not printable ASCII is `\xhh`
/// or one of C's short forms, so that a line is a line and a field ends where it seems to.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => {
                escaped.push('\\');
                escaped.push(char::from(byte));
            }
            b'\n' => escaped.push_str("\\n"),
            b'\r' => escaped.push_str("\\r"),
            b'\t' => escaped.push_str("\\t"),
            0x20..=0x7e => escaped.push(char::from(byte)),
            other => {
                let _ = write!(escaped, "\\x{other:02x}");
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_apache_writes_them() {
        let mut record = Record {
            time: "2000-10-10T20:55:36Z".parse().unwrap(),
            client: Some("[2001:db8::1]:4711".into()),
            protocol: "http/1.1",
            scheme: "http",
            method: "GET".into(),
            host: "a.org".into(),
            path: "/apache_pb.gif".into(),
            query: None,
            status: 200,
            bytes: 2326,
            duration_ms: 1.0,
            environment: None,
            upstream: None,
            error: None,
            referer: Some("http://www.example.com/start.html".into()),
            agent: Some("Mozilla/4.08 [en] (Win98; I ;Nav)".into()),
        };
        assert_eq!(
            line(&record),
            "2001:db8::1 - - [10/Oct/2000:20:55:36 +0000] \"GET /apache_pb.gif HTTP/1.1\" 200 2326 \
             \"http://www.example.com/start.html\" \"Mozilla/4.08 [en] (Win98; I ;Nav)\""
        );
        record.client = Some("192.0.2.1:1".into());
        record.protocol = "h2";
        record.query = Some("a=\"b\"".into());
        record.bytes = 0;
        record.referer = None;
        record.agent = Some("\" 200 1 \"-\" \"x\\\"\r\n\u{1b}[31m\u{e9}".into());
        assert_eq!(
            line(&record),
            "192.0.2.1 - - [10/Oct/2000:20:55:36 +0000] \"GET /apache_pb.gif?a=\\\"b\\\" HTTP/2.0\" 200 - \
             \"-\" \"\\\" 200 1 \\\"-\\\" \\\"x\\\\\\\"\\r\\n\\x1b[31m\\xc3\\xa9\""
        );
    }
}
