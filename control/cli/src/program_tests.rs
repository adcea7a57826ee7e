use crate::{
    persona::Persona,
    stub::{Printed, Reply, Stub, run},
};

fn offline(persona: Persona, words: &[&str]) -> Printed {
    run(persona, words, b"", &[])
}

#[test]
fn exit_codes_are_consuls() {
    for persona in [Persona::Wharf, Persona::Consul] {
        for (words, code) in [
            (&["nope"][..], 127),
            (&[], 127),
            (&["acl"], 1),
            (&["acl", "token", "list"], 1),
            (&["connect", "envoy", "-sidecar-for=x"], 1),
            (&["kv"], 1),
            (&["kv", "nope"], 1),
            (&["members", "-nope"], 1),
            (&["version"], 0),
            (&["-version"], 0),
            (&["-help"], 0),
            (&["kv", "-help"], 0),
        ] {
            let printed = offline(persona, words);
            assert_eq!(printed.code, code, "{words:?} {printed:?}");
            assert_eq!(
                printed.out.is_empty(),
                code != 0,
                "{words:?}: data and messages apart"
            );
            assert_eq!(
                printed.err.is_empty(),
                code == 0,
                "{words:?}: data and messages apart"
            );
        }
    }
}

#[test]
fn messages_name_the_program_and_the_way_out() {
    let said = |words: &[&str]| offline(Persona::Wharf, words).err;
    assert_eq!(said(&["acl", "token"]), "wharf: \"acl\" is not built yet\n");
    assert_eq!(
        said(&["memebrs"]),
        "wharf: there is no command \"memebrs\"\n  try:   wharf members\n"
    );
    assert_eq!(
        said(&["members", "-detaild"]),
        "flag provided but not defined: -detaild\n  try:   -detailed   (all flags: wharf members -help)\n"
    );
    assert_eq!(
        said(&["kv", "put", "-flags=-1", "k"]),
        "invalid value \"-1\" for flag -flags\n  cause: expected a number from 0 up\n"
    );
    let consul = offline(Persona::Consul, &["memebrs"]).err;
    assert_eq!(
        consul,
        "consul: there is no command \"memebrs\"\n  try:   consul members\n"
    );
}

#[test]
fn version_is_semantic_under_both_names() {
    let json = |persona| -> serde_json::Value {
        serde_json::from_str(&offline(persona, &["version", "-format=json"]).out).expect("JSON")
    };
    assert_eq!(json(Persona::Consul)["Version"], "1.21.5");
    assert_eq!(json(Persona::Wharf)["Version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json(Persona::Wharf)["ConsulVersion"], "1.21.5");
    assert!(
        offline(Persona::Consul, &["version"])
            .out
            .starts_with("Consul v1.21.5\n")
    );
}

#[test]
fn an_agent_that_is_away_is_explained() {
    // A port that was free a moment ago: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = free.local_addr().expect("bound").to_string();
    drop(free);
    let printed = offline(Persona::Wharf, &["members", "-http-addr", &address]);
    assert_eq!(printed.code, 1);
    assert_eq!(
        printed.err,
        format!(
            "Error retrieving members: cannot reach the agent at http://{address} (from -http-addr)\n  \
             cause: Connection refused (os error 111)\n  \
             try:   start an agent with `wharf agent -dev`, or name one with -http-addr=HOST:PORT\n"
        )
    );
}

#[test]
fn an_error_of_the_agent_is_quoted_as_consul_does() {
    let stub = Stub::new(|_| Reply::new(500, "No cluster \x1b[31mleader\n"));
    let printed = stub.wharf(&["catalog", "nodes"]);
    assert_eq!(
        printed.err,
        "Error listing nodes: Unexpected response code: 500 (No cluster [31mleader)\n"
    );
}

#[test]
fn what_is_not_json_is_an_error() {
    let stub = Stub::new(|_| Reply::ok("<html>"));
    for words in [
        &["members"][..],
        &["info"],
        &["catalog", "services"],
        &["kv", "get", "k"],
        &["config", "read", "-kind=k", "-name=n"],
    ] {
        let printed = stub.wharf(words);
        assert_eq!((printed.code, printed.out.as_str()), (1, ""), "{words:?}");
    }
}

#[test]
fn flags_reach_the_request() {
    let stub = Stub::new(|_| Reply::ok("[]"));
    let printed = stub.wharf(&[
        "catalog",
        "nodes",
        "-token=t0",
        "-stale",
        "-datacenter",
        "dc 2",
        "-node-meta=a=b",
        "-node-meta=c=d",
        "-near=_agent",
    ]);
    assert_eq!(printed.code, 0, "{printed:?}");
    let asked = stub.asked().remove(0);
    assert_eq!(
        asked.line,
        "GET /v1/catalog/nodes?near=_agent&node-meta=a%3Db&node-meta=c%3Dd&dc=dc%202&stale"
    );
    assert!(
        asked.headers.contains(&"x-consul-token: t0".to_owned()),
        "{:?}",
        asked.headers
    );
}

#[test]
fn members_as_consul_prints_them() {
    let members = r#"[
        {"Name":"b","Addr":"10.0.0.2","Port":8301,"Status":4,"Tags":{"role":"node","dc":"dc1","build":"1.21.5:abc","vsn":"2","ap":"default","segment":""}},
        {"Name":"a","Addr":"10.0.0.1","Port":8301,"Status":1,"Tags":{"role":"consul","dc":"dc1","build":"1.21.5:abc","vsn":"2"}}
    ]"#;
    let stub = Stub::new(move |_| Reply::ok(members));
    let table = "\
Node  Address        Status  Type    Build   Protocol  DC   Partition  Segment
a     10.0.0.1:8301  alive   server  1.21.5  2         dc1  default    <all>
b     10.0.0.2:8301  failed  client  1.21.5  2         dc1  default    <default>
";
    assert_eq!(stub.wharf(&["members"]).out, table);
    assert_eq!(stub.wharf(&["members", "-format=pretty"]).out, table);
    let failed = stub.wharf(&["members", "-status=^fail", "-detailed"]).out;
    assert!(
        failed.contains("b     10.0.0.2:8301  failed  ap=default,build=1.21.5:abc,"),
        "{failed}"
    );
    assert!(!failed.contains("10.0.0.1"), "{failed}");
    assert_eq!(stub.wharf(&["members", "-status=left"]).code, 2);
    assert_eq!(stub.wharf(&["members", "-status=("]).code, 1);
}

#[test]
fn a_watch_goes_on_from_the_index_and_skips_what_did_not_change() {
    let mut n = 0;
    let stub = Stub::new(move |_| {
        n += 1;
        match n {
            1 => Reply::ok(r#"{"web":[]}"#).header("X-Consul-Index", 5),
            2 => Reply::ok(r#"{"web":[]}"#).header("X-Consul-Index", 6),
            // A restored log: the index falls.
            3 => Reply::ok(r#"{"db":[]}"#).header("X-Consul-Index", 2),
            4 => Reply::ok(r#"{"db":[]}"#).header("X-Consul-Index", 2),
            _ => Reply::ok("{}").header("X-Consul-Index", 3),
        }
    });
    let dir = tempfile::tempdir().expect("directory");
    let seen = dir.path().join("seen");
    // Ends the watch by failing once there are no services left.
    let script = format!(
        "cat >> {0}; echo $CONSUL_INDEX >> {0}; ! grep -q {{}} {0}",
        seen.display()
    );
    let printed = stub.wharf(&[
        "watch",
        "-type=services",
        "sh",
        "-c",
        &format!("'{script}'"),
    ]);
    assert_eq!(printed.code, 1, "{printed:?}");
    assert_eq!(printed.err, "Error executing handler: exit status: 1\n");
    let seen = std::fs::read_to_string(seen).expect("written by the handler");
    assert_eq!(seen, "{\"web\":[]}\n5\n{\"db\":[]}\n0\n{}\n3\n");
    assert_eq!(
        stub.lines(),
        [
            "GET /v1/catalog/services",
            "GET /v1/catalog/services?index=5&wait=300s",
            "GET /v1/catalog/services?index=6&wait=300s",
            "GET /v1/catalog/services",
            "GET /v1/catalog/services?index=2&wait=300s",
        ]
    );
}

#[test]
fn a_watch_without_a_command_prints_once() {
    let stub = Stub::new(|_| Reply::new(404, "").header("X-Consul-Index", 5));
    assert_eq!(stub.wharf(&["watch", "-type=key", "-key=a"]).out, "null\n");
    assert_eq!(
        stub.wharf(&["watch", "-type=keyprefix", "-prefix=a"]).out,
        "[]\n"
    );
    for words in [
        &["watch"][..],
        &["watch", "-type=nonsense"],
        &["watch", "-type=key"],
        &["watch", "-type=services", "-key=x"],
        &["watch", "-type=event", "-name=x"],
        &["watch", "-type=checks", "-state=any", "-service=x"],
    ] {
        assert_eq!(stub.wharf(words).code, 1, "{words:?}");
    }
}

#[test]
fn services_come_from_files_and_flags() {
    let stub = Stub::new(|_| Reply::ok(""));
    let dir = tempfile::tempdir().expect("directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let one = file(
        "one.hcl",
        "service {\n name = \"web\"\n id = \"web-1\"\n port = 80\n check { ttl = \"30s\" }\n}",
    );
    let two = file(
        "two.json",
        r#"{"services":[{"Name":"db","Port":5432},{"name":"api"}]}"#,
    );
    let printed = stub.wharf(&["services", "register", &one, &two]);
    assert_eq!(
        printed.out,
        "Registered service: web\nRegistered service: db\nRegistered service: api\n"
    );
    let body: serde_json::Value = serde_json::from_slice(&stub.asked()[0].body).expect("JSON");
    assert_eq!((&body["id"], &body["port"]), (&"web-1".into(), &80.into()));

    let printed = stub.wharf(&["services", "deregister", &one, &two]);
    assert_eq!(
        printed.out,
        "Deregistered service: web-1\nDeregistered service: db\nDeregistered service: api\n"
    );

    let printed = stub.wharf(&[
        "services",
        "register",
        "-name=x",
        "-port=1",
        "-tag=a",
        "-tag=b",
        "-meta=k=v=w",
        "-tagged-address=lan=[::1]:2",
    ]);
    assert_eq!(printed.out, "Registered service: x\n");
    let body = stub.asked().pop().expect("asked").body;
    let expected = r#"{"Name":"x","Tags":["a","b"],"Port":1,"TaggedAddresses":{"lan":{"Address":"::1","Port":2}},"Meta":{"k":"v=w"}}"#;
    assert_eq!(String::from_utf8(body).expect("text"), expected);

    let typo = file("typo.hcl", "service {\n name = \"web\"\n prot = 80\n}");
    let said = stub.wharf(&["services", "register", &typo]).err;
    assert!(
        said.contains("typo.hcl:3:2") && said.contains("\"port\""),
        "{said}"
    );

    let broken = file("broken.hcl", "service {\n name = \n}");
    let empty = file("empty.json", "{}");
    for words in [
        &["services", "register"][..],
        &["services", "register", &broken],
        &["services", "register", &empty],
        &["services", "register", "-name=x", &one],
        &["services", "register", "-name=x", "-meta=k"],
        &["services", "register", "-name=x", "-port=65536"],
        &["services", "deregister"],
    ] {
        let printed = stub.wharf(words);
        assert_eq!((printed.code, printed.out.as_str()), (1, ""), "{words:?}");
    }
}

#[test]
fn entries_are_written_from_hcl_and_conditions_are_kept() {
    let stub = Stub::new(|asked| {
        Reply::ok(if asked.line.contains("cas=9") {
            "false"
        } else {
            "true"
        })
    });
    let write = |words: &[&str]| {
        let entry = b"Kind = \"service-defaults\"\nName = \"web\"\nProtocol = \"http\"";
        stub.run(
            Persona::Wharf,
            &[&["config", "write"], words].concat(),
            entry,
        )
    };
    assert_eq!(
        write(&["-"]).out,
        "Config entry written: service-defaults/web\n"
    );
    let body: serde_json::Value = serde_json::from_slice(&stub.asked()[0].body).expect("JSON");
    assert_eq!(body["Protocol"], "http");
    let refused = write(&["-cas", "-modify-index=9", "-"]);
    assert_eq!(
        refused.err,
        "Config entry not updated: service-defaults/web\n"
    );
    let deleted = stub.wharf(&["config", "delete", "-kind=service-defaults", "-name=web"]);
    assert_eq!(deleted.out, "Config entry deleted: service-defaults/web\n");
    assert_eq!(
        stub.wharf(&["config", "read", "-name=x"]).err,
        "Must specify the -kind parameter\n"
    );
}
