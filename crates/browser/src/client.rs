//! As much of WebDriver as is needed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// Name under which an element's id stands (11.1).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Keys that are no characters (17.4.2).
pub const TAB: &str = "\u{e004}";
/// The tab key with shift, which is held until the end of the keys.
pub const SHIFT_TAB: &str = "\u{e008}\u{e004}";
/// The enter key.
pub const ENTER: &str = "\u{e007}";
/// The escape key.
pub const ESCAPE: &str = "\u{e00c}";
/// The arrow that points down.
pub const DOWN: &str = "\u{e015}";
/// Longest that a command may take: the driver's own bounds are shorter, but for starting a browser.
const COMMAND: Duration = Duration::from_secs(60);
/// Most bytes of an answer: a picture of a long page has some megabytes.
const ANSWER_MAX: u64 = 64 << 20;

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    fn new(what: &str, why: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

/// A browser. It ends with this.
#[derive(Debug)]
pub struct Client {
    driver: Child,
    address: SocketAddr,
    /// Path of the session; empty until there is one.
    session: String,
}

/// An element of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element(String);

impl Client {
    /// Starts a browser without a window. `arguments` are for Chromium, besides the usual ones.
    ///
    /// # Errors
    /// When the driver or the browser is not installed or does not come up.
    pub fn start(arguments: &[&str]) -> Result<Self, Error> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| Error::new("chromedriver cannot be started", error))?;
        let output = driver.stdout.take();
        let mut client = Self {
            driver,
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            session: String::new(),
        };
        let lines = output
            .into_iter()
            .flat_map(|output| BufReader::new(output).lines());
        let port = lines.map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("successfully on port ")?;
            port.trim_end_matches('.').parse().ok()
        });
        let port = port.ok_or_else(|| Error::new("chromedriver", "it ended before it listened"))?;
        client.address.set_port(port);
        let mut all = vec![
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            "--lang=en-GB",
            "--force-prefers-reduced-motion",
        ];
        all.extend(arguments);
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": all},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let answer = client
            .post("/session", wanted)
            .map_err(|error| Error::new("chromium cannot be started", error))?;
        let id = answer["sessionId"].as_str();
        let id = id.ok_or_else(|| Error::new("chromium", "no session"))?;
        client.session = format!("/session/{id}");
        Ok(client)
    }

    fn call(&self, method: &str, path: &str, body: &str) -> Result<Value, Error> {
        let failed = |error: std::io::Error| Error::new(path, error);
        let mut stream = TcpStream::connect_timeout(&self.address, COMMAND).map_err(failed)?;
        stream.set_read_timeout(Some(COMMAND)).map_err(failed)?;
        let head = format!(
            "{method} {}{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.session,
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).map_err(failed)?;
        let mut answer = BufReader::new(stream.take(ANSWER_MAX));
        let mut line = String::new();
        let mut good = None;
        let mut length = 0;
        while answer.read_line(&mut line).map_err(failed)? > 0 && line.trim() != "" {
            if good.is_none() {
                good = Some(line.contains(" 200 "));
            } else if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
            line.clear();
        }
        let mut body = Vec::new();
        answer.take(length).read_to_end(&mut body).map_err(failed)?;
        let mut answer: Value =
            serde_json::from_slice(&body).map_err(|error| Error::new(path, error))?;
        let value = answer["value"].take();
        if good == Some(true) {
            return Ok(value);
        }
        let (error, message) = (value["error"].as_str(), value["message"].as_str());
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Err(Error::new(
            path,
            format_args!("{}: {}", text(error), text(message)),
        ))
    }

    /// A command with what it takes; `path` is below that of the session.
    ///
    /// # Errors
    /// What the driver says, or that it says nothing. The same for all that follows.
    pub fn post(&self, path: &str, body: Value) -> Result<Value, Error> {
        self.call("POST", path, &body.to_string())
    }

    fn get(&self, path: &str) -> Result<Value, Error> {
        self.call("GET", path, "")
    }

    /// Opens a page and waits until it is loaded.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn goto(&self, url: &str) -> Result<(), Error> {
        self.post("/url", json!({"url": url})).map(drop)
    }

    /// Loads the page again.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn refresh(&self) -> Result<(), Error> {
        self.post("/refresh", json!({})).map(drop)
    }

    /// The page as it stands, HTML.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn source(&self) -> Result<String, Error> {
        let source = self.get("/source")?;
        Ok(source.as_str().unwrap_or_default().to_owned())
    }

    /// Runs a script in the page; gives what it returns.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn execute(&self, script: &str, args: &[Value]) -> Result<Value, Error> {
        self.post("/execute/sync", json!({"script": script, "args": args}))
    }

    /// The same for a script that gives its answer to its last argument, within 30 seconds.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn execute_async(&self, script: &str, args: &[Value]) -> Result<Value, Error> {
        self.post("/execute/async", json!({"script": script, "args": args}))
    }

    /// The first element that a path finds (XPath 1.0).
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn find(&self, path: &str) -> Result<Element, Error> {
        let body = json!({"using": "xpath", "value": path});
        element(&self.post("/element", body)?)
    }

    /// The element that has the focus.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn active_element(&self) -> Result<Element, Error> {
        element(&self.get("/element/active")?)
    }

    /// Presses an element.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn click(&self, element: &Element) -> Result<(), Error> {
        let path = format!("/element/{}/click", element.0);
        self.post(&path, json!({})).map(drop)
    }

    /// Empties a field.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn clear(&self, element: &Element) -> Result<(), Error> {
        let path = format!("/element/{}/clear", element.0);
        self.post(&path, json!({})).map(drop)
    }

    /// Types into an element.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn send_keys(&self, element: &Element, keys: &str) -> Result<(), Error> {
        let path = format!("/element/{}/value", element.0);
        self.post(&path, json!({"text": keys})).map(drop)
    }

    /// A picture of what is seen, PNG.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn screenshot(&self) -> Result<Vec<u8>, Error> {
        let text = self.get("/screenshot")?;
        Ok(base64(text.as_str().unwrap_or_default()))
    }

    /// The window that commands go to.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn window(&self) -> Result<String, Error> {
        let window = self.get("/window")?;
        Ok(window.as_str().unwrap_or_default().to_owned())
    }

    /// Opens another window, and has commands go there; gives it.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn new_window(&self) -> Result<String, Error> {
        let made = self.post("/window/new", json!({"type": "window"}))?;
        let window = made["handle"].as_str().unwrap_or_default();
        self.go_to_window(window)?;
        Ok(window.to_owned())
    }

    /// Has commands go to another window.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn go_to_window(&self, window: &str) -> Result<(), Error> {
        self.post("/window", json!({"handle": window})).map(drop)
    }

    /// A command of Chromium's own protocol (<https://chromedevtools.github.io/devtools-protocol/>).
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn chromium(&self, command: &str, with: Value) -> Result<Value, Error> {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": with}))
    }

    /// What the browser complained of since the last time: scripts that failed, what a policy stopped.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn complaints(&self) -> Result<Vec<Value>, Error> {
        let log = self.post("/se/log", json!({"type": "browser"}))?;
        let log = log.as_array().cloned().unwrap_or_default();
        Ok(log
            .into_iter()
            .filter(|entry| entry["level"] == "SEVERE")
            .collect())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The driver alone would leave its browser behind.
        if !self.session.is_empty() {
            let _ = self.call("DELETE", "", "");
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn element(value: &Value) -> Result<Element, Error> {
    let id = value[ELEMENT].as_str();
    let id = id.ok_or_else(|| Error::new("the driver's answer", "no element"))?;
    Ok(Element(id.to_owned()))
}

/// RFC 4648, 4; what is no digit is skipped.
fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::with_capacity(text.len()));
    for value in text.bytes().filter_map(digit) {
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap_or_default());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn pictures_are_read() {
        // RFC 4648, 10
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(base64(text), bytes.as_bytes());
        }
    }
}
