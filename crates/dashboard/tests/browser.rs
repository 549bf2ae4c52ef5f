//! The dashboard in a real browser: `cargo nextest run --profile browser`.
//!
//! Pictures of every page in both themes are left in `target/tmp/screenshots`.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
#[path = "in_browser/pages.rs"]
mod pages;
#[path = "in_browser/traffic.rs"]
mod traffic;

use std::time::Duration;

use common::browser::start;
use common::fake::line;
use common::{Fake, sample};
use offshoot_browser::{ENTER, ESCAPE, TAB};
use offshoot_model::view::LogStream;
use serde_json::json;

/// Width of a phone in CSS pixels.
const PHONE: u32 = 390;

fn fake() -> Fake {
    let operations = vec![sample::cloned("shop", "upgrade"), sample::failed()];
    let mut environments = sample::environments();
    for env in &mut environments {
        if let Some(lineage) = env.parent.as_mut().filter(|_| env.name == "upgrade") {
            lineage.operation = operations[0].id;
        }
    }
    let mut fake = Fake::new(environments, operations);
    fake.pace = Some(Duration::from_millis(120));
    fake.lines.lock().unwrap().extend((0..60).map(|n| {
        let stream = if n % 9 == 0 {
            LogStream::Stderr
        } else {
            LogStream::Stdout
        };
        let node = if n % 2 == 0 { "app-1" } else { "nginx-1" };
        line(
            node,
            &format!("GET /products/{n} 200 {} ms", n * 7 % 90),
            stream,
        )
    }));
    *fake.manifest.lock().unwrap() = sample::manifest();
    fake
}

#[tokio::test(flavor = "multi_thread")]
async fn clone_by_the_dialog() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.size(1280, 860).await;
    browser.sign_in().await;
    browser.see("#live", "live").await;
    browser.press("Clone shop").await;
    browser.see("dialog[open] h2", "Clone shop").await;
    let focus = browser.script("return document.activeElement.id").await;
    assert_eq!(focus, "clone-name", "typing goes into the name");
    browser.clear("clone-name").await;
    browser.enter("clone-name", "upgrade").await;
    browser.see("#name-check", "already").await;
    browser.clear("clone-name").await;
    browser.enter("clone-name", "trial").await;
    browser.see("#name-check", "free").await;
    browser.press_in("//dialog[@open]", "Clone").await;
    browser
        .see("dialog #operation h2", "Clone shop as trial")
        .await;
    let path = "return location.pathname.startsWith('/operations/')";
    browser
        .wait("the address of the operation", path, vec![])
        .await;
    // A reload, and another window, are the operation's page.
    browser.person.client.refresh().unwrap();
    browser
        .see("main #operation h2", "Clone shop as trial")
        .await;
    browser.see("#operation", "148 ms").await;
    browser.see("#operation", "Open trial.localhost:8080").await;
    browser.go("/").await;
    browser.see("tr.d1 th", "trial").await;
    browser.no_complaints().await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_changes_by_itself() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.sign_in().await;
    browser.see("#live", "live").await;
    let shop = sample::environment("appeared", Some("shop"));
    browser.fake.environments.lock().unwrap().push(shop);
    let news = sample::cloned("shop", "appeared");
    browser.fake.news.send(news).unwrap();
    browser.see("tr.d1 th", "appeared").await;
    // A filter is not lost by it, and neither is what is being typed.
    browser.enter("q", "app").await;
    let one = "return document.querySelectorAll('table.list tbody tr').length === 5";
    browser.wait("all that have an app", one, vec![]).await;
    browser.enter("q", "eared").await;
    let one = "return document.querySelectorAll('table.list tbody tr').length === 1";
    browser.wait("one row", one, vec![]).await;
    browser.fake.news.send(sample::failed()).unwrap();
    let state = "return location.search === '?q=appeared' && document.activeElement.id === 'q'";
    browser
        .wait("the filter in the address", state, vec![])
        .await;
    browser.press("Stop appeared").await;
    browser.see("#notices", "Stopping appeared.").await;
    browser.see("tr td", "stopped").await;
    browser.no_complaints().await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_keyboard_alone() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.sign_in().await;
    let mut found = false;
    for _ in 0..60 {
        browser.key(TAB).await;
        let label = "return document.activeElement.getAttribute('aria-label')";
        if browser.script(label).await == json!("Clone shop") {
            found = true;
            break;
        }
    }
    assert!(found, "the tab key comes to the button");
    browser.key(ENTER).await;
    browser.see("dialog[open] h2", "Clone shop").await;
    browser.key(ESCAPE).await;
    let closed = "return !document.querySelector('dialog').open && document.activeElement.getAttribute('aria-label') === 'Clone shop'";
    browser
        .wait("the focus back where it was", closed, vec![])
        .await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_button_that_goes_away_leaves_the_focus_at_its_heading() {
    let mut slow = fake();
    slow.pace = Some(Duration::from_millis(500));
    let Some(browser) = start(slow).await else {
        return;
    };
    browser.sign_in().await;
    browser.press("Clone shop").await;
    browser.see("dialog[open] h2", "Clone shop").await;
    browser.press_in("//dialog[@open]", "Clone").await;
    let cancel = "const button = document.querySelector('#operation form button'); \
        if (button) button.focus(); \
        return button !== null && document.activeElement === button";
    browser.wait("the focus at Cancel", cancel, vec![]).await;
    browser.see("#operation .mark", "done").await;
    let heading = "return document.activeElement === document.querySelector('#operation h2')";
    browser
        .wait("the focus at the heading", heading, vec![])
        .await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_in_a_node() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.sign_in().await;
    browser.go("/environments/shop").await;
    browser.press_in("//h1/..", "Terminal").await;
    browser.see("#terminal-state", "Connected to nginx-1").await;
    browser.see(".xterm-rows", "root@shop:/#").await;
    // Colours by class and by value: nothing that the policy of pages forbids.
    let colours = "const spans = [...document.querySelectorAll('.xterm-rows span')]; \
        const of = (text) => getComputedStyle(spans.find(e => e.textContent.includes(text))).color; \
        return of('/') === 'rgb(120, 160, 255)' && of('root') !== of('#')";
    browser.wait("colours", colours, vec![]).await;
    browser.key("echo hello").await;
    browser.see(".xterm-rows", "echo hello").await;
    browser.size(PHONE, 844).await;
    browser.see(".xterm-rows", "Resize(TerminalSize").await;
    browser.key("x").await;
    browser
        .see("#terminal-state", "The shell ended with status 7")
        .await;
    browser.press("Connect again").await;
    browser.see("#terminal-state", "Connected to nginx-1").await;
    browser.no_complaints().await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_clone_to_what_it_has_become() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.sign_in().await;
    browser.go("/environments/upgrade").await;
    let drawn = "return [...document.querySelectorAll('.topology text')].some(e => e.textContent === 'mariadb-1')";
    browser.wait("the picture", drawn, vec![]).await;
    browser.press("Compare upgrade with its parent").await;
    browser.see("h1", "Compare").await;
    browser.see(".compare .differs", "failed").await;
    browser.see("#changes", "srv/app/settings.py").await;
    browser
        .press_in("//nav[@aria-label='What is shown']", "What differs 4")
        .await;
    browser.see("nav [aria-current]", "What differs").await;
    browser.go("/environments/upgrade").await;
    browser.press_in("//h1/..", "Files").await;
    browser.press("conf.d/").await;
    browser.see(".trail b", "conf.d").await;
    browser.go("/environments/upgrade").await;
    browser.press("Graphs").await;
    browser.see("figcaption", "18.0 MiB").await;
    browser.no_complaints().await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_wait_for_the_first_paint_come_without_scripts() {
    let environments = (10..70).map(|n| sample::environment(&format!("shop-{n}"), None));
    let Some(browser) = start(Fake::new(environments.collect(), Vec::new())).await else {
        return;
    };
    browser.without_scripts().await;
    browser.sign_in().await;
    let come = "return getComputedStyle(document.getElementById('e-shop-69')).contentVisibility === 'auto'";
    browser.wait("the rows below", come, vec![]).await;
    browser
        .script("document.getElementById('e-shop-69').scrollIntoView()")
        .await;
    let seen = "return document.querySelector('#e-shop-69 th a').checkVisibility({contentVisibilityAuto: true})";
    browser.wait("the last row", seen, vec![]).await;
    browser.no_complaints().await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_scripts_everything_is_a_page() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.without_scripts().await;
    browser.sign_in().await;
    browser.press("Clone shop").await;
    browser.see("main h2", "Clone shop").await;
    browser.press_in("//main", "Clone").await;
    browser
        .see("main #operation h2", "Clone shop as shop-clone")
        .await;
    browser.go("/").await;
    browser.press("Stop shop").await;
    browser.see("main #operation h2", "Stop shop").await;
    browser.end().await;
}
