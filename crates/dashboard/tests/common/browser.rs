//! Chromium by WebDriver, and a dashboard that it can reach.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use offshoot_dashboard::{Dashboard, Settings, Transport};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Fake;
use super::webdriver::Client;

/// Bound on everything that a page is waited for.
const SOON: Duration = Duration::from_secs(20);
/// Between two looks at a page.
const PAUSE: Duration = Duration::from_millis(20);

pub struct Browser {
    pub client: Client,
    pub origin: String,
    pub dashboard: Dashboard,
    pub fake: Arc<Fake>,
    _driver: Driver,
}

struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a browser and a dashboard over `fake`. `None`, and a line that says why, where there is no browser.
pub async fn start(fake: Fake) -> Option<Browser> {
    let mut command = Command::new("chromedriver");
    command
        .arg("--port=0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            println!("SKIPPED: chromedriver cannot be started: {error}");
            return None;
        }
    };
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let driver = Driver(child);
    let port = lines.map_while(Result::ok).find_map(|line| {
        let (_, port) = line.split_once("successfully on port ")?;
        Some(port.trim_end_matches('.').to_owned())
    });
    let port = port.expect("chromedriver says its port");
    let options = json!({
        "goog:chromeOptions": {"args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--no-first-run", "--lang=en-GB", "--force-prefers-reduced-motion",
        ]},
        "goog:loggingPrefs": {"browser": "ALL"},
    });
    let client = match Client::connect(&format!("http://127.0.0.1:{port}"), options).await {
        Ok(client) => client,
        Err(error) => {
            println!("SKIPPED: chromium cannot be started: {error}");
            return None;
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let dashboard = Dashboard::new(Settings {
        instance: "os".to_owned(),
        origin: origin.clone(),
        host: "127.0.0.1".to_owned(),
        transport: Transport::Plain,
    });
    let fake = Arc::new(fake);
    let platform = Arc::clone(&fake);
    let router = dashboard.router(platform, CancellationToken::new());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Some(Browser {
        client,
        origin,
        dashboard,
        fake,
        _driver: driver,
    })
}

impl Browser {
    pub async fn sign_in(&self) {
        let link = self.dashboard.login_link().unwrap();
        self.client.goto(&link.url).await.unwrap();
        self.press("Sign in").await;
        self.see("h1", "Environments").await;
    }

    pub async fn go(&self, path: &str) {
        self.client
            .goto(&format!("{}{path}", self.origin))
            .await
            .unwrap();
    }

    /// Presses the button or link that says this.
    pub async fn press(&self, text: &str) {
        self.press_in("", text).await;
    }

    /// The same below the element that a path leads to.
    pub async fn press_in(&self, above: &str, text: &str) {
        let path = format!(
            "{above}//*[self::button or self::a or self::summary][normalize-space()='{text}' or @aria-label='{text}']"
        );
        let until = Instant::now() + SOON;
        let found = loop {
            match self.client.find("xpath", &path).await {
                Ok(found) => break found,
                Err(error) => assert!(Instant::now() < until, "no {text:?}: {error}"),
            }
            sleep(PAUSE).await;
        };
        self.client.click(&found).await.unwrap();
    }

    /// Types into the element of an id, after what stands there.
    pub async fn enter(&self, id: &str, text: &str) {
        let field = self.client.find("css selector", &format!("#{id}")).await;
        self.client.send_keys(&field.unwrap(), text).await.unwrap();
    }

    /// Empties the field of an id.
    pub async fn clear(&self, id: &str) {
        let field = self.client.find("css selector", &format!("#{id}")).await;
        self.client.clear(&field.unwrap()).await.unwrap();
    }

    /// Presses a key where the focus is.
    pub async fn key(&self, key: &str) {
        let active = self.client.active_element().await.unwrap();
        self.client.send_keys(&active, key).await.unwrap();
    }

    /// Waits until an element has a text in it.
    pub async fn see(&self, element: &str, text: &str) {
        let script = "return [...document.querySelectorAll(arguments[0])].some(e => e.innerText.includes(arguments[1]))";
        let what = format!("{element} with {text:?}");
        self.wait(&what, script, vec![json!(element), json!(text)])
            .await;
    }

    /// Waits until a script gives `true`.
    pub async fn wait(&self, what: &str, script: &str, args: Vec<Value>) {
        let until = Instant::now() + SOON;
        while self.client.execute(script, args.clone()).await.unwrap() != Value::Bool(true) {
            if Instant::now() >= until {
                let page = self.client.source().await.unwrap();
                panic!("waited in vain for {what}; the page is {page}");
            }
            sleep(PAUSE).await;
        }
    }

    pub async fn script(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.unwrap()
    }

    /// What stands out at the right side of a page so wide, but for what can be moved there.
    pub async fn sticks_out(&self, width: u32) -> Value {
        let script = "const most = arguments[0] + 1; \
            if (document.documentElement.scrollWidth <= most) return []; \
            return [document.documentElement.scrollWidth, ...document.querySelectorAll('body *')] \
                .filter(e => !e.tagName || e.getBoundingClientRect().right > most && !e.closest('.scroll')) \
                .map(e => e.tagName ? `${e.tagName}.${e.className} ${e.getBoundingClientRect().right}` : e)";
        self.client
            .execute(script, vec![json!(width)])
            .await
            .unwrap()
    }

    /// A picture of the page into `target/tmp/screenshots`.
    pub async fn picture(&self, name: &str) {
        let picture = self.client.screenshot().await.unwrap();
        let folder = folder();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), picture).unwrap();
    }

    /// Nothing that the browser complains of: scripts that failed, what the policy stopped.
    pub async fn no_complaints(&self) {
        let log = self.log().await;
        let serious: Vec<_> = log
            .iter()
            .filter(|entry| entry["level"] == "SEVERE")
            .collect();
        assert!(serious.is_empty(), "{serious:?}");
    }

    async fn log(&self) -> Vec<Value> {
        let answer = self
            .client
            .post("/se/log", json!({"type": "browser"}))
            .await;
        let answer = answer.unwrap();
        answer.as_array().cloned().unwrap_or_default()
    }

    /// A command of Chromium's own protocol.
    async fn chromium(&self, command: &str, with: Value) {
        let body = json!({"cmd": command, "params": with});
        let answer = self.client.post("/goog/cdp/execute", body).await;
        answer.unwrap();
    }

    /// Makes the page so large, in CSS pixels: windows have a smallest width, telephones do not.
    pub async fn size(&self, width: u32, height: u32) {
        let phone = width < 600;
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.chromium("Emulation.setDeviceMetricsOverride", size)
            .await;
    }

    /// What the person's system asks for: `light` or `dark`.
    pub async fn system_colours(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let media = json!({"features": features});
        self.chromium("Emulation.setEmulatedMedia", media).await;
    }

    /// From now on no page runs a script.
    pub async fn without_scripts(&self) {
        let off = json!({"value": true});
        self.chromium("Emulation.setScriptExecutionDisabled", off)
            .await;
    }

    pub async fn end(self) {
        self.client.close().await.unwrap();
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots")
}
