//! Somebody before a browser: looks, presses, types, waits. Whatever does not come ends the test.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, Element, Error};

/// Bound on everything that a page is waited for, unless said otherwise.
const SOON: Duration = Duration::from_secs(30);
/// Between two looks at a page, at first and at most: a look costs the processors something.
const PAUSE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(250)];

/// A browser, and a folder for pictures. All methods panic when what they name does not come within half a minute.
#[derive(Debug)]
pub struct Person {
    /// For what a person cannot do.
    pub client: Client,
    pictures: PathBuf,
    patience: Duration,
}

impl Person {
    /// Starts a browser. Pictures go into `folder`. `None`, and a line that says why, where there is no browser.
    #[must_use]
    pub fn start(folder: &Path, arguments: &[&str]) -> Option<Self> {
        match Client::start(arguments) {
            Ok(client) => Some(Self {
                client,
                pictures: folder.to_owned(),
                patience: SOON,
            }),
            Err(error) => {
                println!(
                    "SKIPPED: {error} (`packaging/setup.sh browser` installs what is missing)"
                );
                None
            }
        }
    }

    /// From now on waits so long.
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Opens a page.
    ///
    /// # Panics
    /// When it does not load.
    #[track_caller]
    pub fn goto(&self, url: &str) {
        done(self.client.goto(url));
        self.settle();
    }

    /// Until the page's scripts are there, where it says that they still come (`data-coming`), and know what was just put
    /// into it (htmx makes forms its own only when they have settled): nobody presses within that moment.
    #[track_caller]
    fn settle(&self) {
        let there = "return document.documentElement.dataset.coming === undefined && \
            !document.querySelector('.htmx-swapping, .htmx-settling, .htmx-added')";
        self.wait("the scripts of the page", there, &[]);
    }

    /// Presses the button or link that says this, by its text or its label.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn press(&self, text: &str) {
        self.press_in("", text);
    }

    /// The same below the element that a path (`XPath`) leads to.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn press_in(&self, above: &str, text: &str) {
        let path = format!(
            "{above}//*[self::button or self::a or self::summary][normalize-space()='{text}' or @aria-label='{text}']"
        );
        self.settle();
        let begun = Instant::now();
        // Between the look and the press a page that changes by itself may have put another in its place.
        loop {
            let pressed = self
                .client
                .find(&path)
                .and_then(|found| self.client.click(&found));
            let Err(error) = pressed else { return };
            assert!(begun.elapsed() < self.patience, "no {text:?}: {error}");
            pause(begun);
        }
    }

    /// Types into the element of an id, after what stands there.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn enter(&self, id: &str, text: &str) {
        self.settle();
        done(self.client.send_keys(&self.by_id(id), text));
    }

    /// Empties the field of an id.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn clear(&self, id: &str) {
        done(self.client.clear(&self.by_id(id)));
    }

    #[track_caller]
    fn by_id(&self, id: &str) -> Element {
        done(self.client.find(&format!("//*[@id='{id}']")))
    }

    /// Presses keys where the focus is.
    ///
    /// # Panics
    /// When the page takes none.
    #[track_caller]
    pub fn key(&self, keys: &str) {
        self.settle();
        let active = done(self.client.active_element());
        done(self.client.send_keys(&active, keys));
    }

    /// Waits until one of the elements (a CSS selector) has a text in it.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn see(&self, element: &str, text: &str) {
        let script = "return [...document.querySelectorAll(arguments[0])].some(e => \
            (e.innerText ?? e.textContent).includes(arguments[1]))";
        let what = format!("{element} with {text:?}");
        self.wait(&what, script, &[json!(element), json!(text)]);
    }

    /// Waits until a script gives `true`.
    ///
    /// # Panics
    /// When it does not, with the page.
    #[track_caller]
    pub fn wait(&self, what: &str, script: &str, args: &[Value]) {
        let begun = Instant::now();
        loop {
            // A page that is left meanwhile takes its scripts along.
            let said = self.client.execute(script, args);
            if said == Ok(Value::Bool(true)) {
                return;
            }
            if begun.elapsed() >= self.patience {
                let page = self.client.source().unwrap_or_default();
                panic!("waited in vain for {what} ({said:?}); the page is {page}");
            }
            pause(begun);
        }
    }

    /// What a script returns.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn script(&self, script: &str) -> Value {
        done(self.client.execute(script, &[]))
    }

    /// What stands out at the right side of a page so wide (CSS pixels), but for what can be moved there.
    ///
    /// # Panics
    /// When the page cannot be looked at.
    #[track_caller]
    pub fn sticks_out(&self, width: u32) -> Value {
        let script = "const most = arguments[0] + 1; \
            if (document.documentElement.scrollWidth <= most) return []; \
            return [document.documentElement.scrollWidth, ...document.querySelectorAll('body *')] \
                .filter(e => !e.tagName || e.getBoundingClientRect().right > most && !e.closest('.scroll')) \
                .map(e => e.tagName ? `${e.tagName}.${e.className} ${e.getBoundingClientRect().right}` : e)";
        done(self.client.execute(script, &[json!(width)]))
    }

    /// A picture of what is seen into the folder.
    ///
    /// # Panics
    /// When it cannot be taken or kept.
    #[track_caller]
    pub fn picture(&self, name: &str) {
        let picture = done(self.client.screenshot());
        let file = self.pictures.join(format!("{name}.png"));
        let kept =
            std::fs::create_dir_all(&self.pictures).and_then(|()| std::fs::write(&file, picture));
        if let Err(error) = kept {
            panic!("{}: {error}", file.display());
        }
    }

    /// Nothing that the browser complains of: scripts that failed, what the policy stopped.
    ///
    /// # Panics
    /// When there is something.
    #[track_caller]
    pub fn no_complaints(&self) {
        let complaints = done(self.client.complaints());
        assert!(complaints.is_empty(), "{complaints:?}");
    }

    /// Makes the page so large, in CSS pixels: windows have a smallest width, telephones do not.
    ///
    /// # Panics
    /// When the browser does not take it.
    #[track_caller]
    pub fn size(&self, width: u32, height: u32) {
        let phone = width < 600;
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        done(
            self.client
                .chromium("Emulation.setDeviceMetricsOverride", size),
        );
    }

    /// What the person's system asks for: `light` or `dark`.
    ///
    /// # Panics
    /// When the browser does not take it.
    #[track_caller]
    pub fn system_colours(&self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let media = json!({"features": features});
        done(self.client.chromium("Emulation.setEmulatedMedia", media));
    }

    /// From now on no page runs a script.
    ///
    /// # Panics
    /// When the browser does not take it.
    #[track_caller]
    pub fn without_scripts(&self) {
        let off = json!({"value": true});
        done(
            self.client
                .chromium("Emulation.setScriptExecutionDisabled", off),
        );
    }
}

/// The longer something was waited for, the less often it is looked for.
fn pause(begun: Instant) {
    let [least, most] = PAUSE;
    sleep((begun.elapsed() / 20).clamp(least, most));
}

#[track_caller]
fn done<T>(what: Result<T, Error>) -> T {
    match what {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
