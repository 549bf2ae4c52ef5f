//! Running other programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Runs a command with its messages on the terminal.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    println!("$ {}", shown(command));
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        let messages = String::from_utf8_lossy(&output.stderr);
        let from = messages
            .char_indices()
            .rev()
            .nth(2_000)
            .map_or(0, |(at, _)| at);
        bail!(
            "{} ended with {}: {}",
            shown(command),
            output.status,
            messages.get(from..).unwrap_or_default().trim()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} did not print text", shown(command)))
}

/// A command line as a person would type it.
fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

/// Installs what is missing.
pub(crate) fn setup(sets: &[&str]) -> anyhow::Result<()> {
    run(Command::new("bash")
        .arg(root().join("packaging/setup.sh"))
        .args(sets))
}

/// The directory with the programs: the one given, or the one they are built into.
pub(crate) fn programs(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    match given {
        Some(directory) => directory
            .canonicalize()
            .with_context(|| directory.display().to_string()),
        None => build_release(),
    }
}

/// Builds the programs for use and returns where they are.
fn build_release() -> anyhow::Result<PathBuf> {
    run(cargo().args([
        "build",
        "--release",
        "--bins",
        "-p",
        "offshoot-cli",
        "-p",
        "offshoot-shim",
        "-p",
        "offshoot-edge",
    ]))?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release"))
}
