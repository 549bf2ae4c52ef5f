//! `cargo xtask bench dashboard`: how soon a person sees the list of environments.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use offshoot_browser::Client;
use serde_json::{Map, Value, json};

use super::lock;
use super::machine::{Machine, version};
use super::spread::Spread;
use crate::commands::{cargo, root, run as run_command, setup};
use crate::{interrupt, table};

const EXAMPLES: &str = "Examples:
  cargo xtask bench dashboard                             100 environments, 20 loads
  cargo xtask bench dashboard --environments 10,100,1000 --json out.json
docs/benchmarks.md says what the figures mean.";
/// Longest wait for a page's first paint.
const PAINTED: Duration = Duration::from_secs(30);
/// What a browser tells of the page it shows: when its first byte came, when something was first seen, how many bytes
/// of HTML there were. All times from the click on.
const TIMES: &str = "const paint = performance.getEntriesByName('first-contentful-paint')[0]; \
    const page = performance.getEntriesByType('navigation')[0]; \
    return paint && page ? {paint: paint.startTime, byte: page.responseStart, bytes: page.decodedBodySize} : null";
/// The last row of which all is seen without scrolling, from 0.
const LAST_ROW: &str = "return [...document.querySelectorAll('table.list tbody tr')] \
    .findLastIndex(row => row.getBoundingClientRect().bottom <= innerHeight)";
/// When the row that is watched was painted (W3C Element Timing), as `TIMES`.
const ROW_TIME: &str = "const done = arguments[0]; \
    new PerformanceObserver(seen => done(seen.getEntries()[0].startTime)).observe({type: 'element', buffered: true})";

/// Options of the benchmark.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// How many environments there are.
    #[arg(long, value_delimiter = ',', default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    environments: Vec<u32>,
    /// How often the page is loaded, with its style and scripts in the browser's cache and without.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    loads: u32,
    /// Write every figure here as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The program that serves the pages (the example `pretend`); it is built when absent.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Do not install packages first.
    #[arg(long)]
    no_setup: bool,
}

/// What was measured with so many environments.
struct Run {
    environments: u32,
    paint: Spread,
    rows: Spread,
    cold: Spread,
    smallest: Spread,
    byte: Spread,
    kib: Spread,
}

/// One load.
struct Load {
    paint: f64,
    /// When the last row of the first screen was painted, where a row is watched.
    rows: Option<f64>,
    byte: f64,
    kib: f64,
}

/// Runs the benchmark, prints a table and writes the JSON.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let _lock = lock()?;
    if !arguments.no_setup {
        setup(&["build", "browser"])?;
    }
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => build()?,
    };
    interrupt::watch()?;
    let mut runs = Vec::new();
    for environments in &arguments.environments {
        runs.push(measure(&program, *environments, arguments.loads)?);
    }
    let (machine, chromium) = (Machine::this(), version("chromium".as_ref(), "--version"));
    print!("\n{}\n{machine}\n{chromium}\n", rendered(&runs));
    println!(
        "Medians, in brackets the least and the most of {} loads.",
        arguments.loads
    );
    if let Some(path) = &arguments.json {
        let report = json!({
            "machine": machine,
            "programs": {"chromium": chromium},
            "runs": runs.iter().map(Run::json).collect::<Vec<_>>(),
        });
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Builds the dashboard that pretends, for use; gives the program.
fn build() -> anyhow::Result<PathBuf> {
    run_command(cargo().args([
        "build",
        "--release",
        "-p",
        "offshoot-dashboard",
        "--example",
        "pretend",
    ]))?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release/examples/pretend"))
}

/// A dashboard that ends with this.
struct Pretend {
    process: Child,
    link: String,
}

impl Pretend {
    fn start(program: &Path, environments: u32) -> anyhow::Result<Self> {
        let mut process = Command::new(program)
            .arg(environments.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = process.stdout.take();
        let mut pretend = Self {
            process,
            link: String::new(),
        };
        let output = output.context("it has no standard output")?;
        BufReader::new(output).read_line(&mut pretend.link)?;
        Ok(pretend)
    }
}

impl Drop for Pretend {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn measure(program: &Path, environments: u32, loads: u32) -> anyhow::Result<Run> {
    let pretend = Pretend::start(program, environments)?;
    let client = Client::start(&["--window-size=1280,860"])?;
    client.goto(pretend.link.trim())?;
    client.click(&client.find("//button")?)?;
    let origin = pretend.link.split("/sign-in").next().unwrap_or_default();
    let list = format!("{origin}/");
    let rows = "return document.querySelectorAll('table.list tbody tr').length";
    let (mut warm, mut cold, mut smallest) = (Vec::new(), Vec::new(), Vec::new());
    load(&client, &list)?;
    let shown = client.execute(rows, &[])?;
    if shown != json!(environments) {
        bail!("the list shows {shown} environments, not {environments}");
    }
    let last = client.execute(LAST_ROW, &[])?;
    client.goto(&format!("{origin}/watch/{last}"))?;
    let load_list = || {
        let mut load = load(&client, &list)?;
        load.rows = client.execute_async(ROW_TIME, &[])?.as_f64();
        anyhow::Ok(load)
    };
    for _ in 0..loads {
        interrupt::check()?;
        smallest.push(load(&client, &format!("{origin}/smallest"))?);
        warm.push(load_list()?);
        client.chromium("Network.clearBrowserCache", json!({}))?;
        cold.push(load_list()?);
    }
    let spread = |loads: &[Load], of: fn(&Load) -> Option<f64>| {
        let all = loads.iter().map(of).collect();
        Spread::of(all).context("nothing was measured")
    };
    Ok(Run {
        environments,
        paint: spread(&warm, |load| Some(load.paint))?,
        rows: spread(&warm, |load| load.rows)?,
        cold: spread(&cold, |load| Some(load.paint))?,
        smallest: spread(&smallest, |load| Some(load.paint))?,
        byte: spread(&warm, |load| Some(load.byte))?,
        kib: spread(&warm, |load| Some(load.kib))?,
    })
}

/// Loads the page as somebody does who opens it, from an empty one.
fn load(client: &Client, url: &str) -> anyhow::Result<Load> {
    client.goto("about:blank")?;
    client.goto(url)?;
    let until = Instant::now() + PAINTED;
    loop {
        let times = client.execute(TIMES, &[])?;
        let time = |name: &str| times[name].as_f64();
        if let (Some(paint), Some(byte), Some(bytes)) = (time("paint"), time("byte"), time("bytes"))
        {
            return Ok(Load {
                paint,
                rows: None,
                byte,
                kib: bytes / 1024.0,
            });
        }
        if Instant::now() > until {
            bail!("the browser painted nothing in {} s", PAINTED.as_secs());
        }
        sleep(Duration::from_millis(10));
    }
}

impl Run {
    fn figures(&self) -> [(&'static str, &Spread); 6] {
        [
            ("first_paint_ms", &self.paint),
            ("first_rows_ms", &self.rows),
            ("first_paint_cold_ms", &self.cold),
            ("smallest_paint_ms", &self.smallest),
            ("first_byte_ms", &self.byte),
            ("page_kib", &self.kib),
        ]
    }

    fn json(&self) -> Value {
        let mut fields = Map::new();
        fields.insert(
            "name".to_owned(),
            json!(format!("environments-{}", self.environments)),
        );
        for (name, spread) in self.figures() {
            fields.insert(name.to_owned(), json!(spread.median));
            fields.insert(format!("{name}_min"), json!(spread.min));
            fields.insert(format!("{name}_max"), json!(spread.max));
            fields.insert(format!("{name}_all"), json!(spread.all));
        }
        Value::Object(fields)
    }
}

fn rendered(runs: &[Run]) -> String {
    let heads = [
        "environments",
        "first paint ms",
        "rows in sight",
        "with an empty cache",
        "smallest page",
        "first byte ms",
        "page KiB",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(runs.iter().map(|run| {
        let mut row = vec![run.environments.to_string()];
        row.extend(run.figures().map(|(_, spread)| {
            format!("{:.0} ({:.0}-{:.0})", spread.median, spread.min, spread.max)
        }));
        row
    }));
    table::render(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_to_people_and_programs() {
        let spread = |value| Spread::of(vec![Some(value), Some(value + 2.0)]).unwrap();
        let run = Run {
            environments: 100,
            paint: spread(80.0),
            rows: spread(84.0),
            cold: spread(120.0),
            smallest: spread(60.0),
            byte: spread(9.0),
            kib: spread(88.0),
        };
        assert_eq!(run.json()["name"], "environments-100");
        assert_eq!(run.json()["first_paint_ms"], 81.0);
        assert_eq!(run.json()["first_rows_ms"], 85.0);
        assert_eq!(run.json()["first_paint_cold_ms_max"], 122.0);
        assert_eq!(run.json()["first_byte_ms_all"], json!([9.0, 11.0]));
        let text = rendered(&[run]);
        assert!(text.contains("81 (80-82)"), "{text}");
    }
}
