//! Certificates from files, for the listeners; read again at a reload.

use std::{io, path::Path, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;

use crate::config::{TlsFiles, TlsVersion};

/// What the listeners of one protocol do TLS with. A reload replaces it: connections that are made from
/// then on get the new certificate, those that are open stay.
#[derive(Debug)]
pub struct ServerTls {
    current: ArcSwap<ServerConfig>,
    alpn: &'static [&'static [u8]],
}

impl ServerTls {
    /// `alpn`: the protocols to offer, the preferred one first; empty: none is negotiated.
    pub fn new(config: ServerConfig, alpn: &'static [&'static [u8]]) -> ServerTls {
        ServerTls {
            current: ArcSwap::new(offering(config, alpn)),
            alpn,
        }
    }

    /// For connections accepted from now on.
    pub(crate) fn replace(&self, config: ServerConfig) {
        self.current.store(offering(config, self.alpn));
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }
}

fn offering(mut config: ServerConfig, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Why a listener cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("no certificate: set cert_file and key_file")]
    NoCertificate,
    #[error("verify_incoming is set, but there is no ca_file to verify clients with")]
    NoAuthority,
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    #[error("the certificates of ca_file do not verify clients: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

fn file_error(path: &Path, reason: impl ToString) -> TlsError {
    TlsError::File {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certificates = read().map_err(|error| file_error(path, error))?;
    if certificates.is_empty() {
        return Err(file_error(path, "there is no certificate in it"));
    }
    Ok(certificates)
}

/// The server side of TLS as the files say: with a certificate, and with clients verified if asked.
pub(crate) fn server_config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let (Some(cert_file), Some(key_file)) = (&files.cert_file, &files.key_file) else {
        return Err(TlsError::NoCertificate);
    };
    let chain = certificates(cert_file)?;
    let key =
        PrivateKeyDer::from_pem_file(key_file).map_err(|error| file_error(key_file, error))?;
    let versions: &[_] = match files.min_version {
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = if files.verify_incoming {
        let roots = Arc::new(authorities(files)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build()?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    Ok(builder.with_single_cert(chain, key)?)
}

/// The authorities of `ca_file` and of every file in `ca_path`.
fn authorities(files: &TlsFiles) -> Result<RootCertStore, TlsError> {
    let mut paths: Vec<PathBuf> = files.ca_file.iter().cloned().collect();
    if let Some(directory) = &files.ca_path {
        let list = || -> io::Result<Vec<PathBuf>> {
            let entries: io::Result<Vec<_>> = std::fs::read_dir(directory)?.collect();
            Ok(entries?
                .into_iter()
                .map(|entry| entry.path())
                .filter(|path| path.is_file())
                .collect())
        };
        paths.extend(list().map_err(|error| file_error(directory, error))?);
    }
    let mut roots = RootCertStore::empty();
    for path in &paths {
        for certificate in certificates(path)? {
            roots
                .add(certificate)
                .map_err(|error| file_error(path, error))?;
        }
    }
    if roots.is_empty() {
        Err(TlsError::NoAuthority)
    } else {
        Ok(roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, TlsFiles) {
        let directory = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (cert, key) = (
            directory.path().join("c.pem"),
            directory.path().join("k.pem"),
        );
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let files = TlsFiles {
            ca_file: Some(cert.clone()),
            cert_file: Some(cert),
            key_file: Some(key),
            ..TlsFiles::default()
        };
        (directory, files)
    }

    #[test]
    fn files_become_a_configuration() {
        let (_directory, files) = files();
        assert!(server_config(&files).is_ok());
        assert!(
            server_config(&TlsFiles {
                verify_incoming: true,
                ..files
            })
            .is_ok()
        );
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        assert!(matches!(
            server_config(&TlsFiles::default()),
            Err(TlsError::NoCertificate)
        ));
        let (directory, good) = files();
        let missing = TlsFiles {
            cert_file: Some("/nonexistent.pem".into()),
            ..good.clone()
        };
        assert!(
            server_config(&missing)
                .unwrap_err()
                .to_string()
                .contains("/nonexistent.pem")
        );
        let empty = directory.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let empty = TlsFiles {
            cert_file: Some(empty),
            ..good.clone()
        };
        assert!(
            server_config(&empty)
                .unwrap_err()
                .to_string()
                .contains("no certificate in it")
        );
        let blind = TlsFiles {
            verify_incoming: true,
            ca_file: None,
            ..good
        };
        assert!(matches!(server_config(&blind), Err(TlsError::NoAuthority)));
    }
}
