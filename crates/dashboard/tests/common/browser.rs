//! A browser, and a dashboard that it can reach. The methods are those of [`Person`].

use std::path::Path;
use std::sync::Arc;

use offshoot_browser::Person;
use offshoot_dashboard::{Dashboard, Settings, Transport};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Fake;

pub struct Browser {
    pub person: Person,
    pub origin: String,
    pub dashboard: Dashboard,
    pub fake: Arc<Fake>,
}

/// Starts a browser and a dashboard over `fake`. `None`, and a line that says why, where there is no browser.
pub async fn start(fake: Fake) -> Option<Browser> {
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    let person = Person::start(&pictures, &[])?;
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
    // It answers on the runtime's other threads: a person waits in the test's own.
    tokio::spawn(async move { axum::serve(listener, router).await });
    Some(Browser {
        person,
        origin,
        dashboard,
        fake,
    })
}

impl Browser {
    pub async fn sign_in(&self) {
        let link = self.dashboard.login_link().unwrap();
        self.person.goto(&link.url);
        self.press("Sign in").await;
        self.see("h1", "Environments").await;
    }

    pub async fn go(&self, path: &str) {
        self.person.goto(&format!("{}{path}", self.origin));
    }

    pub async fn press(&self, text: &str) {
        self.person.press(text);
    }

    pub async fn press_in(&self, above: &str, text: &str) {
        self.person.press_in(above, text);
    }

    pub async fn enter(&self, id: &str, text: &str) {
        self.person.enter(id, text);
    }

    pub async fn clear(&self, id: &str) {
        self.person.clear(id);
    }

    pub async fn key(&self, key: &str) {
        self.person.key(key);
    }

    pub async fn see(&self, element: &str, text: &str) {
        self.person.see(element, text);
    }

    pub async fn wait(&self, what: &str, script: &str, args: Vec<Value>) {
        self.person.wait(what, script, &args);
    }

    pub async fn script(&self, script: &str) -> Value {
        self.person.script(script)
    }

    pub async fn picture(&self, name: &str) {
        self.person.picture(name);
    }

    pub async fn no_complaints(&self) {
        self.person.no_complaints();
    }

    pub async fn size(&self, width: u32, height: u32) {
        self.person.size(width, height);
    }

    pub async fn system_colours(&self, scheme: &str) {
        self.person.system_colours(scheme);
    }

    pub async fn without_scripts(&self) {
        self.person.without_scripts();
    }

    /// Ends the browser.
    pub async fn end(self) {
        drop(self);
    }
}
