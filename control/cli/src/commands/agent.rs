//! `agent`: the node itself.

use clap::{Arg, ArgMatches, Command};
use wharf_agent::config::{FlagEffect, FlagKind, FlagSpec, agent_flags};

use super::validate::parse;
use crate::{
    failure::{Failure, chain},
    flags::{Given, repeated, switch, value},
};

pub(super) fn command() -> Command {
    Command::new("agent")
        .about("Run a node of the cluster: registry, DNS, health checks")
        .long_about(
            "With -dev, one server in memory, with everything on and bound to loopback. Otherwise a server\n\
             (-server) that keeps its state in -data-dir, or a client of the servers at -retry-join.\n\
             SIGHUP reads the configuration again; SIGTERM and SIGINT stop the agent.",
        )
        .after_help(
            "  $ wharf agent -dev
  $ wharf agent -server -bootstrap-expect=1 -data-dir=/var/lib/wharf
  $ wharf agent -server -bootstrap-expect=3 -retry-join=10.0.0.1 -data-dir=/var/lib/wharf
  $ wharf agent -config-dir=/etc/wharf.d -log-level=debug",
        )
        .args(agent_flags().iter().map(flag))
}

/// A flag of the agent's own table. Values are checked there; here they are texts.
fn flag(spec: &FlagSpec) -> Arg {
    let flag = match spec.kind {
        FlagKind::Bool => switch(spec.name, spec.help),
        FlagKind::String => value(spec.name, "value", spec.help),
        FlagKind::Int => value(spec.name, "number", spec.help),
        FlagKind::Duration => value(spec.name, "duration", spec.help),
        FlagKind::Repeated => repeated(spec.name, "value", spec.help),
    };
    flag.hide(matches!(spec.effect, FlagEffect::Ignored(_)))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let flags = parse(given(matches))?;
    wharf_agent::run(flags).map_err(|error| Failure::new(chain(&error)))
}

/// The flags in the order of the command line: files are read in that order.
fn given(matches: &ArgMatches) -> Vec<(&'static str, String)> {
    let mut given = Vec::new();
    for FlagSpec { name, kind, .. } in agent_flags() {
        let positions = matches.indices_of(name).into_iter().flatten();
        let values: Vec<String> = match kind {
            FlagKind::Bool => matches
                .switch(name)
                .iter()
                .map(ToString::to_string)
                .collect(),
            _ => matches.texts(name).into_iter().map(str::to_owned).collect(),
        };
        given.extend(
            positions
                .zip(values)
                .map(|(position, value)| (position, *name, value)),
        );
    }
    given.sort_by_key(|(position, ..)| *position);
    given
        .into_iter()
        .map(|(_, name, value)| (name, value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        argv::{self, Request},
        commands::tree,
        persona::Persona,
        stub::run,
    };

    fn read(words: &[&str]) -> Vec<(&'static str, String)> {
        let words: Vec<String> = [&["agent"], words]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect();
        let Ok(Request::Run { args, .. }) = argv::parse(&tree(), &words, Persona::Wharf) else {
            panic!("not read");
        };
        given(
            &command()
                .no_binary_name(true)
                .args_override_self(true)
                .try_get_matches_from(args)
                .expect("flags"),
        )
    }

    #[test]
    fn flags_keep_their_order() {
        let flags = read(&[
            "-config-file",
            "b.hcl",
            "--dev",
            "-config-dir=a",
            "-server=false",
            "-config-file=c.json",
            "-node",
            "n1",
            "-node=n2",
        ]);
        let expected = [
            ("config-file", "b.hcl"),
            ("dev", "true"),
            ("config-dir", "a"),
            ("server", "false"),
            ("config-file", "c.json"),
            ("node", "n2"),
        ];
        assert_eq!(
            flags,
            expected.map(|(name, value)| (name, value.to_owned()))
        );
    }

    #[test]
    fn bad_flags_end_with_one_clear_error() {
        for words in [
            &["agent", "-http-port=many"][..],
            &["agent", "-dve"],
            &["agent", "extra"],
        ] {
            let printed = run(Persona::Wharf, words, b"", &[]);
            assert_eq!((printed.code, printed.out.as_str()), (1, ""), "{words:?}");
            assert!(!printed.err.is_empty());
        }
        assert!(
            run(Persona::Wharf, &["agent", "-dve"], b"", &[])
                .err
                .contains("-dev")
        );
    }
}
