//! `docs/reference/cli.md` from clap's definitions.

use clap::{Arg, Command, CommandFactory, Id};
use std::collections::BTreeSet;
use std::fmt::Write as _;

const HEAD: &str = "\
# Command line

<!-- Generated from archiver/src/cli.rs and archiver/src/commands/. To write it again:
     PGARK_BLESS=1 cargo test -p pgark-archiver --test reference -->

Results go to standard output, logs and errors to standard error. Exit codes: [exit-codes.md](exit-codes.md);
JSON: [json.md](json.md); the configuration file: [config.md](config.md).

";

/// The page.
pub(super) fn render() -> String {
    let mut command = pgark_archiver::cli::Cli::command();
    command.build();
    let mut page = HEAD.to_owned();
    page.push_str("## Options of every command\n\n");
    options(
        &mut page,
        command.get_arguments().filter(|a| a.is_global_set()),
    );
    let told = globals(&command).collect();
    for verb in command.get_subcommands().filter(|c| c.get_name() != "help") {
        section(&mut page, verb, "pgark", (2, &told));
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

/// The options that a command shares with its verbs.
fn globals(command: &Command) -> impl Iterator<Item = Id> {
    let shared = command.get_arguments().filter(|a| a.is_global_set());
    shared.map(|a| a.get_id().clone())
}

/// The options of a command itself, without those that an outer section tells.
fn own<'a>(command: &'a Command, told: &BTreeSet<Id>) -> impl Iterator<Item = &'a Arg> {
    command.get_arguments().filter(|a| {
        !told.contains(a.get_id()) && !["help", "version"].contains(&a.get_id().as_str())
    })
}

fn section(
    page: &mut String,
    command: &Command,
    parent: &str,
    (level, told): (usize, &BTreeSet<Id>),
) {
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string);
    let _ = write!(
        page,
        "{} {name}\n\n{}.\n\n",
        "#".repeat(level),
        about.unwrap_or_default()
    );
    let verbs: Vec<&Command> = command
        .get_subcommands()
        .filter(|c| c.get_name() != "help")
        .collect();
    if verbs.is_empty() {
        let _ = write!(page, "```\n{}\n```\n\n", usage(command, &name, told));
    }
    options(page, own(command, told));
    if let Some(examples) = command.get_after_help().map(ToString::to_string) {
        let lines = examples.lines().filter_map(|line| line.strip_prefix("  "));
        let lines: Vec<&str> = lines.collect();
        let _ = write!(page, "Examples:\n\n```\n{}\n```\n\n", lines.join("\n"));
    }
    let told = told.iter().cloned().chain(globals(command)).collect();
    for verb in verbs {
        section(page, verb, &name, (level + 1, &told));
    }
}

fn usage(command: &Command, name: &str, told: &BTreeSet<Id>) -> String {
    let mut line = name.to_owned();
    let (required, optional): (Vec<&Arg>, Vec<&Arg>) =
        own(command, told).partition(|a| a.is_required_set());
    if !optional.is_empty() {
        line.push_str(" [OPTIONS]");
    }
    for arg in required {
        let _ = write!(line, " {}", spelling(arg));
    }
    line
}

/// `--flag <VALUE>`, or `<VALUE>` for a positional argument.
fn spelling(arg: &Arg) -> String {
    let value = if arg.get_action().takes_values() {
        let names = arg.get_value_names().unwrap_or_default();
        names.iter().map(|name| format!("<{name}>")).collect()
    } else {
        String::new()
    };
    match arg.get_long() {
        Some(long) => format!("--{long} {value}").trim_end().to_owned(),
        None => value,
    }
}

fn options<'a>(page: &mut String, args: impl Iterator<Item = &'a Arg>) {
    let mut args = args.peekable();
    if args.peek().is_none() {
        return;
    }
    page.push_str("| option | default | meaning |\n|---|---|---|\n");
    for arg in args {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        // What clap cannot know stands in the text.
        let (help, told) = match help.split_once(" [default: ") {
            Some((help, told)) => (help.to_owned(), told.trim_end_matches(']').to_owned()),
            None => (help, String::new()),
        };
        let default = match arg.get_default_values() {
            [] if arg.is_required_set() => "required".to_owned(),
            [] => told,
            _ if !arg.get_action().takes_values() => String::new(),
            values => values
                .iter()
                .map(|value| format!("`{}`", value.to_string_lossy()))
                .collect::<Vec<_>>()
                .join(", "),
        };
        let _ = writeln!(
            page,
            "| `{}` | {default} | {}.{}{} |",
            spelling(arg),
            help.trim_end_matches('.'),
            possible(arg),
            environment(arg),
        );
    }
    page.push('\n');
}

fn possible(arg: &Arg) -> String {
    if !arg.get_action().takes_values() {
        return String::new();
    }
    let values = arg.get_possible_values();
    let values: Vec<String> = values
        .iter()
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}`: {}", value.get_name(), lower(&help.to_string())),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if values.is_empty() {
        String::new()
    } else {
        format!(" {}.", values.join("; "))
    }
}

/// The first letter made small, unless it begins an abbreviation.
fn lower(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

fn environment(arg: &Arg) -> String {
    arg.get_env().map_or_else(String::new, |name| {
        format!(" Environment: `{}`.", name.to_string_lossy())
    })
}
