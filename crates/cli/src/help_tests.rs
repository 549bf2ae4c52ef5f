//! Golden help texts, and docs/commands.md, which is made from them.

use std::path::Path;

use clap::{Command, CommandFactory as _};

use crate::args::Cli;

/// Every command below `command`, with the words that call it, parents first.
fn walk(command: &Command, words: &str, out: &mut Vec<(String, Command)>) {
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        let words = format!("{words} {}", sub.get_name());
        out.push((words.clone(), sub.clone()));
        walk(sub, &words, out);
    }
}

fn commands() -> (Command, Vec<(String, Command)>) {
    let mut root = Cli::command().term_width(100).max_term_width(100);
    root.build();
    let mut all = Vec::new();
    walk(&root, "offshoot", &mut all);
    (root, all)
}

fn help(command: &Command) -> String {
    let text = command
        .clone()
        .term_width(100)
        .render_long_help()
        .to_string();
    text.lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
        + "\n"
}

#[test]
fn help_texts() {
    let (root, all) = commands();
    insta::assert_snapshot!("offshoot", help(&root));
    for (words, command) in all {
        insta::assert_snapshot!(words.replace(' ', "_"), help(&command));
    }
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
    for (words, command) in commands().1 {
        assert!(
            command.get_about().is_some(),
            "{words} says nothing about itself"
        );
        let examples = command
            .get_after_help()
            .is_some_and(|text| text.to_string().contains("Examples:"));
        assert!(examples, "{words} has no examples");
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{words}: {} is not explained",
                argument.get_id()
            );
        }
    }
}

/// `OFFSHOOT_UPDATE_DOCS=1` writes the page anew.
#[test]
fn the_page_of_commands_is_current() {
    let (root, all) = commands();
    let globals: Vec<_> = root
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .map(|arg| arg.get_id().clone())
        .collect();
    let mut page = String::from(
        "# Commands\n\n\
         Made from the program's own help texts by a test (`OFFSHOOT_UPDATE_DOCS=1 cargo test -p offshoot-cli \
         page_of_commands`); change those, not this page.\n\n\
         Answers go to standard output, progress and messages to standard error. Exit status: 0 done, 1 a problem, \
         2 a command that was not understood; `exec` passes on the status of what it ran. A problem is printed as\n\n\
         ```text\n\
         error[name-taken]: an environment named shop exists already\n  \
           fault: the request\n  \
           next:  choose another name, or rename or remove that environment\n\
         ```\n\n\
         and with `-o json` as a JSON document with the same fields (`code`, `what`, `fault`, `next`, `details`) on \
         standard error. Codes keep their meaning. With `-o json` every command answers one document on standard \
         output in the API's own form (lists as arrays); `logs` writes one document per line. `cp` to `-` and `exec` \
         write what they carry.\n\n\
         Commands that change something wait and show the steps. Ctrl-C once cancels: what was done is undone. \
         Ctrl-C again leaves the change to the daemon and says how to look at it. With `--detach` they return at once.\n\n",
    );
    page.push_str(&format!("```text\n{}```\n", help(&root)));
    for (words, command) in all {
        let depth = words.split(' ').count();
        // The options that every command has are shown once, above.
        let short = globals.iter().fold(command, |command, id| {
            command.mut_arg(id, |arg| arg.hide(true))
        });
        page.push_str(&format!(
            "\n{} {words}\n\n```text\n{}```\n",
            "#".repeat(depth.min(3)),
            help(&short)
        ));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/commands.md");
    if std::env::var_os("OFFSHOOT_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/commands.md is not current; run the test with OFFSHOOT_UPDATE_DOCS=1"
    );
}
