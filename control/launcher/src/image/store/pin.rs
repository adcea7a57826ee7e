//! Who runs which image, on disk, so that an agent that starts again still knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError,
    image::{json_files, read},
};
use crate::image::Digest;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pin {
    user: String,
    digest: Digest,
}

impl Store {
    fn pin_path(&self, user: &str) -> PathBuf {
        let hex = Digest::of(user.as_bytes()).hex();
        self.path("pins").join(format!("{hex}.json"))
    }

    /// Keeps an image from being removed until [`Store::unpin`] for the same user, such as the ID of an
    /// allocation. A user has one image; pinning again replaces it.
    pub fn pin(&self, user: &str, digest: Digest) -> Result<(), StoreError> {
        let _hold = self.hold()?;
        self.image(&digest)?;
        let pin = Pin {
            user: user.to_owned(),
            digest,
        };
        let json = serde_json::to_vec(&pin).unwrap_or_default();
        self.write_whole(&self.pin_path(user), &json)
    }

    /// Lets go of what a user pinned. That there is nothing is no error.
    pub fn unpin(&self, user: &str) -> Result<(), StoreError> {
        let path = self.pin_path(user);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::file(&path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Who has pinned what.
    pub fn pins(&self) -> Result<BTreeMap<String, Digest>, StoreError> {
        let mut pins = BTreeMap::new();
        for path in json_files(&self.path("pins"))? {
            if let Some(Pin { user, digest }) = read(&path)? {
                pins.insert(user, digest);
            }
        }
        Ok(pins)
    }

    /// What is in use: pinned here, or named by the caller.
    pub(super) fn used(&self, in_use: &BTreeSet<Digest>) -> Result<BTreeSet<Digest>, StoreError> {
        let mut used: BTreeSet<Digest> = self.pins()?.into_values().collect();
        used.extend(in_use);
        Ok(used)
    }
}
