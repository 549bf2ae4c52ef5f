//! An image for tests: the test node, a shell, and the libraries they need, as a file of `docker save` or for a registry.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Programs of the host that tests use inside nodes.
const PROGRAMS: &[&str] = &[
    "sh", "cat", "ls", "sleep", "id", "touch", "stty", "ps", "kill", "seq", "true", "false", "dd",
    "mkdir",
];

/// An image of one layer.
pub struct TestImage {
    /// The layer, an archive.
    pub layer: Vec<u8>,
    /// The configuration: its entrypoint is the test node.
    pub config: String,
}

/// Makes the image; its file `/data/seed` says `seed`.
///
/// # Errors
/// When a program is not on the host.
pub fn make(testnode: &Path, seed: &str) -> Result<TestImage> {
    let mut layer = tar::Builder::new(Vec::new());
    for dir in [
        "bin", "lib", "lib64", "etc", "tmp", "data", "proc", "sys", "dev", "run", "var",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if dir == "tmp" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, format!("{dir}/"), std::io::empty())?;
    }
    add(
        &mut layer,
        "etc/passwd",
        b"root:x:0:0:root:/:/bin/sh\napp:x:1000:1000:app:/tmp:/bin/sh\n",
        0o644,
    )?;
    add(&mut layer, "etc/group", b"root:x:0:\napp:x:1000:\n", 0o644)?;
    add(&mut layer, "data/seed", seed.as_bytes(), 0o644)?;
    add(
        &mut layer,
        "bin/testnode",
        &fs::read(testnode).context("the test node")?,
        0o755,
    )?;
    let mut libraries = BTreeSet::new();
    libraries.extend(libraries_of(testnode)?);
    for name in PROGRAMS {
        let path = find(name)?;
        libraries.extend(libraries_of(&path)?);
        add(&mut layer, &format!("bin/{name}"), &fs::read(&path)?, 0o755)?;
    }
    for library in libraries {
        let inner = library.strip_prefix("/")?.to_owned();
        let mode = fs::metadata(&library)?.permissions().mode() & 0o777;
        add(
            &mut layer,
            &inner.to_string_lossy(),
            &fs::read(&library)?,
            mode,
        )?;
    }
    let layer = layer.into_inner()?;
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/bin/testnode"], "Env": ["PATH=/bin"], "ExposedPorts": {"8080/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)]},
    })
    .to_string();
    Ok(TestImage { layer, config })
}

/// Writes the image to `archive`, as `docker save` does.
///
/// # Errors
/// As [`make`].
pub fn write(archive: &Path, testnode: &Path) -> Result<()> {
    let image = make(testnode, "from the image\n")?;
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["test/node:1"], "Layers": ["layer.tar"]}]);
    let manifest = manifest.to_string();
    let mut outer = tar::Builder::new(fs::File::create(archive)?);
    for (name, content) in [
        ("config.json", image.config.as_bytes()),
        ("layer.tar", &image.layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        add(&mut outer, name, content, 0o644)?;
    }
    outer.finish()?;
    Ok(())
}

fn add<W: std::io::Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    content: &[u8],
    mode: u32,
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content)?;
    Ok(())
}

fn find(name: &str) -> Result<PathBuf> {
    let dirs = ["/bin", "/usr/bin"];
    let found = dirs
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file());
    found.with_context(|| format!("the host has no {name}"))
}

fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// The digest, in hex.
pub(crate) fn sha256(bytes: &[u8]) -> Result<String> {
    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, bytes)?;
    let output = Command::new("sha256sum")
        .arg(file.path())
        .output()
        .context("sha256sum")?;
    if !output.status.success() {
        bail!("sha256sum failed");
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .split_whitespace()
        .next()
        .context("no digest")?
        .to_owned())
}
