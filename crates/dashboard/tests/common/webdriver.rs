//! As much of WebDriver (W3C, <https://www.w3.org/TR/webdriver2/>) as tests need. There are clients in Rust; what they
//! are built on is under the MPL.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// Name under which an element's id stands (11.1).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Keys that are no characters (17.4.2).
pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";
pub const ESCAPE: &str = "\u{e00c}";

/// A browser, through its driver.
pub struct Client {
    http: Http<HttpConnector, Full<Bytes>>,
    session: String,
}

/// An element of the page.
pub struct Element(String);

impl Client {
    /// Has the driver at `origin` start a browser.
    pub async fn connect(origin: &str, capabilities: Value) -> Result<Self, String> {
        let mut client = Self {
            http: Http::builder(TokioExecutor::new()).build_http(),
            session: origin.to_owned(),
        };
        let wanted = json!({"capabilities": {"alwaysMatch": capabilities}});
        let answer = client.call(Method::POST, "/session", &wanted).await?;
        let id = answer["sessionId"].as_str().ok_or("no session")?;
        client.session = format!("{origin}/session/{id}");
        Ok(client)
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value, String> {
        let text = if method == Method::POST {
            body.to_string()
        } else {
            String::new()
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.session))
            .header("content-type", "application/json")
            .body(Full::from(text))
            .map_err(|error| error.to_string())?;
        let answer = self.http.request(request).await;
        let answer = answer.map_err(|error| format!("{path}: {error}"))?;
        let good = answer.status().is_success();
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let mut answer: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let value = answer["value"].take();
        if good {
            Ok(value)
        } else {
            Err(format!("{path}: {}: {}", value["error"], value["message"]))
        }
    }

    /// A command with what it takes.
    pub async fn post(&self, path: &str, body: Value) -> Result<Value, String> {
        self.call(Method::POST, path, &body).await
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        self.call(Method::GET, path, &Value::Null).await
    }

    pub async fn goto(&self, url: &str) -> Result<(), String> {
        self.post("/url", json!({"url": url})).await.map(drop)
    }

    pub async fn refresh(&self) -> Result<(), String> {
        self.post("/refresh", json!({})).await.map(drop)
    }

    pub async fn source(&self) -> Result<String, String> {
        let source = self.get("/source").await?;
        Ok(source.as_str().unwrap_or_default().to_owned())
    }

    pub async fn execute(&self, script: &str, args: Vec<Value>) -> Result<Value, String> {
        let body = json!({"script": script, "args": args});
        self.post("/execute/sync", body).await
    }

    /// As [`Self::execute`], for a script that gives its answer to its last argument.
    pub async fn execute_async(&self, script: &str, args: Vec<Value>) -> Result<Value, String> {
        let body = json!({"script": script, "args": args});
        self.post("/execute/async", body).await
    }

    /// The first element that a selector of the kind (`css selector`, `xpath`) finds.
    pub async fn find(&self, kind: &str, selector: &str) -> Result<Element, String> {
        let body = json!({"using": kind, "value": selector});
        element(&self.post("/element", body).await?)
    }

    pub async fn active_element(&self) -> Result<Element, String> {
        element(&self.get("/element/active").await?)
    }

    pub async fn click(&self, element: &Element) -> Result<(), String> {
        let path = format!("/element/{}/click", element.0);
        self.post(&path, json!({})).await.map(drop)
    }

    pub async fn clear(&self, element: &Element) -> Result<(), String> {
        let path = format!("/element/{}/clear", element.0);
        self.post(&path, json!({})).await.map(drop)
    }

    pub async fn send_keys(&self, element: &Element, keys: &str) -> Result<(), String> {
        let path = format!("/element/{}/value", element.0);
        self.post(&path, json!({"text": keys})).await.map(drop)
    }

    /// A picture of what is seen, PNG.
    pub async fn screenshot(&self) -> Result<Vec<u8>, String> {
        let text = self.get("/screenshot").await?;
        Ok(base64(text.as_str().unwrap_or_default()))
    }

    /// Ends the browser.
    pub async fn close(self) -> Result<(), String> {
        self.call(Method::DELETE, "", &Value::Null).await.map(drop)
    }
}

fn element(value: &Value) -> Result<Element, String> {
    let id = value[ELEMENT].as_str().ok_or("no element")?;
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
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
