//! Makes the images of the WordPress demonstration from nothing, two at a time, and says how long each took.
//!
//! `cargo run --release -p offshoot-images --example package_images [SUITE]`
#![allow(missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use offshoot_images::{Images, ImagesConfig};
use offshoot_model::manifest::{ImageConfig, PackageImage};
use offshoot_model::{ImageSource, ProgressSink};
use offshoot_pool::{Backing, Pool, PoolConfig};

struct Shown(&'static str);

impl ProgressSink for Shown {
    fn report(&self, done: u64, total: u64, unit: &str, note: &str) {
        if std::env::var_os("VERBOSE").is_some() {
            eprintln!("{}: {done}/{total} {unit} {note}", self.0);
        }
    }

    fn cancelled(&self) -> bool {
        false
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let suite = std::env::args().nth(1).unwrap_or_else(|| "bookworm".into());
    let dir = tempfile::tempdir()?;
    let config = PoolConfig {
        mount: dir.path().join("pool"),
        backing: Backing::LoopFile {
            path: dir.path().join("pool.img"),
            size: 16 << 30,
        },
    };
    let pool = Arc::new(Pool::open(&config)?);
    let images = Images::open(pool.clone(), ImagesConfig::new(dir.path().join("images")))?;
    let wanted: [(&str, &[&str]); 4] = [
        ("app", &["php-fpm", "php-mysql", "php-redis", "wordpress"]),
        ("sql", &["mariadb-server"]),
        ("balancer", &["nginx"]),
        ("cache", &["redis-server"]),
    ];
    let start = Instant::now();
    let made = futures::future::join_all(wanted.map(|(name, packages)| {
        let (images, suite) = (images.clone(), suite.clone());
        async move {
            let source = ImageSource::Packages(PackageImage {
                suite,
                packages: packages.iter().map(|p| (*p).to_owned()).collect(),
                files: Default::default(),
                run: Vec::new(),
                config: ImageConfig::default(),
            });
            let made = images.ensure(&source, &Shown(name)).await;
            (name, start.elapsed(), made)
        }
    }))
    .await;
    for (name, took, image) in made {
        match image {
            Ok(image) => println!(
                "{name:<10} {took:>8.1?}  {:>4} MiB  {}",
                image.size >> 20,
                image.id
            ),
            Err(e) => println!("{name:<10} {took:>8.1?}  {:#?}", e.problem()),
        }
    }
    println!("all in {:.1?}; {:?}", start.elapsed(), pool.status()?);
    pool.close()?;
    Ok(())
}
