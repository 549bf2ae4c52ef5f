//! Tests and checks.

use std::process::{Command, Stdio};

use anyhow::bail;

use crate::commands::{cargo, run, setup};

/// `cargo xtask test`: the README's test command.
pub(crate) fn test(nextest: &[String]) -> anyhow::Result<()> {
    setup(&["run", "build", "test", "browser"])?;
    // the tests start these programs
    run(cargo().args(["build", "--workspace", "--bins"]))?;
    if has("nextest") {
        return run(cargo()
            .args(["nextest", "run", "--workspace"])
            .args(nextest));
    }
    println!("cargo-nextest is not installed: the tests run with cargo test");
    run(cargo().args(["test", "--workspace"]))
}

/// `cargo xtask ci`: every check, also after one that failed.
pub(crate) fn ci() -> anyhow::Result<()> {
    let mut failed = Vec::new();
    let mut skipped = Vec::new();
    let mut check = |name: &str, command: &mut Command| {
        if let Err(error) = run(command) {
            eprintln!("xtask: {name}: {error:#}");
            failed.push(name.to_owned());
        }
    };
    check("fmt", cargo().args(["fmt", "--all", "--check"]));
    check(
        "clippy",
        cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    );
    check("build", cargo().args(["build", "--workspace", "--bins"]));
    if has("nextest") {
        check(
            "test",
            cargo().args(["nextest", "run", "--workspace", "--no-fail-fast"]),
        );
    } else {
        check(
            "test",
            cargo().args(["test", "--workspace", "--no-fail-fast"]),
        );
    }
    check(
        "doc",
        cargo()
            // those who read it work on it, and the links lead into modules
            .args(["doc", "--workspace", "--no-deps"])
            .arg("--document-private-items")
            .env(
                "RUSTDOCFLAGS",
                "-D warnings -A rustdoc::private-intra-doc-links",
            ),
    );
    for (tool, arguments) in [
        ("deny", &["deny", "check"][..]),
        ("machete", &["machete"][..]),
    ] {
        if has(tool) {
            check(tool, cargo().args(arguments));
        } else {
            println!(
                "SKIPPED: {tool}: cargo-{tool} is not installed (`cargo install --locked cargo-{tool}`)"
            );
            skipped.push(tool);
        }
    }
    println!(
        "ci: {} failed {failed:?}, {} skipped {skipped:?}",
        failed.len(),
        skipped.len()
    );
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("failed: {}", failed.join(", "))
    }
}

/// Whether cargo has that subcommand.
fn has(tool: &str) -> bool {
    let asked = cargo()
        .args([tool, "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}
