use std::fs;

use super::*;
use crate::image::testing::is_root;

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount_rootfs(&self.0);
    }
}

/// Directories with a file that says which they are, and a common one.
fn layers(directory: &Path, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|n| {
            // Long names, so that a page does not hold many.
            let layer = directory.join(format!("{n:064}"));
            fs::create_dir(&layer).unwrap();
            fs::write(layer.join(format!("only-{n}")), "x").unwrap();
            fs::write(layer.join("common"), n.to_string()).unwrap();
            layer
        })
        .collect()
}

fn check(
    how: impl Fn(&Path, &[PathBuf], Option<Upper<'_>>) -> Result<(), MountError>,
    count: usize,
) {
    let directory = tempfile::tempdir().unwrap();
    let layers = layers(directory.path(), count);
    let target = directory.path().join("root");
    fs::create_dir(&target).unwrap();
    how(&target, &layers, None).unwrap();
    let mounted = Mounted(target.clone());
    assert_eq!(
        fs::read_to_string(target.join("common")).unwrap(),
        "0",
        "the top one is first"
    );
    assert!(target.join(format!("only-{}", count - 1)).exists());
    let error = fs::write(target.join("new"), "x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    drop(mounted);
    assert!(!target.join("common").exists());

    let (upper, work) = (
        directory.path().join("up,per"),
        directory.path().join("work"),
    );
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let writable = Upper {
        upper: &upper,
        work: &work,
    };
    how(&target, &layers[..1], Some(writable)).unwrap();
    let mounted = Mounted(target.clone());
    fs::write(target.join("new"), "written").unwrap();
    fs::remove_file(target.join("common")).unwrap();
    drop(mounted);
    assert_eq!(fs::read_to_string(upper.join("new")).unwrap(), "written");
    assert!(
        layers[0].join("common").exists(),
        "a layer is never written to"
    );
}

#[test]
fn layers_are_stacked_and_read_only_without_an_upper_directory() {
    if !is_root("mounting") {
        return;
    }
    check(mount_rootfs, 3);
}

#[test]
fn an_older_kernel_does_the_same() {
    if !is_root("mounting") {
        return;
    }
    check(by_mount, 3);
    // More layers than their names would fit into a page.
    check(by_mount, 100);
}

#[test]
fn more_layers_than_a_page_of_options() {
    if !is_root("mounting") {
        return;
    }
    check(mount_rootfs, 256);
    let directory = tempfile::tempdir().unwrap();
    let layers = layers(directory.path(), 256);
    let error = by_mount(directory.path(), &layers, None).unwrap_err();
    assert!(
        matches!(error, MountError::TooManyLayers { layers: 256 }),
        "{error}"
    );
}

#[test]
fn what_cannot_be_mounted_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let one = layers(directory.path(), 1);
    let error = mount_rootfs(directory.path(), &one, None).unwrap_err();
    assert!(matches!(error, MountError::TooFewLayers(1)), "{error}");
    if !is_root("mounting") {
        return;
    }
    let missing = [directory.path().join("none"), one[0].clone()];
    let error = mount_rootfs(directory.path(), &missing, None).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
    let nowhere = directory.path().join("nowhere");
    let two = [one[0].clone(), directory.path().to_owned()];
    let error = mount_rootfs(&nowhere, &two, None).unwrap_err();
    assert!(matches!(error, MountError::Mount { .. }), "{error}");
    // What is not mounted is as good as unmounted.
    unmount_rootfs(&nowhere).unwrap();
    unmount_rootfs(&one[0]).unwrap();
}
