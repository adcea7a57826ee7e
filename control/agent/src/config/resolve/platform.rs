//! How this node runs allocations.

use wharf_launcher::image::ImageName;

use crate::config::{file, problems::Problems, runtime::PlatformConfig};

pub(super) fn platform(file: &file::Platform, p: &mut Problems<'_>) -> PlatformConfig {
    let network = &file.network;
    let subnet = match &*network.subnet {
        "" => None,
        text => text
            .parse()
            .map_err(|error| {
                p.at(
                    "platform.network.subnet",
                    format!("platform.network.subnet: {error}"),
                )
            })
            .ok(),
    };
    const REGISTRIES: &str = "platform.images.insecure_registries";
    for host in &file.images.insecure_registries {
        let name = ImageName::parse(&format!("{host}/name"));
        if !name.is_ok_and(|name| name.host.as_ref() == Some(host)) {
            let message = format!(
                "{REGISTRIES}: {host:?} is not the host of a registry, such as registry.example or 127.0.0.1:5000"
            );
            p.at(REGISTRIES, message);
        }
    }
    PlatformConfig {
        enabled: file.enabled,
        bridge: Some(network.bridge.clone()).filter(|bridge| !bridge.is_empty()),
        subnet,
        insecure_registries: file.images.insecure_registries.clone(),
    }
}
