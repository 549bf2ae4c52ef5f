//! What a node's main process is: the image's and the layer's words put together, names looked up in the image.

use std::path::Path;

use offshoot_model::Layer;
use offshoot_model::manifest::ImageConfig;

use crate::error::{Result, RuntimeError};
use crate::files::Tree;
use crate::spec::{ProcessSpec, UserSpec};

/// `PATH` when neither image nor layer has one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Go since 1.24 listens with multipath TCP, which CRIU cannot dump; this turns it off.
const GO_WITHOUT_MPTCP: &str = "multipathtcp=0";
/// Largest passwd or group file read, in bytes.
const DATABASE_MAX: u64 = 4 << 20;

/// Decides the main process of a layer's node: entrypoint, command, environment, working directory, user.
///
/// # Errors
/// When there is no command, or a user or group that the image does not know.
pub fn resolve_process(layer: &Layer, image: &ImageConfig, rootfs: &Path) -> Result<ProcessSpec> {
    // Compose: an entrypoint of the layer's own drops the image's command.
    let (entrypoint, default_command) = match &layer.entrypoint {
        Some(own) => (own.as_slice(), &[][..]),
        None => (image.entrypoint.as_slice(), image.command.as_slice()),
    };
    let command = layer.command.as_deref().unwrap_or(default_command);
    let args: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if args.is_empty() {
        return Err(RuntimeError::Image {
            what: format!(
                "layer {}: neither the image nor the manifest names a command",
                layer.name
            ),
        });
    }
    let user_text = layer
        .user
        .as_deref()
        .or(image.user.as_deref())
        .unwrap_or("");
    let (user, home) = resolve_user(user_text, rootfs)?;
    let mut env = Environment::new(&image.env);
    for (name, value) in &layer.environment {
        env.set(name, value);
    }
    env.complete(&home);
    let cwd = match layer
        .working_dir
        .as_deref()
        .or(image.working_dir.as_deref())
    {
        None | Some("") => "/".to_owned(),
        Some(dir) if dir.starts_with('/') => dir.to_owned(),
        Some(dir) => format!("/{dir}"),
    };
    Ok(ProcessSpec {
        args,
        env: env.into_list(),
        cwd,
        user,
    })
}

/// Environment variables in order, each name once.
#[derive(Debug, Clone)]
pub(crate) struct Environment(Vec<(String, String)>);

impl Environment {
    pub(crate) fn new(list: &[String]) -> Self {
        let mut env = Self(Vec::with_capacity(list.len() + 4));
        for entry in list {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            env.set(name, value);
        }
        env
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        if name.is_empty() {
            return;
        }
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Adds what every process has.
    pub(crate) fn complete(&mut self, home: &str) {
        if self.get("PATH").is_none() {
            self.set("PATH", DEFAULT_PATH);
        }
        if self.get("HOME").is_none() {
            self.set("HOME", home);
        }
        let debug = match self.get("GODEBUG") {
            None | Some("") => GO_WITHOUT_MPTCP.to_owned(),
            Some(own) if own.split(',').any(|pair| pair.starts_with("multipathtcp=")) => {
                own.to_owned()
            }
            Some(own) => format!("{own},{GO_WITHOUT_MPTCP}"),
        };
        self.set("GODEBUG", &debug);
    }

    pub(crate) fn into_list(self) -> Vec<String> {
        self.0
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

/// Looks up `user`, `uid`, `user:group`, `uid:gid` (or nothing: root) in a root file system that is not trusted. Gives the ids and the
/// home directory.
///
/// As Docker does it: a number need not be in the files; without a group the user's own is taken, with all groups that list it.
///
/// # Errors
/// When a name is unknown or a number is too large.
pub fn resolve_user(text: &str, rootfs: &Path) -> Result<(UserSpec, String)> {
    let tree = Tree::open(rootfs)?;
    let read = |path| -> Result<String> {
        let bytes = tree.read(path, DATABASE_MAX)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    lookup(text, &read("etc/passwd")?, &read("etc/group")?)
}

fn lookup(text: &str, passwd: &str, group: &str) -> Result<(UserSpec, String)> {
    let unknown = |kind: &str, name: &str| RuntimeError::Image {
        what: format!(
            "{kind} {name:?} is not in the image's /etc/{}",
            if kind == "user" { "passwd" } else { "group" }
        ),
    };
    let (user_text, group_text) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (text, None),
    };
    let user_text = if user_text.is_empty() { "0" } else { user_text };
    let number = parse_id(user_text);
    let entry = passwd
        .lines()
        .filter_map(parse_passwd)
        .find(|entry| match number {
            Some(uid) => entry.uid == uid,
            None => entry.name == user_text,
        });
    let uid = match (&entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(unknown("user", user_text)),
    };
    let home = entry.as_ref().map_or("/", |entry| entry.home).to_owned();
    let (gid, groups) = match group_text {
        Some(name) => {
            let named = group
                .lines()
                .filter_map(parse_group)
                .find(|(n, _, _)| *n == name)
                .map(|(_, gid, _)| gid);
            let gid = named
                .or_else(|| parse_id(name))
                .ok_or_else(|| unknown("group", name))?;
            (gid, Vec::new())
        }
        None => {
            let gid = entry.as_ref().map_or(0, |entry| entry.gid);
            let name = entry.as_ref().map(|entry| entry.name);
            let member =
                |members: &str| name.is_some_and(|name| members.split(',').any(|m| m == name));
            let mut groups: Vec<u32> = (group.lines().filter_map(parse_group))
                .filter(|(_, id, members)| *id != gid && member(members))
                .map(|(_, id, _)| id)
                .collect();
            groups.sort_unstable();
            groups.dedup();
            (gid, groups)
        }
    };
    Ok((
        UserSpec { uid, gid, groups },
        if home.starts_with('/') {
            home
        } else {
            "/".to_owned()
        },
    ))
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Ids are at most 2^31 - 1, as Docker has it.
fn parse_id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= i32::MAX as u32)
}

/// A line of passwd(5).
fn parse_passwd(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let uid = parse_id(fields.nth(1)?)?;
    let gid = parse_id(fields.next()?)?;
    let home = fields.nth(1).unwrap_or("/");
    Some(Passwd {
        name,
        uid,
        gid,
        home,
    })
}

/// A line of group(5): name, id, members.
fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let gid = parse_id(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# c\nbad line\nmysql:x:101:102::/var/lib/mysql:/bin/false\nx:y:z\n";
    const GROUP: &str = "root:x:0:\nmysql:x:102:\nssl-cert:x:110:postgres,mysql\nadm:x:4:mysql,root\nhuge:x:99999999999:mysql\n";

    fn ids(text: &str) -> (u32, u32, Vec<u32>) {
        let (user, _) = lookup(text, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(ids(""), (0, 0, vec![4]));
        assert_eq!(ids("mysql"), (101, 102, vec![4, 110]));
        assert_eq!(ids("101"), (101, 102, vec![4, 110]));
        assert_eq!(ids("1234"), (1234, 0, vec![]));
        assert_eq!(ids("mysql:ssl-cert"), (101, 110, vec![]));
        assert_eq!(ids("1234:5678"), (1234, 5678, vec![]));
        assert_eq!(lookup("mysql", PASSWD, GROUP).unwrap().1, "/var/lib/mysql");
        assert!(
            lookup("nobody", PASSWD, GROUP)
                .unwrap_err()
                .to_string()
                .contains("nobody")
        );
        assert!(lookup("mysql:nogroup", PASSWD, GROUP).is_err());
        assert!(lookup("4294967296", PASSWD, GROUP).is_err());
        assert_eq!(
            lookup("5", "", "").unwrap().0,
            UserSpec {
                uid: 5,
                gid: 0,
                groups: vec![]
            }
        );
    }

    #[test]
    fn a_layers_words_replace_the_images() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        let layer = |more: serde_json::Value| -> Layer {
            let mut value = serde_json::json!({
                "name": "db", "image": { "kind": "registry", "reference": "x" }, "role": "sql", "scaling": "stateful",
                "clone": "each", "replicas": 1, "stop_grace_ms": 1,
            });
            value
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            serde_json::from_value(value).unwrap()
        };
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let image = ImageConfig {
            entrypoint: strings(&["entry"]),
            command: strings(&["default"]),
            env: strings(&["A=image", "B=image"]),
            working_dir: Some("srv".into()),
            user: Some("mysql".into()),
            ..Default::default()
        };
        let own = |more| resolve_process(&layer(more), &image, root.path());
        let plain = own(serde_json::json!({})).unwrap();
        assert_eq!(
            (plain.args, plain.cwd.as_str(), plain.user.uid),
            (strings(&["entry", "default"]), "/srv", 101)
        );
        assert!(plain.env.contains(&"HOME=/var/lib/mysql".to_owned()));
        let command = own(
            serde_json::json!({ "command": ["x"], "environment": { "B": "layer" }, "user": "0" }),
        )
        .unwrap();
        assert_eq!(
            (command.args, command.user.uid),
            (strings(&["entry", "x"]), 0)
        );
        assert_eq!(command.env.get(..2).unwrap(), ["A=image", "B=layer"]);
        assert_eq!(
            own(serde_json::json!({ "entrypoint": ["e"] }))
                .unwrap()
                .args,
            ["e"]
        );
        assert!(own(serde_json::json!({ "entrypoint": [] })).is_err());
        assert!(
            own(serde_json::json!({ "user": "stranger" }))
                .unwrap_err()
                .to_string()
                .contains("stranger")
        );
    }

    #[test]
    fn the_environment_is_completed() {
        let mut env =
            Environment::new(&["A=1".into(), "A=2".into(), "GODEBUG=x=1".into(), "B".into()]);
        env.complete("/home/a");
        let list = env.into_list();
        assert_eq!(list.first().unwrap(), "A=2");
        assert!(list.contains(&"GODEBUG=x=1,multipathtcp=0".to_owned()));
        assert!(
            list.contains(&"HOME=/home/a".to_owned())
                && list.contains(&format!("PATH={DEFAULT_PATH}"))
        );
        let mut env = Environment::new(&["GODEBUG=multipathtcp=1".into()]);
        env.complete("/");
        assert_eq!(env.get("GODEBUG"), Some("multipathtcp=1"));
    }

    proptest::proptest! {
        #[test]
        fn hostile_databases_are_survived(text in ".{0,40}", passwd in "[a-z0-9:\n#-]{0,200}", group in "[a-z0-9:,\n]{0,200}") {
            if let Ok((user, home)) = lookup(&text, &passwd, &group) {
                assert!(user.uid <= i32::MAX as u32 && user.gid <= i32::MAX as u32 && home.starts_with('/'));
            }
        }
    }
}
