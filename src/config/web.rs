//! How the web server is reached and by whom: certificates, the secret, names it answers to.

use std::path::PathBuf;

use super::options::{self, Choice};
use super::{Sourced, Sources};
use crate::error::Result;

/// The resolved settings of the web server, apart from its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSettings {
    /// File that holds the secret; without one nobody is asked for it.
    pub token_file: Option<Sourced<PathBuf>>,
    /// User name that goes with the secret where a browser asks.
    pub user: Option<Sourced<String>>,
    /// PEM files of the certificate chain and its key.
    pub tls_cert: Option<Sourced<PathBuf>>,
    pub tls_key: Option<Sourced<PathBuf>>,
    /// Names beyond localhost under which it may be asked for.
    pub hosts: Option<Sourced<String>>,
    /// Whether queries and plans are shown.
    pub queries: Option<Sourced<bool>>,
    /// Serve everybody who can reach an address that others can reach.
    pub insecure: Option<Sourced<bool>>,
}

impl Sources {
    /// Whether HTTPS is served.
    pub fn https(&self) -> bool {
        self.text(options::HTTP_TLS_CERT).is_some()
    }

    /// What was said about the web server.
    ///
    /// # Errors
    /// `Config` with the origin of a value that is neither true nor false.
    pub fn web(&self) -> Result<WebSettings> {
        let path = |choice: &Choice| {
            let text = self.text(choice)?;
            Some(Sourced::new(PathBuf::from(text.value), text.origin))
        };
        Ok(WebSettings {
            token_file: path(options::HTTP_TOKEN_FILE),
            user: self.text(options::HTTP_USER),
            tls_cert: path(options::HTTP_TLS_CERT),
            tls_key: path(options::HTTP_TLS_KEY),
            hosts: self.text(options::HTTP_HOSTS),
            queries: self.switch(options::HTTP_QUERIES)?,
            insecure: self.switch(options::HTTP_INSECURE)?,
        })
    }
}
