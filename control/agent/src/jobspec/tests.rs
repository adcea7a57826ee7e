use wharf_config::{Format, parse_hcl};
use wharf_registry::model::platform::{Driver, NetworkMode, PortRef};

use super::*;

fn hcl(text: &str) -> Result<Job, JobError> {
    decode(parse_hcl("web.hcl", text).unwrap())
}

fn refused(text: &str) -> String {
    hcl(text).unwrap_err().to_string()
}

const WEB: &str = r#"
job "web" {
  meta { team = "shop" }
  group "web" {
    count = 3
    network {
      port "http" { to = 8080 }
      port "admin" { static = 9000 }
    }
    restart { attempts = 5  delay = "250ms" }
    shutdown_delay = "2s"
    service {
      name = "web"
      port = "http"
      tags = ["v1"]
      check { type = "http"  path = "/health"  interval = "5s" }
      check { type = "tcp"   port = "admin" }
      connect {
        sidecar_service {
          proxy {
            upstreams { destination_name = "db"  local_bind_port = 5432 }
            upstreams { destination_name = "cache"  local_bind_port = 6379 }
          }
        }
      }
    }
    task "web" {
      driver = "container"
      config {
        image = "web:1"
        args  = ["-port", "${WHARF_PORT_http}"]
      }
      env { GREETING = "hello" }
      resources { cpu = "250m"  memory = "128MiB"  memory_max = 256 }
      kill_signal = "SIGINT"
    }
    task "log" {
      driver  = "exec"
      command = "/bin/tail"
    }
  }
  group "worker" {
    network { mode = "host" }
    task "worker" { image = "worker:1" }
  }
}
"#;

#[test]
fn a_job_file_is_read() {
    let job = hcl(WEB).unwrap();
    assert_eq!((&*job.name, job.groups.len()), ("web", 2));
    let group = &job.groups[0];
    assert_eq!((&*group.name, group.count), ("web", 3));
    assert_eq!(group.port("http").unwrap().to, 8080);
    assert_eq!(group.port("admin").unwrap().r#static, 9000);
    assert_eq!(group.restart.attempts, 5);
    assert_eq!(group.shutdown_delay.to_string(), "2s");
    let service = &group.services[0];
    assert_eq!(service.port, PortRef::Label("http".into()));
    assert_eq!(service.checks.len(), 2);
    assert_eq!(service.checks[1].port, PortRef::Label("admin".into()));
    let upstreams = &service.sidecar().unwrap().proxy.upstreams;
    assert_eq!(upstreams[1].local_bind_port, 6379);
    let task = group.task("web").unwrap();
    assert_eq!((&*task.image, task.args.len()), ("web:1", 2));
    assert_eq!(&*task.args[1], "${WHARF_PORT_http}");
    assert_eq!(task.resources.memory_limit_mb(), 256);
    assert_eq!(&*task.env["GREETING"], "hello");
    assert_eq!(group.task("log").unwrap().driver, Driver::Exec);
    assert_eq!(job.groups[1].network.mode, NetworkMode::Host);
}

#[test]
fn json_is_the_same_document_or_the_model() {
    let job = hcl(WEB).unwrap();
    let json = serde_json::to_vec(&job).unwrap();
    assert_eq!(decode_body(&json).unwrap(), job);
    let wrapped = serde_json::to_vec(&serde_json::json!({"Job": job})).unwrap();
    assert_eq!(decode_body(&wrapped).unwrap(), job);
    let blocks = br#"{"job": {"web": {"group": {"web": {
        "task": {"web": {"driver": "exec", "config": {"command": "/bin/true"}}}
    }}}}}"#;
    let job = decode_body(blocks).unwrap();
    assert_eq!(&*job.groups[0].tasks[0].command, "/bin/true");
    let lists = br#"{"job": [{"web": [{"group": [{"web": [{
        "task": [{"web": [{"driver": "exec", "config": [{"command": "/bin/true"}]}]}]
    }]}]}]}]}"#;
    assert_eq!(decode_body(lists).unwrap(), job);
}

#[test]
fn what_the_state_machine_keeps_is_not_taken_from_outside() {
    let mut job = hcl(WEB).unwrap();
    job.version = 7;
    job.stop = true;
    job.job_modify_index = 9;
    let json = serde_json::to_vec(&job).unwrap();
    assert_eq!(decode_body(&json).unwrap(), hcl(WEB).unwrap());
}

const ONE: &str = r#"job "web" {
  group "web" {
    task "web" {
      driver = "exec"
      command = "/bin/true"
      BODY
    }
    GROUP
  }
}
"#;

fn one(body: &str, group: &str) -> String {
    ONE.replace("BODY", body).replace("GROUP", group)
}

#[test]
fn mistakes_are_told_where_they_were_made() {
    let cases = [
        (
            one("imagee = \"x\"", ""),
            r#"web.hcl:6:7: unknown key "group[0].task[0].imagee" (did you mean "image"?)"#,
        ),
        (
            one("resources { memory = \"12 potatoes\" }", ""),
            r#"web.hcl:6:28: group[0].task[0].resources.memory: expected mebibytes, such as 256 or "256MiB", found a string "12 potatoes""#,
        ),
        (
            one("kill_timeout = \"5\"", ""),
            r#"web.hcl:6:22: group[0].task[0].kill_timeout: time: missing unit in duration "5""#,
        ),
        (
            one("kill_signal = \"SIGFOO\"", ""),
            r#"web.hcl:6:21: Groups[0].Tasks[0].KillSignal: there is no signal "SIGFOO": use one of SIGHUP"#,
        ),
        (
            one("config { command = \"/bin/false\" }", ""),
            r#"web.hcl:6:16: "command" is in the task and in its config"#,
        ),
        (
            one("name = \"other\"", ""),
            r#"web.hcl:6:7: name is said twice: "web" is the label of the block"#,
        ),
        (
            one(
                "",
                "network { port \"http\" { static = 80 } port \"alt\" { static = 80 } }",
            ),
            "web.hcl:8:65: Groups[0].Network.Ports[1].Static: port 80 is there twice",
        ),
        (
            one("", "service { name = \"web\" port = \"http\" }"),
            r#"web.hcl:8:35: Groups[0].Services[0].Port: there is no port "http": the group's network has no ports"#,
        ),
        (
            one("", "count = -1"),
            "web.hcl:8:13: group[0].count: expected an integer from 0 to 4294967295, found -1",
        ),
        (
            one("", "task \"Web\" { driver = \"exec\" command = \"x\" }"),
            r#"web.hcl:8:10: Groups[0].Tasks[1].Name: "Web" is not a name for DNS"#,
        ),
        (
            "job \"web\" { type = \"batch\" }".to_owned(),
            r#"web.hcl:1:20: type: jobs of type "batch" are not built yet"#,
        ),
        (
            "job \"web\" {}".to_owned(),
            "web.hcl:1:5: Groups: a job needs at least one group",
        ),
        (
            "jobs \"web\" {}".to_owned(),
            r#"web.hcl:1:1: unknown key "jobs": a job file has one block"#,
        ),
        ("".to_owned(), "web.hcl:1:1: there is no job in it"),
        (
            "job \"a\" {}\njob \"b\" {}".to_owned(),
            "web.hcl:2:5: a second job",
        ),
        (
            "job \"a\" {}\nregion = \"x\"".to_owned(),
            r#"web.hcl:2:1: unknown key "region": a job file has one job"#,
        ),
        ("job {}".to_owned(), "web.hcl:1:5: Name: a job needs a name"),
    ];
    for (text, expected) in cases {
        let error = refused(&text);
        assert!(
            error.starts_with(expected),
            "{text}\nexpected {expected}\nfound    {error}"
        );
    }
}

#[test]
fn several_mistakes_are_told_at_once() {
    let error = refused(&one("imagee = 1\n drivr = 2", ""));
    assert_eq!(error.lines().count(), 2, "{error}");
    let error = refused(&one("kill_signal = \"X\"\n work_dir = \"y\"", ""));
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn a_body_is_told_without_a_place_that_nobody_has() {
    let error = decode_body(br#"{"Name": "web", "Gruops": []}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"unknown key "Gruops" (did you mean "Groups"?)"#
    );
    let error = decode_body(br#"{"Name": "web"}"#).unwrap_err();
    assert_eq!(error.to_string(), "Groups: a job needs at least one group");
    assert!(decode_body(b"{").is_err());
    assert!(decode_body(b"\xff").is_err());
    assert!(decode_body(b"[]").is_err());
}

#[test]
fn any_document_is_refused_or_read() {
    use proptest::prelude::*;

    let words = prop_oneof![
        Just("job"),
        Just("group"),
        Just("task"),
        Just("\"web\""),
        Just("{"),
        Just("}"),
        Just("="),
        Just("["),
        Just("]"),
        Just("\n"),
        Just("name"),
        Just("network"),
        Just("port"),
        Just("1"),
        Just("config"),
    ];
    proptest!(|(words in proptest::collection::vec(words, 0..40))| {
        if let Ok(node) = Format::Hcl.parse("x.hcl", &words.join(" ")) {
            let _ = decode(node);
        }
    });
}
