//! What was measured on.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// The machine at hand; what cannot be told is `unknown`.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    processor: String,
    processors: usize,
    memory_mib: u64,
    kernel: String,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let field = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or_else(
                || "unknown".to_owned(),
                |(_, value)| value.trim().to_owned(),
            )
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let kib = memory
            .split(' ')
            .next()
            .and_then(|kib| kib.parse::<u64>().ok());
        Self {
            processor: field("/proc/cpuinfo", "model name"),
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_mib: kib.unwrap_or(0) >> 10,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            processor,
            processors,
            memory_mib,
            kernel,
        } = self;
        write!(
            f,
            "{processors} x {processor}, {memory_mib} MiB, Linux {kernel}"
        )
    }
}

/// The first line of what a program says of its version.
pub(crate) fn version(program: &Path, argument: &str) -> String {
    // nginx says it where others complain
    let said = Command::new(program).arg(argument).output();
    let said = said.map(|said| [said.stdout, said.stderr].concat());
    let text = said.map_or_else(
        |_| String::new(),
        |said| String::from_utf8_lossy(&said).into_owned(),
    );
    match text.lines().next() {
        Some(line) if !line.is_empty() => line.to_owned(),
        _ => "unknown".to_owned(),
    }
}
