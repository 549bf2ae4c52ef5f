//! Every page has its picture in both themes, fits a phone, and has nothing that axe-core calls serious.
//!
//! A new page is a new line in one of the tables.

use serde_json::json;

use crate::common::axe::{Axe, Extent};
use crate::common::browser::{Browser, start};
use crate::common::traffic::{certificates, ramp, split};
use crate::{PHONE, fake};

/// A page as it is pictured and looked over.
struct Page {
    /// What its pictures are called.
    name: &'static str,
    /// Its address. `DONE`, `FAILED` and `RAMP` are the operations of these kinds.
    path: &'static str,
    /// What is pressed on it first, and the element that must then be there.
    press: Option<(&'static str, &'static str)>,
    /// A height in which all of it is seen, for one more picture in each theme; 0 for none.
    whole: u32,
}

const fn page(name: &'static str, path: &'static str) -> Page {
    Page {
        name,
        path,
        press: None,
        whole: 0,
    }
}

const fn whole(name: &'static str, path: &'static str, whole: u32) -> Page {
    Page {
        name,
        path,
        press: None,
        whole,
    }
}

const fn pressed(
    name: &'static str,
    path: &'static str,
    button: &'static str,
    there: &'static str,
) -> Page {
    Page {
        name,
        path,
        press: Some((button, there)),
        whole: 0,
    }
}

/// Those of the host, and of changes.
const HOST: &[Page] = &[
    page("environments", "/"),
    pressed("clone-dialog", "/", "Clone shop", "dialog[open] h2"),
    pressed("menu", "/", "More for shop", "#menu:popover-open"),
    page("operations", "/operations"),
    page("operation", "/operations/DONE"),
    page("operation-failed", "/operations/FAILED"),
    page("clone", "/environments/shop/clone"),
    page(
        "clone-options",
        "/environments/shop/clone?name=trial&rung=auto&max_freeze=&hold_mail=yes&no_start=yes",
    ),
    page("certificates-none", "/certificates"),
    page("rename", "/environments/shop/rename"),
    page("remove", "/environments/shop/remove"),
    page("problem", "/environments/none"),
];

/// Those of one environment.
const ENVIRONMENT: &[Page] = &[
    whole("environment", "/environments/upgrade", 2_300),
    page("environment-parent", "/environments/shop"),
    whole("compare", "/compare?a=shop&b=upgrade", 2_300),
    page("terminal", "/environments/shop/terminal"),
    page("files", "/environments/shop/files?path=/etc/nginx"),
    page("graphs", "/environments/shop/graphs"),
    page("logs", "/environments/shop/logs"),
    page("events", "/environments/upgrade/events"),
    page("events-none", "/environments/upgrade/events?kind=checks"),
    page("files-changed", "/compare/changes?a=shop&b=upgrade"),
    whole("held", "/environments/pr-1284", 1_700),
    page("stopped", "/environments/docs"),
];

/// Those of traffic.
const TRAFFIC: &[Page] = &[
    whole("traffic", "/environments/shop/traffic", 2_400),
    page("traffic-alone", "/environments/upgrade/traffic"),
    page("traffic-shares", "/environments/shop/traffic/split"),
    pressed(
        "traffic-shares-dialog",
        "/environments/shop/traffic",
        "Shares",
        "dialog[open] h2",
    ),
    page("traffic-swap", "/environments/shop/traffic/swap"),
    page("traffic-ramp", "/environments/shop/traffic/ramp"),
    page("traffic-promote", "/environments/upgrade/traffic/promote"),
    page(
        "traffic-domain-add",
        "/environments/shop/traffic/domains/add",
    ),
    page(
        "traffic-domain-remove",
        "/environments/shop/traffic/domains/remove?domain=shop.example.com",
    ),
    page("traffic-ramp-operation", "/operations/RAMP"),
    whole("traffic-rules", "/environments/shop/traffic/rules", 1_200),
    whole("traffic-checks", "/environments/shop/traffic/checks", 1_200),
    page("traffic-copies", "/environments/shop/traffic/copies"),
    whole("traffic-bounds", "/environments/shop/traffic/bounds", 1_200),
    page("traffic-clear", "/environments/shop/traffic/clear"),
    pressed(
        "traffic-rules-dialog",
        "/environments/shop/traffic",
        "Change Rules",
        "dialog[open] h2",
    ),
    page("certificates", "/certificates"),
    whole("certificate-add", "/certificates/add", 1_200),
    page(
        "certificate-remove",
        "/certificates/remove?name=shop.example.com",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_host() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    let mut look = Look::new();
    browser.size(1280, 860).await;
    let link = browser.dashboard.login_link().unwrap();
    browser.person.goto(&link.url);
    look.at(&browser, "sign-in").await;
    browser.sign_in().await;
    look.all(&browser, HOST).await;
    browser.fake.environments.lock().unwrap().clear();
    browser.go("/").await;
    look.at(&browser, "empty").await;
    look.end();
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_an_environment() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.fake.hold("pr-1284");
    browser.sign_in().await;
    let mut look = Look::new();
    look.all(&browser, ENVIRONMENT).await;
    look.end();
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_traffic() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.fake.put_traffic("shop", split());
    *browser.fake.certificates.lock().unwrap() = certificates();
    browser.fake.operations.lock().unwrap().push(ramp());
    browser.sign_in().await;
    let mut look = Look::new();
    look.all(&browser, TRAFFIC).await;
    look.end();
    browser.end().await;
}

/// Somebody who looks at pages and keeps what is wrong with them, so that one run tells all.
struct Look {
    axe: Option<Axe>,
    wrong: Vec<String>,
}

impl Look {
    fn new() -> Self {
        Self {
            axe: Axe::find(),
            wrong: Vec::new(),
        }
    }

    async fn all(&mut self, browser: &Browser, pages: &[Page]) {
        let operations = browser.fake.operations.lock().unwrap().clone();
        let names = ["DONE", "FAILED", "RAMP"];
        for page in pages {
            let path = names
                .iter()
                .zip(&operations)
                .fold(page.path.to_owned(), |path, (name, operation)| {
                    path.replace(name, &operation.id.to_string())
                });
            browser.size(1280, 860).await;
            browser.go(&path).await;
            let quiet = "return !document.querySelector('.htmx-request')";
            browser.wait("all of the page", quiet, vec![]).await;
            if let Some((button, there)) = page.press {
                browser.press(button).await;
                browser.see(there, "").await;
            }
            self.at(browser, page.name).await;
            if page.whole > 0 {
                for theme in ["light", "dark"] {
                    browser.system_colours(theme).await;
                    browser.size(1280, page.whole).await;
                    let name = format!("{}-{theme}-whole", page.name);
                    browser.picture(&name).await;
                    browser.size(PHONE, page.whole * 2).await;
                    browser.picture(&format!("{name}-phone")).await;
                }
            }
        }
    }

    /// The page as it stands, in both themes, as wide as a desk and as a phone.
    async fn at(&mut self, browser: &Browser, name: &str) {
        for (theme, extent) in [("light", Extent::All), ("dark", Extent::Colours)] {
            browser.system_colours(theme).await;
            for (size, width, height) in [("", 1280, 860), ("-phone", PHONE, 844)] {
                browser.size(width, height).await;
                let name = format!("{name}-{theme}{size}");
                browser.picture(&name).await;
                let out = browser.person.sticks_out(width);
                if out != json!([]) {
                    self.wrong
                        .push(format!("{name} is wider than {width}: {out}"));
                }
                if let Some(axe) = &self.axe {
                    let found = axe.look(browser, extent).await;
                    let found = found.into_iter().map(|found| format!("{name}: {found}"));
                    self.wrong.extend(found);
                }
            }
        }
        browser.size(1280, 860).await;
    }

    fn end(self) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}
