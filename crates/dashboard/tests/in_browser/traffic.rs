//! Traffic: shares by slider, figures that change by themselves, a swap that is seen before.

use offshoot_model::operation::OperationKind;
use serde_json::json;

use crate::common::browser::{Browser, start};
use crate::common::sample;
use crate::common::traffic::{certificates, split};
use crate::fake;

/// With a policy of the shop's that has everything.
async fn busy() -> Option<Browser> {
    let browser = start(fake()).await?;
    browser.fake.put_traffic("shop", split());
    *browser.fake.certificates.lock().unwrap() = certificates();
    Some(browser)
}

/// Puts a value into a field as a person does who moves or types, once the page knows the field.
async fn put(browser: &Browser, field: &str, value: &str) {
    let script = "if (document.querySelector('.htmx-swapping, .htmx-settling, .htmx-added')) return false; \
        const field = document.querySelector(arguments[0]); field.value = arguments[1]; \
        for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true})); \
        return true";
    browser
        .wait(field, script, vec![json!(field), json!(value)])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_by_slider() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.size(1280, 860).await;
    browser.sign_in().await;
    browser.go("/environments/shop").await;
    browser.press("Traffic").await;
    browser.see("h1", "Traffic of shop").await;
    browser.press("Shares").await;
    browser.see("dialog[open] h2", "Shares of shop").await;
    put(&browser, "dialog [name=add]", "upgrade").await;
    put(&browser, "dialog li:last-child [type=range]", "25.3").await;
    let number = "return document.querySelector('dialog [name=add_weight]').value === '25'";
    browser
        .wait("the number of the slider", number, vec![])
        .await;
    put(&browser, "dialog [name=weight]", "75").await;
    let slider = "return document.querySelector('dialog [type=range]').value === '75'";
    browser
        .wait("the slider of the number", slider, vec![])
        .await;
    browser.see("dialog li:last-child output", "25 %").await;
    browser.press_in("//dialog[@open]", "Set shares").await;
    browser
        .see("dialog #operation h2", "Change traffic of shop")
        .await;
    let calls = browser.fake.calls().concat();
    assert!(
        calls.contains(r#"{"environment":"upgrade","weight":25}"#),
        "{calls}"
    );
    // What is set is there, and can leave by keyboard alone.
    browser.go("/environments/shop/traffic/split").await;
    let focus = "document.querySelector('[name=leaves][value=upgrade]').focus()";
    browser.script(focus).await;
    browser.key(" ").await;
    browser.see("output", "100 %").await;
    browser.no_complaints().await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_change_by_themselves_and_a_side_is_brought_back() {
    let Some(browser) = busy().await else {
        return;
    };
    browser.sign_in().await;
    browser.go("/environments/shop/traffic").await;
    browser.see("#live", "live").await;
    browser.see(".verdict", "upgrade is better: 99.9 %").await;
    browser.see(".verdict", "not sure yet").await;
    let mut view = split();
    view.sides[0].requests = 90_001;
    browser.fake.put_traffic("shop", view);
    let news = sample::operation(OperationKind::TrafficSet, "shop");
    browser.fake.news.send(news).unwrap();
    browser.see("td", "90\u{202f}001").await;
    browser.press("Bring back").await;
    let back = "return !document.body.innerText.includes('Bring back') && !document.body.innerText.includes('not brought back')";
    browser.wait("the side brought back", back, vec![]).await;
    assert_eq!(browser.fake.calls(), ["traffic back shop"]);
    browser.no_complaints().await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_with_its_preview_and_back() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.size(1280, 860).await;
    browser.sign_in().await;
    browser.go("/environments/shop/traffic").await;
    browser.press("Swap").await;
    browser.see("dialog[open] .moves b", "upgrade").await;
    put(&browser, "#swap-with", "pr-1284").await;
    browser.see("dialog[open] .moves b", "pr-1284").await;
    browser
        .press_in("//dialog[@open]//form[@method='post']", "Swap")
        .await;
    browser
        .see("dialog #operation h2", "Swap domains of shop")
        .await;
    browser.go("/environments/shop/traffic").await;
    browser.press("Swap back").await;
    browser.see("dialog[open] .moves b", "shop").await;
    browser
        .press_in("//dialog[@open]//form[@method='post']", "Swap back")
        .await;
    browser
        .see("dialog #operation h2", "Swap domains of shop")
        .await;
    let calls = browser.fake.calls();
    assert!(
        calls[0].starts_with("swap shop pr-1284 back false"),
        "{calls:?}"
    );
    assert!(
        calls[1].starts_with("swap shop pr-1284 back true"),
        "{calls:?}"
    );
    browser.no_complaints().await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_without_scripts() {
    let Some(browser) = start(fake()).await else {
        return;
    };
    browser.without_scripts().await;
    browser.sign_in().await;
    browser.go("/environments/shop/traffic").await;
    browser.press("Shares").await;
    browser.enter("add-side", "upgrade").await;
    browser.clear("add-weight").await;
    browser.enter("add-weight", "300").await;
    browser.press_in("//main", "Set shares").await;
    browser
        .see("main #operation h2", "Change traffic of shop")
        .await;
    browser.go("/environments/shop/traffic").await;
    browser.press("Swap").await;
    browser.enter("swap-with", "pr-1284").await;
    browser.press_in("//main", "Show").await;
    browser.see(".moves b", "pr-1284").await;
    browser
        .press_in("//main//form[@method='post']", "Swap")
        .await;
    browser
        .see("main #operation h2", "Swap domains of shop")
        .await;
    let calls = browser.fake.calls().join("\n");
    assert!(
        calls.contains(r#""environment":"upgrade","weight":300"#),
        "{calls}"
    );
    assert!(calls.contains("swap shop pr-1284 back false"), "{calls}");
    browser.end().await;
}
