//! An agent without a server.

use super::*;

/// The way to servers that are at `place`, if any.
fn client(place: &str) -> (Client, Running) {
    start(ClientOptions {
        node: Node {
            name: "c1".into(),
            ..Node::default()
        },
        datacenter: "dc1".to_owned(),
        retry_join: vec![place.to_owned()],
        data_dir: None,
        default_port: 8300,
        hold: Duration::from_secs(600),
        rates: Rates::default(),
    })
}

/// An address at which nobody listens, as long as it is kept.
fn nobody() -> (tokio::net::TcpSocket, String) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

#[tokio::test]
async fn who_never_found_a_server_does_not_wait_for_one() {
    let (_kept, place) = nobody();
    let (client, running) = client(&place);
    // Not after the hold time, which is ten minutes.
    let link = client.link(Instant::now() + client.shared.hold);
    let link = tokio::time::timeout(Duration::from_secs(60), link).await;
    assert_eq!(link.unwrap().err(), Some(ClusterError::NoServers));
    assert!(!client.has_server().await);
    running.stop().await;
}

#[tokio::test]
async fn a_place_that_is_not_joined_is_told_with_the_cause() {
    let (_kept, place) = nobody();
    let (client, running) = client(&place);
    for (place, cause) in [(&*place, "refused"), ("127.0.0.1:99999", "invalid port")] {
        let error = client.join(place).await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("Failed to join {place}: ")) && error.contains(cause),
            "{error}"
        );
    }
    running.stop().await;
}
