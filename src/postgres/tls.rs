//! TLS of every session: libpq's modes, authorities and client certificates, built on rustls.
//!
//! The same [`Tls`] drives the SQL sessions (here) and the replication session (`replication::client`). The files are read
//! at every connect, so that renewed certificates count without a restart.
//! Invariant: never less protection than was asked for; what can't be promised is refused (documentation of libpq, "SSL
//! Support").

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::RootCertStore;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::error::{Error, ErrorKind, Result};

/// How much a session is protected, from least to most; libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// No TLS.
    Disable,
    /// TLS where the server offers it. Protects against nobody who can change packets.
    Prefer,
    /// TLS, with whoever answers. Protects against listeners, not against impostors.
    Require,
    /// The server's certificate comes from a trusted authority.
    VerifyCa,
    /// And it is issued for the host that was named.
    VerifyFull,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Disable => "disable",
            Mode::Prefer => "prefer",
            Mode::Require => "require",
            Mode::VerifyCa => "verify-ca",
            Mode::VerifyFull => "verify-full",
        }
    }
}

impl FromStr for Mode {
    type Err = ();

    /// libpq's names. `allow` (no TLS unless the server insists) is not among them: it protects nobody.
    fn from_str(text: &str) -> Result<Mode, ()> {
        let all = [Mode::Disable, Mode::Prefer, Mode::Require, Mode::VerifyCa, Mode::VerifyFull];
        all.into_iter().find(|mode| mode.name() == text).ok_or(())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A host name of the certificate that a server showed last, once its chain was verified.
#[derive(Debug, Clone, Default)]
pub struct ShownName(Arc<Mutex<Option<String>>>);

impl ShownName {
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, certificate: &CertificateDer<'_>) {
        let name = webpki::EndEntityCert::try_from(certificate)
            .ok()
            .and_then(|parsed| parsed.valid_dns_names().next().map(|name| name.replacen('*', "any", 1)));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }
}

/// Who is trusted to issue the server's certificate; libpq's `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The authorities this machine trusts.
    System,
    /// Certificates in a PEM file.
    File(PathBuf),
}

/// A client certificate with its key, PEM files; libpq's `sslcert` and `sslkey`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// How sessions with one server are protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub mode: Mode,
    pub roots: Roots,
    pub identity: Option<Identity>,
}

impl Tls {
    /// A mode without client certificate, with the authorities of this machine.
    pub fn new(mode: Mode) -> Tls {
        Tls { mode, roots: Roots::System, identity: None }
    }

    /// The file that holds the trusted authorities.
    ///
    /// # Errors
    /// `Authentication` when this machine has none.
    pub fn roots_file(&self) -> Result<PathBuf> {
        match &self.roots {
            Roots::File(path) => Ok(path.clone()),
            // SSL_CERT_FILE, else where the distributions keep it.
            Roots::System => openssl_probe::probe().cert_file.ok_or_else(|| {
                unusable("this machine has no file of trusted certificate authorities".to_owned()).with_hint(
                    "install the package ca-certificates, or name the server's authority with sslrootcert=FILE",
                )
            }),
        }
    }

    /// Checks that the files can be used, as a connect will.
    ///
    /// # Errors
    /// `Authentication` that names the file.
    pub fn check(&self) -> Result<()> {
        match self.mode {
            Mode::Disable => Ok(()),
            _ => self.client_config(&ShownName::default()).map(drop),
        }
    }

    /// What rustls needs; reads the files. With verify-ca, `shown` is told a name of the server's certificate.
    ///
    /// # Errors
    /// `Authentication` when a file can't be read or holds nothing that fits.
    pub fn client_config(&self, shown: &ShownName) -> Result<rustls::ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::internal("TLS can't be set up").with_source(e))?;
        let builder = match self.mode {
            Mode::VerifyFull => builder.with_root_certificates(self.authorities()?),
            Mode::VerifyCa => {
                let roots = Some((self.authorities()?, shown.clone()));
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier { roots, provider }))
            }
            Mode::Disable | Mode::Prefer | Mode::Require => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Verifier { roots: None, provider })),
        };
        let Some(identity) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let key = identity.key()?;
        builder.with_client_auth_cert(certificates(&identity.certificate, "sslcert")?, key).map_err(|e| {
            let (certificate, key) = (identity.certificate.display(), identity.key.display());
            unusable(format!("the client certificate {certificate} does not go with the key {key}: {e}"))
                .with_hint("name a certificate and its own key with sslcert and sslkey")
        })
    }

    fn authorities(&self) -> Result<RootCertStore> {
        let file = self.roots_file()?;
        let mut store = RootCertStore::empty();
        let (usable, _) = store.add_parsable_certificates(certificates(&file, "sslrootcert")?);
        match usable {
            0 => Err(unusable(format!("{} holds no usable certificate authority", file.display()))
                .with_hint("sslrootcert names a PEM file with the certificate of the authority")),
            _ => Ok(store),
        }
    }
}

impl Identity {
    /// As libpq, a key that others may read is refused: owner only, or root's with the group reading.
    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        use std::os::unix::fs::MetadataExt;
        let shown = self.key.display();
        let facts = std::fs::metadata(&self.key)
            .map_err(|e| unusable(format!("can't read the client key {shown}: {e}")).with_hint(KEY_HINT))?;
        let allowed = if facts.uid() == 0 { 0o740 } else { 0o700 };
        if facts.mode() & 0o777 & !allowed != 0 {
            return Err(unusable(format!("others may read the client key {shown}"))
                .with_hint(format!("run: chmod 600 {shown}")));
        }
        PrivateKeyDer::from_pem_file(&self.key).map_err(|e| {
            let e = e.to_string();
            unusable(format!("the client key {shown} can't be used: {e}")).with_hint(KEY_HINT)
        })
    }
}

const KEY_HINT: &str =
    "sslkey names an unencrypted PEM file (PKCS#8, PKCS#1 or SEC1) that this user can read and others can't";

fn certificates(path: &Path, option: &str) -> Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unusable(format!("{shown} holds no certificate"))
            .with_hint(format!("{option} names a file in PEM format"))),
        Err(e) => Err(unusable(format!("can't read the certificates in {shown}: {e}"))
            .with_hint(format!("{option} names a file in PEM format that this user can read"))),
    }
}

fn unusable(what: String) -> Error {
    Error::new(ErrorKind::Authentication, what)
}

/// What to do about a failed handshake, from the client's words about it; `None` when they are about something else.
/// Both clients pass on what rustls says (`rustls::Error`, `rustls::CertificateError`).
pub fn hint(said: &str) -> Option<&'static str> {
    let hints: &[(&[&str], &str)] = &[
        (
            &["does not support TLS"],
            "the server does not offer TLS: enable ssl there, or accept an unprotected session with sslmode=prefer or \
             disable",
        ),
        (
            &["UnknownIssuer"],
            "the server's certificate does not come from a trusted authority: name the authority's file with \
             sslrootcert, or accept any certificate with sslmode=require",
        ),
        (
            &["not valid for", "NotValidForName"],
            "the server's certificate is for another host: connect by a name that it holds, or leave the name out of \
             the check with sslmode=verify-ca",
        ),
        (&["Expired", "expired"], "the server's certificate has expired: renew it there"),
        (
            &["NotValidYet", "not valid yet"],
            "the server's certificate counts from later on: check both clocks",
        ),
        (
            &["CaUsedAsEndEntity"],
            "the server uses the certificate of an authority as its own: issue one for the server, with its host name \
             as subjectAltName",
        ),
        (&["Revoked"], "the server's certificate was revoked: install another one there"),
        (
            &["invalid peer certificate"],
            "the server's certificate can't be verified: it needs X.509 version 3, a signature of SHA-256 or better and \
             its host name as subjectAltName",
        ),
        (
            &["received fatal alert", "HandshakeFailure"],
            "the server ended the TLS handshake: its log says why (often the client certificate, or no common version)",
        ),
        (&["TLS", "tls"], "see sslmode, sslrootcert, sslcert and sslkey in docs/security.md"),
    ];
    hints.iter().find(|(words, _)| words.iter().any(|word| said.contains(word))).map(|(_, hint)| *hint)
}

/// Checks the chain of a server's certificate but not its name; nothing at all without `roots`. That the server holds
/// the key is always checked.
#[derive(Debug)]
struct Verifier {
    roots: Option<(RootCertStore, ShownName)>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some((roots, shown)) = &self.roots {
            let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &parsed,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
            shown.note(certificate);
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
