//! What people make clones for, with a WordPress and its clone: a new version that takes over, a comparison, a stand-by, a test
//! with copies of real requests. Under load all the time: visitors read the front page, and people who are logged in comment.

mod copy;
mod load;
mod release;
mod shadow;
mod site;
mod split;
mod standby;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use site::Site;

/// Anything on a machine that is busy with all this.
const PATIENCE: Duration = Duration::from_secs(60);

/// What it is called, and what it does.
type Turn = (&'static str, fn(&mut Site));

/// Everything is a turn with the same two environments, because making them takes longest. Each turn leaves them as it found
/// them, but for comments. `OFFSHOOT_TEST_ROUNDS` says how often they are made, and go through all turns. Lines that begin
/// with `figures: ` are what `cargo xtask check use-cases` sums up.
#[test]
#[ignore = "takes minutes: `cargo xtask check use-cases` runs it"]
fn a_wordpress_and_its_clone_share_their_visitors() {
    let rounds = std::env::var("OFFSHOOT_TEST_ROUNDS").ok();
    let rounds: u32 = rounds.and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut daemon = site::daemon();
    for round in 1..=rounds {
        let begun = Instant::now();
        let mut site = Site::start(daemon);
        let made = begun.elapsed().as_secs_f64();
        println!("figures: round {round} of {rounds}, made in {made:.1} s");
        all_turns(&mut site);
        daemon = site.finish();
        let all = begun.elapsed().as_secs_f64();
        println!("figures: round {round} of {rounds}, all in {all:.1} s");
    }
}

fn all_turns(site: &mut Site) {
    let turns: [Turn; 8] = [
        ("test in a copy", copy::what_is_done_there_stays_there),
        ("swap and back", release::swap_and_back),
        ("mirror", shadow::copies_are_compared),
        ("A/B", split::visitors_stay_on_their_side),
        ("canary", split::a_growing_share_fails_nothing),
        ("failover", standby::takes_over_and_gives_back),
        ("promote, broken", release::a_broken_release_goes_back),
        ("promote", release::a_release_takes_over),
    ];
    for (name, turn) in turns {
        let begun = Instant::now();
        if let Err(failure) = catch_unwind(AssertUnwindSafe(|| turn(site))) {
            println!("{name} failed");
            site.tell();
            resume_unwind(failure);
        }
        println!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
    }
}
