//! `cargo xtask bench clone`: what clones cost, for growing memory and growing numbers of files, while the parent is
//! asked every millisecond and written to; beside it what plain runc and CRIU do, and Podman.

mod bulk;
mod compare;
mod figures;
mod ours;
mod plain;
mod podman;
mod report;
mod settle;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use offshoot_model::view::EnvironmentView;

use self::bulk::{Bulk, human, size, value_size};
use self::compare::Container;
use self::figures::{Measured, mib};
use self::ours::CLONE;
use self::report::{By, Report, Run, Setting};
use super::lock;
use crate::commands::{programs, root, setup};
use crate::instance::Instance;
use crate::interrupt;
use crate::wordpress::Site;

const PARENT: &str = "bench";

const EXAMPLES: &str = "Examples:
  cargo xtask bench clone                                 everything
  cargo xtask bench clone --sizes 0,256MiB --runs 2 --no-files --no-plain --no-podman
                                                          a look
  cargo xtask bench clone --sizes 1GiB --settle 60        and the memory that a clone costs
  cargo xtask bench clone --writes 0 --json out.json      bulk data at rest; figures as JSON
docs/benchmarks.md says what the figures mean.";

/// Options of the benchmark.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Bytes in Redis.
    #[arg(long, value_delimiter = ',', default_value = "0,256MiB,1GiB,4GiB", value_parser = size)]
    sizes: Vec<u64>,
    /// Files on a volume, measured without memory beyond the usual.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    files: Vec<u64>,
    /// Clones of each.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Values in Redis overwritten per second meanwhile, chosen at random; 0 for none.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    writes: u32,
    /// Bytes of such a value, a multiple of 16. With what Redis adds, 4000 fill a page of memory.
    #[arg(long, default_value = "4000", value_parser = value_size)]
    value: u32,
    /// After each size, use one more clone lightly for that many seconds and tell what memory it costs; 0 does not.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=86_400))]
    settle: u64,
    /// Write every figure here as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the benchmark's daemon keeps everything; removed at the end.
    #[arg(long, default_value = "/var/lib/offshoot-bench")]
    dir: PathBuf,
    /// Port on loopback at which the environments answer.
    #[arg(long, default_value_t = 8079)]
    port: u16,
    /// Directory with the programs; they are built when absent.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Do not install packages first.
    #[arg(long)]
    no_setup: bool,
    /// Do not measure files.
    #[arg(long)]
    no_files: bool,
    /// Do not measure plain runc and CRIU.
    #[arg(long)]
    no_plain: bool,
    /// Do not measure Podman.
    #[arg(long)]
    no_podman: bool,
    /// Leave the daemon and the environment for a look.
    #[arg(long)]
    keep: bool,
}

/// Runs the benchmark, prints a table and writes the JSON; also of what was measured before an error.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let _lock = lock()?;
    if !arguments.no_setup {
        setup(&["run", "build", "test"])?;
    }
    let name = arguments.dir.file_name().context("--dir needs a name")?;
    let instance = Instance {
        label: "bench",
        state: arguments.dir.clone(),
        run: PathBuf::from("/run").join(name),
        port: arguments.port,
        programs: programs(arguments.programs.as_deref())?,
        number: 191,
    };
    let mut report = Report {
        machine: Setting::this(),
        value: arguments.value,
        writes: arguments.writes,
        runs: Vec::new(),
    };
    interrupt::watch()?;
    let measured = measure(arguments, &instance, &mut report);
    let removed = if arguments.keep {
        Ok(())
    } else {
        instance.remove()
    };
    if !report.runs.is_empty() {
        print!("{}", report.table());
        if let Some(path) = &arguments.json {
            fs::write(path, report.json()?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    match (measured, removed) {
        (Err(error), Err(left)) => Err(error.context(format!("{left:#}"))),
        (measured, removed) => measured.and(removed),
    }
}

fn measure(arguments: &Arguments, instance: &Instance, report: &mut Report) -> anyhow::Result<()> {
    instance.start()?;
    plain::Runc::sweep(instance);
    podman::Podman::sweep(instance);
    instance.ensure_absent(&[CLONE, PARENT])?;
    let compose = root().join("examples/wordpress/compose.yaml");
    let compose = compose
        .to_str()
        .context("the checkout's path is not text")?;
    interrupt::check()?;
    instance.show_command(&["create", "-f", compose, "--name", PARENT])?;
    interrupt::check()?;
    let site = Site::of(&instance.json(&["show", PARENT])?)?;
    site.install("Offshoot bench")?;
    let parent = Parent {
        instance,
        redis: ours::redis_address(instance, &site)?,
        site,
        runs: arguments.runs,
    };
    let bulk = |bytes| Bulk {
        bytes,
        value: arguments.value,
        writes: arguments.writes,
    };
    let sizes = that_fit(&arguments.sizes)?;
    for bytes in &sizes {
        let name = format!("redis-{}", human(*bytes));
        println!("{name}: filling");
        bulk(*bytes).fill(parent.redis)?;
        let mut run = parent.clones(&name, bulk(*bytes))?;
        if arguments.settle > 0 {
            let settled = settle::measure(instance, &parent.site, arguments.settle)
                .with_context(|| format!("{name}, what one more clone adds"))?;
            println!("{}", settled.line(&name));
            instance.ensure_absent(&[CLONE])?;
            run.settled = Some(settled);
        }
        report.runs.push(run);
    }
    bulk(0).fill(parent.redis)?;
    for files in arguments.files.iter().filter(|_| !arguments.no_files) {
        let name = format!("files-{files}");
        println!("{name}: making them");
        ours::make_files(instance, &parent.site, *files)?;
        report.runs.push(parent.clones(&name, bulk(0))?);
    }
    if !arguments.no_plain {
        for bytes in &sizes {
            let run = parent.compared(By::PlainRuncCriu, bulk(*bytes), plain::Runc::start)?;
            report.runs.push(run);
        }
    }
    if arguments.no_podman {
        return Ok(());
    }
    if report.machine.podman.is_none() {
        println!("SKIPPED: podman is not installed");
        return Ok(());
    }
    for bytes in &sizes {
        let run = parent.compared(By::Podman, bulk(*bytes), podman::Podman::start)?;
        report.runs.push(run);
    }
    Ok(())
}

/// The sizes that the host has memory for: in the parent, on their way, and in the clone.
fn that_fit(sizes: &[u64]) -> anyhow::Result<Vec<u64>> {
    let available = settle::available()?;
    let (fit, too_big): (Vec<u64>, Vec<u64>) =
        sizes.iter().partition(|bytes| **bytes <= available / 3);
    for bytes in too_big {
        println!(
            "SKIPPED: {0} in Redis: a clone of it needs three times {0} of memory, and {1:.0} MiB are available",
            human(bytes),
            mib(available)
        );
    }
    Ok(fit)
}

/// The environment that is cloned.
struct Parent<'a> {
    instance: &'a Instance,
    site: Site,
    /// Where its Redis answers.
    redis: SocketAddr,
    /// Clones of each.
    runs: u32,
}

impl Parent<'_> {
    fn clones(&self, name: &str, bulk: Bulk) -> anyhow::Result<Run> {
        self.repeat(By::Offshoot, name, bulk, || {
            let one = ours::clone_once(self.instance, &self.site, self.redis, bulk)?;
            self.instance.ensure_absent(&[CLONE])?;
            Ok(one)
        })
    }

    /// The same Redis under another program.
    fn compared<C: Container>(
        &self,
        by: By,
        bulk: Bulk,
        start: fn(&Instance, &Path) -> anyhow::Result<C>,
    ) -> anyhow::Result<Run> {
        let view: EnvironmentView = self.instance.json(&["show", &self.site.environment])?;
        let node = ours::redis_node(&view, &self.site)?;
        let environment = self.instance.state.join("pool/envs").join(view.id.as_str());
        let rootfs = environment.join("nodes").join(&node.name);
        let name = format!("redis-{}", human(bulk.bytes));
        let once = || compare::clone_once(&start(self.instance, &rootfs)?, bulk);
        self.repeat(by, &name, bulk, || {
            once().or_else(|error| {
                // CRIU may find the port taken by a connection that is just ending. It is not what is measured here.
                println!("{}{name}: once more, for {error:#}", by.prefix());
                interrupt::check()?;
                once()
            })
        })
    }

    fn repeat(
        &self,
        by: By,
        name: &str,
        bulk: Bulk,
        mut once: impl FnMut() -> anyhow::Result<Measured>,
    ) -> anyhow::Result<Run> {
        let shown = format!("{}{name}", by.prefix());
        let mut measured = Vec::new();
        for number in 1..=self.runs {
            interrupt::check()?;
            let one = once().with_context(|| format!("{shown}, clone {number}"))?;
            println!(
                "{shown}: {number}/{}: freeze {:.1} ms, first answer {:.0} ms",
                self.runs, one.freeze_ms, one.first_answer_ms
            );
            measured.push(one);
        }
        Run::of(by, name, bulk.bytes, &measured)
    }
}
