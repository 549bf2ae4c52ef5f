//! `cargo xtask demo`: WordPress is installed, gets a post and is cloned alive while it is being read; then each goes
//! its own way, and a table shows what came along.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use offshoot_load::{Client, PingReport, Pinger, Rate, Target};
use offshoot_model::view::EnvironmentView;
use offshoot_model::{Operation, Rung};

use crate::commands::{programs, root, setup};
use crate::instance::Instance;
use crate::interrupt;
use crate::table;
use crate::wordpress::{Connections, Site};

const DIR: &str = "/var/lib/offshoot-demo";
const PARENT: &str = "shop";
const CLONE: &str = "shop-clone";
const TITLE: &str = "Offshoot demo shop";
const POST_BEFORE: &str = "Written before the clone";
const POST_PARENT: &str = "Written in the parent only";
const POST_CLONE: &str = "Written in the clone only";
/// MariaDB's default is 10.
const VARIABLE: f64 = 7.25;
const COUNTER: u64 = 4_711;
/// How long the clone may take to answer before the demo gives up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Options of the demo.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where the demo's daemon keeps everything.
    #[arg(long, default_value = DIR)]
    dir: PathBuf,
    /// Port on loopback at which the environments answer.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Remove the demo: environments, daemon, files.
    #[arg(long)]
    remove: bool,
    /// Directory with the programs; they are built when absent.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Do not install packages first.
    #[arg(long)]
    no_setup: bool,
}

/// Runs or removes the demo.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let began = Instant::now();
    if !arguments.remove && !arguments.no_setup {
        setup(&["run", "build"])?;
    }
    let name = arguments.dir.file_name().context("--dir needs a name")?;
    let instance = Instance {
        label: "demo",
        state: arguments.dir.clone(),
        run: PathBuf::from("/run").join(name),
        port: arguments.port,
        programs: programs(arguments.programs.as_deref())?,
        number: 190,
    };
    if arguments.remove {
        instance.remove()?;
        println!("The demo is removed.");
        return Ok(());
    }
    instance.start()?;
    instance.ensure_absent(&[CLONE, PARENT])?;

    heading("Creating WordPress: nginx, PHP-FPM, MariaDB, Redis");
    let compose = root().join("examples/wordpress/compose.yaml");
    let compose = compose
        .to_str()
        .context("the checkout's path is not text")?;
    let creating = Instant::now();
    instance.show_command(&["create", "-f", compose, "--name", PARENT])?;
    println!(
        "  created in {:.0} s (the first time its images are made)",
        creating.elapsed().as_secs_f64()
    );
    let view: EnvironmentView = instance.json(&["show", PARENT])?;
    let parent = Site::of(&view)?;

    heading("Installing WordPress and giving it something to remember");
    parent.install(TITLE)?;
    parent.publish(POST_BEFORE)?;
    parent.sql(
        &instance,
        &format!("SET GLOBAL long_query_time = {VARIABLE}"),
    )?;
    parent.redis(
        &instance,
        &["SET", "offshoot:counter", &COUNTER.to_string()],
    )?;
    println!("  a post, a MariaDB server variable and a Redis counter that are in memory only");
    let before = parent.connections()?;

    heading("Cloning it while it is being read");
    let seen = clone_under_load(&instance, &parent)?;
    let clone = Site::of(&instance.json(&["show", CLONE])?)?;

    heading("Letting each go its own way");
    let rows = verify(&instance, &parent, &clone, &before, &seen)?;
    println!(
        "\n{}",
        table::render(&rows.iter().map(Row::cells).collect::<Vec<_>>())
    );
    println!("{} and {} go on running:\n", PARENT, CLONE);
    println!("  {}\n  {}\n", parent.url, clone.url);
    println!("  log in at /wp-admin as demo with the password offshoot-demo-only");
    println!(
        "  look around:    {} --config {}/offshoot.toml ps",
        instance.programs.join("offshoot").display(),
        arguments.dir.display()
    );
    let dir = match arguments.dir.to_str() {
        Some(DIR) | None => String::new(),
        Some(dir) => format!(" --dir {dir}"),
    };
    println!("  remove it all:  cargo xtask demo --remove{dir}");
    println!(
        "\nThe whole demo took {:.0} s.",
        began.elapsed().as_secs_f64()
    );
    let failed = rows.iter().filter(|row| !row.good).count();
    if failed > 0 {
        bail!(
            "{failed} of {} things are not as they should be",
            rows.len()
        );
    }
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// What was seen from outside while the clone was made.
struct Seen {
    operation: Operation,
    /// A static file every millisecond.
    pings: PingReport,
    /// Whole pages, one after the other.
    pages: PingReport,
    began: Instant,
    ended: Instant,
    /// From the command to the clone's first complete front page.
    first_answer: Duration,
}

fn clone_under_load(instance: &Instance, parent: &Site) -> anyhow::Result<Seen> {
    let pings = Pinger::start(&parent.static_path()?, Rate::EVERY_MILLISECOND)?;
    let pages = Pinger::start(
        &parent.target,
        Rate {
            connections: 1,
            ..Rate::CLOSED_LOOP
        },
    )?;
    std::thread::sleep(Duration::from_secs(2));
    let began = Instant::now();
    let answered = FirstAnswer::watch(parent.target_of(CLONE));
    let operation: Operation = instance.json(&["clone", PARENT, "--name", CLONE])?;
    let first_answer = answered.wait(ANSWER_TIMEOUT)?;
    let ended = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    Ok(Seen {
        operation,
        pings: pings.finish(),
        pages: pages.finish(),
        began,
        ended,
        first_answer,
    })
}

/// Asks again and again until a front page comes.
pub(crate) struct FirstAnswer {
    thread: std::thread::JoinHandle<Option<Duration>>,
    stop: Arc<AtomicBool>,
    began: Instant,
}

impl FirstAnswer {
    /// Begins to ask now.
    pub(crate) fn watch(target: Target) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let began = Instant::now();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut client = Client::new(&target, Duration::from_secs(10));
                if client
                    .get(&target.path)
                    .is_ok_and(|answer| answer.status == 200)
                {
                    return Some(began.elapsed());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            None
        });
        Self {
            thread,
            stop,
            began,
        }
    }

    /// Time from [`FirstAnswer::watch`] to the answer.
    pub(crate) fn wait(self, bound: Duration) -> anyhow::Result<Duration> {
        while !self.thread.is_finished() && self.began.elapsed() < bound {
            interrupt::check()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(Some(time)) => Ok(time),
            Ok(None) => bail!("the clone did not answer within {bound:?}"),
            Err(_) => bail!("the thread that asked the clone panicked"),
        }
    }
}

/// A line of the demo's table.
struct Row {
    what: String,
    found: String,
    good: bool,
}

impl Row {
    fn cells(&self) -> Vec<String> {
        vec![
            (if self.good { "ok" } else { "NO" }).to_owned(),
            self.what.clone(),
            self.found.clone(),
        ]
    }
}

fn verify(
    instance: &Instance,
    parent: &Site,
    clone: &Site,
    before: &Connections,
    seen: &Seen,
) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut row = |what: &str, good: bool, found: String| {
        rows.push(Row {
            what: what.to_owned(),
            found,
            good,
        })
    };

    let report = seen
        .operation
        .report
        .as_ref()
        .context("the clone has no measurements")?;
    let pings = seen.pings.window(seen.began, seen.ended);
    row(
        "freeze as a client saw it",
        pings.longest_stall < Duration::from_secs(5),
        format!(
            "{:.0} ms without an answer (nodes stood still for {:.0} ms)",
            ms(pings.longest_stall),
            us(report.freeze_us)
        ),
    );
    row(
        "time until the clone answered",
        true,
        format!("{:.2} s", seen.first_answer.as_secs_f64()),
    );
    for node in &report.nodes {
        let why = node
            .why
            .as_ref()
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        row(
            &format!("rung of {}", node.node),
            node.rung == Rung::Live,
            format!(
                "{}{why}, frozen {:.0} ms, {} MiB",
                name_of(node.rung),
                us(node.freeze_us),
                node.memory_bytes >> 20
            ),
        );
    }

    // what the clone has before anything is changed in either
    let status = clone.status()?;
    row(
        "post of the parent in the clone",
        clone.shows(POST_BEFORE)?,
        format!("{POST_BEFORE:?}"),
    );
    row(
        "MariaDB's variable in the clone",
        (status.mariadb.long_query_time - VARIABLE).abs() < 1e-9,
        format!("long_query_time = {}", status.mariadb.long_query_time),
    );
    row(
        "Redis' counter in the clone",
        status.redis.counter == COUNTER,
        status.redis.counter.to_string(),
    );
    for (site, who) in [(parent, "parent"), (clone, "clone")] {
        let now = site.connections()?;
        let alive = |of: fn(&(u64, u64)) -> u64| {
            before
                .iter()
                .filter(|(worker, ids)| now.get(worker).is_some_and(|found| of(found) == of(ids)))
                .count()
        };
        for (count, server) in [
            (alive(|ids| ids.0), "MariaDB"),
            (alive(|ids| ids.1), "Redis"),
        ] {
            let found = format!("{count} of {} workers", before.len());
            row(
                &format!("PHP-to-{server} connections alive in the {who}"),
                count == before.len() && count > 0,
                found,
            );
        }
    }

    // then each goes its own way
    parent.publish(POST_PARENT)?;
    clone.publish(POST_CLONE)?;
    row(
        "new posts are seen where they were written",
        parent.shows(POST_PARENT)? && clone.shows(POST_CLONE)?,
        "one in each".to_owned(),
    );
    row(
        "and nowhere else",
        !parent.shows(POST_CLONE)? && !clone.shows(POST_PARENT)?,
        format!("{} and {} posts", posts(parent)?, posts(clone)?),
    );
    clone.redis(instance, &["INCRBY", "offshoot:counter", "1000"])?;
    parent.sql(instance, "SET GLOBAL long_query_time = 3")?;
    let (of_parent, of_clone) = (parent.status()?, clone.status()?);
    row(
        "Redis' counters differ",
        of_parent.redis.counter == COUNTER && of_clone.redis.counter == COUNTER + 1_000,
        format!("{} and {}", of_parent.redis.counter, of_clone.redis.counter),
    );
    row(
        "MariaDB's variables differ",
        (of_parent.mariadb.long_query_time - 3.0).abs() < 1e-9
            && (of_clone.mariadb.long_query_time - VARIABLE).abs() < 1e-9,
        format!(
            "{} and {}",
            of_parent.mariadb.long_query_time, of_clone.mariadb.long_query_time
        ),
    );

    for (report, what) in [(&seen.pages, "pages"), (&seen.pings, "pings")] {
        let whole = report.whole();
        let why = report
            .failures
            .first()
            .map(|(_, why)| format!("; the first: {why}"))
            .unwrap_or_default();
        row(
            &format!("failed {what} of the parent"),
            report.failures.is_empty() && whole.answered > 0,
            format!(
                "{} of {}{why}",
                report.failures.len(),
                whole.answered + report.failures.len()
            ),
        );
    }
    Ok(rows)
}

fn posts(site: &Site) -> anyhow::Result<u64> {
    site.status()?
        .mariadb
        .posts
        .context("the status page counts no posts")
}

fn name_of(rung: Rung) -> &'static str {
    match rung {
        Rung::Live => "live",
        Rung::Disk => "disk",
        Rung::Image => "image",
        Rung::Stopped => "stopped",
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a freeze")]
fn us(us: u64) -> f64 {
    us as f64 / 1e3
}
