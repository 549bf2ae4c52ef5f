//! A test with copies of real requests: visitors see nothing of it.

use std::time::Duration;

use offshoot_e2e::{stretch, wait_for};

use super::PATIENCE;
use super::load::Load;
use super::site::{BLOG, NEXT, Site};

pub(crate) fn copies_are_compared(site: &mut Site) {
    let load = Load::start(site);
    load.goes_on();
    let alone = load.finish(site);
    alone.print("without a mirror", "");

    site.daemon
        .run(&["traffic", "mirror", BLOG, NEXT, "--share", "100%"]);
    let load = Load::start(site);
    load.goes_on();
    load.goes_on();
    let seen = load.finish(site);
    seen.print("mirror", "all are copied");
    seen.all_well();
    let (pages, comments) = (seen.pages().count(), seen.comments());
    assert_eq!(
        seen.pages_of(BLOG).count(),
        pages,
        "visitors get the owner's answers"
    );
    let count = |view: &serde_json::Value, what: &str| view["mirror"][what].as_u64().unwrap_or(0);
    let copied = u64::try_from(pages + comments.len()).expect("a count");
    let view = wait_for("all copies", PATIENCE, || {
        let view = site.daemon.json(&["traffic", "show", BLOG]);
        let all = ["compared", "failed", "skipped"].map(|what| count(&view, what));
        (all.iter().sum::<u64>() >= copied).then_some(view)
    });
    println!("{}", site.daemon.run(&["traffic", "show", BLOG]));
    let counted = ["compared", "failed", "skipped", "status"].map(|what| count(&view, what));
    assert_eq!(counted, [copied, 0, 0, 0], "{view:#}");
    // every page has another title
    assert_eq!(
        count(&view, "body"),
        u64::try_from(pages).expect("a count"),
        "{view:#}"
    );
    let (blog, next) = (site.comments(BLOG), site.comments(NEXT));
    assert!(
        comments.is_subset(&blog) && comments.is_subset(&next),
        "{comments:?}: {blog:?} {next:?}"
    );

    // Both sides share the same two processors, so a copy of all costs; but nobody waits for it.
    let most = (alone.median() * 4 + Duration::from_millis(100)) * stretch();
    assert!(
        seen.median() <= most,
        "{:?} beside {:?}",
        seen.median(),
        alone.median()
    );
    site.daemon.run(&["traffic", "clear", BLOG]);
}
