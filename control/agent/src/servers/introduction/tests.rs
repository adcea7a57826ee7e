use uuid::Uuid;

use super::*;

fn id(number: u128) -> ServerId {
    ServerId(Uuid::from_u128(number))
}

fn cluster(number: u128) -> ClusterId {
    ClusterId(Uuid::from_u128(number))
}

fn server(number: u128) -> Server {
    Server {
        name: format!("s{number}"),
        address: format!("10.0.0.{number}:8300"),
    }
}

fn about(number: u128, expect: u32) -> Introduction {
    Introduction {
        server: server(number),
        datacenter: "dc1".to_owned(),
        expect,
        retry_join: Vec::new(),
        default_port: 8300,
    }
}

fn own(number: u128, about: &Introduction) -> Own<'_> {
    Own {
        id: id(number),
        about,
        cluster: None,
        promised: None,
    }
}

/// A server that knows `known` and belongs to nobody.
fn met<const N: usize>(number: u128, known: [u128; N]) -> Met {
    Met {
        place: server(number).address,
        id: id(number),
        server: server(number),
        datacenter: "dc1".to_owned(),
        expect: 3,
        cluster: None,
        founded: false,
        founding: false,
        known: known.iter().map(|n| (id(*n), server(*n))).collect(),
        leader: None,
    }
}

fn founded(number: u128, of: u128) -> Met {
    Met {
        founded: true,
        cluster: Some(cluster(of)),
        leader: Some(leader(of)),
        ..met(number, [])
    }
}

fn leader(number: u128) -> Leader {
    Leader {
        id: id(number),
        name: server(number).name,
        address: server(number).address,
    }
}

#[test]
fn the_lowest_founds_when_all_know_the_same() {
    let about_1 = about(1, 3);
    let all = [1, 2, 3];
    let agreed = [met(2, all), met(3, all)];
    let servers = all.map(|n| (id(n), server(n))).into();
    assert_eq!(decide(&own(1, &about_1), &agreed), Action::Found(servers));
    // Not the others; not too few; not while one has not seen all.
    let about_2 = about(2, 3);
    let others = [met(1, all), met(3, all)];
    assert_eq!(decide(&own(2, &about_2), &others), Action::Wait);
    assert_eq!(decide(&own(1, &about_1), &agreed[..1]), Action::Wait);
    let unsure = [met(2, all), met(3, [1, 3])];
    assert_eq!(decide(&own(1, &about_1), &unsure), Action::Wait);
    // More than expected: all of them.
    let all = [1, 2, 3, 4];
    let four = [met(2, all), met(3, all), met(4, all)];
    assert!(matches!(decide(&own(1, &about_1), &four), Action::Found(s) if s.len() == 4));
    // One that expects none founds none.
    let about_0 = about(1, 0);
    assert_eq!(decide(&own(1, &about_0), &agreed), Action::Wait);
}

#[test]
fn what_cannot_be_meant_is_complained_about() {
    let about_1 = about(1, 3);
    let all = [1, 2, 3];
    let other = Met {
        expect: 5,
        ..met(2, all)
    };
    let namesake = Met {
        server: Server {
            name: "s3".into(),
            ..server(2)
        },
        ..met(2, all)
    };
    for second in [other, namesake] {
        let action = decide(&own(1, &about_1), &[second, met(3, all)]);
        assert!(matches!(action, Action::Complain(_)), "{action:?}");
    }
    // Another datacenter is none of its business.
    let elsewhere = Met {
        datacenter: "dc2".into(),
        ..founded(2, 2)
    };
    assert_eq!(decide(&own(1, &about_1), &[elsewhere]), Action::Wait);
}

#[test]
fn a_cluster_that_is_there_is_joined() {
    let about_1 = about(1, 3);
    let join = Action::Join {
        leader: leader(7),
        cluster: cluster(7),
    };
    let all = [1, 2, 3];
    let met_all = [met(2, all), met(3, all), founded(8, 7)];
    assert_eq!(decide(&own(1, &about_1), &met_all), join);
    let leaderless = Met {
        leader: None,
        ..founded(8, 7)
    };
    assert_eq!(
        decide(&own(1, &about_1), std::slice::from_ref(&leaderless)),
        Action::Wait
    );
    assert_eq!(
        decide(&own(1, &about_1), &[leaderless, founded(7, 7)]),
        join
    );
    let two = [founded(7, 7), founded(9, 9)];
    assert!(matches!(
        decide(&own(1, &about_1), &two),
        Action::Complain(_)
    ));
    // To whom it belongs already, even if it has nothing of it yet.
    let promised = Own {
        cluster: Some(cluster(7)),
        ..own(1, &about_1)
    };
    assert_eq!(decide(&promised, &two), join);
    assert!(matches!(decide(&promised, &two[1..]), Action::Complain(_)));
}

#[test]
fn a_promise_holds_as_long_as_the_founder_may_found() {
    let about_3 = about(3, 3);
    let promised = Own {
        cluster: Some(cluster(1)),
        promised: Some(server(1)),
        ..own(3, &about_3)
    };
    let all = [1, 2, 3];
    let founding = Met {
        founding: true,
        ..met(1, all)
    };
    assert_eq!(decide(&promised, &[founding]), Action::Wait);
    assert_eq!(decide(&promised, &[met(2, all)]), Action::Wait);
    assert_eq!(decide(&promised, &[met(1, all)]), Action::Withdraw);
    let replaced = Met {
        id: id(9),
        ..met(1, all)
    };
    assert_eq!(decide(&promised, &[replaced]), Action::Withdraw);
}

#[test]
fn one_that_hears_of_no_leader_asks_those_of_its_cluster() {
    assert_eq!(led_by(cluster(7), id(1), &[founded(2, 7)]), Some(leader(7)));
    // Not those of another cluster, nor those who know no more, nor itself.
    assert_eq!(led_by(cluster(8), id(1), &[founded(2, 7)]), None);
    let unsure = Met {
        leader: None,
        ..founded(2, 7)
    };
    assert_eq!(led_by(cluster(7), id(1), &[unsure]), None);
    assert_eq!(led_by(cluster(7), id(7), &[founded(2, 7)]), None);
}

#[test]
fn places_are_written_as_people_do() {
    for (place, expected) in [
        ("10.0.0.1", "10.0.0.1:8300"),
        ("10.0.0.1:9000", "10.0.0.1:9000"),
        ("server.example", "server.example:8300"),
        (" server.example:1 ", "server.example:1"),
        ("::1", "[::1]:8300"),
        ("[::1]", "[::1]:8300"),
        ("[::1]:9", "[::1]:9"),
    ] {
        assert_eq!(with_port(place, 8300), expected);
    }
}

/// What becomes of these addresses, which say themselves what they are.
async fn first_good(addresses: &[&str]) -> Option<Result<(), String>> {
    async fn attempt(address: String) -> Result<(), JoinError> {
        match &*address {
            "good" => Ok(()),
            "own" => Err(JoinError::Itself(address)),
            _ => Err(JoinError::OtherCluster(address)),
        }
    }
    let addresses = addresses.iter().map(|address| (*address).to_owned());
    let joined = first_of(addresses.collect(), attempt).await;
    joined.map(|joined| joined.map_err(|error| error.to_string()))
}

#[tokio::test]
async fn all_addresses_of_a_name_are_tried() {
    let joined = first_good(&["own", "bad", "good", "never asked"]).await;
    assert_eq!(joined, Some(Ok(())));
    for (addresses, told) in [
        (&["own", "bad"][..], "bad"),
        (&["bad", "own"], "bad"),
        (&["own"], "own"),
    ] {
        let error = first_good(addresses).await.unwrap().unwrap_err();
        assert!(
            error.starts_with(&format!("Failed to join {told}")),
            "{error}"
        );
    }
    assert_eq!(first_good(&[]).await, None);
}
