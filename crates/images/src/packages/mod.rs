//! Images made from a distribution's packages, without any registry.
//!
//! One base per suite is bootstrapped and kept; each image is a snapshot of it with packages installed by the host's apt
//! working on that directory. So the host's sources, proxies, certificates and credentials are used as they are, and
//! nothing of them enters the image except the addresses of its sources.

mod apt;
mod command;
mod sources;

use std::fs;
use std::path::{Component, Path};
use std::time::Duration;

use offshoot_model::manifest::PackageImage;
use offshoot_sys::fsx::Root;

pub(crate) use sources::{Source, sources};

use crate::ImageError;
use crate::job::Job;
use crate::oci::Digest;
use apt::Apt;
use command::{Command, OnLine};

/// Part of every id: a change to how images are made makes them anew.
const FORMAT: u32 = 2;
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(30 * 60);
const RUN_LIMIT: Duration = Duration::from_secs(30 * 60);
/// Largest recipe.
const PACKAGES_MAX: usize = 1000;
const FILES_BYTES_MAX: usize = 16 << 20;
/// What nobody reads in a container; as in Debian's own slim images. Directories of manual pages are left: packages with
/// alternatives (OpenJDK's) link to pages in them, and are not installed where they are missing.
pub(crate) const EXCLUDED: &[&str] = &[
    "--path-exclude=/usr/share/man/*",
    "--path-include=/usr/share/man/man[1-9]",
    "--path-exclude=/usr/share/info/*",
    "--path-exclude=/usr/share/locale/*",
    "--path-include=/usr/share/locale/locale.alias",
];

/// Refuses a recipe that could not be what its author means, before anything is made.
pub(crate) fn check(recipe: &PackageImage) -> Result<(), ImageError> {
    let bad = |why: String| Err(ImageError::BadRecipe { why });
    check_suite(&recipe.suite)?;
    if recipe.packages.len() > PACKAGES_MAX {
        return bad(format!("{} packages are too many", recipe.packages.len()));
    }
    for package in &recipe.packages {
        // Debian policy 5.6.1; `name/suite` and `name=version` are apt's own.
        let fine = package
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            && package.len() <= 200
            && package
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+-.:=~/".contains(&b))
            && !package.ends_with(['-', '+']);
        if !fine {
            return bad(format!("{package:?} is not a package name"));
        }
    }
    let mut bytes = 0usize;
    for (path, file) in &recipe.files {
        bytes = bytes.saturating_add(file.content.len());
        let normal = Path::new(path)
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') || !normal {
            return bad(format!("{path:?} is not an absolute path of a file"));
        }
        if file.mode & !0o7777 != 0 {
            return bad(format!("the mode of {path} is not one"));
        }
    }
    if bytes > FILES_BYTES_MAX {
        return bad(format!("its files have {bytes} bytes"));
    }
    if recipe.run.iter().any(|command| command.contains('\0')) {
        return bad("a command has a zero byte".into());
    }
    Ok(())
}

fn check_suite(suite: &str) -> Result<(), ImageError> {
    let fine = suite.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && suite.len() <= 64
        && suite
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
    if fine {
        Ok(())
    } else {
        Err(ImageError::BadRecipe {
            why: format!("{suite:?} is not the name of a suite"),
        })
    }
}

/// Identity of a suite's base: what it is made of.
pub(crate) fn base_id(suite: &str, architecture: &str, sources: &[Source]) -> Digest {
    let lines: Vec<_> = sources.iter().map(Source::identity).collect();
    Digest::of(
        format!(
            "offshoot base {FORMAT}\n{suite}\n{architecture}\n{}\n",
            lines.join("\n")
        )
        .as_bytes(),
    )
}

/// Identity of an image: its recipe and its base.
pub(crate) fn recipe_id(recipe: &PackageImage, base: &str) -> Result<Digest, ImageError> {
    let recipe = serde_json::to_string(recipe).map_err(|e| ImageError::Internal(e.to_string()))?;
    Ok(Digest::of(
        format!("offshoot packages {FORMAT}\n{base}\n{recipe}\n").as_bytes(),
    ))
}

/// Fills the empty directory `root` with the smallest system that apt can install into.
pub(crate) fn bootstrap(
    suite: &str,
    sources: &[Source],
    root: &Path,
    dir: &Path,
    job: &Job,
) -> Result<(), ImageError> {
    let apt = Apt::new(suite, sources, dir)?;
    job.begin(0, "steps");
    job.note(format!("bootstrapping {suite}"));
    let mut args = vec![
        "--mode=root".to_owned(),
        "--variant=minbase".to_owned(),
        "--format=directory".to_owned(),
        format!("--aptopt={}", apt.acquire_file()?.display()),
        "--aptopt=Acquire::Languages \"none\"".to_owned(),
        "--dpkgopt=force-unsafe-io".to_owned(),
        // Its hooks would copy the host's names and addresses into the image.
        "--skip=output/dev".to_owned(),
    ];
    args.extend(
        EXCLUDED
            .iter()
            .map(|option| format!("--dpkgopt={}", option.trim_start_matches("--"))),
    );
    args.extend([
        suite.to_owned(),
        root.display().to_string(),
        apt.sources_file().display().to_string(),
    ]);
    Command::new(
        format!("bootstrapping {suite}"),
        "mmdebstrap",
        args,
        BOOTSTRAP_LIMIT,
    )
    .package("mmdebstrap")
    .run(job, &mut |line| {
        if let Some(step) = line.strip_prefix("I: ") {
            job.note(format!("{suite}: {}", step.trim_end_matches('.')));
            job.add(1);
        }
        OnLine::Keep
    })?;
    let inside = Root::open(root).map_err(ImageError::io("open", root))?;
    for leftover in [
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "etc/resolv.conf",
    ] {
        remove(&inside, root, leftover)?;
    }
    // Whoever installs more by hand gets the same selection.
    let excluded: String = EXCLUDED
        .iter()
        .map(|option| format!("{}\n", option.trim_start_matches("--")))
        .collect();
    write(
        &inside,
        root,
        "etc/dpkg/dpkg.cfg.d/offshoot",
        &excluded,
        0o644,
    )?;
    write(&inside, root, "etc/hostname", "localhost\n", 0o644)?;
    write(&inside, root, "etc/machine-id", "", 0o444)
}

/// Installs a recipe into `root`, a copy of its suite's base.
pub(crate) fn install(
    recipe: &PackageImage,
    root: &Path,
    dir: &Path,
    job: &Job,
) -> Result<(), ImageError> {
    let apt = Apt::new(&recipe.suite, &sources(&recipe.suite)?, dir)?;
    let inside = Root::open(root).map_err(ImageError::io("open", root))?;
    if !recipe.packages.is_empty() {
        // Daemons of packages are not started while an image is made (invoke-rc.d(8)).
        write(
            &inside,
            root,
            "usr/sbin/policy-rc.d",
            "#!/bin/sh\nexit 101\n",
            0o755,
        )?;
        apt.install(&recipe.packages, root, job)?;
        remove(&inside, root, "usr/sbin/policy-rc.d")?;
    }
    for (path, file) in &recipe.files {
        job.check()?;
        write(
            &inside,
            root,
            path.trim_start_matches('/'),
            &file.content,
            file.mode,
        )?;
    }
    if !recipe.run.is_empty() {
        let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let own = inside.stat(Path::new("etc/resolv.conf"), offshoot_sys::fsx::Last::Keep);
        let own = own
            .map_err(ImageError::io("look at", root.join("etc/resolv.conf")))?
            .is_some();
        if !own {
            write(&inside, root, "etc/resolv.conf", &resolv, 0o644)?;
        }
        for (number, command) in recipe.run.iter().enumerate() {
            job.begin(recipe.run.len() as u64, "commands");
            job.set(number as u64);
            job.note(command.lines().next().unwrap_or_default());
            command::run_inside(root, command, RUN_LIMIT, job)?;
        }
        if !own {
            remove(&inside, root, "etc/resolv.conf")?;
        }
    }
    for leftover in [
        "var/log/dpkg.log",
        "var/log/alternatives.log",
        "var/log/apt",
        "var/cache/apt/pkgcache.bin",
        "var/cache/apt/srcpkgcache.bin",
        "var/cache/debconf/config.dat-old",
        "var/cache/debconf/templates.dat-old",
        "var/cache/ldconfig/aux-cache",
        "var/lib/dpkg/status-old",
        "var/lib/apt/lists",
    ] {
        remove(&inside, root, leftover)?;
    }
    // apt wants these to be there.
    for wanted in [
        "var/log/apt",
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
    ] {
        inside
            .create_dirs(Path::new(wanted), 0o755)
            .map_err(ImageError::io("create", root.join(wanted)))?;
    }
    Ok(())
}

/// Removes what interrupted builds left outside of the pool.
pub(crate) fn clean_up(dir: &Path) {
    apt::clean_up(dir);
}

fn write(
    inside: &Root,
    root: &Path,
    path: &str,
    content: &str,
    mode: u32,
) -> Result<(), ImageError> {
    inside
        .write(Path::new(path), content.as_bytes(), mode, (0, 0))
        .map_err(ImageError::io("write", root.join(path)))
}

fn remove(inside: &Root, root: &Path, path: &str) -> Result<(), ImageError> {
    match inside.parent(Path::new(path)) {
        Ok((parent, name)) => {
            offshoot_sys::fsx::remove_tree(std::os::fd::AsFd::as_fd(&parent), &name)
                .map_err(ImageError::io("remove", root.join(path)))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(ImageError::io("remove", root.join(path))(e)),
    }
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
