//! What CRIU has to be told about a container: its first process, its freezer cgroup, the mounts that come from outside.
//!
//! runc's own `checkpoint` tells CRIU the same (`libcontainer/criu_linux.go`); `runc restore` will look for the same keys.
//! Two files of runc are read: the bundle's `config.json` (OCI runtime specification) and `<runc root>/<id>/state.json`
//! (its private state; the fields used here are the same in runc 1.0 to 1.3).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use offshoot_sys::fsx::{Last, Root};
use rustix::fs::{AtFlags, FileType, StatxAttributes, StatxFlags};
use serde::Deserialize;

use crate::error::CriuError;
use crate::rpc::ExtMount;

/// Devices that runc gives every container; with a user namespace they are bind mounts of the host's.
const DEFAULT_DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/random",
    "/dev/full",
    "/dev/tty",
    "/dev/zero",
    "/dev/urandom",
];

/// A running container as runc knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its first process.
    pub pid: i32,
    /// The folder of its freezer: a cgroup v1 freezer or a cgroup v2 group.
    pub freezer: PathBuf,
    /// The folder where its memory is limited: the cgroup v1 controller's, or the same as `freezer`.
    pub memory: PathBuf,
    /// What its file descriptors 0, 1 and 2 were when it was started, as `readlink` shows them.
    pub descriptors: Vec<String>,
    /// The bundle it was started from.
    pub bundle: PathBuf,
}

#[derive(Deserialize)]
struct State {
    init_process_pid: i32,
    #[serde(default)]
    cgroup_paths: HashMap<String, PathBuf>,
    #[serde(default)]
    external_descriptors: Vec<String>,
    config: StateConfig,
}

#[derive(Deserialize)]
struct StateConfig {
    #[serde(default)]
    labels: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    mounts: Vec<ConfigMount>,
    linux: ConfigLinux,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ConfigMount {
    destination: PathBuf,
    #[serde(rename = "type")]
    kind: String,
    options: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigLinux {
    masked_paths: Vec<PathBuf>,
    devices: Vec<ConfigDevice>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ConfigDevice {
    path: PathBuf,
}

impl Container {
    /// Reads what runc, run with `--root <root>`, keeps about container `id`.
    ///
    /// # Errors
    /// When there is no such container or its files are not as expected.
    pub fn of_runc(root: &Path, id: &str) -> Result<Self, CriuError> {
        let path = root.join(id).join("state.json");
        let state: State = read_json(&path, "state")?;
        let missing = |what| CriuError::Container {
            what,
            path: path.clone(),
            source: io::Error::from(io::ErrorKind::NotFound),
        };
        let bundle = state
            .config
            .labels
            .iter()
            .find_map(|label| label.strip_prefix("bundle="));
        let group = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|name| state.cgroup_paths.get(*name))
                .cloned()
        };
        let freezer = group(["freezer", ""]);
        Ok(Self {
            pid: state.init_process_pid,
            memory: group(["memory", ""]).unwrap_or_default(),
            freezer: freezer.ok_or_else(|| missing("freezer cgroup"))?,
            descriptors: state.external_descriptors,
            bundle: PathBuf::from(bundle.ok_or_else(|| missing("bundle"))?),
        })
    }

    /// The mounts whose content is not CRIU's business, each with the name under which the restore will find it.
    pub(crate) fn external_mounts(&self) -> Result<Vec<ExtMount>, CriuError> {
        let config: Config = read_json(&self.bundle.join("config.json"), "configuration")?;
        let view = MountView::of(self.pid)?;
        let mut found = BTreeMap::new();
        for mount in &config.mounts {
            if (mount.kind == "bind" || mount.options.iter().any(|o| o == "bind" || o == "rbind"))
                && let Some(point) = view.mount_point_at(&mount.destination)
            {
                found.insert(point.clone(), point);
            }
        }
        let devices = config.linux.devices.iter().map(|d| d.path.as_path());
        for device in DEFAULT_DEVICES.iter().map(Path::new).chain(devices) {
            if let Some(point) = view.mount_point_at(device) {
                found.insert(point.clone(), point);
            }
        }
        for masked in &config.linux.masked_paths {
            // A masked folder is an empty tmpfs, which CRIU restores by itself.
            if let Some(point) = view
                .mount_point_at(masked)
                .filter(|_| view.is_device(masked))
            {
                found.insert(point, "/dev/null".to_owned());
            }
        }
        Ok(found
            .into_iter()
            .map(|(key, val)| ExtMount { key, val })
            .collect())
    }

    /// The processes in its cgroup right now.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.freezer.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Whether its cgroup is to stand still: each of its processes does before it runs on (cgroups(7), version 1 and 2).
    pub(crate) fn is_held(&self) -> bool {
        if let Ok(state) = fs::read_to_string(self.freezer.join("freezer.state")) {
            return state.trim() != "THAWED";
        }
        fs::read_to_string(self.freezer.join("cgroup.freeze")).is_ok_and(|held| held.trim() == "1")
    }

    /// Thaws the cgroup without anybody's help: for when the one who froze it cannot be asked.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        let v1 = self.freezer.join("freezer.state");
        if v1.exists() {
            fs::write(v1, "THAWED")
        } else {
            fs::write(self.freezer.join("cgroup.freeze"), "0")
        }
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(
    path: &Path,
    what: &'static str,
) -> Result<T, CriuError> {
    fs::read(path)
        .and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other))
        .map_err(|source| CriuError::Container {
            what,
            path: path.to_owned(),
            source,
        })
}

/// The mounts that a process sees, and its root, which is hostile: links in it are followed inside it only.
struct MountView {
    root: Root,
    points: HashMap<u64, String>,
}

impl MountView {
    fn of(pid: i32) -> Result<Self, CriuError> {
        let path = PathBuf::from(format!("/proc/{pid}/mountinfo"));
        let wrap = |source| CriuError::Container {
            what: "mounts",
            path: path.clone(),
            source,
        };
        let text = fs::read(&path).map_err(wrap)?;
        let root = Root::open(Path::new(&format!("/proc/{pid}/root"))).map_err(wrap)?;
        Ok(Self {
            root,
            points: mount_points(&String::from_utf8_lossy(&text)),
        })
    }

    /// Where the mount is that `inner` leads to, when `inner` is a mount's root.
    fn mount_point_at(&self, inner: &Path) -> Option<String> {
        let fd = self.root.resolve(inner, Last::Follow).ok()?;
        let at = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
        if !at.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return None;
        }
        self.points.get(&at.stx_mnt_id).cloned()
    }

    fn is_device(&self, inner: &Path) -> bool {
        self.root
            .resolve(inner, Last::Follow)
            .and_then(|fd| Ok(rustix::fs::fstat(&fd)?))
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice)
    }
}

/// Mount ids and points of `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)), unescaped.
pub(crate) fn mount_points(mountinfo: &str) -> HashMap<u64, String> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let id = fields.next()?.parse().ok()?;
            Some((id, unescape(fields.nth(3)?)))
        })
        .collect()
}

/// `\040` and its like are characters that would break the line.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = bytes
            .get(at + 1..at + 4)
            .and_then(|d| std::str::from_utf8(d).ok());
        match code
            .filter(|_| byte == b'\\')
            .and_then(|d| u8::from_str_radix(d, 8).ok())
        {
            Some(value) => {
                out.push(value);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read() {
        let text = "88 65 254:0 /a/rootfs / rw,relatime,idmapped - ext4 /dev/vda rw\n\
                    95 90 0:6 /null /dev/with\\040space rw,relatime - devtmpfs devtmpfs rw\nrubbish\n";
        let points = mount_points(text);
        assert_eq!(points.len(), 2);
        assert_eq!(points[&88], "/");
        assert_eq!(points[&95], "/dev/with space");
    }

    #[test]
    fn own_mounts_are_seen() {
        let view = MountView::of(std::process::id() as i32).unwrap();
        assert_eq!(
            view.mount_point_at(Path::new("/proc")).as_deref(),
            Some("/proc")
        );
        assert_eq!(view.mount_point_at(Path::new("/proc/self/status")), None);
        assert_eq!(view.mount_point_at(Path::new("/no/such/thing")), None);
        assert!(view.is_device(Path::new("/dev/null")));
        assert!(!view.is_device(Path::new("/proc")));
    }
}
