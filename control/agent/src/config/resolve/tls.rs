//! TLS of each listener, over the defaults of all.

use std::path::PathBuf;

use super::{Problems, TlsConfig, TlsFiles, TlsVersion, file};

pub(super) fn tls(file: &file::Tls, p: &mut Problems<'_>) -> TlsConfig {
    let mut part = |name: &str, own: &file::TlsPart| {
        let path = |own: &Option<String>, default: &Option<String>| {
            own.as_ref()
                .or(default.as_ref())
                .filter(|text| !text.is_empty())
                .map(PathBuf::from)
        };
        let defaults = &file.defaults;
        let min_version = match own
            .tls_min_version
            .as_deref()
            .or(defaults.tls_min_version.as_deref())
        {
            // rustls speaks nothing older than 1.2, which is then the least.
            None
            | Some(
                "" | "TLSv1_0" | "TLSv1_1" | "TLSv1_2" | "TLS10" | "TLS11" | "TLS12" | "tls10"
                | "tls11" | "tls12",
            ) => TlsVersion::V1_2,
            Some("TLSv1_3" | "TLS13" | "tls13") => TlsVersion::V1_3,
            Some(other) => {
                let from = if own.tls_min_version.is_some() {
                    name
                } else {
                    "defaults"
                };
                p.at(
                    &format!("tls.{from}.tls_min_version"),
                    format!(
                        "tls.{from}.tls_min_version: unknown version {other:?}: TLSv1_2 or TLSv1_3"
                    ),
                );
                TlsVersion::V1_2
            }
        };
        let files = TlsFiles {
            ca_file: path(&own.ca_file, &defaults.ca_file),
            ca_path: path(&own.ca_path, &defaults.ca_path),
            cert_file: path(&own.cert_file, &defaults.cert_file),
            key_file: path(&own.key_file, &defaults.key_file),
            verify_incoming: own
                .verify_incoming
                .or(defaults.verify_incoming)
                .unwrap_or_default(),
            verify_outgoing: own
                .verify_outgoing
                .or(defaults.verify_outgoing)
                .unwrap_or_default(),
            min_version,
        };
        if files.cert_file.is_some() != files.key_file.is_some() {
            p.at(
                &format!("tls.{name}"),
                format!("tls.{name}: cert_file and key_file need each other"),
            );
        }
        if files.verify_incoming && files.ca_file.is_none() && files.ca_path.is_none() {
            p.at(
                &format!("tls.{name}"),
                format!("tls.{name}: VerifyIncoming set but no CA certificates were provided"),
            );
        }
        files
    };
    TlsConfig {
        https: part("https", &file.https),
        grpc: part("grpc", &file.grpc),
        internal_rpc: part("internal_rpc", &file.internal_rpc),
    }
}
