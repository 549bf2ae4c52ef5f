//! Compiles the shared objects of `preload/` into files that the crate carries in itself, so that there is nothing to install.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=preload");
    println!("cargo::rerun-if-changed=src/pagemap/abi.rs");
    let var = |name| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let into = PathBuf::from(var("OUT_DIR")).join("criu.so");
    if var("CARGO_CFG_TARGET_ARCH") != "x86_64" {
        std::fs::write(into, []).expect("OUT_DIR can be written");
        return;
    }
    let compiled = Command::new(var("RUSTC"))
        .args(["--edition=2024", "--crate-type=cdylib", "--crate-name=criu"])
        .args(["-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols"])
        .args(["--target", &var("TARGET")])
        .args(["preload/criu.rs", "-o"])
        .arg(into)
        .status()
        .expect("the compiler can be started");
    assert!(compiled.success(), "preload/criu.rs does not compile");
}
