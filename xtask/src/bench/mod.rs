//! Benchmarks: what is measured, and that nothing else is at the same time.

pub(crate) mod clone;
pub(crate) mod dashboard;
pub(crate) mod edge;
mod machine;
mod spread;

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use anyhow::{Context, bail};

/// An abstract socket (unix(7)): the kernel lets go of it with the process, whatever ends that.
const LOCK: &str = "offshoot-bench";

/// Refuses to be the second: two would measure each other.
fn lock() -> anyhow::Result<UnixListener> {
    let address = UnixAddr::from_abstract_name(LOCK)?;
    match UnixListener::bind_addr(&address) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "another benchmark runs on this host, and two would measure each other: wait until it has ended \
             (`ss -xlp src @{LOCK}` tells which process it is)"
        ),
        bound => bound.context("cannot make sure that no other benchmark runs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_benchmark_is_refused_until_the_first_has_ended() {
        let Ok(first) = lock() else {
            println!("SKIPPED: a benchmark runs on this host");
            return;
        };
        let error = lock().unwrap_err();
        assert!(
            error.to_string().contains("another benchmark runs"),
            "{error}"
        );
        drop(first);
        assert!(lock().is_ok());
    }
}
