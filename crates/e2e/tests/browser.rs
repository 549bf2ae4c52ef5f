//! The dashboard of a whole daemon in a real browser: from the first sign-in to a host that is empty again.
#![allow(missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use offshoot_browser::{ENTER, ESCAPE, Person, TAB};
use offshoot_e2e::support::{ONE, answers};
use offshoot_e2e::{EDGE, TestDaemon};
use offshoot_load::{Pinger, Rate, Target};
use serde_json::Value;

/// Where every test daemon's dashboard listens: namespaces keep them apart.
const DASHBOARD: &str = "http://127.0.0.1:9440";
/// A domain that leads to the edge, in this browser.
const DOMAIN: &str = "visitors.example.com";
/// The first time, an image is made of a distribution's packages.
const IMAGE_MADE: Duration = Duration::from_secs(480);
/// The same for the five of the blog, on a host that is busy with much else.
const IMAGES_MADE: Duration = Duration::from_secs(840);

/// Which visitor of the example somebody is.
fn visit(person: &Person, host: &str) -> u64 {
    person.goto(&format!("http://{host}:{}/", EDGE.port()));
    person.see("p b", host.split('.').next().unwrap_or_default());
    let count = person.script("return Number(document.querySelector('strong').innerText)");
    count.as_u64().expect("a count")
}

/// How many visitors parent and clone had when somebody looked last. They are far apart, so a count tells who answers.
struct Visitors {
    parent: u64,
    clone: u64,
}

/// Most visits to one of them after that look, the edge's own included.
const FEW: u64 = 50;

impl Visitors {
    #[track_caller]
    fn parent_answers(&self, count: u64) {
        let few = self.parent..self.parent + FEW;
        assert!(few.contains(&count), "not the parent: {count}");
    }

    #[track_caller]
    fn clone_answers(&self, count: u64) {
        let few = self.clone..self.clone + FEW;
        assert!(few.contains(&count), "not the clone: {count}");
    }
}

/// Waits for the operation that the page shows.
fn until_done(person: &Person, title: &str) {
    person.see("#operation h2", title);
    person.see("#operation .mark.good", "done");
}

fn sign_in(daemon: &TestDaemon, person: &Person) {
    let link = daemon.run(&["login-link"]);
    person.goto(link.trim());
    person.press("Sign in");
    person.see("h1", "Environments");
    person.see("#live", "live");
}

fn person(arguments: &[&str]) -> Option<Person> {
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    let person = Person::start(&pictures, arguments)?;
    person.size(1280, 860);
    Some(person)
}

#[test]
fn from_an_empty_host_to_a_swap_and_back() {
    let daemon = TestDaemon::start_with_packages();
    daemon.inside(|| {
        let rule = format!("--host-resolver-rules=MAP {DOMAIN} 127.0.0.1");
        let Some(person) = person(&[&rule]) else {
            return;
        };
        let person = person.patient(IMAGE_MADE);
        create(&daemon, &person);
        clone_under_load(&person);
        let visitors = both_go_on(&person);
        compare(&person);
        swap_and_back(&person, &visitors);
        remove(&person, "visitors-clone");
        remove(&person, "visitors");
        person.goto(DASHBOARD);
        person.see("h2", "Nothing runs here yet");
        // (the example has no icon, and pages of what was removed are not there)
        let complaints = person.client.complaints().expect("the browser's log");
        let other = complaints.iter().filter(|one| one["source"] != "network");
        assert_eq!(other.count(), 0, "{complaints:?}");
        let left = daemon.residue();
        assert!(left.is_empty(), "left behind: {left:#?}");
    });
}

/// The other example, by its button: WordPress as it is when it is first opened, installed as a person does, and gone
/// again.
#[test]
fn a_blog_by_the_button_of_an_empty_host() {
    let daemon = TestDaemon::start_with_packages();
    daemon.inside(|| {
        let Some(person) = person(&[]) else { return };
        let person = person.patient(IMAGES_MADE);
        sign_in(&daemon, &person);
        let begun = Instant::now();
        person.press("Create blog");
        until_done(&person, "Create blog");
        println!("blog was there after {:?}", begun.elapsed());
        person.see("#operation a.primary", "Open blog.localhost:8080");
        person.goto(&format!("http://blog.localhost:{}/", EDGE.port()));
        person.see("label", "Site Title");
        person.enter("weblog_title", "By a button");
        person.enter("user_login", "somebody");
        person.enter("admin_email", "somebody@example.test");
        person.key(ENTER);
        person.see("h1", "Success!");
        person.goto(&format!("http://blog.localhost:{}/", EDGE.port()));
        person.see("h1, .wp-block-site-title, .site-title", "By a button");
        remove(&person, "blog");
        let left = daemon.residue();
        assert!(left.is_empty(), "left behind: {left:#?}");
    });
}

/// The example, by the button that an empty host shows.
fn create(daemon: &TestDaemon, person: &Person) {
    sign_in(daemon, person);
    person.see("h2", "Nothing runs here yet");
    person.press("Create visitors");
    until_done(person, "Create visitors");
    person.see("#operation a.primary", "Open visitors.localhost:8080");
    assert_eq!(visit(person, "visitors.localhost"), 1);
    person.goto(DASHBOARD);
    person.see("tr .mark.good", "running");
}

/// A clone by the dialog, while somebody loads the parent's page again and again: nobody is turned away. The page of
/// the operation survives a reload, and stands in a second window.
fn clone_under_load(person: &Person) {
    let target = Target {
        address: EDGE,
        host: "visitors.localhost".to_owned(),
        path: "/".to_owned(),
    };
    let rate = Rate {
        interval: Duration::from_millis(2),
        connections: 4,
        timeout: Duration::from_secs(30),
    };
    let pinger = Pinger::start(&target, rate).expect("a client");
    person.goto(DASHBOARD);
    person.press("Clone visitors");
    person.see("dialog[open] h2", "Clone visitors");
    person.see("#name-check", "free");
    person.press_in("//dialog[@open]", "Clone");
    person.see("dialog #operation h2", "Clone visitors as visitors-clone");
    let at = "return location.pathname.startsWith('/operations/')";
    person.wait("the address of the operation", at, &[]);
    person.client.refresh().expect("the page again");
    person.see("main #operation h2", "Clone visitors as visitors-clone");
    let address = person.script("return location.href");
    let first = person.client.window().expect("a window");
    person.client.new_window().expect("another window");
    person.goto(address.as_str().expect("an address"));
    until_done(person, "Clone visitors as visitors-clone");
    person
        .client
        .go_to_window(&first)
        .expect("the first window");
    until_done(person, "Clone visitors as visitors-clone");
    person.see("#operation dt", "Stood still");
    person.see("#operation h3", "Where the freeze went");
    person.see("#operation .rung", "live");
    person.picture("story-cloned");
    let freeze = person.script("return document.querySelector('#operation .figures dd').innerText");
    let report = pinger.finish();
    let seen = report.whole();
    println!(
        "while visitors was cloned: {} answers, {} failed, longest gap {:?}, stood still {freeze}",
        seen.answered, seen.failed, seen.longest_stall
    );
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert!(seen.answered > 100, "{seen:?}");
}

/// Parent and clone go on from the same number, each on its own.
fn both_go_on(person: &Person) -> Visitors {
    let parent = visit(person, "visitors.localhost");
    let clone = visit(person, "visitors-clone.localhost");
    assert!(clone > 1, "it has its parent's memory");
    assert!(
        clone + FEW < parent,
        "{clone} and {parent}: it goes on by itself"
    );
    assert_eq!(visit(person, "visitors.localhost"), parent + 1);
    assert_eq!(visit(person, "visitors-clone.localhost"), clone + 1);
    Visitors { parent, clone }
}

/// A file written in the clone's terminal is what differs.
fn compare(person: &Person) {
    person.goto(&format!("{DASHBOARD}/environments/visitors-clone/terminal"));
    person.see("#terminal-state", "Connected to web-1");
    person.key("echo changed > /var/tmp/only-here; echo writ''ten\n");
    person.see(".xterm-rows", "written");
    person.goto(&format!("{DASHBOARD}/environments/visitors-clone"));
    person.press("Compare visitors-clone with its parent");
    person.see("h1", "Compare");
    person.see("#changes", "var/tmp/only-here");
    person.picture("story-compared");
}

/// A domain of the parent's leads to the clone, and back again; the dialog says so before.
fn swap_and_back(person: &Person, visitors: &Visitors) {
    let traffic = format!("{DASHBOARD}/environments/visitors/traffic");
    person.goto(&traffic);
    person.press("Add domain");
    person.see("dialog[open] h2", "Add domains to visitors");
    person.enter("domains", DOMAIN);
    person.press_in("//dialog[@open]", "Add");
    person.see("dialog #operation .mark.good", "done");
    visitors.parent_answers(visit(person, DOMAIN));

    person.goto(&traffic);
    person.press("Swap");
    person.see("dialog[open] .moves th", DOMAIN);
    person.see("dialog[open] .moves b", "visitors-clone");
    person.press_in("//dialog[@open]//form[@method='post']", "Swap");
    person.see("dialog #operation .mark.good", "done");
    visitors.clone_answers(visit(person, DOMAIN));

    person.goto(&traffic);
    person.press("Swap back");
    person.see("dialog[open] .moves b", "visitors");
    person.press_in("//dialog[@open]//form[@method='post']", "Swap back");
    person.see("dialog #operation .mark.good", "done");
    visitors.parent_answers(visit(person, DOMAIN));
}

/// Only whoever types the name removes an environment.
fn remove(person: &Person, name: &str) {
    person.goto(&format!("{DASHBOARD}/environments/{name}"));
    person.press_in("//*[@id='settings']", "Remove");
    person.see("dialog[open] h2", &format!("Remove {name}"));
    person.enter("remove-name", "another");
    person.press_in("//dialog[@open]", "Remove for good");
    let refused = "return document.querySelector('#remove-name:invalid') !== null";
    person.wait("the browser to refuse another name", refused, &[]);
    person.clear("remove-name");
    person.enter("remove-name", name);
    person.press_in("//dialog[@open]", "Remove for good");
    person.see("#operation .mark.good", "done");
}

/// What a person without a mouse knows of where they are: the label or text of what has the focus, and whether it can
/// be seen that it has. A heading that the focus was led to needs no mark.
fn focus(person: &Person) -> (String, bool) {
    let script = "const e = document.activeElement, style = getComputedStyle(e); \
        return [e === document.body ? '' : e.getAttribute('aria-label') || e.id || e.innerText, \
            e.matches('h1, h2') || style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]";
    let said = person.script(script);
    let name = said[0].as_str().unwrap_or_default().trim().to_owned();
    (name, said[1] == Value::Bool(true))
}

/// Goes on with the tab key to what is called this, if it has not the focus yet; each stop on the way can be seen.
fn tab_to(person: &Person, name: &str) {
    let mut passed = Vec::new();
    for _ in 0..60 {
        let (at, seen) = focus(person);
        // Between the last thing of a page and the first there is none.
        assert!(seen || at.is_empty(), "no outline at {at:?}");
        if at == name {
            return;
        }
        passed.push(at);
        person.key(TAB);
    }
    panic!("the tab key does not come to {name:?} but to {passed:?}");
}

#[test]
fn by_keyboard_from_the_sign_in_to_a_clone() {
    let daemon = TestDaemon::start();
    daemon.create("shop", ONE);
    answers(&daemon, "shop");
    daemon.create("other", ONE);
    daemon.inside(|| {
        let Some(person) = person(&[]) else {
            return;
        };
        let link = daemon.run(&["login-link"]);
        person.goto(link.trim());
        tab_to(&person, "Sign in");
        person.key(ENTER);
        person.see("h1", "Environments");
        person.see("#live", "live");
        tab_to(&person, "Clone shop");

        // The list changes below the focus, which stays.
        daemon.run(&["stop", "other"]);
        person.see("tr#e-other .mark", "stopped");
        assert_eq!(focus(&person), ("Clone shop".to_owned(), true));

        person.key(ENTER);
        person.see("dialog[open] h2", "Clone shop");
        assert_eq!(focus(&person).0, "clone-name");
        person.key(ESCAPE);
        let back = "return !document.querySelector('dialog').open && \
            document.activeElement.getAttribute('aria-label') === 'Clone shop'";
        person.wait("the focus back at the button", back, &[]);

        person.key(ENTER);
        person.see("dialog[open] h2", "Clone shop");
        person.see("#name-check", "free");
        tab_to(&person, "Clone");
        person.key(ENTER);
        person.see("dialog #operation h2", "Clone shop as shop-clone");
        until_done(&person, "Clone shop as shop-clone");
        let inside = "return document.querySelector('#operation').contains(document.activeElement)";
        person.wait("the focus to stay at the operation", inside, &[]);
        tab_to(&person, "Open shop-clone.localhost:8080");
        person.key(ESCAPE);
        person.see("tr#e-shop-clone th", "shop-clone");
        person.wait("the focus back at the button", back, &[]);
        person.no_complaints();
    });
    daemon.finish(&["other", "shop", "shop-clone"]);
}
