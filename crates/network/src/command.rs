//! Running nft(8) with a bound on its time, in the calling thread's network namespace.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use offshoot_sys::netns::Holder;

use crate::error::NetworkError;

/// nft takes some 20 ms; it may wait for other users of nftables.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);
const STDERR_MAX: u64 = 4096;

/// An nft that was started and not yet waited for.
pub(crate) struct Nft {
    child: Child,
    argv: String,
}

impl Nft {
    /// Starts `nft -f -` on `rules`.
    pub(crate) fn apply(rules: &str) -> Result<Self, NetworkError> {
        let mut nft = Self::start(&["-f", "-"])?;
        if let Some(mut stdin) = nft.child.stdin.take() {
            // It ends early on a syntax error: what it says then is worth more than the broken pipe.
            let _ = stdin.write_all(rules.as_bytes());
        }
        Ok(nft)
    }

    /// Starts nft with arguments and nothing on its standard input.
    pub(crate) fn start(args: &[&str]) -> Result<Self, NetworkError> {
        let argv = format!("nft {}", args.join(" "));
        let child = Command::new("nft")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| NetworkError::io(format!("starting {argv}"), e))?;
        Ok(Self { child, argv })
    }

    /// Waits until it is done.
    pub(crate) fn wait(mut self) -> Result<(), NetworkError> {
        drop(self.child.stdin.take());
        let argv = std::mem::take(&mut self.argv);
        let failed = |e| NetworkError::io(format!("waiting for {argv}"), e);
        let holder = Holder::open(self.child.id().cast_signed()).map_err(failed)?;
        if !holder.wait(NFT_TIMEOUT).map_err(failed)? {
            return Err(NetworkError::Timeout {
                what: argv,
                after: NFT_TIMEOUT,
            });
        }
        let status = self.child.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        let mut stderr = Vec::new();
        if let Some(pipe) = self.child.stderr.take() {
            let _ = pipe.take(STDERR_MAX).read_to_end(&mut stderr);
        }
        let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
        Err(NetworkError::Command {
            argv,
            status: status.to_string(),
            stderr,
        })
    }
}

impl Drop for Nft {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
