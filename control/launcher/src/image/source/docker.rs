//! Archives of `docker save` without an OCI index: `manifest.json` lists configurations and layers by the
//! names of files. They get the OCI manifest they lack.

use serde::Deserialize;

use super::{Content as _, ImportError, Imported, Select, archive::Staged};
use crate::image::{
    ImageName,
    document::{
        Descriptor, ImageConfig, Manifest, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD,
        OCI_MANIFEST, Platform,
    },
    limits::MAX_LAYERS,
    store::Store,
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn import(
    store: &Store,
    staged: &Staged,
    manifest: &[u8],
    select: &Select,
) -> Result<Vec<Imported>, ImportError> {
    let saved: Vec<Saved> =
        serde_json::from_slice(manifest).map_err(ImportError::DockerManifest)?;
    if saved.is_empty() {
        return Err(ImportError::NoImage);
    }
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let there = || saved.iter().flat_map(tags).collect::<Vec<_>>();
    let has_tag = |saved: &&Saved, tag: &str| {
        let tags = tags(saved);
        let mut tags = tags.iter().filter_map(|own| own.rsplit_once(':'));
        tags.any(|(_, own)| own == tag)
    };
    let chosen: Vec<&Saved> = match &select.tag {
        Some(tag) => saved.iter().filter(|saved| has_tag(saved, tag)).collect(),
        None => saved.iter().collect(),
    };
    if let (Some(tag), []) = (&select.tag, chosen.as_slice()) {
        return Err(ImportError::NoTag {
            tag: tag.clone(),
            there: there(),
        });
    }
    if select.name.is_some() && chosen.len() > 1 {
        return Err(ImportError::Several { there: there() });
    }
    let mut imported = Vec::new();
    for saved in chosen {
        let names = match &select.name {
            Some(name) => vec![name.clone().with_default_tag()],
            None => {
                let tags = tags(saved);
                let names = tags.iter().filter_map(|tag| ImageName::parse(tag).ok());
                names.map(ImageName::with_default_tag).collect()
            }
        };
        imported.push(adopt(store, staged, saved, names)?);
    }
    Ok(imported)
}

fn adopt(
    store: &Store,
    staged: &Staged,
    saved: &Saved,
    names: Vec<ImageName>,
) -> Result<Imported, ImportError> {
    if saved.layers.len() > MAX_LAYERS {
        let count = saved.layers.len();
        return Err(crate::image::document::DocumentError::TooManyLayers(count).into());
    }
    let blob = |path: &str, media_type: &str| -> Result<Descriptor, ImportError> {
        let (digest, size) = staged.describe(path)?;
        Ok(Descriptor::new(media_type, digest, size))
    };
    let mut manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: blob(&saved.config, OCI_CONFIG)?,
        layers: Vec::new(),
    };
    for path in &saved.layers {
        let media_type = match staged.head(path)?.as_slice() {
            [0x1f, 0x8b, ..] => OCI_LAYER_GZIP,
            [0x28, 0xb5, 0x2f, 0xfd] => OCI_LAYER_ZSTD,
            _ => OCI_LAYER,
        };
        manifest.layers.push(blob(path, media_type)?);
    }
    let what = "configuration of the image";
    let config = staged.small(&saved.config, what, crate::image::limits::MAX_CONFIG)?;
    let config = config.ok_or_else(|| ImportError::Missing(saved.config.clone()))?;
    ImageConfig::parse(&config)?.check(&manifest, Platform::own())?;
    staged.put(store, &saved.config, &manifest.config)?;
    for (path, layer) in saved.layers.iter().zip(&manifest.layers) {
        staged.put(store, path, layer)?;
    }
    let bytes = serde_json::to_vec(&manifest).map_err(ImportError::DockerManifest)?;
    let described = store.put_bytes(OCI_MANIFEST, &bytes)?;
    store.named(described.digest, names)
}
