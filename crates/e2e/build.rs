//! Compiles the checker of `checker/` with the C compiler that other dependencies need too.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=checker");
    println!("cargo::rerun-if-env-changed=CC");
    let var = |name| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let into = PathBuf::from(var("OUT_DIR")).join("checker");
    let sources = ["main", "part", "page", "pages", "churn", "exchange"];
    let compiled = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
        .args(["-std=gnu11", "-O3", "-g", "-Wall", "-Wextra", "-pthread"])
        .args(sources.map(|name| format!("checker/{name}.c")))
        .arg("-o")
        .arg(into)
        .status()
        .expect("the C compiler can be started");
    assert!(compiled.success(), "checker/ does not compile");
}
