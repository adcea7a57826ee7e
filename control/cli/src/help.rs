//! Help texts, written from the tree of commands: usage, examples first, then flags in Go's spelling.

use std::fmt::Write;

use clap::{Arg, Command};

use crate::{
    argv::is_leaf, commands::GROUPS, endpoint::HEADING, flags::is_switch, persona::Persona,
};

const SCREEN: usize = 100;
/// Where the text of a flag begins; a longer flag has its line for itself.
const INDENT: usize = 30;

/// The help of the command at `path`; of the whole program if that is empty.
pub(crate) fn text(root: &Command, path: &[String], persona: Persona) -> String {
    let command = path
        .iter()
        .try_fold(root, |command, name| command.find_subcommand(name))
        .unwrap_or(root);
    let name = [&[persona.name().to_owned()], path].concat().join(" ");
    let mut text = String::new();
    usage(&mut text, command, &name);
    for about in [command.get_about(), command.get_long_about()]
        .into_iter()
        .flatten()
    {
        for line in about.to_string().lines() {
            let _ = write!(text, "\n  {line}");
        }
        text.push('\n');
    }
    if let Some(examples) = command.get_after_help() {
        let examples = persona.own(&examples.to_string());
        let _ = write!(text, "\nExamples:\n{examples}\n");
    }
    if path.is_empty() {
        groups(&mut text, root);
        let _ = write!(
            text,
            "\nFlags take one dash or two. `{name} <command> -help` tells more about a command.\n"
        );
    } else if !is_leaf(command) {
        text.push_str("\nCommands:\n");
        let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
        commands(&mut text, command, &names);
    } else {
        flags(&mut text, command, persona);
    }
    text
}

fn usage(text: &mut String, command: &Command, name: &str) {
    let _ = write!(text, "Usage: {name}");
    if !is_leaf(command) {
        text.push_str(" <command> [flags] [arguments]\n");
        return;
    }
    if command.get_opts().next().is_some() {
        text.push_str(" [flags]");
    }
    for (n, argument) in command.get_positionals().enumerate() {
        let many = argument
            .get_num_args()
            .is_some_and(|range| range.max_values() > 1);
        // KEY, and whatever DATA or FILE... follows it.
        let needed = n == 0 && !many && argument.get_id().as_str() == "KEY";
        let dots = if many { "..." } else { "" };
        let _ = match needed {
            true => write!(text, " {}", argument.get_id()),
            false => write!(text, " [{}{dots}]", argument.get_id()),
        };
    }
    text.push('\n');
}

fn groups(text: &mut String, root: &Command) {
    for (title, names) in GROUPS {
        let _ = write!(text, "\n{title}:\n");
        commands(text, root, names);
    }
}

fn commands(text: &mut String, parent: &Command, names: &[&str]) {
    for command in names.iter().filter_map(|name| parent.find_subcommand(name)) {
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        let _ = write!(text, "  {:<12} {about}", command.get_name());
        let below = command
            .get_subcommands()
            .filter(|below| !below.is_hide_set());
        let below: Vec<&str> = below.map(Command::get_name).collect();
        if !below.is_empty() {
            let _ = write!(text, ": {}", below.join(", "));
        }
        text.push('\n');
    }
}

fn flags(text: &mut String, command: &Command, persona: Persona) {
    for (title, connection) in [("Flags", false), (HEADING, true)] {
        let mut flags: Vec<&Arg> = command
            .get_opts()
            .filter(|flag| {
                (flag.get_help_heading() == Some(HEADING)) == connection && !flag.is_hide_set()
            })
            .collect();
        if flags.is_empty() {
            continue;
        }
        flags.sort_by_key(|flag| flag.get_id().as_str());
        let _ = write!(text, "\n{title}:\n");
        for flag in flags {
            let spelled = spelled(flag);
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            let help = persona.own(&help);
            let mut lines = wrapped(&help, SCREEN - INDENT);
            if spelled.len() + 4 <= INDENT {
                let first = lines.next().unwrap_or_default();
                let _ = writeln!(text, "  {spelled:0$}  {first}", INDENT - 4);
            } else {
                let _ = writeln!(text, "  {spelled}");
            }
            for line in lines {
                let _ = writeln!(text, "{:INDENT$}{line}", "");
            }
        }
    }
    let mut without_effect: Vec<String> = command
        .get_opts()
        .filter(|flag| flag.is_hide_set())
        .map(spelled)
        .collect();
    if !without_effect.is_empty() {
        without_effect.sort();
        text.push_str("\nAccepted because Consul has them, without effect here:\n");
        for line in wrapped(&without_effect.join(" "), SCREEN - 2) {
            let _ = writeln!(text, "  {line}");
        }
    }
}

/// The words of `text` in lines of at most `width` characters.
fn wrapped(text: &str, width: usize) -> impl Iterator<Item = String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.into_iter()
}

/// `-flag` or `-flag=<value>`.
fn spelled(flag: &Arg) -> String {
    let name = flag.get_id();
    match flag.get_value_names().and_then(<[_]>::first) {
        Some(placeholder) if !is_switch(flag) => format!("-{name}=<{placeholder}>"),
        _ => format!("-{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::tree;

    fn help(path: &[&str], persona: Persona) -> String {
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        text(&tree(), &path, persona)
    }

    fn leaves<'c>(
        command: &'c Command,
        path: &mut Vec<&'c str>,
        visit: &mut impl FnMut(&[&str], &'c Command),
    ) {
        visit(path, command);
        for child in command.get_subcommands() {
            path.push(child.get_name());
            leaves(child, path, visit);
            path.pop();
        }
    }

    #[test]
    fn a_command_reads_like_this() {
        let expected = "\
Usage: wharf kv export [flags] [KEY_OR_PREFIX]

  Print all keys below a prefix as JSON

Examples:
  $ wharf kv export > everything.json
  $ wharf kv export vault/ | wharf kv import -http-addr=10.0.0.2:8500 -

Connection flags:
  -ca-file=<file>             PEM file of the CAs to trust [WHARF_CACERT]
";
        assert!(help(&["kv", "export"], Persona::Wharf).starts_with(expected));
        let consul = help(&["kv", "export"], Persona::Consul);
        assert!(consul.starts_with("Usage: consul kv export"), "{consul}");
        assert!(!consul.contains("wharf kv"), "{consul}");
    }

    #[test]
    fn every_command_is_shown_and_has_an_example() {
        let root = tree();
        let grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        for command in root.get_subcommands() {
            assert!(
                grouped.contains(&command.get_name()),
                "{} is in no group",
                command.get_name()
            );
        }
        leaves(&root, &mut Vec::new(), &mut |path, command| {
            assert!(command.get_about().is_some(), "{path:?} has no text");
            assert!(
                command.get_after_help().is_some(),
                "{path:?} has no example"
            );
            for flag in command.get_opts() {
                assert!(
                    flag.get_help().is_some(),
                    "{path:?} -{} has no text",
                    flag.get_id()
                );
            }
        });
    }

    #[test]
    fn nothing_runs_off_the_screen() {
        leaves(&tree(), &mut Vec::new(), &mut |path, _| {
            for line in help(path, Persona::Wharf).lines() {
                assert!(line.chars().count() <= SCREEN, "{path:?}: {line}");
            }
        });
    }
}
