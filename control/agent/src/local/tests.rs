use super::*;

fn node() -> Node {
    Node {
        name: "n1".into(),
        address: "10.0.0.1".into(),
        ..Node::default()
    }
}

fn in_memory() -> LocalState {
    LocalState::open(Options::default(), node()).unwrap()
}

fn on_disk(data_dir: &std::path::Path) -> LocalState {
    let options = Options {
        data_dir: Some(data_dir.into()),
        ..Options::default()
    };
    let local = LocalState::open(options, node()).unwrap();
    local.restore();
    local
}

fn ttl_check(id: &str, service: &str, ttl: u64) -> CheckSpec {
    CheckSpec {
        id: id.into(),
        name: id.into(),
        service_id: service.into(),
        kind: CheckKind::Ttl(Duration::from_secs(ttl)),
        ..CheckSpec::default()
    }
}

fn web(checks: &[&str]) -> Registration {
    Registration {
        service: NodeService {
            id: "web-1".into(),
            name: "web".into(),
            tags: ["blue".into()].into(),
            ..NodeService::default()
        },
        checks: checks.iter().map(|id| ttl_check(id, "web-1", 30)).collect(),
        token: Token::new("s3cret"),
        ..Registration::default()
    }
}

fn with_sidecar(port: u16) -> Registration {
    let build = |port| Registration {
        service: NodeService {
            id: "web-1-sidecar-proxy".into(),
            name: "web-sidecar-proxy".into(),
            port,
            ..NodeService::default()
        },
        checks: vec![ttl_check("sidecar", "web-1-sidecar-proxy", 30)],
        ..Registration::default()
    };
    Registration {
        sidecar: Some(SidecarRequest {
            id: "web-1-sidecar-proxy".into(),
            port,
            build: Box::new(build),
        }),
        ..web(&["c1"])
    }
}

fn check_ids(local: &LocalState) -> Vec<String> {
    local.checks().keys().map(|id| id.to_string()).collect()
}

#[tokio::test]
async fn a_registration_again_keeps_checks_and_their_status() {
    let local = in_memory();
    local.register_service(web(&["c1", "c2"])).await.unwrap();
    let passing = CheckStatus::Passing;
    local.report_ttl("c1", passing, "well").await.unwrap();
    local.register_service(web(&["c1"])).await.unwrap();
    assert_eq!(check_ids(&local), ["c1", "c2"]);
    let c1 = local.check("c1").unwrap();
    assert_eq!((c1.status, &*c1.output), (passing, "well"));
    assert_eq!(
        (&*c1.service_name, &*c1.service_tags),
        ("web", &["blue".into()][..])
    );

    let replacing = Registration {
        replace_existing_checks: true,
        ..web(&["c1"])
    };
    local
        .start_service_maintenance("web-1", "", None)
        .await
        .unwrap();
    local.register_service(replacing).await.unwrap();
    assert_eq!(check_ids(&local), ["_service_maintenance:web-1", "c1"]);
    assert_eq!(local.check("c1").unwrap().status, passing);
}

#[tokio::test]
async fn a_check_belongs_to_an_instance_that_exists() {
    let local = in_memory();
    let orphan = local
        .register_check(ttl_check("c", "web-1", 1))
        .await
        .unwrap_err();
    assert_eq!(orphan.to_string(), "ServiceID \"web-1\" does not exist");
    local.register_service(web(&["c"])).await.unwrap();
    local.deregister_service("web-1").await.unwrap();
    assert!(local.checks().is_empty() && local.services().is_empty());
    let gone = local.deregister_service("web-1").await.unwrap_err();
    assert_eq!(
        gone.to_string(),
        "Unknown service ID \"web-1\". Ensure that the service ID is passed, not the service name."
    );
    let gone = local
        .report_ttl("c", CheckStatus::Passing, "")
        .await
        .unwrap_err();
    assert_eq!(
        gone.to_string(),
        "Unknown check ID \"c\". Ensure that the check ID is passed, not the check name."
    );
}

#[tokio::test]
async fn only_ttl_checks_take_reports_and_long_ones_are_cut() {
    let local = in_memory();
    local.start_node_maintenance("", None).await.unwrap();
    let refused = local
        .report_ttl(NODE_MAINTENANCE, CheckStatus::Passing, "")
        .await;
    assert!(matches!(refused, Err(LocalError::NotTtl(_))));
    local.register_check(ttl_check("c", "", 1)).await.unwrap();
    let report = "x".repeat(5000);
    local
        .report_ttl("c", CheckStatus::Warning, &report)
        .await
        .unwrap();
    let output = local.check("c").unwrap().output.clone();
    assert!(output.ends_with("x ... (captured 4096 of 5000 bytes)"));
}

#[tokio::test]
async fn maintenance_comes_and_goes() {
    let local = in_memory();
    let unknown = local.start_service_maintenance("web-1", "", None).await;
    assert!(matches!(unknown, Err(LocalError::UnknownService(_))));
    local.register_service(web(&[])).await.unwrap();
    local
        .start_service_maintenance("web-1", "", None)
        .await
        .unwrap();
    local
        .start_node_maintenance("disk swap", None)
        .await
        .unwrap();
    let own = local.check("_service_maintenance:web-1").unwrap();
    assert_eq!(own.status, CheckStatus::Critical);
    assert_eq!(
        &*own.notes,
        "Maintenance mode is enabled for this service, but no reason was provided. This is a default message."
    );
    assert_eq!(&*local.check(NODE_MAINTENANCE).unwrap().notes, "disk swap");
    local.end_service_maintenance("web-1").await.unwrap();
    local.end_node_maintenance().await.unwrap();
    local.end_node_maintenance().await.unwrap();
    assert!(local.checks().is_empty());
}

#[tokio::test]
async fn a_sidecar_gets_a_port_keeps_it_and_goes_with_its_parent() {
    let local = in_memory();
    local.register_service(with_sidecar(0)).await.unwrap();
    let other = Registration {
        service: NodeService {
            id: "squatter".into(),
            name: "squatter".into(),
            port: 21001,
            ..NodeService::default()
        },
        ..Registration::default()
    };
    local.register_service(other).await.unwrap();
    local.register_service(with_sidecar(0)).await.unwrap();
    assert_eq!(local.sidecar_of("web-1").unwrap().port, 21000);
    assert_eq!(check_ids(&local), ["c1", "sidecar"]);
    local.register_service(with_sidecar(4000)).await.unwrap();
    assert_eq!(local.sidecar_of("web-1").unwrap().port, 4000);
    local.deregister_service("web-1").await.unwrap();
    assert_eq!(local.services().len(), 1);
    assert!(local.checks().is_empty());
}

#[tokio::test]
async fn when_no_port_is_left_nothing_is_registered() {
    let options = Options {
        sidecar_ports: 21000..=21000,
        ..Options::default()
    };
    let local = LocalState::open(options, node()).unwrap();
    let mut taken = web(&[]);
    taken.service.id = "other".into();
    taken.service.port = 21000;
    local.register_service(taken).await.unwrap();
    let refused = local.register_service(with_sidecar(0)).await;
    assert!(matches!(refused, Err(LocalError::NoSidecarPort { .. })));
    assert!(local.service("web-1").is_none() && local.checks().is_empty());
}

#[tokio::test]
async fn a_restart_keeps_registrations_and_reports() {
    let data = tempfile::tempdir().unwrap();
    let local = on_disk(data.path());
    local.register_service(with_sidecar(0)).await.unwrap();
    local
        .register_check(ttl_check("long", "", 3600))
        .await
        .unwrap();
    local
        .report_ttl("long", CheckStatus::Warning, "so so")
        .await
        .unwrap();
    local.start_node_maintenance("", None).await.unwrap();
    drop(local);

    let again = on_disk(data.path());
    assert_eq!(again.services().len(), 2);
    assert_eq!(again.service_token("web-1"), Token::new("s3cret"));
    assert_eq!(
        check_ids(&again),
        ["_node_maintenance", "c1", "long", "sidecar"]
    );
    let long = again.check("long").unwrap();
    assert_eq!(
        (long.status, &*long.output),
        (CheckStatus::Warning, "so so")
    );
    assert_eq!(again.check("c1").unwrap().status, CheckStatus::Critical);
    again.deregister_service("web-1").await.unwrap();
    drop(again);
    let last = on_disk(data.path());
    assert!(
        last.services().is_empty(),
        "the sidecar went with its parent"
    );
    assert_eq!(check_ids(&last), ["_node_maintenance", "long"]);
}

#[tokio::test]
async fn configuration_files_define_a_set() {
    let data = tempfile::tempdir().unwrap();
    let local = on_disk(data.path());
    let mut by_api = web(&[]);
    by_api.service.id = "by-api".into();
    local.register_service(by_api).await.unwrap();
    let problems = local
        .replace_config(vec![with_sidecar(0)], vec![ttl_check("disk", "", 30)])
        .await;
    assert!(problems.is_empty(), "{problems:?}");
    local
        .report_ttl("c1", CheckStatus::Passing, "")
        .await
        .unwrap();
    local
        .report_ttl("sidecar", CheckStatus::Passing, "")
        .await
        .unwrap();
    local
        .register_check(ttl_check("added", "web-1", 30))
        .await
        .unwrap();

    // The same again changes nothing.
    let problems = local
        .replace_config(vec![with_sidecar(0)], vec![ttl_check("disk", "", 30)])
        .await;
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(check_ids(&local), ["added", "c1", "disk", "sidecar"]);
    assert_eq!(local.check("c1").unwrap().status, CheckStatus::Passing);
    assert_eq!(local.check("sidecar").unwrap().status, CheckStatus::Passing);

    let orphan = ttl_check("orphan", "nobody", 30);
    let problems = local.replace_config(Vec::new(), vec![orphan]).await;
    assert_eq!(&*problems[0].0, "orphan");
    assert_eq!(
        local.services().keys().map(|id| &**id).collect::<Vec<_>>(),
        ["by-api"]
    );
    assert!(local.checks().is_empty());
    drop(local);
    let again = on_disk(data.path());
    assert_eq!(
        again.services().len(),
        1,
        "only what the API registered is kept"
    );
}

#[tokio::test]
async fn what_the_api_added_to_a_configured_service_waits_for_it() {
    let data = tempfile::tempdir().unwrap();
    let local = on_disk(data.path());
    local.replace_config(vec![web(&["c1"])], Vec::new()).await;
    let start = local.start_service_maintenance("web-1", "disk swap", None);
    start.await.unwrap();
    drop(local);
    let again = on_disk(data.path());
    assert!(again.checks().is_empty());
    again.replace_config(vec![web(&["c1"])], Vec::new()).await;
    assert_eq!(check_ids(&again), ["_service_maintenance:web-1", "c1"]);
    drop(again);
    // The definition is gone: so is what belonged to it.
    let without = on_disk(data.path());
    without.replace_config(Vec::new(), Vec::new()).await;
    drop(without);
    let last = on_disk(data.path());
    last.replace_config(vec![web(&["c1"])], Vec::new()).await;
    assert_eq!(check_ids(&last), ["c1"]);
}

#[tokio::test]
async fn watches_see_their_own_instance_only_and_leave_nothing() {
    use futures_util::FutureExt as _;

    let local = in_memory();
    let mut service = local.watch(LocalKey::Service("web-1".into()));
    let mut health = local.watch(LocalKey::Health("web-1".into()));
    let mut other = local.watch(LocalKey::Service("other".into()));
    let mut seen = || {
        let [service, health, other] = [&mut service, &mut health, &mut other]
            .map(|watch| watch.changed().now_or_never().is_some());
        (service, health, other)
    };
    local.register_service(web(&["c1"])).await.unwrap();
    assert_eq!(seen(), (true, true, false));
    local
        .report_ttl("c1", CheckStatus::Passing, "")
        .await
        .unwrap();
    assert_eq!(seen(), (false, true, false));
    local
        .report_ttl("c1", CheckStatus::Passing, "")
        .await
        .unwrap();
    assert_eq!(seen(), (false, false, false));
    drop((service, health));
    assert_eq!(local.shared.watches.len(), 1);
}

#[tokio::test]
async fn reserved_ids_are_refused() {
    let options = Options {
        server: true,
        ..Options::default()
    };
    let local = LocalState::open(options, node()).unwrap();
    let mut consul = web(&[]);
    consul.service.id = SERVER_SERVICE.into();
    let refused = local.register_service(consul).await;
    assert!(matches!(refused, Err(LocalError::Reserved(_))));
    let refused = local.register_check(ttl_check(SERF_HEALTH, "", 1)).await;
    assert!(matches!(refused, Err(LocalError::Reserved(_))));
}

#[tokio::test(start_paused = true)]
async fn without_anti_entropy_nobody_waits_for_ever() {
    let local = in_memory();
    assert!(
        local.synced(Duration::from_secs(1)).await,
        "nothing to write"
    );
    local.register_service(web(&[])).await.unwrap();
    assert!(!local.synced(Duration::from_secs(1)).await);
}

#[test]
fn the_hash_follows_the_content() {
    let one = NodeService::default();
    let two = NodeService {
        port: 1,
        ..NodeService::default()
    };
    assert_eq!(content_hash(&one), content_hash(&one.clone()));
    assert_ne!(content_hash(&one), content_hash(&two));
}
