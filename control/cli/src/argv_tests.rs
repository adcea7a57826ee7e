use proptest::prelude::*;

use super::*;
use crate::{
    commands::tree,
    flags::{argument, repeated, switch, value},
};

fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|word| (*word).to_owned()).collect()
}

fn read_as(persona: Persona, line: &[&str]) -> Result<Request, ArgvError> {
    parse(&tree(), &words(line), persona)
}

fn wharf(line: &[&str]) -> Result<Request, ArgvError> {
    read_as(Persona::Wharf, line)
}

fn consul(line: &[&str]) -> Result<Request, ArgvError> {
    read_as(Persona::Consul, line)
}

fn run(path: &[&str], args: &[&str]) -> Result<Request, ArgvError> {
    Ok(Request::Run {
        path: words(path),
        args: words(args),
    })
}

#[test]
fn all_spellings_of_a_flag_are_one() {
    for line in [
        &["kv", "get", "-separator", "x", "-keys", "k"][..],
        &["kv", "get", "--separator", "x", "--keys", "k"],
        &["kv", "get", "-separator=x", "-keys=true", "k"],
        &["kv", "get", "--separator=x", "--keys=true", "k"],
    ] {
        assert_eq!(
            wharf(line),
            run(&["kv", "get"], &["--separator=x", "--keys=true", "--", "k"])
        );
        assert_eq!(wharf(line), consul(line));
    }
}

#[test]
fn a_value_is_taken_as_it_is() {
    assert_eq!(
        wharf(&["kv", "put", "-token", "-abc", "-session=", "k"]),
        run(&["kv", "put"], &["--token=-abc", "--session=", "--", "k"])
    );
    // A boolean takes none from the next word.
    assert_eq!(
        wharf(&["kv", "get", "-keys", "false"]),
        run(&["kv", "get"], &["--keys=true", "--", "false"])
    );
}

#[test]
fn go_ends_flags_at_the_first_argument() {
    assert_eq!(
        consul(&["kv", "put", "key", "-cas"]),
        run(&["kv", "put"], &["--", "key", "-cas"])
    );
    assert_eq!(
        consul(&["kv", "get", "key", "-keys"]),
        Err(ArgvError::TooManyArguments {
            expected: "1".to_owned(),
            got: 2
        })
    );
}

#[test]
fn flags_after_arguments_are_taken_where_they_can_be_nothing_else() {
    assert_eq!(
        wharf(&["kv", "get", "key", "-detailed"]),
        run(&["kv", "get"], &["--detailed=true", "--", "key"])
    );
    // Both arguments are there: what follows can only be a flag.
    assert_eq!(
        wharf(&["kv", "put", "key", "value", "-flags=3"]),
        run(&["kv", "put"], &["--flags=3", "--", "key", "value"])
    );
    // Two words where Go would have room for one.
    assert_eq!(
        wharf(&["kv", "put", "key", "-cas", "value"]),
        run(&["kv", "put"], &["--cas=true", "--", "key", "value"])
    );
    for token in ["-cas", "-flags=3", "--token=x"] {
        assert_eq!(
            wharf(&["kv", "put", "key", token]),
            Err(ArgvError::Ambiguous {
                token: token.to_owned(),
                argument: "DATA".to_owned()
            })
        );
    }
}

#[test]
fn a_value_may_begin_with_a_dash() {
    for data in ["-5", "-", "-not-a-flag", "---", "-=x"] {
        let expected = run(&["kv", "put"], &["--", "key", data]);
        assert_eq!(wharf(&["kv", "put", "key", data]), expected);
        assert_eq!(consul(&["kv", "put", "key", data]), expected);
        assert_eq!(wharf(&["kv", "put", "--", "key", data]), expected);
    }
    assert_eq!(
        wharf(&["kv", "put", "--", "-key", "-cas"]),
        run(&["kv", "put"], &["--", "-key", "-cas"])
    );
}

#[test]
fn the_words_of_a_child_are_its_own() {
    for read in [wharf, consul] {
        assert_eq!(
            read(&[
                "watch", "-type", "key", "-key=a", "sh", "-c", "-help", "--", "-type=x"
            ]),
            run(
                &["watch"],
                &[
                    "--type=key",
                    "--key=a",
                    "--",
                    "sh",
                    "-c",
                    "-help",
                    "--",
                    "-type=x"
                ]
            )
        );
    }
}

#[test]
fn connection_flags_may_stand_first() {
    assert_eq!(
        wharf(&["-http-addr", "h:1", "kv", "-token=t", "get", "k"]),
        run(&["kv", "get"], &["--http-addr=h:1", "--token=t", "--", "k"])
    );
}

#[test]
fn help_and_version_are_found_anywhere_but_in_values() {
    for word in ["-h", "-help", "--help"] {
        for (line, path) in [
            (vec![word], vec![]),
            (vec!["kv", word], vec!["kv"]),
            (vec!["kv", "get", word], vec!["kv", "get"]),
            (vec!["kv", "get", "k", word], vec!["kv", "get"]),
        ] {
            assert_eq!(
                wharf(&line),
                Ok(Request::Help { path: words(&path) }),
                "{line:?}"
            );
            assert_eq!(
                consul(&line),
                Ok(Request::Help { path: words(&path) }),
                "{line:?}"
            );
        }
    }
    assert_eq!(
        wharf(&["help", "kv", "put", "key"]),
        Ok(Request::Help {
            path: words(&["kv", "put"])
        })
    );
    for word in ["-v", "-version", "--version"] {
        assert_eq!(wharf(&[word]), Ok(Request::Version));
    }
}

#[test]
fn mistakes_name_the_nearest() {
    let nearest = |error| match error {
        Err(ArgvError::UnknownCommand { nearest, .. } | ArgvError::UnknownFlag { nearest, .. }) => {
            nearest
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(nearest(wharf(&["memebrs"])).as_deref(), Some("members"));
    assert_eq!(nearest(wharf(&["kv", "gte"])).as_deref(), Some("get"));
    assert_eq!(
        nearest(wharf(&["members", "-detaild"])).as_deref(),
        Some("detailed")
    );
    assert_eq!(nearest(wharf(&["members", "-frobnicate"])), None);
    assert_eq!(
        nearest(wharf(&["kv", "get", "k", "-recurs"])).as_deref(),
        Some("recurse")
    );
}

#[test]
fn what_go_refuses_is_refused() {
    assert_eq!(
        wharf(&["kv", "get", "-separator"]),
        Err(ArgvError::MissingValue {
            flag: "separator".to_owned()
        })
    );
    assert_eq!(
        wharf(&["kv", "get", "-keys=maybe", "k"]),
        Err(ArgvError::NotBoolean {
            flag: "keys".to_owned(),
            value: "maybe".to_owned()
        })
    );
    assert_eq!(
        wharf(&["members", "---wan"]),
        Err(ArgvError::BadSyntax("---wan".to_owned()))
    );
    assert_eq!(
        wharf(&["members", "-=wan"]),
        Err(ArgvError::BadSyntax("-=wan".to_owned()))
    );
    assert_eq!(wharf(&[]), Err(ArgvError::MissingCommand { path: vec![] }));
    assert_eq!(
        wharf(&["kv"]),
        Err(ArgvError::MissingCommand {
            path: words(&["kv"])
        })
    );
    assert_eq!(
        wharf(&["kv", "put", "a", "b", "c"]),
        Err(ArgvError::TooManyArguments {
            expected: "1 or 2".to_owned(),
            got: 3
        })
    );
}

#[test]
fn underscores_and_dashes_in_a_name_are_alike() {
    let root = Command::new("root").subcommand(Command::new("x").arg(value(
        "check_output_max_size",
        "n",
        "",
    )));
    for spelling in ["-check_output_max_size=1", "-check-output-max-size=1"] {
        assert_eq!(
            parse(&root, &words(&["x", spelling]), Persona::Wharf),
            run(&["x"], &["--check_output_max_size=1", "--"])
        );
    }
}

/// Every command and flag there is.
fn all_flags() -> Vec<(Vec<String>, Arg)> {
    fn collect(command: &Command, path: &[String], found: &mut Vec<(Vec<String>, Arg)>) {
        for child in command.get_subcommands() {
            let path = [path, &[child.get_name().to_owned()]].concat();
            if !child.has_subcommands() {
                found.extend(child.get_opts().map(|flag| (path.clone(), flag.clone())));
            }
            collect(child, &path, found);
        }
    }
    let mut found = Vec::new();
    collect(&tree(), &[], &mut found);
    found
}

proptest! {
    /// `-x v`, `--x v`, `-x=v` and `--x=v` are one flag, whichever it is and whatever the value.
    #[test]
    fn spellings_agree_for_every_flag(pick in any::<prop::sample::Index>(), value in "[ -~]{0,12}", on in any::<bool>()) {
        let flags = all_flags();
        let (path, flag) = pick.get(&flags);
        let name = flag.get_long().expect("every flag has a long name");
        let value = if is_switch(flag) { on.to_string() } else { value };
        let line = |words: &[String]| [path.as_slice(), words].concat();
        let mut spellings = vec![
            line(&[format!("-{name}={value}")]),
            line(&[format!("--{name}={value}")]),
        ];
        if !is_switch(flag) {
            spellings.push(line(&[format!("-{name}"), value.clone()]));
            spellings.push(line(&[format!("--{name}"), value.clone()]));
        } else if on {
            spellings.push(line(&[format!("-{name}")]));
            spellings.push(line(&[format!("--{name}")]));
        }
        let expected = Request::Run {
            path: path.clone(),
            args: vec![format!("--{name}={value}"), "--".to_owned()],
        };
        let root = tree();
        for spelling in spellings {
            for persona in [Persona::Wharf, Persona::Consul] {
                let read = parse(&root, &spelling, persona);
                prop_assert_eq!(read.as_ref(), Ok(&expected), "{:?}", spelling);
            }
        }
    }

    /// What comes out is never misread by clap: each value arrives as it was typed.
    #[test]
    fn clap_reads_back_what_was_typed(text in "[ -~]{0,12}", more in prop::collection::vec("[ -~]{1,8}", 0..4), on in any::<bool>()) {
        let command = Command::new("x")
            .args([switch("on", ""), value("text", "v", ""), repeated("more", "v", "")])
            .arg(argument("A"))
            .arg(argument("B").allow_hyphen_values(true));
        let root = Command::new("root").subcommand(command.clone());
        let mut line = words(&["x", "-text", &text]);
        line.push(format!("-on={on}"));
        for value in &more {
            line.extend(["-more".to_owned(), value.clone()]);
        }
        line.extend(words(&["--", &text, "-b"]));
        let Ok(Request::Run { args, .. }) = parse(&root, &line, Persona::Wharf) else {
            return Err(TestCaseError::fail("not read"));
        };
        let matches = command.no_binary_name(true).try_get_matches_from(args).expect("clap");
        prop_assert_eq!(matches.get_one::<bool>("on"), Some(&on));
        prop_assert_eq!(matches.get_one::<String>("text"), Some(&text));
        let read: Vec<String> = matches.get_many("more").into_iter().flatten().cloned().collect();
        prop_assert_eq!(read, more);
        prop_assert_eq!(matches.get_one::<String>("A"), Some(&text));
        prop_assert_eq!(matches.get_one::<String>("B").map(String::as_str), Some("-b"));
    }

    /// Nothing a person can type makes the reading panic.
    #[test]
    fn any_line_is_read_or_refused(line in prop::collection::vec("(kv|get|put|watch|-{0,3}[a-z=]{0,6}|[ -~]{0,6})", 0..8)) {
        let _ = parse(&tree(), &line, Persona::Wharf);
        let _ = parse(&tree(), &line, Persona::Consul);
    }
}
