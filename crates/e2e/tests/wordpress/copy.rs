//! A test in a copy of production: whatever is done there, the original and its visitors see nothing of it.

use super::load::Load;
use super::site::{BLOG, HOST, NEXT, Site, comment, logged_in, visitor};

pub(crate) fn what_is_done_there_stays_there(site: &mut Site) {
    let load = Load::start(site);
    // its own name leads to it, nobody else comes there
    let host = format!("{NEXT}.localhost");
    let write = "echo new > /srv/wordpress/tried.txt";
    let php = ["exec", NEXT, "php", "--", "/bin/sh", "-c", write];
    site.daemon.run(&php);
    let number = load.number();
    let mut tester = logged_in(&site.daemon, &host);
    let commented = site.daemon.inside(|| comment(&mut tester, number));
    assert_eq!(commented.expect("the copy answers"), 302);
    load.goes_on();
    let seen = load.finish(site);
    seen.print("test in a copy", "");
    seen.all_well();
    assert_eq!(seen.pages_of(BLOG).count(), seen.pages().count());
    site.each_comment_is_where_it_was_answered(&seen);
    let has = |name| site.comments(name).contains(&number);
    assert_eq!((has(BLOG), has(NEXT)), (false, true));

    let tried = |host: &str| {
        let answer = site.daemon.inside(|| visitor(host).get("/tried.txt"));
        answer.expect("the edge answers").text() == "new\n"
    };
    assert_eq!((tried(HOST), tried(&host)), (false, true));
}
