//! `cargo xtask bench edge`: the edge beside nginx and HAProxy on the same machine, before the same server; what idle
//! connections cost; many routes; swaps under load.

mod idle;
mod load;
mod report;
mod routes;
mod servers;
mod swap;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use self::load::{CASES, Case, Seen};
use self::report::{Figures, Report, Run, count, figure};
use self::servers::{Stage, Which};
use super::lock;
use crate::commands::{programs, setup};
use crate::instance::Instance;
use crate::interrupt;

const EXAMPLES: &str = "Examples:
  cargo xtask bench edge                                  everything
  cargo xtask bench edge --only http1,tls --rounds 3 --seconds 3
                                                          a look
  cargo xtask bench edge --only swap-2000rps              swaps of two environments under load
  cargo xtask bench edge --json out.json                  figures as JSON
docs/benchmarks.md says what the figures mean.";
/// What is measured besides the cases of load.
const OTHERS: [&str; 3] = ["idle-connections", "routes-100000", "swap-2000rps"];
const IDLE_CONNECTIONS: usize = 4_000;
const MANY_ROUTES: usize = 100_000;

/// Options of the benchmark.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// What is measured; everything when absent.
    #[arg(long, value_delimiter = ',', value_name = "NAME", value_parser = known)]
    only: Vec<String>,
    /// How often each case is measured, the proxies in turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each proxy is asked in a round.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Requests while environments are swapped.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    requests: u32,
    /// Swaps meanwhile.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    swaps: u32,
    /// Write every figure here as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the benchmark keeps everything; removed at the end.
    #[arg(long, default_value = "/var/lib/offshoot-bench")]
    dir: PathBuf,
    /// Port on loopback at which the environments that are swapped answer.
    #[arg(long, default_value_t = 8079)]
    port: u16,
    /// Directory with the programs; they are built when absent.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Do not install packages first.
    #[arg(long)]
    no_setup: bool,
}

fn known(name: &str) -> Result<String, String> {
    let names = || CASES.iter().map(|case| case.name).chain(OTHERS);
    if names().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    Err(format!("one of {}", names().collect::<Vec<_>>().join(", ")))
}

/// Runs the benchmark, prints a table and writes the JSON; also of what was measured before an error.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let _lock = lock()?;
    if !arguments.no_setup {
        setup(&["run", "build", "test", "bench"])?;
    }
    let programs = programs(arguments.programs.as_deref())?;
    let mut report = Report::new();
    interrupt::watch()?;
    let scratch = arguments.dir.with_extension("edge");
    let measured = compare(arguments, &programs, &scratch, &mut report);
    let cleaned = match fs::remove_dir_all(&scratch) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(scratch.display().to_string())
        }
        _ => Ok(()),
    };
    let swapped = measured
        .and(cleaned)
        .and_then(|()| swaps(arguments, programs, &mut report));
    if !report.runs.is_empty() {
        print!("{}", report.table());
        if let Some(path) = &arguments.json {
            fs::write(path, report.json()?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    swapped
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

fn compare(
    arguments: &Arguments,
    programs: &Path,
    scratch: &Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let cases: Vec<_> = CASES
        .iter()
        .filter(|case| arguments.wants(case.name))
        .collect();
    let [idle, many, _] = OTHERS;
    if cases.is_empty() && !arguments.wants(idle) && !arguments.wants(many) {
        return Ok(());
    }
    fs::create_dir_all(scratch).with_context(|| scratch.display().to_string())?;
    let (stage, _backend) = Stage::set(scratch, programs).context("the server behind")?;
    let all = [Which::Edge, Which::Nginx, Which::Haproxy];
    for case in cases {
        let figures = rounds(arguments, &stage, case, &all, scratch)?;
        report.runs.push(Run {
            name: case.name.to_owned(),
            figures,
        });
    }
    if arguments.wants(idle) {
        let mut figures = Figures::default();
        for _ in 0..arguments.rounds.min(3) {
            for which in all {
                interrupt::check()?;
                let server = stage.start(which)?;
                let measured =
                    idle::measure(&server, IDLE_CONNECTIONS).with_context(|| which.name())?;
                println!(
                    "{idle}: {}: {:.0} bytes a connection",
                    which.name(),
                    measured.bytes_per_connection
                );
                figures.add(
                    &figure(which, "bytes_per_connection"),
                    measured.bytes_per_connection,
                );
            }
        }
        report.runs.push(Run {
            name: idle.to_owned(),
            figures,
        });
    }
    if arguments.wants(many) {
        let server = stage.start(Which::Edge)?;
        let mut figures = Figures::default();
        for one in routes::measure(&stage, &server, MANY_ROUTES, arguments.rounds)? {
            println!(
                "{many}: loaded in {:.0} ms, switched in {:.2} ms",
                one.load_ms, one.switch_ms
            );
            figures.add("load_ms", one.load_ms);
            figures.add("switch_ms", one.switch_ms);
            figures.add("stall_ms", one.stall_ms);
        }
        report.runs.push(Run {
            name: many.to_owned(),
            figures,
        });
    }
    Ok(())
}

/// The proxies in turns, each round beginning with another. One runs at a time.
fn rounds(
    arguments: &Arguments,
    stage: &Stage,
    case: &Case,
    all: &[Which; 3],
    scratch: &Path,
) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    for round in 0..arguments.rounds {
        let mut turn = *all;
        turn.rotate_left(round as usize % all.len());
        for which in turn {
            interrupt::check()?;
            let server = stage.start(which)?;
            // connections to the server behind are made, pages are in memory
            case.run(server.http, server.https, 1, scratch)
                .with_context(|| format!("{} of {}", case.name, which.name()))?;
            let before = server.processor();
            let seen: Seen = case
                .run(server.http, server.https, arguments.seconds, scratch)
                .with_context(|| format!("{} of {}", case.name, which.name()))?;
            let cpu = server.processor() - before;
            println!(
                "{}: {}: {:.0} requests/s, p99 {:.2} ms",
                case.name,
                which.name(),
                seen.requests_per_s,
                seen.p99_ms
            );
            let mut add = |name: &str, value| figures.add(&figure(which, name), value);
            add("requests_per_s", seen.requests_per_s);
            add("p50_ms", seen.p50_ms);
            add("p99_ms", seen.p99_ms);
            add(
                "cpu_us_per_request",
                cpu.as_secs_f64() * 1e6 / seen.requests.max(1.0),
            );
        }
    }
    Ok(figures)
}

fn swaps(arguments: &Arguments, programs: PathBuf, report: &mut Report) -> anyhow::Result<()> {
    let [.., name] = OTHERS;
    if !arguments.wants(name) {
        return Ok(());
    }
    let directory = arguments.dir.file_name().context("--dir needs a name")?;
    let instance = Instance {
        label: "bench",
        state: arguments.dir.clone(),
        run: PathBuf::from("/run").join(directory),
        port: arguments.port,
        programs,
        number: 191,
    };
    let measured = instance
        .start()
        .and_then(|()| swap::measure(&instance, arguments.requests, arguments.swaps));
    let removed = instance.remove();
    let swapped = measured?;
    let mut figures = Figures::default();
    figures.add("requests", count(swapped.requests));
    figures.add("failed_requests", count(swapped.failed.len()));
    figures.add("requests_per_s", swapped.requests_per_s);
    figures.add("p99_ms", swapped.p99_ms);
    for ms in &swapped.switch_ms {
        figures.add("switch_ms", *ms);
    }
    report.runs.push(Run {
        name: name.to_owned(),
        figures,
    });
    removed?;
    match swapped.failed.first() {
        Some(why) => bail!(
            "{} of {} requests failed while environments were swapped: {why}",
            swapped.failed.len(),
            swapped.requests
        ),
        None => Ok(()),
    }
}
