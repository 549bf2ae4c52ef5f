//! A pool of its own for each test, gone when the test ends, however it ends.
#![allow(dead_code)]

use std::ops::Deref;
use std::path::PathBuf;

use offshoot_pool::{Backing, Pool, PoolConfig, PoolError};
use tempfile::TempDir;

pub struct TestPool {
    pub pool: Pool,
    // Dropped after the pool was unmounted.
    pub dir: TempDir,
}

impl Deref for TestPool {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

impl Drop for TestPool {
    fn drop(&mut self) {
        if let Err(e) = self.pool.close() {
            eprintln!("the test's pool is held: {e}");
            let _ = rustix::mount::unmount(self.pool.root(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

pub fn config(dir: &TempDir, size: u64) -> PoolConfig {
    PoolConfig {
        mount: dir.path().join("pool"),
        backing: Backing::LoopFile {
            path: image(dir),
            size,
        },
    }
}

pub fn image(dir: &TempDir) -> PathBuf {
    dir.path().join("pool.img")
}

/// A pool, or `None` where this machine cannot have one (said and counted).
pub fn pool(size: u64) -> Option<TestPool> {
    let dir = tempfile::Builder::new()
        .prefix("offshoot-pool-")
        .tempdir()
        .expect("a temporary directory");
    match Pool::open(&config(&dir, size)) {
        Ok(pool) => Some(TestPool { pool, dir }),
        Err(
            e @ (PoolError::NoLoopDevices | PoolError::NoBtrfs | PoolError::ProgramMissing { .. }),
        ) => {
            println!("SKIPPED: {e}");
            None
        }
        Err(e) => panic!("{e}: {:?}", e.problem().details),
    }
}
