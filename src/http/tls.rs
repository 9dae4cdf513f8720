//! HTTPS: the certificate with which connections are encrypted before a request is read.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, ErrorKind, Result};

/// PEM files of a server certificate.
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl TlsFiles {
    fn stamps(&self) -> Stamps {
        [&self.certificate, &self.key].map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        })
    }

    /// Reads both files.
    ///
    /// # Errors
    /// `Config` when one can't be read, or they do not belong together.
    fn load(&self) -> Result<Arc<rustls::ServerConfig>> {
        let refuse = |path: &PathBuf, e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Config, format!("{}: {e}", path.display()))
                .with_hint("http_tls_cert and http_tls_key name PEM files of a certificate chain and its key")
        };
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(|all| all.collect::<std::result::Result<Vec<_>, _>>())
            .map_err(|e| refuse(&self.certificate, &e))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| refuse(&self.key, &e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|e| refuse(&self.certificate, &e))?;
        Ok(Arc::new(config))
    }
}

/// A certificate as its files hold it now: whoever renews it need not start us again.
pub struct Certificate {
    files: TlsFiles,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    /// What the files looked like when they were read last.
    seen: Stamps,
    config: Arc<rustls::ServerConfig>,
}

type Stamps = [Option<(SystemTime, u64)>; 2];

impl Certificate {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// As [`TlsFiles::load`].
    pub fn new(files: TlsFiles) -> Result<Certificate> {
        let seen = files.stamps();
        let config = files.load()?;
        Ok(Certificate { files, loaded: Mutex::new(Loaded { seen, config }) })
    }

    /// For the next connection. Files that changed are read again; while they can't be (one of them is still to be
    /// written), what was read before goes on.
    pub(super) fn config(&self) -> Arc<rustls::ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.files.stamps();
        if seen != loaded.seen {
            loaded.seen = seen;
            match self.files.load() {
                Ok(config) => {
                    tracing::info!("the certificate of the web server was read again");
                    loaded.config = config;
                }
                Err(error) => {
                    tracing::warn!(error = %error, hint = error.hint(), "the certificate has changed and can't be read: the former one is used");
                }
            }
        }
        loaded.config.clone()
    }
}
