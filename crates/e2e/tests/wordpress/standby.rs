//! A stand-by: the clone answers while the original cannot.

use std::time::{Duration, Instant};

use offshoot_e2e::{stretch, wait_for};

use super::PATIENCE;
use super::load::{Load, What};
use super::site::{BLOG, NEXT, Site};

const INTERVAL: Duration = Duration::from_millis(500);
const FALL: u32 = 2;
/// Longer than a check takes on a machine that is busy with other tests: one that is only slow is not to fall.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether each side takes requests.
fn taking(site: &Site) -> [bool; 2] {
    let view = site.daemon.json(&["traffic", "show", BLOG]);
    [0, 1].map(|place| view["sides"][place]["health"]["takes"] == true)
}

pub(crate) fn takes_over_and_gives_back(site: &mut Site) {
    let policy = ["traffic", "failover", BLOG, NEXT];
    let check = ["--check", "/offshoot-status.php", "--interval", "500ms"];
    let bounds = ["--timeout", "5s", "--fall", "2", "--rise", "2"];
    site.daemon.run(&[&policy[..], &check, &bounds].concat());
    wait_for("both to be up", PATIENCE, || {
        let view = site.daemon.json(&["traffic", "show", BLOG]);
        let good = |place: usize| {
            let last = &view["sides"][place]["health"]["nodes"][0]["last"];
            last.as_str().is_some_and(|last| last.starts_with("200 in"))
        };
        (good(0) && good(1)).then_some(())
    });
    let load = Load::start(site);
    let broken = site.stop_php(BLOG);
    wait_for("the stand-by alone", PATIENCE, || {
        (taking(site) == [false, true]).then_some(())
    });
    load.answered_by(NEXT);
    let begun = Instant::now();
    site.start_php(BLOG);
    let up = Instant::now();
    load.answered_by(BLOG);
    let seen = load.finish(site);
    let after = seen.pages_of(NEXT).next().expect("pages of the stand-by");
    let last = seen.failed().last();
    let last = last.map_or(Duration::ZERO, |failed| failed.done - broken.begun);
    let times = format!(
        "the stand-by answered {} ms after PHP ended, the last comment failed after {} ms; back {} ms after its start began",
        (after.done - broken.begun).as_millis(),
        last.as_millis(),
        (up - begun).as_millis()
    );
    seen.print("failover", &times);
    // a check that gets no answer takes longer than the interval
    let bound = broken.gone + (INTERVAL + TIMEOUT * FALL + Duration::from_secs(1)) * stretch();
    assert!(after.sent <= bound, "too late: {after:?}");
    // who only reads sees no error page: that may be asked again, of the stand-by
    for failed in seen.failed() {
        let within = failed.done >= broken.begun && failed.sent <= bound;
        assert!(within, "not because PHP ended: {failed:?}");
        let What::Failed(what) = &failed.what else {
            continue;
        };
        assert!(!what.starts_with("a page: status"), "{failed:?}");
    }
    seen.all_by(BLOG, up, Instant::now());
    site.each_comment_is_where_it_was_answered(&seen);
    let view = site.daemon.json(&["traffic", "show", BLOG]);
    // more came where the machine is so busy that checks of a cold PHP take too long
    let changes = [0, 1].map(|place| view["changes"][place]["takes"] == true);
    assert_eq!(changes, [false, true], "{view:#}");
    site.daemon.run(&["traffic", "clear", BLOG]);
    site.leads_to(BLOG);
}
