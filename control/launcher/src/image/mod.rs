//! Images: names, a store on disk, layers unpacked safely, registries, and a builder.
//!
//! ```text
//! Reference -> resolve -> digest -> pull or import -> blobs in the Store -> prepare -> layers for overlayfs
//! ```
//!
//! Everything but the network is synchronous and blocks: call it on a thread where that is allowed.

mod build;
mod digest;
pub mod document;
mod keyed;
mod limits;
mod mount;
mod prepare;
mod reference;
mod registry;
mod source;
mod store;
#[cfg(test)]
mod testing;
pub mod unpack;

pub use build::{Build, BuildError, Built, Source};
pub use digest::{Digest, DigestError, Hasher};
pub use limits::Limits;
pub use mount::{MountError, Upper, mount_rootfs, unmount_rootfs};
pub use prepare::Prepared;
pub use reference::{DEFAULT_TAG, ImageName, OnDisk, Reference, ReferenceError};
pub use registry::{Progress, Registries, RegistryError};
pub use source::{ImportError, Imported, Select, pack_layout};
pub use store::{BlobWriter, Hold, Image, Layer, Listed, Origin, Removed, Store, StoreError};
