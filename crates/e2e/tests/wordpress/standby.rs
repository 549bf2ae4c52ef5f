//! A stand-by: the clone answers while the original cannot.

use std::time::{Duration, Instant};

use offshoot_e2e::{stretch, wait_for};

use super::PATIENCE;
use super::load::Load;
use super::site::{BLOG, NEXT, Site};

const INTERVAL: Duration = Duration::from_millis(500);
const FALL: u32 = 2;
const TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) fn takes_over_and_gives_back(site: &mut Site) {
    site.daemon.run(&[
        "traffic",
        "failover",
        BLOG,
        NEXT,
        "--check",
        "/offshoot-status.php",
        "--interval",
        "500ms",
        "--timeout",
        "1s",
        "--fall",
        "2",
        "--rise",
        "2",
    ]);
    wait_for("both to be up", PATIENCE, || {
        let view = site.daemon.json(&["traffic", "show", BLOG]);
        let up = |place: usize| view["sides"][place]["health"]["up"] == true;
        (up(0) && up(1)).then_some(())
    });
    let load = Load::start(site);
    let broken = site.stop_php(BLOG);
    load.answered_by(NEXT);
    let begun = Instant::now();
    site.start_php(BLOG);
    let up = Instant::now();
    load.answered_by(BLOG);
    let seen = load.finish(site);
    seen.print("failover");
    let over = seen
        .pages_of(NEXT)
        .next()
        .expect("pages of the stand-by")
        .done;
    let last = seen.failed().last().map_or(broken, |failed| failed.done);
    println!(
        "figures: failover: the stand-by's first page after {:.2?}, the last error after {:.2?}; back {:.2?} after the start began",
        over - broken,
        last - broken,
        up - begun
    );
    let bound = (INTERVAL * FALL + TIMEOUT + Duration::from_secs(1)) * stretch();
    assert!(
        over - broken <= bound,
        "{:?} is more than {bound:?}",
        over - broken
    );
    for failed in seen.failed() {
        let within = failed.done >= broken && failed.sent <= over;
        assert!(within, "not because PHP ended: {failed:?}");
    }
    seen.all_by(BLOG, up, Instant::now());
    site.each_comment_is_where_it_was_answered(&seen);
    let view = site.daemon.json(&["traffic", "show", BLOG]);
    let changes = view["changes"].as_array().expect("changes").len();
    assert!(changes >= 2, "{view:#}");
    site.daemon.run(&["traffic", "clear", BLOG]);
    site.leads_to(BLOG);
}
