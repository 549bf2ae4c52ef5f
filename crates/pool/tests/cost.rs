//! What a snapshot costs does not depend on what the subvolume holds. Run with `--no-capture` for the figures.
#![allow(missing_docs, unreachable_pub)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{TestPool, pool};
use offshoot_model::EnvId;
use offshoot_pool::Subvolume;

const FILES: u32 = 200_000;

fn volume(env: &EnvId, name: &str) -> Subvolume {
    Subvolume::Volume(env.clone(), name.parse().unwrap())
}

/// Median of several cuts of these volumes, each into a new environment, synced before as the engine does.
fn cut(pool: &TestPool, env: &EnvId, names: &[&str]) -> Duration {
    let mut times: Vec<_> = (0..7)
        .map(|round| {
            let clone = EnvId::random();
            pool.prepare_env(&clone).unwrap();
            let pairs: Vec<_> = names
                .iter()
                .map(|n| (volume(env, n), volume(&clone, n)))
                .collect();
            for name in names {
                // Something was written since the last cut.
                fs::write(
                    pool.path(&volume(env, name)).join("last"),
                    round.to_string(),
                )
                .unwrap();
            }
            let snapshots = pool.prepare_snapshots(&pairs).unwrap();
            pool.sync().unwrap();
            let start = Instant::now();
            snapshots.take().unwrap();
            let took = start.elapsed();
            snapshots.place().unwrap();
            pool.ensure_env_removed(&clone).unwrap();
            took
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_cut_costs_the_same_for_empty_full_and_huge_volumes() {
    let Some(pool) = pool(8 << 30) else { return };
    let env = EnvId::random();
    for name in ["empty", "many", "huge"] {
        pool.ensure_empty(&volume(&env, name)).unwrap();
    }
    let many = pool.path(&volume(&env, "many"));
    for number in 0..FILES {
        let dir = many.join((number / 1000).to_string());
        if number % 1000 == 0 {
            fs::create_dir(&dir).unwrap();
        }
        fs::write(dir.join(number.to_string()), "content").unwrap();
    }
    let huge = fs::File::create(pool.path(&volume(&env, "huge")).join("disk")).unwrap();
    huge.set_len(1 << 40).unwrap();
    drop(huge);
    let nodes: Vec<_> = (1..=8).map(|n| format!("node{n}")).collect();
    let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
    for name in &nodes {
        pool.ensure_empty(&volume(&env, name)).unwrap();
    }
    pool.sync().unwrap();

    let empty = cut(&pool, &env, &["empty"]);
    let many = cut(&pool, &env, &["many"]);
    let huge = cut(&pool, &env, &["huge"]);
    let eight = cut(&pool, &env, &nodes);
    println!(
        "snapshot: empty {empty:?}, {FILES} files {many:?}, sparse 1 TiB {huge:?}; eight at once {eight:?}"
    );
    // Far above noise, far below anything that looks at the content (copying 200,000 files takes seconds).
    let most = empty * 5 + Duration::from_millis(100);
    assert!(
        many < most && huge < most && eight < most,
        "empty {empty:?} many {many:?} huge {huge:?} eight {eight:?}"
    );
}
