//! How much of an image is believed.

/// The largest manifest or index: what registries commonly take.
pub(super) const MAX_MANIFEST: u64 = 4 << 20;
/// The largest configuration of an image.
pub(super) const MAX_CONFIG: u64 = 8 << 20;
/// The most layers of one image. Overlayfs itself ends at 500.
pub(super) const MAX_LAYERS: usize = 256;
/// What describes one entry of a layer (long names, extended attributes) may be this large, in bytes.
pub(super) const MAX_ENTRY_METADATA: u64 = 1 << 20;

/// Bounds against images that are meant to fill a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest blob, in bytes as transferred.
    pub blob: u64,
    /// The largest layer, in bytes once decompressed.
    pub layer: u64,
    /// The most files and directories of one layer.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            blob: 16 << 30,
            layer: 32 << 30,
            entries: 2_000_000,
        }
    }
}
