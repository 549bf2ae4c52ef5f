//! axe-core (<https://github.com/dequelabs/axe-core>): what of a page people cannot read, reach or tell apart.
//! `packaging/setup.sh browser` fetches it.

use std::path::Path;

use serde_json::{Value, json};

use super::browser::Browser;

/// Where `packaging/setup.sh` puts it.
const FILE: &str = "/var/cache/offshoot/axe-core-4.14.1.js";
/// WCAG 2.2 A and AA, and what axe-core's authors advise besides.
const RULES: [&str; 6] = [
    "wcag2a",
    "wcag2aa",
    "wcag21a",
    "wcag21aa",
    "wcag22aa",
    "best-practice",
];
/// What another theme can change.
const COLOURS: [&str; 2] = ["color-contrast", "link-in-text-block"];
/// Runs it on the page and tells what it finds: how grave, which rule, where.
const RUN: &str = "const [only, done] = arguments; \
    axe.run(document, {runOnly: only, resultTypes: ['violations']}).then( \
        found => done(found.violations.flatMap(broken => broken.nodes.map(node => \
            ({impact: broken.impact, rule: broken.id, where: node.html.slice(0, 200), why: node.failureSummary})))), \
        error => done([{impact: 'critical', rule: 'axe', where: '', why: String(error)}]))";

pub struct Axe(String);

/// How much of a page is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    All,
    /// In another theme nothing else differs, and a look takes its time.
    Colours,
}

impl Axe {
    /// `None`, and a line that says why, where it is not installed.
    pub fn find() -> Option<Self> {
        let script = std::fs::read_to_string(Path::new(FILE));
        match script {
            Ok(script) => Some(Self(script)),
            Err(error) => {
                println!(
                    "SKIPPED: pages are not looked over by axe-core: {FILE}: {error}; `packaging/setup.sh browser` fetches it"
                );
                None
            }
        }
    }

    /// What is serious or critical on the page as it stands, in lines.
    pub async fn look(&self, browser: &Browser, extent: Extent) -> Vec<String> {
        let there = browser.script("return typeof axe === 'object'").await;
        if there != Value::Bool(true) {
            browser.script(&self.0).await;
        }
        let only = match extent {
            Extent::All => json!({"type": "tag", "values": RULES}),
            Extent::Colours => json!({"type": "rule", "values": COLOURS}),
        };
        let found = browser.person.client.execute_async(RUN, &[only]);
        let found = found.unwrap();
        let found = found.as_array().cloned().unwrap_or_default();
        let grave = found
            .iter()
            .filter(|one| one["impact"] == "serious" || one["impact"] == "critical");
        let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        grave
            .map(|one| {
                format!(
                    "{}: {}: {} ({})",
                    text(one, "impact"),
                    text(one, "rule"),
                    text(one, "where"),
                    text(one, "why").replace('\n', " ")
                )
            })
            .collect()
    }
}
