//! A WordPress, its clone, and the people who are logged in there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use offshoot_e2e::support::rungs;
use offshoot_e2e::{EDGE, TestDaemon, wait_for};
use offshoot_load::{Client, Target};
use serde_json::Value;

use super::PATIENCE;
use super::load::Seen;

/// Where visitors come; it is the first environment's at the begin of every turn.
pub(crate) const HOST: &str = "blog.example.test";
/// The WordPress, and the title of its front page.
pub(crate) const BLOG: &str = "blog";
/// Its clone, and the title of the clone's.
pub(crate) const NEXT: &str = "next";
const COMPOSE: &str = "../../examples/wordpress/compose.yaml";
const USER: &str = "editor";
// an account of this test's own, on loopback
const PASSWORD: &str = "offshoot-test-only";
/// People who are logged in. From before the clone on: it knows them too.
pub(crate) const PEOPLE: usize = 12;

/// What all turns work on.
pub(crate) struct Site {
    pub(crate) daemon: TestDaemon,
    /// People who are logged in, each with cookies of their own.
    pub(crate) people: Vec<Client>,
    /// Number of the next comment.
    pub(crate) next_comment: usize,
}

impl Site {
    /// Makes a WordPress, installs it, logs people in, clones it, and gives both titles that tell them apart.
    pub(crate) fn start(daemon: TestDaemon) -> Self {
        let over = here("tests/wordpress/override.yaml");
        let compose = here(COMPOSE);
        daemon.run(&["create", "-f", &compose, "-f", &over, "--name", BLOG]);
        daemon.run(&["domain", "add", BLOG, HOST]);
        install(&daemon);
        let people = (0..PEOPLE).map(|_| logged_in(&daemon, HOST)).collect();
        let clone = daemon.json(&["clone", BLOG, "--name", NEXT, "--max-freeze", "60s"]);
        for (node, rung) in rungs(&clone) {
            assert_eq!(rung, "live", "{node}: {clone:#}");
        }
        let site = Self {
            daemon,
            people,
            next_comment: 0,
        };
        for name in [BLOG, NEXT] {
            site.title(name);
        }
        site
    }

    /// Removes all; nothing may be left.
    pub(crate) fn finish(self) -> TestDaemon {
        self.daemon.finish(&[BLOG, NEXT]);
        self.daemon
    }

    /// Prints what explains a failure.
    pub(crate) fn tell(&self) {
        for what in [
            ["traffic", "show"],
            ["ps", "--output=json"],
            ["logs", "--tail=40"],
        ] {
            for environment in [BLOG, NEXT] {
                let args = [&what[..], &[environment]].concat();
                let told = self.daemon.try_run(&args);
                let told = told.map(|told| told.stdout).unwrap_or_default();
                println!("{args:?}:\n{}", String::from_utf8_lossy(&told));
            }
        }
    }

    /// Gives an environment its own name as the title of its pages, by its own PHP.
    fn title(&self, environment: &str) {
        let script = format!(
            "require '/srv/wordpress/wp-load.php'; update_option('blogname', '{environment}');"
        );
        let php = ["exec", environment, "php", "--", "php", "-r", &script];
        self.daemon.run(&php);
        assert_eq!(self.side(environment), Some(environment.to_owned()));
    }

    /// Whose page an environment shows at its default domain.
    fn side(&self, environment: &str) -> Option<String> {
        let host = format!("{environment}.localhost");
        let answer = self.daemon.inside(|| visitor(&host).get("/")).ok()?;
        (answer.status == 200).then(|| title_of(&answer.text()))
    }

    /// Ends PHP in an environment; its web server goes on.
    pub(crate) fn stop_php(&self, environment: &str) -> Broken {
        let begun = Instant::now();
        let kill = ["exec", environment, "php", "--", "/bin/sh", "-c", "kill 1"];
        // the session ends with the node
        drop(self.daemon.try_run(&kill).expect("offshoot can be run"));
        let gone = Instant::now();
        wait_for("PHP's end", PATIENCE, || {
            let node = offshoot_e2e::support::node(&self.daemon, environment, "php-1");
            (node["status"]["state"] != "running").then_some(())
        });
        Broken { begun, gone }
    }

    /// Brings it back, and waits until it answers.
    pub(crate) fn start_php(&self, environment: &str) {
        self.daemon.run(&["start", environment]);
        wait_for("PHP to answer", PATIENCE, || {
            self.side(environment).filter(|side| side == environment)
        });
    }

    /// The comments of the load that are in an environment's database.
    pub(crate) fn comments(&self, environment: &str) -> BTreeSet<usize> {
        let select = "SELECT comment_content FROM wordpress.wp_comments";
        let mariadb = ["mariadb", "--batch", "--skip-column-names", "-e", select];
        let args = [&["exec", environment, "mariadb", "--"], &mariadb[..]].concat();
        let text = self.daemon.run(&args);
        let comments: Vec<_> = text.lines().filter_map(number_of).collect();
        let all: BTreeSet<_> = comments.iter().copied().collect();
        assert_eq!(all.len(), comments.len(), "{environment} has one twice");
        all
    }

    /// Who answered which comment, as the edge's access log tells, once it tells of all these.
    fn answered_by(&self, wanted: &BTreeSet<usize>) -> BTreeMap<usize, String> {
        let log = self.daemon.path("state/edge-access.log");
        let all = self.daemon.json(&["ls"]);
        let all = all.as_array().expect("a list").iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let names: BTreeMap<_, _> = all
            .map(|one| (text(&one["id"]), text(&one["name"])))
            .collect();
        wait_for("the access log", PATIENCE, || {
            let lines = fs::read_to_string(&log).ok()?;
            let lines = lines.lines();
            let lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let told: BTreeMap<_, _> = lines
                .filter_map(|line| {
                    let number = line["query"].as_str()?.strip_prefix("c=")?.parse().ok()?;
                    let name = names.get(line["environment"].as_str()?)?.clone();
                    wanted.contains(&number).then_some((number, name))
                })
                .collect();
            (told.len() == wanted.len()).then_some(told)
        })
    }

    /// Every comment that was answered well is in the database of the side that answered it, and in no other.
    pub(crate) fn each_comment_is_where_it_was_answered(&self, seen: &Seen) {
        let answered = seen.comments();
        let (blog, next) = (self.comments(BLOG), self.comments(NEXT));
        for (number, side) in self.answered_by(&answered) {
            let here = (blog.contains(&number), next.contains(&number));
            assert_eq!(
                here,
                (side == BLOG, side == NEXT),
                "comment {number}, answered by {side}"
            );
        }
    }

    /// Waits until the domains are where they were.
    pub(crate) fn leads_to(&self, environment: &str) {
        wait_for(&format!("{environment} to answer"), PATIENCE, || {
            let answer = self.daemon.inside(|| visitor(HOST).get("/")).ok()?;
            (answer.status == 200 && title_of(&answer.text()) == environment).then_some(())
        });
    }
}

/// When PHP was ended: it may fail from `begun` on, and does from `gone` on.
#[derive(Clone, Copy)]
pub(crate) struct Broken {
    pub(crate) begun: Instant,
    pub(crate) gone: Instant,
}

/// A daemon that has the images.
pub(crate) fn daemon() -> TestDaemon {
    // which side answered a comment is told by its query
    let daemon = TestDaemon::start_with_packages_changed(|config| {
        config.replace("[edge]\n", "[edge]\naccess_log_query = true\n")
    });
    let begun = Instant::now();
    daemon.run(&["image", "import", &here(COMPOSE)]);
    println!("figures: images in {:.1} s", begun.elapsed().as_secs_f64());
    daemon
}

/// A file by its path below this package.
fn here(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    file.display().to_string()
}

/// Somebody who comes for the first time.
pub(crate) fn visitor(host: &str) -> Client {
    let target = Target {
        address: EDGE,
        host: host.to_owned(),
        path: "/".to_owned(),
    };
    Client::new(&target, PATIENCE)
}

/// What a page's title begins with: up to the site's tagline.
pub(crate) fn title_of(page: &str) -> String {
    let title = page.split("<title>").nth(1).unwrap_or_default();
    let end = title.find([' ', '<', '&']).unwrap_or(title.len());
    title.get(..end).unwrap_or_default().to_owned()
}

/// Sends a comment, as the form below a post does; gives the status.
pub(crate) fn comment(person: &mut Client, number: usize) -> std::io::Result<u16> {
    let path = format!("/wp-comments-post.php?c={number}");
    let text = format!("comment {number}");
    let form = [("comment", text.as_str()), ("comment_post_ID", "1")];
    Ok(person.post(&path, &form)?.status)
}

fn number_of(comment: &str) -> Option<usize> {
    comment.strip_prefix("comment ")?.parse().ok()
}

/// Goes through WordPress' own installer.
fn install(daemon: &TestDaemon) {
    let form = [
        ("weblog_title", BLOG),
        ("user_name", USER),
        ("admin_password", PASSWORD),
        ("admin_password2", PASSWORD),
        ("pw_weak", "on"),
        ("admin_email", "editor@example.test"),
        ("blog_public", "0"),
        ("Submit", "Install WordPress"),
    ];
    let answer = daemon.inside(|| visitor(HOST).post("/wp-admin/install.php?step=2", &form));
    let answer = answer.expect("WordPress answers");
    let page = answer.text();
    let good = answer.status == 200 && !page.contains("class=\"error\"");
    assert!(good, "the installer answered {}: {page}", answer.status);
}

/// Somebody who is logged in at this name.
pub(crate) fn logged_in(daemon: &TestDaemon, host: &str) -> Client {
    let mut person = visitor(host);
    let form = [("log", USER), ("pwd", PASSWORD)];
    let answer = daemon.inside(|| person.post("/wp-login.php", &form));
    assert_eq!(answer.expect("WordPress answers").status, 302);
    person
}
