use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::image::{
    document::{OCI_INDEX, RunConfig},
    testing::{Entry, Layout, plain, tar},
};

/// A request as a registry sees it.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    authorization: Option<String>,
}

/// A server on loopback that answers with the bytes a closure gives, one request for a connection.
struct Fake {
    host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    async fn start(answer: impl Fn(&Asked, usize) -> Vec<u8> + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (seen, answer) = (asked.clone(), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                            return;
                        }
                        head.push(byte[0]);
                        if head[0] == 0x16 {
                            // The first byte of TLS, which a server of plain HTTP does not know.
                            let _ = stream.write_all(b"HTTP/1.1 400 -\r\n\r\n").await;
                            return;
                        }
                    }
                    let head = String::from_utf8(head).unwrap();
                    let asked = Asked {
                        path: head.split(' ').nth(1).unwrap().to_owned(),
                        authorization: head.lines().find_map(|line| {
                            let (name, value) = line.split_once(": ")?;
                            name.eq_ignore_ascii_case("authorization")
                                .then(|| value.to_owned())
                        }),
                    };
                    let before = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(asked.clone());
                        seen.iter().filter(|one| one.path == asked.path).count() - 1
                    };
                    let _ = stream.write_all(&answer(&asked, before)).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Fake { host, asked, task }
    }

    fn count(&self, part: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|asked| asked.path.contains(part))
            .count()
    }
}

fn answer(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} -\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The paths of an image's manifest and blobs.
fn served(layout: &Layout) -> HashMap<String, Vec<u8>> {
    let mut paths: HashMap<String, Vec<u8>> = layout
        .files
        .iter()
        .filter_map(|(path, bytes)| {
            let hex = path.strip_prefix("blobs/sha256/")?;
            Some((format!("/v2/team/web/blobs/sha256:{hex}"), bytes.clone()))
        })
        .collect();
    let manifest = layout.files[&format!("blobs/sha256/{}", layout.digest.hex())].clone();
    paths.insert(
        format!("/v2/team/web/manifests/{}", layout.digest),
        manifest.clone(),
    );
    paths.insert("/v2/team/web/manifests/v1".to_owned(), manifest);
    paths
}

fn found(paths: &HashMap<String, Vec<u8>>, path: &str) -> Vec<u8> {
    match paths.get(path) {
        Some(bytes) => answer(200, "", bytes),
        None => answer(404, "", br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
    }
}

fn layout() -> Layout {
    let layers = ["x", "y", "z"].map(|content| plain(tar(&[Entry::file(content, content)])));
    Layout::new("v1", &layers)
}

fn blob_of(layout: &Layout, layer: usize) -> String {
    format!(
        "/v2/team/web/blobs/{}",
        layout.manifest().layers[layer].digest
    )
}

struct Node {
    _directory: TempDir,
    store: Store,
    registries: Registries,
}

fn node(insecure: &[&str]) -> Node {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("images")).unwrap();
    let insecure = insecure.iter().map(|host| (*host).to_owned()).collect();
    Node {
        registries: Registries::new(store.clone(), insecure),
        store,
        _directory: directory,
    }
}

impl Node {
    async fn pull(&self, host: &str, rest: &str) -> Result<Image, RegistryError> {
        let name = ImageName::parse(&format!("{host}/team/web{rest}")).unwrap();
        self.registries.pull(&name, &Arc::default()).await
    }

    /// Nothing half is left, once the threads that wrote it have seen that nobody sends any more.
    async fn assert_no_rest(&self) {
        let gone = async {
            while std::fs::read_dir(self.store.path("tmp")).unwrap().count() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone)
            .await
            .expect("something half stays");
    }
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_digest() {
    let layout = layout();
    let paths = served(&layout);
    let fake = Fake::start(move |asked, _| found(&paths, &asked.path)).await;
    let node = node(&[&fake.host]);
    let name = ImageName::parse(&format!("{}/team/web:v1", fake.host)).unwrap();
    assert_eq!(node.registries.resolve(&name).await.unwrap(), layout.digest);
    let progress = Arc::new(Progress::default());
    let image = node.registries.pull(&name, &progress).await.unwrap();
    assert_eq!(image.digest, layout.digest);
    assert_eq!(
        (progress.done(), progress.total()),
        (image.size(), image.size())
    );
    assert_eq!(node.store.lookup(&name).unwrap(), Some(layout.digest));
    node.store.prepare(&layout.digest).unwrap();

    // What is here is not fetched again; a tag is asked for again, a digest is not.
    let before = fake.count("");
    node.pull(&fake.host, &format!("@{}", layout.digest))
        .await
        .unwrap();
    assert_eq!(fake.count(""), before);
    node.pull(&fake.host, ":v1").await.unwrap();
    assert_eq!(fake.count(""), before + 1);
    let error = node.pull(&fake.host, ":v2").await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    let other = format!("@{}", Digest::of(b"other"));
    let error = node.pull(&fake.host, &other).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    node.assert_no_rest().await;
}

#[tokio::test]
async fn many_who_want_an_image_fetch_it_once() {
    let layout = layout();
    let paths = served(&layout);
    let fake = Fake::start(move |asked, _| found(&paths, &asked.path)).await;
    let node = node(&[&fake.host]);
    let pulls = (0..8).map(|_| node.pull(&fake.host, ":v1"));
    for pulled in futures_util::future::join_all(pulls).await {
        pulled.unwrap();
    }
    assert_eq!(fake.count("/blobs/"), 4, "a configuration and three layers");
}

#[tokio::test]
async fn an_index_is_resolved_for_this_platform() {
    let own = Platform::own().architecture;
    let image = layout();
    let other = Layout::of("v1", &[plain(tar(&[]))], "riscv64", RunConfig::default());
    let entry = |layout: &Layout, architecture: &str| {
        serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": layout.digest, "size": 1,
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = |entries: Vec<serde_json::Value>| {
        let index =
            serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        serde_json::to_vec(&index).unwrap()
    };
    let both = index(vec![entry(&other, "riscv64"), entry(&image, own)]);
    let digest = Digest::of(&both);
    let mut paths = served(&image);
    paths.insert("/v2/team/web/manifests/v1".into(), both);
    paths.insert(
        "/v2/team/web/manifests/other".into(),
        index(vec![entry(&other, "riscv64")]),
    );
    let fake = Fake::start(move |asked, _| found(&paths, &asked.path)).await;
    let node = node(&[&fake.host]);
    let pulled = node.pull(&fake.host, ":v1").await.unwrap();
    assert_eq!((pulled.digest, pulled.manifest), (digest, image.digest));
    node.store.prepare(&digest).unwrap();
    let error = node
        .pull(&fake.host, ":other")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("only for linux/riscv64"), "{error}");
}

#[tokio::test]
async fn a_token_is_fetched_and_goes_nowhere_else() {
    let layout = layout();
    let paths = served(&layout);
    // Blobs are on another server, which is told nothing.
    let elsewhere = paths.clone();
    let storage = Fake::start(move |asked, _| {
        let path = asked.path.replace("/storage", "");
        found(&elsewhere, path.split('?').next().unwrap())
    })
    .await;
    let tokens = Fake::start(|asked, _| {
        assert!(asked.path.contains("service=reg%2Eistry"), "{}", asked.path);
        assert!(
            asked.path.contains("scope=repository%3Ateam%2Fweb%3Apull"),
            "{}",
            asked.path
        );
        answer(200, "", br#"{"token":"secret"}"#)
    })
    .await;
    let (realm, to) = (tokens.host.clone(), storage.host.clone());
    let fake = Fake::start(move |asked, _| {
        if asked.authorization.as_deref() != Some("Bearer secret") {
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://{realm}/token\",service=\"reg.istry\"\r\n"
            );
            return answer(401, &challenge, b"");
        }
        match asked.path.contains("/blobs/") {
            true => {
                let location = format!("Location: http://{to}/storage{}?signed=1\r\n", asked.path);
                answer(307, &location, b"")
            }
            false => found(&paths, &asked.path),
        }
    })
    .await;
    let node = node(&[&fake.host, &tokens.host, &storage.host]);
    node.pull(&fake.host, ":v1").await.unwrap();
    assert_eq!(tokens.count(""), 1, "one token for one repository");
    let asked = storage.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 4);
    assert!(asked.iter().all(|asked| asked.authorization.is_none()));
}

#[tokio::test]
async fn nobody_is_spoken_to_in_the_clear_who_is_not_listed() {
    let layout = layout();
    let paths = served(&layout);
    let fake = Fake::start(move |asked, _| found(&paths, &asked.path)).await;
    // TLS is spoken to it, which it does not understand.
    let error = node(&[]).pull(&fake.host, ":v1").await.unwrap_err();
    assert!(matches!(error, RegistryError::Tls { .. }), "{error}");
    assert!(error.to_string().contains("insecure_registries"), "{error}");

    let host = fake.host.clone();
    let redirecting =
        Fake::start(move |_, _| answer(302, &format!("Location: http://{host}/v2/\r\n"), b""))
            .await;
    let error = node(&[&redirecting.host])
        .pull(&redirecting.host, ":v1")
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
    let host = fake.host.clone();
    let asking = Fake::start(move |_, _| {
        answer(
            401,
            &format!("WWW-Authenticate: Bearer realm=\"http://{host}/t\"\r\n"),
            b"",
        )
    })
    .await;
    let error = node(&[&asking.host])
        .pull(&asking.host, ":v1")
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
    assert_eq!(fake.count(""), 0);

    let circle =
        Fake::start(|asked, _| answer(302, &format!("Location: {}\r\n", asked.path), b"")).await;
    let error = node(&[&circle.host])
        .pull(&circle.host, ":v1")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("too many redirects"), "{error}");
}

#[tokio::test]
async fn what_fails_for_a_moment_is_asked_again() {
    let layout = layout();
    let paths = served(&layout);
    let cut = blob_of(&layout, 1);
    let fake = Fake::start(move |asked, before| match before {
        0 if asked.path.contains("/manifests/") => answer(503, "", b"later"),
        0 if asked.path == cut => {
            let whole = found(&paths, &asked.path);
            whole[..whole.len() - 100].to_vec()
        }
        _ => found(&paths, &asked.path),
    })
    .await;
    let node = node(&[&fake.host]);
    let progress = Arc::new(Progress::default());
    let name = ImageName::parse(&format!("{}/team/web:v1", fake.host)).unwrap();
    let image = node.registries.pull(&name, &progress).await.unwrap();
    assert_eq!(
        progress.done(),
        image.size(),
        "what was fetched in vain does not count"
    );
    node.assert_no_rest().await;
}

#[tokio::test]
async fn what_fails_for_good_is_not_asked_again() {
    let fake = Fake::start(|_, _| answer(403, "", b"not \x1b[31myou")).await;
    let error = node(&[&fake.host])
        .pull(&fake.host, ":v1")
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
    assert!(!error.to_string().contains('\x1b'), "{error}");
    assert_eq!(fake.count(""), 1);
    // Nobody listens.
    let gone = fake.host.clone();
    drop(fake);
    let unreachable = node(&[&gone]);
    let name = ImageName::parse(&format!("{gone}/team/web:v1")).unwrap();
    let error = unreachable
        .registries
        .client
        .manifest(&gone, &name)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::Unreachable { .. }),
        "{error}"
    );
    assert!(error.is_passing());
}

#[tokio::test]
async fn hostile_registries_get_nothing_into_the_store() {
    let good = layout();
    let blob = blob_of(&good, 0);

    // Another manifest than the digest that was asked for.
    let paths = served(&good);
    let fake = Fake::start(move |_, _| found(&paths, "/v2/team/web/manifests/v1")).await;
    let receiver = node(&[&fake.host]);
    let pinned = format!("@{}", Digest::of(b"pinned"));
    let error = receiver.pull(&fake.host, &pinned).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::WrongDigest { .. }),
        "{error}"
    );

    // A manifest that is not what the registry itself says it is.
    let paths = served(&good);
    let fake = Fake::start(move |asked, _| {
        let header = format!("Docker-Content-Digest: {}\r\n", Digest::of(b"other"));
        answer(200, &header, &paths[&asked.path])
    })
    .await;
    let receiver = node(&[&fake.host]);
    let error = receiver.pull(&fake.host, ":v1").await.unwrap_err();
    assert!(
        matches!(error, RegistryError::WrongDigest { .. }),
        "{error}"
    );

    // A blob with another content, of the right length.
    let (paths, changed) = (served(&good), blob.clone());
    let fake = Fake::start(move |asked, _| {
        let mut bytes = found(&paths, &asked.path);
        if asked.path == changed {
            *bytes.last_mut().unwrap() ^= 1;
        }
        bytes
    })
    .await;
    let receiver = node(&[&fake.host]);
    let error = receiver.pull(&fake.host, ":v1").await.unwrap_err();
    assert!(
        matches!(error, RegistryError::WrongDigest { .. }),
        "{error}"
    );
    assert!(receiver.store.list().unwrap().is_empty());
    receiver.assert_no_rest().await;

    // A blob that does not end.
    let (paths, endless) = (served(&good), blob.clone());
    let fake = Fake::start(move |asked, _| match asked.path == endless {
        true => answer(200, "", &vec![0; 1 << 20]),
        false => found(&paths, &asked.path),
    })
    .await;
    let receiver = node(&[&fake.host]);
    let error = receiver.pull(&fake.host, ":v1").await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Store(StoreError::WrongSize { .. })),
        "{error}"
    );
    receiver.assert_no_rest().await;

    // A manifest that fills memory, announced and not.
    let fake = Fake::start(|asked, _| match asked.path.ends_with("v1") {
        true => b"HTTP/1.1 200 -\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
        false => [b"HTTP/1.1 200 -\r\n\r\n".to_vec(), vec![b' '; 5 << 20]].concat(),
    })
    .await;
    let receiver = node(&[&fake.host]);
    for tag in [":v1", ":v2"] {
        let error = receiver.pull(&fake.host, tag).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLong { .. }), "{error}");
    }

    // No manifest at all.
    let fake = Fake::start(|_, _| answer(200, "", b"<html>log in</html>")).await;
    let error = node(&[&fake.host])
        .pull(&fake.host, ":v1")
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Document { .. }), "{error}");
}

#[tokio::test]
async fn a_name_without_a_registry_is_looked_up_here() {
    let node = node(&[]);
    let name = ImageName::parse("web:1").unwrap();
    let error = node.registries.resolve(&name).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotHere(_)), "{error}");
    let layout = Layout::new("web:1", &[plain(tar(&[Entry::file("a", "x")]))]);
    node.store
        .import(
            layout.archive().as_slice(),
            &crate::image::Select::default(),
        )
        .unwrap();
    assert_eq!(node.registries.resolve(&name).await.unwrap(), layout.digest);
    let image = node.registries.pull(&name, &Arc::default()).await.unwrap();
    assert_eq!(image.digest, layout.digest);
}
