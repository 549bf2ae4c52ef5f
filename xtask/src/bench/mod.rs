//! `cargo xtask bench clone`: the freeze of a clone as a client sees it that pings every millisecond, and the time
//! until the clone answers, for growing memory and growing numbers of files; beside it what plain runc and CRIU do.

mod plain;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use offshoot_load::{Pinger, Rate};
use offshoot_model::view::{EnvironmentView, PoolView};
use offshoot_model::{Operation, Rung};

use self::report::{Machine, Measured, Report, Run};
use crate::commands::{programs, root, setup};
use crate::demo::FirstAnswer;
use crate::instance::Instance;
use crate::wordpress::Site;

const PARENT: &str = "bench";
const CLONE: &str = "bench-clone";
/// Size of the values that fill Redis, bytes.
const VALUE: u64 = 64 << 10;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// A benchmark is to measure long freezes, not to cut them off.
const MAX_FREEZE: &str = "60s";
/// How long the parent is measured on its own before a clone.
const BEFORE: Duration = Duration::from_secs(3);

/// Options of the benchmark.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Bytes in Redis, for instance 0,256MiB,1GiB,4GiB.
    #[arg(long, value_delimiter = ',', default_value = "0,256MiB,1GiB", value_parser = size)]
    sizes: Vec<u64>,
    /// Files on a volume, measured without memory beyond the usual.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    files: Vec<u64>,
    /// Clones of each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Write the result here as JSON.
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
    /// Do not measure plain runc and CRIU.
    #[arg(long)]
    no_plain: bool,
    /// Leave the daemon and the environment for a look.
    #[arg(long)]
    keep: bool,
}

/// Runs the benchmark, prints a table and writes the JSON.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
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
    let measured = measure(arguments, &instance);
    let removed = if arguments.keep {
        Ok(())
    } else {
        instance.remove()
    };
    let report = measured?;
    print!("{}", report.table());
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    removed
}

fn measure(arguments: &Arguments, instance: &Instance) -> anyhow::Result<Report> {
    let mut report = Report {
        machine: Machine::this(),
        runs: Vec::new(),
    };
    instance.start()?;
    instance.ensure_absent(&[CLONE, PARENT])?;
    let compose = root().join("examples/wordpress/compose.yaml");
    let compose = compose
        .to_str()
        .context("the checkout's path is not text")?;
    instance.show_command(&["create", "-f", compose, "--name", PARENT])?;
    let site = Site::of(&instance.json(&["show", PARENT])?)?;
    site.install("Offshoot bench")?;
    for bytes in &arguments.sizes {
        let name = format!("redis-{}", human(*bytes));
        println!("{name}: filling");
        fill(instance, &site, *bytes)?;
        report
            .runs
            .push(clones(instance, &site, &name, arguments.runs)?);
    }
    fill(instance, &site, 0)?;
    for files in &arguments.files {
        let name = format!("files-{files}");
        println!("{name}: making them");
        make_files(instance, &site, *files)?;
        report
            .runs
            .push(clones(instance, &site, &name, arguments.runs)?);
    }
    if !arguments.no_plain {
        for bytes in &arguments.sizes {
            let name = format!("plain-runc-criu-redis-{}", human(*bytes));
            println!("{name}: checkpoint --leave-running, then restore");
            report.runs.push(plain::measure(
                instance,
                &site,
                &name,
                *bytes,
                VALUE,
                arguments.runs,
            )?);
        }
    }
    Ok(report)
}

/// Makes Redis hold that many bytes of its own, no more.
fn fill(instance: &Instance, site: &Site, bytes: u64) -> anyhow::Result<()> {
    site.redis(instance, &["CONFIG", "SET", "maxmemory", "0"])?;
    site.redis(instance, &["FLUSHALL", "SYNC"])?;
    // so that memory that is free is given back before the next measurement
    site.redis(instance, &["MEMORY", "PURGE"])?;
    for (first, last) in plain::batches(bytes, VALUE) {
        site.redis(
            instance,
            &[
                "EVAL",
                plain::FILL,
                "0",
                &first.to_string(),
                &last.to_string(),
                &VALUE.to_string(),
            ],
        )?;
    }
    Ok(())
}

fn make_files(instance: &Instance, site: &Site, files: u64) -> anyhow::Result<()> {
    let script = format!(
        "rm -rf /srv/wordpress/wp-content/uploads/bench && mkdir /srv/wordpress/wp-content/uploads/bench && \
         cd /srv/wordpress/wp-content/uploads/bench && seq {files} | xargs -r -n 1000 touch"
    );
    instance.exec(&site.environment, &site.app, &["sh", "-c", &script])?;
    Ok(())
}

fn clones(instance: &Instance, site: &Site, name: &str, runs: u32) -> anyhow::Result<Run> {
    let mut measured = Vec::new();
    for number in 1..=runs {
        let one = clone_once(instance, site).with_context(|| format!("{name}, clone {number}"))?;
        println!(
            "{name}: {number}/{runs}: freeze {:.1} ms, first answer {:.0} ms",
            one.freeze_ms, one.first_answer_ms
        );
        measured.push(one);
        instance.ensure_absent(&[CLONE])?;
    }
    Ok(Run::of(name, &measured))
}

fn clone_once(instance: &Instance, site: &Site) -> anyhow::Result<Measured> {
    let used = |instance: &Instance| -> anyhow::Result<u64> {
        // the pool counts what is written out
        crate::commands::output(
            std::process::Command::new("sync")
                .arg("-f")
                .arg(&instance.state),
        )?;
        Ok(instance.json::<PoolView>(&["pool", "status"])?.used)
    };
    let disk_before = used(instance)?;
    let pinger = Pinger::start(&site.static_path()?, Rate::EVERY_MILLISECOND)?;
    let started = Instant::now();
    std::thread::sleep(BEFORE);
    let began = Instant::now();
    let answered = FirstAnswer::watch(site.target_of(CLONE));
    let operation: Operation =
        instance.json(&["clone", PARENT, "--name", CLONE, "--max-freeze", MAX_FREEZE])?;
    let first_answer = answered.wait(ANSWER_TIMEOUT)?;
    let ended = Instant::now();
    let pings = pinger.finish();
    let clone: EnvironmentView = instance.json(&["show", CLONE])?;
    let report = operation.report.context("the clone has no measurements")?;
    if let Some(node) = report.nodes.iter().find(|node| node.rung != Rung::Live) {
        bail!(
            "{} was not cloned live: {}",
            node.node,
            node.why.as_deref().unwrap_or("no reason given")
        );
    }
    if let Some((_, why)) = pings.failures.first() {
        bail!(
            "{} pings of the parent failed; the first: {why}",
            pings.failures.len()
        );
    }
    // the first half second warms up
    let before = pings.window(started + Duration::from_millis(500), began);
    let during = pings.window(began, ended);
    let memory = clone
        .layers
        .iter()
        .flat_map(|layer| &layer.nodes)
        .filter_map(|node| node.memory_bytes)
        .sum();
    Ok(Measured {
        freeze_ms: during.longest_stall.as_secs_f64() * 1e3,
        first_answer_ms: first_answer.as_secs_f64() * 1e3,
        parent_throughput_ratio: Some(during.per_second / before.per_second.max(1.0)),
        added_memory: Some(memory),
        added_disk: Some(used(instance)?.saturating_sub(disk_before)),
        bytes_copied: Some(report.memory_bytes),
    })
}

/// `256MiB`, `1GiB`, `0`, `1048576`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err("write a size such as 0, 256MiB or 1GiB".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write a number first".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= 1 << 40)
        .ok_or_else(|| "that is too much".to_owned())
}

/// As people write sizes, exact.
fn human(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("0", 0),
            ("256MiB", 256 << 20),
            ("1GiB", 1 << 30),
            ("1000", 1_000),
            ("3KiB", 3 << 10),
        ] {
            assert_eq!(size(text), Ok(bytes));
            assert_eq!(human(bytes), text);
        }
        for wrong in ["", "1GB", "GiB", "99999999GiB", "-1"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
    }
}
