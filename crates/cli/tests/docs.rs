//! What README.md, docs/ and examples/ tell people to type exists: every `offshoot ...` there names a command of this
//! program with options that its help knows, and every link between the pages leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every page for people, without the one that is made from the help texts.
fn pages() -> Vec<(String, String)> {
    let mut paths = vec![
        PathBuf::from("README.md"),
        PathBuf::from("ARCHITECTURE.md"),
        PathBuf::from("CHANGELOG.md"),
    ];
    let mut folders = vec![
        PathBuf::from("docs"),
        PathBuf::from("examples"),
        PathBuf::from("packaging"),
    ];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("a folder of the project") {
            let entry = entry.expect("an entry of it");
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|e| e == "md" || e == "service")
            {
                paths.push(path);
            }
        }
    }
    paths.retain(|path| path != Path::new("docs/commands.md"));
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(root().join(&path)).expect("a page of the project");
            (path.display().to_string(), text)
        })
        .collect()
}

/// What of a page is code: lines of blocks, and what stands between backticks.
fn code_of(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            found.push(line.split("  #").next().unwrap_or(line).to_owned());
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

/// The words of every call of the program in a line of code. Comments and what comes behind a pipe are cut off.
fn calls_in(code: &str) -> Vec<Vec<String>> {
    let words: Vec<&str> = code.split_whitespace().collect();
    let mut calls = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| words.get(at));
        let called = matches!(
            *word,
            "offshoot" | "/usr/bin/offshoot" | "ExecStart=/usr/bin/offshoot"
        );
        let begins =
            before.is_none_or(|w| matches!(*w, "sudo" | "$" | "#" | "|" | "&&" | "time" | "watch"));
        if called && begins {
            let rest = words.iter().skip(at + 1);
            let call: Vec<String> = rest
                .take_while(|w| !matches!(**w, "|" | ">" | "<" | "&&" | ";" | "#" | "&"))
                .map(|w| (*w).to_owned())
                .collect();
            calls.push(call);
        }
    }
    calls
}

/// Help texts, asked once each.
#[derive(Default)]
struct Helps(BTreeMap<Vec<String>, Option<String>>);

impl Helps {
    /// The help of a command, when there is such a command.
    fn of(&mut self, command: &[String]) -> Option<&str> {
        self.0
            .entry(command.to_vec())
            .or_insert_with(|| {
                let asked = Command::new(env!("CARGO_BIN_EXE_offshoot"))
                    .args(command)
                    .arg("--help")
                    .output()
                    .expect("the program starts");
                let text = String::from_utf8_lossy(&asked.stdout).into_owned();
                asked.status.success().then_some(text)
            })
            .as_deref()
    }

    /// Names of the commands below one.
    fn below(&mut self, command: &[String]) -> BTreeSet<String> {
        let help = self.of(command).unwrap_or_default();
        help.lines()
            .skip_while(|line| *line != "Commands:")
            .skip(1)
            .take_while(|line| line.starts_with("  "))
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect()
    }

    /// What is wrong with a call, when something is.
    fn fault(&mut self, call: &[String]) -> Option<String> {
        let mut command: Vec<String> = Vec::new();
        let mut options = Vec::new();
        for word in call {
            if word == "--" {
                break; // the rest is another program's
            }
            if word.starts_with('-') && word.len() > 1 {
                options.push(word.split('=').next().unwrap_or(word).to_owned());
            } else if self.below(&command).contains(word) {
                command.push(word.clone());
                if word == "exec" {
                    // Options of the program inside follow the node; those before it are looked at below.
                    let own = call.iter().skip_while(|w| *w != "exec").skip(1);
                    options.extend(own.take_while(|w| w.starts_with('-')).cloned());
                    break;
                }
            } else if command.is_empty() && options.is_empty() {
                return Some(format!("there is no command {word:?}"));
            }
        }
        if command.is_empty() && options.is_empty() {
            return None; // the program's name alone
        }
        let help = self.of(&command)?.to_owned() + self.of(&[]).unwrap_or_default();
        let known: BTreeSet<&str> = help
            .split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']' | '`' | '.'))
            .filter(|word| word.starts_with('-'))
            .collect();
        options.into_iter().find_map(|option| {
            let short = option.starts_with('-') && !option.starts_with("--");
            let fine = if short {
                // -it is -i and -t
                option
                    .chars()
                    .skip(1)
                    .all(|letter| known.contains(format!("-{letter}").as_str()))
            } else {
                known.contains(option.as_str())
            };
            (!fine && option != "-")
                .then(|| format!("`offshoot {}` has no {option}", command.join(" ")))
        })
    }
}

#[test]
fn every_command_that_is_quoted_exists() {
    let mut helps = Helps::default();
    let mut looked_at = 0;
    let mut faults = Vec::new();
    for (page, text) in pages() {
        let service = page.ends_with(".service");
        let code = if service {
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .map(str::to_owned)
                .collect()
        } else {
            code_of(&text)
        };
        for line in code {
            for call in calls_in(&line) {
                looked_at += 1;
                if let Some(fault) = helps.fault(&call) {
                    faults.push(format!("{page}: {line:?}: {fault}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(
        looked_at > 50,
        "only {looked_at} calls were found: is the text still read?"
    );
}

#[test]
fn a_wrong_call_is_found() {
    let mut helps = Helps::default();
    let mut fault = |text: &str| {
        let calls = calls_in(text);
        assert_eq!(calls.len(), 1, "{text}");
        helps.fault(&calls[0])
    };
    for fine in [
        "offshoot clone shop --name experiment",
        "$ offshoot ls -o json | jq .",
        "sudo offshoot exec -it shop web-1 -- ls --no-such-option",
        "offshoot op show --timing ID",
        "offshoot pool grow +20GiB",
    ] {
        assert_eq!(fault(fine), None, "{fine}");
    }
    for wrong in [
        "offshoot klone shop",
        "offshoot clone shop --with-memory",
        "offshoot ls -z",
        "offshoot exec -itz shop web-1 -- sh",
    ] {
        assert!(fault(wrong).is_some(), "{wrong}");
    }
}

/// The anchor that a heading gets on the usual forges.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut broken = Vec::new();
    for (page, text) in pages() {
        let folder = Path::new(&page)
            .parent()
            .unwrap_or(Path::new(""))
            .to_owned();
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() {
                PathBuf::from(&page)
            } else {
                folder.join(file)
            };
            let Ok(metadata) = fs::metadata(root().join(&path)) else {
                broken.push(format!("{page}: {target}"));
                continue;
            };
            if !heading.is_empty() && metadata.is_file() {
                let content = fs::read_to_string(root().join(&path)).unwrap_or_default();
                let mut headings = content.lines().filter(|line| line.starts_with('#'));
                if !headings.any(|line| anchor(line) == heading) {
                    broken.push(format!("{page}: {target}: no such heading"));
                }
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

/// Names of the packages that a manifest of Cargo's lists.
fn dependencies_in(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && let Some((name, _)) = line.split_once(['.', ' ', '=']) {
            found.insert(name.to_owned());
        }
    }
    found.retain(|name| !name.is_empty() && !name.starts_with(['#', ' ']));
    found
}

#[test]
fn every_dependency_is_explained() {
    let mut used = BTreeSet::new();
    let mut manifests = vec![root().join("xtask/Cargo.toml")];
    for entry in fs::read_dir(root().join("crates")).expect("the crates") {
        manifests.push(entry.expect("a crate").path().join("Cargo.toml"));
    }
    for manifest in manifests {
        // A folder without one is not part of the workspace.
        used.extend(dependencies_in(
            &fs::read_to_string(manifest).unwrap_or_default(),
        ));
    }
    used.retain(|name| !name.starts_with("offshoot-"));
    let page = fs::read_to_string(root().join("docs/dependencies.md")).expect("the page is there");
    let explained: BTreeSet<String> = page
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once("` |")?.0.to_owned()))
        .filter(|name| !matches!(name.as_str(), "nft"))
        .collect();
    let missing: Vec<_> = used.difference(&explained).collect();
    let gone: Vec<_> = explained.difference(&used).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "docs/dependencies.md lacks {missing:?} and has {gone:?}, which nobody uses"
    );
}

#[test]
fn the_map_of_crates_is_true() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page is there");
    let map = page
        .split("\n## ")
        .find(|part| part.starts_with("Map of the code"))
        .expect("the map");
    let listed: Vec<String> = map
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect();
    let mut there = BTreeMap::from([("xtask".to_owned(), root().join("xtask/Cargo.toml"))]);
    for entry in fs::read_dir(root().join("crates")).expect("the crates") {
        let entry = entry.expect("a crate");
        let manifest = entry.path().join("Cargo.toml");
        if manifest.exists() {
            there.insert(entry.file_name().to_string_lossy().into_owned(), manifest);
        }
    }
    let names: BTreeSet<_> = there.keys().cloned().collect();
    assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), names);
    for (at, name) in listed.iter().enumerate() {
        let manifest = fs::read_to_string(&there[name]).expect("its manifest");
        // Tests may use whatever they like.
        let own = manifest
            .split("[dev-dependencies]")
            .next()
            .unwrap_or_default();
        for dependency in dependencies_in(own) {
            if let Some(dependency) = dependency.strip_prefix("offshoot-") {
                let place = listed.iter().position(|other| other == dependency);
                assert!(
                    place > Some(at),
                    "{name} uses {dependency}, which stands above it"
                );
            }
        }
    }
}

#[test]
fn the_compose_files_that_are_shown_are_understood() {
    let mut looked_at = 0;
    for (page, text) in pages() {
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            if !block.contains("services:") {
                continue;
            }
            looked_at += 1;
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("compose.yaml");
            fs::write(&file, block).expect("write it");
            let planned = Command::new(env!("CARGO_BIN_EXE_offshoot"))
                .args([
                    "--socket",
                    "/nonexistent/offshoot.sock",
                    "plan",
                    "--name",
                    "shown",
                    "-f",
                ])
                .arg(&file)
                .output()
                .expect("the program starts");
            let said = String::from_utf8_lossy(&planned.stderr);
            assert!(planned.status.success(), "{page}: {said}");
            assert_eq!(
                said.matches("warning:").count(),
                1, // that no daemon answers
                "{page}: {said}"
            );
        }
    }
    assert!(
        looked_at > 0,
        "no Compose file was found: is the text still read?"
    );
}

#[test]
fn files_that_are_named_are_there() {
    let mut gone = Vec::new();
    for (page, text) in pages() {
        for code in code_of(&text) {
            let path = code.trim();
            let folders = ["crates/", "docs/", "packaging/", "examples/", "xtask/"];
            let plain = !path.contains(|c: char| c.is_whitespace() || "*<>{}[]()|,:…".contains(c));
            if plain && folders.iter().any(|f| path.starts_with(f)) && !root().join(path).exists() {
                gone.push(format!("{page}: {path}"));
            }
        }
    }
    assert!(gone.is_empty(), "not there:\n{}", gone.join("\n"));
}

#[test]
fn the_index_of_pages_is_whole() {
    let index = fs::read_to_string(root().join("docs/README.md")).expect("the index");
    for entry in fs::read_dir(root().join("docs")).expect("the pages") {
        let entry = entry.expect("a page");
        let name = entry.file_name().to_string_lossy().into_owned();
        let picture = name.ends_with(".svg") || entry.path().is_dir();
        let listed = name == "README.md" || picture || index.contains(&format!("]({name})"));
        assert!(listed, "docs/README.md does not lead to {name}");
    }
}
