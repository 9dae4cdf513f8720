//! Certificates for tests, and a server that uses them.
//!
//! Invariant: keys are made anew in every run and go with the cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgtrickle::postgres::account;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

use super::database::connect;
use super::servers::{SUPERUSER, Server};
use super::wait::wait_until;

/// A certificate with its key, both PEM.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// An authority that issues certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: String,
}

fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("names of hosts");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = named(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    fn issue(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// For a server that is reached by these names and addresses.
    pub fn server(&self, hosts: &[&str]) -> Pair {
        self.issue(named("server", hosts))
    }

    /// One that counted until the end of 2020.
    pub fn expired(&self, hosts: &[&str]) -> Pair {
        let mut params = named("server", hosts);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 12, 31));
        self.issue(params)
    }

    /// For a client that is a role.
    pub fn client(&self, role: &str) -> Pair {
        let mut params = named(role, &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }
}

/// One that nobody vouches for but itself.
pub fn self_signed(hosts: &[&str]) -> Pair {
    let key = KeyPair::generate().expect("a key");
    let certificate = named("server", hosts).self_signed(&key).expect("a certificate").pem();
    Pair { certificate, key: key.serialize_pem() }
}

impl Pair {
    /// Writes both files; the key only for their owner.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.certificate).expect("a certificate's file");
        write_private(&key, &self.key);
        (certificate, key)
    }
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("a private file");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("its mode");
}

/// Whether the server can do TLS at all; builds without OpenSSL can't.
pub async fn can_tls(server: &Server) -> bool {
    let client = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
    let library = "select setting <> '' from pg_settings where name = 'ssl_library'";
    client.query_one(library, &[]).await.expect("a setting").get(0)
}

/// Writes files into the server's data folder, for its account.
pub fn give_files(server: &Server, files: &[(&str, &str)]) {
    let account = account::server_account().expect("the server's account");
    for (name, text) in files {
        let path = server.cluster.data_dir().join(name);
        write_private(&path, text);
        account::give(&path, account).expect("a file of the server's");
    }
}

/// Makes the server read its configuration, and waits until new sessions have it.
pub async fn reload(server: &Server) {
    let url = server.cluster.conninfo("postgres", SUPERUSER);
    const LOADED: &str = "select pg_conf_load_time()::text";
    let client = connect(&url).await;
    let before: String = client.query_one(LOADED, &[]).await.expect("a time").get(0);
    client.execute("select pg_reload_conf()", &[]).await.expect("a reload");
    wait_until("the server to read its configuration", Duration::from_secs(30), || async {
        let seen: String = connect(&url).await.query_one(LOADED, &[]).await.expect("a time").get(0);
        if seen != before { Ok(()) } else { Err(seen) }
    })
    .await;
}
