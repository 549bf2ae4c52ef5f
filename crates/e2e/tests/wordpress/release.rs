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

fn micros(operation: &Value) -> u64 {
    operation["swap"]["us"].as_u64().expect("it was switched")
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
    seen.print("swap and back");
    println!(
        "figures: the edge switched in {} and {} us",
        micros(&there),
        micros(&back)
    );
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
    seen.print("promote");
    let report = &operation["traffic"];
    println!(
        "figures: the edge switched in {} us; compared: {} and {}",
        micros(&operation),
        report["old_figures"],
        report["new_figures"]
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
    seen.print("promote, broken");
    assert_eq!(operation["state"], "failed", "{operation:#}");
    assert_eq!(operation["problem"]["code"], "promote-worse");
    println!("figures: {}", operation["problem"]["what"]);
    let last = seen.failed().last().expect("errors made it go back");
    println!(
        "figures: broken to the last error {:.1?}, to the end of the operation {:.1?}",
        last.done - broken,
        back - broken
    );
    for failed in seen.failed() {
        assert!(failed.done >= broken, "before it broke: {failed:?}");
        assert!(
            failed.sent <= broken + ERRORS * stretch(),
            "too late: {failed:?}"
        );
    }
    seen.all_by(BLOG, back, Instant::now());
    site.each_comment_is_where_it_was_answered(&seen);
    // the fence went with it
    let blog = site.daemon.get(BLOG, "/").expect("the edge answers");
    assert_eq!(blog.status, 200);

    site.start_php(NEXT);
}
