//! Compiles the .proto files in pure Rust: no protoc on the build machine.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "proto/wharf/v1/registry.proto",
        "proto/wharf/v1/proxy.proto",
    ];
    println!("cargo:rerun-if-changed=proto");

    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // For the reflection service: `compile_fds` does not keep the descriptors.
    fs::write(out.join("wharf.v1.fds"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    // Apart from what reflection shows: it is between servers.
    let files = [
        "proto/wharf/server/v1/server.proto",
        "proto/wharf/server/v1/agents.proto",
    ];
    let apart = out.join("server");
    fs::create_dir_all(&apart)?;
    let servers = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".wharf.v1", "crate::v1")
        .out_dir(&apart)
        .compile_fds(servers)?;
    Ok(())
}
