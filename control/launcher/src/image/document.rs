//! The JSON documents of an image: index, manifest, configuration (OCI image specification 1.1, and Docker's
//! schema 2, which has the same fields under other media types).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Digest,
    limits::{MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST},
};

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Layers that are file systems. How they are compressed is seen from their bytes.
const LAYERS: [&str; 10] = [
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// The annotation under which an index names what it holds.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same with the whole name, as containerd writes it.
pub const FULL_NAME: &str = "io.containerd.image.name";

/// A document that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("the {what} is {bytes} bytes long; at most {limit} are read")]
    TooLarge {
        what: &'static str,
        bytes: u64,
        limit: u64,
    },
    #[error("the {what} is not the JSON it should be: {source}")]
    Json {
        what: &'static str,
        source: serde_json::Error,
    },
    #[error("the manifest says it is both an index and an image")]
    Ambiguous,
    #[error("the manifest has the type {0:?}, which is none of an image")]
    MediaType(String),
    #[error("the manifest has schema version {0}; only 2 is known")]
    SchemaVersion(u64),
    #[error("layer {index} has the type {media_type:?}, which is none of a file system")]
    LayerType { index: usize, media_type: String },
    #[error("the image has {0} layers; at most {MAX_LAYERS} are taken")]
    TooManyLayers(usize),
    #[error("the image has no layers")]
    NoLayers,
    #[error("the manifest has {manifest} layers, the configuration has {config}")]
    LayerCount { manifest: usize, config: usize },
    #[error("the image is for {os}/{architecture}; this node is {own}")]
    OtherPlatform {
        os: String,
        architecture: String,
        own: Platform,
    },
    #[error("the index has no image for {own}, only for {}", offered.join(", "))]
    NoPlatform { own: Platform, offered: Vec<String> },
}

/// Where a blob is and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescribedPlatform>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: None,
            platform: None,
        }
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether an index stands behind it, by its type.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }
}

/// What an index says an image is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribedPlatform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// What runs here, in the names of images: always Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    pub architecture: &'static str,
}

impl Platform {
    /// The platform of this program.
    pub fn own() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { architecture }
    }

    fn runs(&self, os: &str, architecture: &str) -> bool {
        os == "linux" && architecture == self.architecture
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "linux/{}", self.architecture)
    }
}

/// One image: a configuration and its layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u64,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// Images of one name, for several platforms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u64,
    #[serde(default)]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
}

/// What a digest or a tag stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Reads a manifest or an index. A document that could be read as either is refused: two readers would
    /// see different images under one digest (CVE-2021-41190).
    pub fn parse(bytes: &[u8]) -> Result<Document, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            schema_version: u64,
            #[serde(default)]
            media_type: String,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            layers: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            config: Option<serde::de::IgnoredAny>,
        }
        bounded("manifest", bytes, MAX_MANIFEST)?;
        let kind: Kind = json("manifest", bytes)?;
        if kind.schema_version != 2 {
            return Err(DocumentError::SchemaVersion(kind.schema_version));
        }
        let image = kind.layers.is_some() || kind.config.is_some();
        match (kind.media_type.as_str(), kind.manifests.is_some(), image) {
            (_, true, true) | (OCI_INDEX | DOCKER_LIST, false, true) => {
                Err(DocumentError::Ambiguous)
            }
            (OCI_MANIFEST | DOCKER_MANIFEST, true, false) => Err(DocumentError::Ambiguous),
            ("" | OCI_INDEX | DOCKER_LIST, true, false) => {
                json("index", bytes).map(Document::Index)
            }
            ("" | OCI_MANIFEST | DOCKER_MANIFEST, false, _) => {
                let manifest: Manifest = json("manifest", bytes)?;
                manifest.check()?;
                Ok(Document::Manifest(manifest))
            }
            (other, ..) => Err(DocumentError::MediaType(other.to_owned())),
        }
    }
}

impl Manifest {
    fn check(&self) -> Result<(), DocumentError> {
        if self.layers.is_empty() {
            return Err(DocumentError::NoLayers);
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(DocumentError::TooManyLayers(self.layers.len()));
        }
        if self.config.size > MAX_CONFIG {
            return Err(DocumentError::TooLarge {
                what: "configuration of the image",
                bytes: self.config.size,
                limit: MAX_CONFIG,
            });
        }
        for (index, layer) in self.layers.iter().enumerate() {
            if !LAYERS.contains(&layer.media_type.as_str()) {
                return Err(DocumentError::LayerType {
                    index,
                    media_type: layer.media_type.clone(),
                });
            }
        }
        Ok(())
    }
}

impl Index {
    /// Reads the `index.json` of a layout, which needs no `mediaType`.
    pub fn parse(bytes: &[u8]) -> Result<Index, DocumentError> {
        bounded("index", bytes, MAX_MANIFEST)?;
        json("index", bytes)
    }

    /// The image for a platform; the first of several.
    pub fn select(&self, own: Platform) -> Result<&Descriptor, DocumentError> {
        let runs = |descriptor: &&Descriptor| {
            let platform = descriptor.platform.as_ref();
            platform.is_some_and(|p| own.runs(&p.os, &p.architecture))
        };
        if let Some(found) = self.manifests.iter().find(runs) {
            return Ok(found);
        }
        // An index of one image need not say what it is for; its configuration does.
        if let [only] = self.manifests.as_slice()
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let offered = self.manifests.iter().filter_map(|descriptor| {
            let platform = descriptor.platform.as_ref()?;
            Some(format!("{}/{}", platform.os, platform.architecture))
        });
        let mut offered: Vec<String> = offered.take(16).collect();
        if offered.is_empty() {
            offered.push("none that it names".to_owned());
        }
        Err(DocumentError::NoPlatform { own, offered })
    }
}

/// The configuration of an image: what it is for, what it runs, and what its layers are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub config: RunConfig,
    pub rootfs: RootFs,
}

/// How a container of an image starts when nobody says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    /// `8080/tcp`.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `NAME=value`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// `SIGTERM`, or a number.
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
}

/// `{}`: Go's way to write a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// The layers by the digests of what they unpack to, lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    pub diff_ids: Vec<Digest>,
}

/// Go writes empty lists and maps as `null`.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl ImageConfig {
    pub fn parse(bytes: &[u8]) -> Result<ImageConfig, DocumentError> {
        bounded("configuration of the image", bytes, MAX_CONFIG)?;
        json("configuration of the image", bytes)
    }

    /// Whether it belongs to this manifest, and runs on this platform.
    pub fn check(&self, manifest: &Manifest, own: Platform) -> Result<(), DocumentError> {
        if self.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(DocumentError::LayerCount {
                manifest: manifest.layers.len(),
                config: self.rootfs.diff_ids.len(),
            });
        }
        if !own.runs(&self.os, &self.architecture) {
            return Err(DocumentError::OtherPlatform {
                os: self.os.clone(),
                architecture: self.architecture.clone(),
                own,
            });
        }
        Ok(())
    }
}

fn bounded(what: &'static str, bytes: &[u8], limit: u64) -> Result<(), DocumentError> {
    let bytes = bytes.len() as u64;
    match bytes > limit {
        true => Err(DocumentError::TooLarge { what, bytes, limit }),
        false => Ok(()),
    }
}

fn json<T: serde::de::DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, DocumentError> {
    serde_json::from_slice(bytes).map_err(|source| DocumentError::Json { what, source })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const AMD64: Platform = Platform {
        architecture: "amd64",
    };

    fn descriptor(kind: &str) -> serde_json::Value {
        json!({"mediaType": kind, "digest": Digest::of(b"x"), "size": 1})
    }

    fn parse(value: serde_json::Value) -> Result<Document, DocumentError> {
        Document::parse(value.to_string().as_bytes())
    }

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        let manifest = json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
            "config": descriptor("c"), "layers": [descriptor(OCI_LAYER_GZIP)]});
        assert!(matches!(parse(manifest), Ok(Document::Manifest(_))));
        let index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST)]});
        assert!(matches!(parse(index), Ok(Document::Index(_))));
    }

    #[test]
    fn a_document_that_is_both_is_refused() {
        let both = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [],
            "config": descriptor("c"), "layers": [descriptor(OCI_LAYER)]});
        assert!(matches!(parse(both), Err(DocumentError::Ambiguous)));
        let disguised = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
            "config": descriptor("c"), "layers": [descriptor(OCI_LAYER)]});
        assert!(matches!(parse(disguised), Err(DocumentError::Ambiguous)));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let layers = |layers: Vec<serde_json::Value>| {
            parse(json!({"schemaVersion": 2, "config": descriptor("c"), "layers": layers}))
        };
        assert!(matches!(layers(vec![]), Err(DocumentError::NoLayers)));
        assert!(matches!(
            layers(vec![descriptor("application/wasm")]),
            Err(DocumentError::LayerType { index: 0, .. })
        ));
        assert!(matches!(
            layers(vec![descriptor(OCI_LAYER); MAX_LAYERS + 1]),
            Err(DocumentError::TooManyLayers(_))
        ));
        assert!(matches!(
            parse(json!({"schemaVersion": 1, "fsLayers": []})),
            Err(DocumentError::SchemaVersion(1))
        ));
        assert!(matches!(
            Document::parse(&vec![b' '; MAX_MANIFEST as usize + 1]),
            Err(DocumentError::TooLarge { .. })
        ));
        assert!(matches!(
            Document::parse(b"<html>"),
            Err(DocumentError::Json { .. })
        ));
    }

    #[test]
    fn the_platform_is_chosen() {
        let entry = |os: &str, architecture: &str, content: &[u8]| Descriptor {
            platform: Some(DescribedPlatform {
                architecture: architecture.into(),
                os: os.into(),
                variant: None,
            }),
            ..Descriptor::new(OCI_MANIFEST, Digest::of(content), 1)
        };
        let index = Index {
            schema_version: 2,
            media_type: String::new(),
            manifests: vec![
                entry("windows", "amd64", b"w"),
                entry("linux", "arm64", b"a"),
                entry("linux", "amd64", b"x"),
            ],
        };
        assert_eq!(index.select(AMD64).unwrap().digest, Digest::of(b"x"));
        let other = Platform {
            architecture: "riscv64",
        };
        let error = index.select(other).unwrap_err().to_string();
        assert!(
            error.contains("linux/riscv64") && error.contains("linux/arm64"),
            "{error}"
        );
    }

    #[test]
    fn nulls_of_go_are_empty() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":null,
            "ExposedPorts":{"80/tcp":{}}},"rootfs":{"type":"layers","diff_ids":[]},"history":null}"#;
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.config.env, Vec::<String>::new());
        assert!(config.config.exposed_ports.contains_key("80/tcp"));
    }
}
