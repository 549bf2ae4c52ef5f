//! A new version takes over: by a swap, and by a promotion that watches it.

use std::time::{Duration, Instant};

use offshoot_e2e::stretch;
use offshoot_e2e::support::{ended, id_of};
use serde_json::Value;

use super::load::Load;
use super::site::{BLOG, NEXT, Site};

/// Within what visitors see no more errors of a release that broke: a look a second, the way back, and the command that
/// breaks it.
const ERRORS: Duration = Duration::from_secs(5);
/// How both promotions watch. What they compare is a handful of requests on a machine that is busy with both sides, so
/// times must differ a lot.
const WATCH: [&str; 7] = [
    "--fence",
    "--baseline",
    "3s",
    "--min",
    "20",
    "--latency",
    "50x",
];

/// How long the edge took to switch.
fn switched_in(operation: &Value) -> String {
    let micros = operation["swap"]["us"].as_f64().expect("it was switched");
    format!("{:.1} ms", micros / 1e3)
}

pub(crate) fn swap_and_back(site: &mut Site) {
    let load = Load::start(site);
    let warm = ["--warm", "/", "--warm", "/?p=1"];
    let swap = [&["swap", BLOG, NEXT], &warm[..]].concat();
    let there = site.daemon.json(&swap);
    let switched = Instant::now();
    load.answered_by(NEXT);
    let returned = Instant::now();
    let back = site.daemon.json(&["swap", "--back", BLOG, NEXT]);
    let again = Instant::now();
    load.answered_by(BLOG);
    let seen = load.finish(site);
    let (there, back) = (switched_in(&there), switched_in(&back));
    let switched_in = format!("switched in {there} and {back}");
    seen.print("swap and back", &switched_in);
    seen.all_well();
    seen.all_by(NEXT, switched, returned);
    seen.all_by(BLOG, again, Instant::now());
    site.each_comment_is_where_it_was_answered(&seen);
}

pub(crate) fn a_release_takes_over(site: &mut Site) {
    let load = Load::start(site);
    let promote = [&["promote", NEXT, "--watch", "5s"], &WATCH[..]].concat();
    let operation = site.daemon.json(&promote);
    let done = Instant::now();
    load.answered_by(NEXT);
    let seen = load.finish(site);
    let switched_in = format!("switched in {}", switched_in(&operation));
    seen.print("promote", &switched_in);
    let report = &operation["traffic"];
    println!(
        "compared: {} and {}",
        report["old_figures"], report["new_figures"]
    );
    seen.all_well();
    seen.never_back(BLOG, NEXT);
    seen.all_by(NEXT, done, Instant::now());
    site.each_comment_is_where_it_was_answered(&seen);
    // nothing is written to the old side unseen
    let fenced = site.daemon.get(BLOG, "/").expect("the edge answers");
    assert_eq!(fenced.status, 503);

    site.daemon.run(&["traffic", "set", BLOG, "--fence", "off"]);
    site.daemon.run(&["swap", "--back", BLOG, NEXT]);
    site.leads_to(BLOG);
}

pub(crate) fn a_broken_release_goes_back(site: &mut Site) {
    let load = Load::start(site);
    let promote = [&["promote", NEXT, "--watch", "2m", "--detach"], &WATCH[..]].concat();
    let id = id_of(&site.daemon.json(&promote));
    load.answered_by(NEXT);
    let broken = site.stop_php(NEXT);
    let operation = ended(&site.daemon, &id);
    let back = Instant::now();
    load.answered_by(BLOG);
    let seen = load.finish(site);
    let last = seen.failed().last().map_or(broken.begun, |last| last.done);
    let failing = last.saturating_duration_since(broken.begun).as_millis();
    let until = (back - broken.begun).as_millis();
    let times = format!("the last failed {failing} ms after it broke, all back after {until} ms");
    seen.print("promote, broken", &times);
    assert_eq!(operation["state"], "failed", "{operation:#}");
    assert_eq!(operation["problem"]["code"], "promote-worse");
    println!("{}", operation["problem"]["what"]);
    assert!(last > broken.begun, "errors made it go back");
    for failed in seen.failed() {
        assert!(failed.done >= broken.begun, "before it broke: {failed:?}");
        let bound = broken.gone + ERRORS * stretch();
        assert!(failed.sent <= bound, "too late: {failed:?}");
    }
    seen.all_by(BLOG, back, Instant::now());
    site.each_comment_is_where_it_was_answered(&seen);
    // the fence went with it
    let blog = site.daemon.get(BLOG, "/").expect("the edge answers");
    assert_eq!(blog.status, 200);

    site.start_php(NEXT);
}
