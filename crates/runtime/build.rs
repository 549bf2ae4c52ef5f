//! Compiles the small init, a program of its own that must be linked statically: it runs inside images of every kind.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = "../sys/init/init.rs";
    println!("cargo::rerun-if-changed={source}");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let out = PathBuf::from(variable("OUT_DIR")).join("offshoot-init");
    let status = Command::new(variable("RUSTC"))
        .args([
            "--edition=2024",
            "--crate-name=offshoot_init",
            "--target",
            &variable("TARGET"),
        ])
        .args([
            "-Ctarget-feature=+crt-static",
            "-Cpanic=abort",
            "-Copt-level=s",
            "-Cstrip=symbols",
            "-Clto=fat",
        ])
        .arg("-o")
        .arg(&out)
        .arg(source)
        .status();
    if !status.is_ok_and(|status| status.success()) {
        println!("cargo::warning=no static C library: nodes with `init: true` will be refused");
        if let Err(e) = std::fs::write(&out, "") {
            println!("cargo::error=cannot write {}: {e}", out.display());
        }
    }
}
