//! A comparison: half of the visitors see the clone, and stay with it.

use std::fs;
use std::thread;
use std::time::Instant;

use offshoot_e2e::{TestDaemon, wait_for};
use offshoot_edge_api::{EdgeControl, EdgeStatus};
use offshoot_load::Client;
use offshoot_sys::process::Process;
use serde_json::Value;

use super::PATIENCE;
use super::load::Load;
use super::site::{BLOG, HOST, NEXT, PEOPLE, Site, comment, title_of, visitor};

/// Visitors who come for the first time, beside those who are logged in.
const NEW: usize = 12;

/// One visitor, what side they are on, and the comment that they write.
struct Person {
    client: Client,
    side: Option<String>,
    comment: Option<usize>,
}

impl Person {
    /// Reads the front page: the side must be the one where they were before.
    fn read(&mut self) {
        let answer = self.client.get("/").expect("the edge answers");
        assert_eq!(answer.status, 200);
        let side = title_of(&answer.text());
        let before = self.side.get_or_insert_with(|| side.clone());
        assert_eq!(*before, side, "a visitor changed sides");
    }

    fn write(&mut self) {
        if let Some(number) = self.comment {
            let status = comment(&mut self.client, number).expect("the edge answers");
            assert_eq!(status, 302, "comment {number}");
        }
    }
}

/// All visitors do this, two at a time.
fn all(daemon: &TestDaemon, people: &mut [Person], act: fn(&mut Person)) {
    let half = people.len().div_ceil(2);
    // threads are in the namespace of the thread that starts them
    daemon.inside(|| {
        thread::scope(|scope| {
            for some in people.chunks_mut(half) {
                scope.spawn(move || some.iter_mut().for_each(act));
            }
        });
    });
}

pub(crate) fn visitors_stay_on_their_side(site: &mut Site) {
    let daemon = &site.daemon;
    daemon.run(&["traffic", "split", BLOG, "next=50%"]);
    let goal = "commented=/wp-comments-post.php:POST:302";
    daemon.run(&["traffic", "set", BLOG, "--goal", goal]);
    let known = site.people.drain(..);
    let known = known.enumerate().map(|(place, client)| {
        // every other one comments
        let number = site.next_comment + place / 2;
        (client, (place % 2 == 0).then_some(number))
    });
    let new = (0..NEW).map(|_| (visitor(HOST), None));
    let mut people: Vec<_> = known
        .chain(new)
        .map(|(client, comment)| Person {
            client,
            side: None,
            comment,
        })
        .collect();
    all(daemon, &mut people, Person::read);
    all(daemon, &mut people, Person::read);
    kill_the_edge(daemon, 2 * people.len());
    all(daemon, &mut people, Person::read);
    all(daemon, &mut people, Person::write);
    all(daemon, &mut people, Person::read);

    let view = daemon.json(&["traffic", "show", BLOG]);
    println!("{}", daemon.run(&["traffic", "show", BLOG]));
    let commented = people.iter().filter_map(|person| person.comment).count();
    for (place, side) in [BLOG, NEXT].into_iter().enumerate() {
        let here = people
            .iter()
            .filter(|person| person.side.as_deref() == Some(side));
        let comments: Vec<_> = here.clone().filter_map(|person| person.comment).collect();
        let (here, comments_here) = (here.count(), comments.len());
        assert!(here > 0, "nobody on {side}");
        let counted = &view["sides"][place];
        assert_eq!(counted["environment"], side);
        assert_eq!(counted["visitors"], here, "{view:#}");
        assert_eq!(counted["requests"], 4 * here + comments_here, "{view:#}");
        assert_eq!(counted["errors"], 0, "{view:#}");
        let goal = &counted["goals"][0];
        assert_eq!(
            (&goal["reached"], &goal["of"]),
            (&comments_here.into(), &here.into())
        );
        let written = site.comments(side);
        assert!(
            comments.iter().all(|number| written.contains(number)),
            "{written:?}"
        );
    }
    println!(
        "figures: A/B: {} requests, 0 failed; the edge was killed meanwhile",
        4 * people.len() + commented
    );
    site.next_comment += commented;
    site.people = people
        .into_iter()
        .map(|person| person.client)
        .take(PEOPLE)
        .collect();
    site.daemon.run(&["traffic", "clear", BLOG]);
    site.leads_to(BLOG);
}

/// More and more visitors see the clone, at last all.
pub(crate) fn a_growing_share_fails_nothing(site: &mut Site) {
    let load = Load::start(site);
    let steps = ["--steps", "25,50,100", "--every", "2s"];
    let guard = ["--min", "20", "--latency", "50x"];
    let ramp = [&["traffic", "ramp", BLOG, NEXT], &steps[..], &guard].concat();
    site.daemon.run(&ramp);
    let all = Instant::now();
    load.answered_by(NEXT);
    let seen = load.finish(site);
    seen.print("canary", "");
    seen.all_well();
    seen.all_by(NEXT, all, Instant::now());
    site.each_comment_is_where_it_was_answered(&seen);
    site.daemon.run(&["traffic", "clear", BLOG]);
    site.leads_to(BLOG);
}

fn status(daemon: &TestDaemon) -> Option<EdgeStatus> {
    let control = daemon.path("run/edge/control.sock");
    EdgeControl::connect(&control).ok()?.status().ok()
}

/// Kills it once these requests to two sides are written down, and waits for the next.
fn kill_the_edge(daemon: &TestDaemon, requests: usize) {
    daemon.may_complain("the edge does not run");
    let kept = daemon.path("run/edge/control.stats.json");
    wait_for("the counts to be written", PATIENCE, || {
        let kept = fs::read(&kept).ok()?;
        let kept: Vec<Value> = serde_json::from_slice(&kept).ok()?;
        kept.iter().find(|owner| {
            let sides = owner["stats"]["sides"].as_array();
            let of = |side: &Value| side["requests"].as_u64().unwrap_or(0);
            let all = |sides: &Vec<Value>| sides.iter().map(of).sum::<u64>();
            sides.is_some_and(|sides| sides.len() == 2 && all(sides) == requests as u64)
        })?;
        Some(())
    });
    let first = status(daemon).expect("an edge").pid;
    let process = Process::open(i32::try_from(first).expect("a pid")).expect("it runs");
    process.signal(9).expect("it can be ended");
    wait_for("another edge", PATIENCE, || {
        status(daemon).filter(|status| status.pid != first && status.routes > 0)
    });
}
