//! The binary under test.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The path of `wharf`: `WHARF_BIN`, or what cargo builds, once, in the profile and target directory
/// of the test itself.
///
/// # Panics
///
/// When it does not build.
pub fn wharf() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match env::var_os("WHARF_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

/// Cargo tells a test only of the binaries of its own package.
fn build() -> PathBuf {
    // <target>/<profile directory>/deps/e2e-<hash>
    let own = env::current_exe().expect("a test knows its own path");
    let profile_dir = own.ancestors().nth(2).expect("a test lives in deps/");
    let target_dir = profile_dir.parent().expect("a profile has a target");
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Cargo tells a test of its own package. A build script that watches those (ring's does) would
    // find them changed, and everything above it would be built again with each run of the tests.
    for (name, _) in env::vars_os() {
        let of_package = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if of_package {
            command.env_remove(name);
        }
    }
    let status = command
        .args([
            "build", "--quiet", "--locked", "-p", "wharf", "--bin", "wharf",
        ])
        .args(["--profile", profile])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the wharf binary does not build");
    profile_dir.join("wharf")
}

/// The same binary under the name `consul`, in `directory`.
///
/// # Errors
///
/// When the link cannot be made.
pub fn as_consul(directory: &Path) -> io::Result<PathBuf> {
    let link = directory.join("consul");
    std::os::unix::fs::symlink(wharf(), &link)?;
    Ok(link)
}
