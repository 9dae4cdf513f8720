//! TLS against real servers: what each `sslmode` lets in and keeps out, for the SQL sessions and the replication session
//! alike. The server of 18 that tests fetch has no TLS; there it is checked that nothing less is taken silently.

use std::path::Path;

use pgtrickle::error::{Error, ErrorKind};
use pgtrickle::postgres::sessions::{Purpose, Target};
use pgtrickle::postgres::tls::{Identity, Mode, Roots, Tls};
use pgtrickle::replication::client::Session;
use pgtrickle::replication::names::PipelineNames;
use tokio_postgres::Config;
use tokio_postgres::config::ChannelBinding;

use super::bad_input::{value, wait_value};
use crate::harness::certificates::{Authority, Pair, can_tls, give_files, reload, self_signed};
use crate::harness::database::{TestDatabase, connect, pgtrickle, printed};
use crate::harness::servers::{SUPERUSER, Server, each, own_cluster};
use crate::harness::{SOON, Sidecar};

const HERE: &[&str] = &["localhost", "127.0.0.1"];

/// Everybody but the superuser comes in by TLS, each role in its own way.
const HBA: &str = "
local all all trust
host all dba,app 127.0.0.1/32 trust
hostssl all side_cert 127.0.0.1/32 cert
hostssl all side_md5 127.0.0.1/32 md5
hostssl all side_clear 127.0.0.1/32 password
hostssl all side 127.0.0.1/32 scram-sha-256
hostssl replication all 127.0.0.1/32 scram-sha-256
";

const ROLES: &str = "
set password_encryption = 'scram-sha-256';
create role side login replication password 'geheim-scram'; create role side_cert login replication;
create role side_clear login replication password 'geheim-clear';
set password_encryption = 'md5'; create role side_md5 login replication password 'geheim-md5'";

/// A server with TLS, roles for each way to log in, and the certificate of `pair`.
async fn tls_server(major: u32, pair: &Pair, clients: &Authority) -> Option<Server> {
    let server = own_cluster(major, &[]).await;
    if !can_tls(&server).await {
        crate::harness::left_out(&format!("PostgreSQL {major} is built without TLS here"));
        return None;
    }
    let dba = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
    dba.batch_execute(ROLES).await.unwrap();
    give_files(
        &server,
        &[
            ("server.crt", &pair.certificate),
            ("server.key", &pair.key),
            ("clients.crt", &clients.certificate),
            ("pg_hba.conf", HBA),
        ],
    );
    for (name, value) in [("ssl_ca_file", "clients.crt"), ("ssl", "on")] {
        dba.batch_execute(&format!("alter system set {name} = '{value}'")).await.unwrap();
    }
    reload(&server).await;
    Some(server)
}

fn target(server: &Server, host: &str, role: &str, tls: Tls) -> Target {
    let mut config = Config::new();
    config.host(host).port(server.cluster.port()).user(role).dbname("postgres");
    let password = match role {
        "side_md5" => "geheim-md5",
        "side_clear" => "geheim-clear",
        _ => "geheim-scram",
    };
    Target::new(config.password(password).clone(), "main").with_tls(tls)
}

/// Both sessions; each either gets in or says why not.
async fn both(target: &Target) -> [Result<(), Error>; 2] {
    let sql = target.connect(Purpose::Tool).await.map(drop);
    let names = PipelineNames::new(1, "00000000", "main").unwrap();
    // There is no slot: whoever gets as far as asking for the identity was let in.
    let there = || Error::new(ErrorKind::Identity, "was let in");
    let stream = match Session::open(target, &names, 1, |_| Err(there())).await {
        Err(e) if e.kind() == ErrorKind::Identity => Ok(()),
        Err(e) => Err(e),
        Ok(_) => panic!("it streams without a slot"),
    };
    [sql, stream]
}

async fn enters(target: &Target, what: &str) {
    for (session, outcome) in ["SQL", "replication"].iter().zip(both(target).await) {
        assert!(outcome.is_ok(), "{what}: the {session} session was refused: {outcome:?}");
    }
}

async fn stays_out(target: &Target, what: &str, words: &str) {
    for (session, outcome) in ["SQL", "replication"].iter().zip(both(target).await) {
        let error = outcome.expect_err(&format!("{what}: the {session} session was let in"));
        assert_eq!(error.kind(), ErrorKind::Authentication, "{what}, {session}: {error:?}");
        let said = format!("{error} / {}", error.hint().unwrap_or_default());
        assert!(said.contains(words), "{what}, {session}: {words:?} is not in {said}");
        assert!(!said.contains("geheim"), "{said}");
    }
}

fn verify(mode: Mode, roots: &Path) -> Tls {
    Tls { mode, roots: Roots::File(roots.to_owned()), identity: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mode_keeps_out_what_it_promises_in_both_sessions() {
    each(async |major| {
        let folder = tempfile::tempdir().unwrap();
        let (ours, other) = (Authority::new("ours"), Authority::new("other"));
        let good = ours.server(HERE);
        let Some(server) = tls_server(major, &good, &ours).await else { return };
        let roots = folder.path().join("roots.pem");
        std::fs::write(&roots, format!("{}{}", ours.certificate, other.certificate)).unwrap();
        let foreign = folder.path().join("foreign.pem");
        std::fs::write(&foreign, &other.certificate).unwrap();
        let side = |host: &str, tls: Tls| target(&server, host, "side", tls);
        for host in HERE {
            for mode in [Mode::VerifyFull, Mode::VerifyCa] {
                enters(&side(host, verify(mode, &roots)), &format!("{mode} at {host}")).await;
            }
        }
        for mode in [Mode::Require, Mode::Prefer] {
            enters(&side("localhost", Tls::new(mode)), mode.name()).await;
        }
        stays_out(&side("localhost", Tls::new(Mode::Disable)), "no TLS", "pg_hba.conf").await;
        for mode in [Mode::VerifyFull, Mode::VerifyCa] {
            stays_out(&side("localhost", verify(mode, &foreign)), "wrong authority", "sslrootcert").await;
            // A private authority is none that this machine trusts.
            stays_out(&side("localhost", Tls::new(mode)), "the machine's authorities", "sslrootcert").await;
        }
        let served = async |pair: &Pair| {
            give_files(&server, &[("server.crt", &pair.certificate), ("server.key", &pair.key)]);
            reload(&server).await;
        };
        served(&ours.server(&["elsewhere.example"])).await;
        stays_out(&side("localhost", verify(Mode::VerifyFull, &roots)), "wrong host", "another host").await;
        stays_out(&side("127.0.0.1", verify(Mode::VerifyFull, &roots)), "wrong address", "another host")
            .await;
        enters(&side("localhost", verify(Mode::VerifyCa, &roots)), "verify-ca ignores the name").await;
        served(&ours.expired(HERE)).await;
        for mode in [Mode::VerifyFull, Mode::VerifyCa] {
            stays_out(&side("localhost", verify(mode, &roots)), "expired", "expired").await;
        }
        enters(&side("localhost", Tls::new(Mode::Require)), "require checks nothing").await;
        served(&self_signed(HERE)).await;
        for mode in [Mode::VerifyFull, Mode::VerifyCa] {
            stays_out(&side("localhost", verify(mode, &roots)), "self-signed", "sslrootcert").await;
        }
        // The server's own certificate as the only trusted one.
        let own = self_signed(HERE);
        served(&own).await;
        let pinned = folder.path().join("own.pem");
        std::fs::write(&pinned, &own.certificate).unwrap();
        enters(&side("localhost", verify(Mode::VerifyFull, &pinned)), "its own certificate").await;
        // Renewed under way: the files are read at every connect.
        served(&good).await;
        let again = side("localhost", verify(Mode::VerifyFull, &roots));
        enters(&again, "the first certificate again").await;
        std::fs::write(&roots, &other.certificate).unwrap();
        stays_out(&again, "the authority was taken out of the file", "sslrootcert").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_log_in_works_over_tls_in_both_sessions() {
    each(async |major| {
        let folder = tempfile::tempdir().unwrap();
        let (ours, clients) = (Authority::new("ours"), Authority::new("clients"));
        let Some(server) = tls_server(major, &ours.server(HERE), &clients).await else { return };
        let roots = folder.path().join("roots.pem");
        std::fs::write(&roots, &ours.certificate).unwrap();
        let full = || verify(Mode::VerifyFull, &roots);
        for role in ["side", "side_md5", "side_clear"] {
            enters(&target(&server, "localhost", role, full()), role).await;
        }
        // The SQL session binds the login to the channel where the server can: it insists here.
        let mut config = target(&server, "localhost", "side", full()).config().clone();
        config.channel_binding(ChannelBinding::Require);
        let bound = Target::new(config, "main").with_tls(full());
        bound.connect(Purpose::Tool).await.expect("SCRAM with channel binding");
        let identity = |pair: &Pair, name: &str| {
            let (certificate, key) = pair.write(folder.path(), name);
            Some(Identity { certificate, key })
        };
        let by = |identity| target(&server, "localhost", "side_cert", Tls { identity, ..full() });
        enters(&by(identity(&clients.client("side_cert"), "right")), "its certificate").await;
        stays_out(&by(None), "no certificate", "valid client certificate").await;
        stays_out(&by(identity(&clients.client("somebody"), "other")), "somebody else's", "side_cert").await;
        let foreign = by(identity(&ours.client("side_cert"), "foreign"));
        for outcome in both(&foreign).await {
            // TLS 1.3 lets the client learn it only when it reads.
            let error = outcome.expect_err("a certificate of a foreign authority was taken");
            assert!(matches!(error.kind(), ErrorKind::Authentication | ErrorKind::Connection), "{error:?}");
        }
        let open = by(identity(&clients.client("side_cert"), "open"));
        use std::os::unix::fs::PermissionsExt;
        let key = folder.path().join("open.key");
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
        stays_out(&open, "a key that others may read", "chmod 600").await;
        let mut wrong = target(&server, "localhost", "side", full()).config().clone();
        wrong.password("wrong");
        stays_out(&Target::new(wrong, "main").with_tls(full()), "wrong password", "password").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_where_tls_was_asked_for() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        for mode in [Mode::Require, Mode::VerifyCa, Mode::VerifyFull] {
            let target = target(&server, "127.0.0.1", "pgtrickle", Tls::new(mode));
            stays_out(&target, mode.name(), "does not offer TLS").await;
        }
        for mode in [Mode::Prefer, Mode::Disable] {
            enters(&target(&server, "127.0.0.1", "pgtrickle", Tls::new(mode)), mode.name()).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_run_with_verify_full_and_a_client_certificate_encrypts_every_session() {
    each(async |major| {
        let folder = tempfile::tempdir().unwrap();
        let (ours, clients) = (Authority::new("ours"), Authority::new("clients"));
        let Some(server) = tls_server(major, &ours.server(HERE), &clients).await else { return };
        let roots = folder.path().join("roots.pem");
        std::fs::write(&roots, &ours.certificate).unwrap();
        let (certificate, key) = clients.client("side_cert").write(folder.path(), "side");
        let db = TestDatabase::create(&server).await;
        let init = pgtrickle(&[
            "init", "--database-url", &db.url(SUPERUSER), "--sidecar-role", "side_cert", "--grant-to", "app",
        ]);
        assert!(init.status.success(), "{}", printed(&init));
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute("create table src (id int primary key, v int); grant select on src to side_cert").await.unwrap();
        dba.batch_execute("grant usage on schema app to side_cert").await.unwrap();
        let url = format!(
            "postgresql://side_cert@localhost:{}/{}?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
            server.cluster.port(), db.name, roots.display(), certificate.display(), key.display()
        );
        let mut sidecar = Sidecar::start_with_url(&url, &["--cdc-mode", "wal"]);
        sidecar.wait_ready(SOON).await;
        app.batch_execute("select pgtrickle.create_stream_table('t', 'select id, v from src'); insert into src values (1, 2)").await.unwrap();
        wait_value(&app, "select count(*) from t", "1").await;
        const SESSIONS: &str = "select string_agg(distinct split_part(a.application_name, ':', 3) || ' ' || s.ssl, ', ')
            from pg_stat_activity a join pg_stat_ssl s using (pid) where a.usename = 'side_cert'";
        let seen = value(&dba, SESSIONS).await;
        println!("PostgreSQL {major}: {seen}");
        assert!(seen.contains("replication true") && seen.contains("apply true"), "{seen}");
        assert!(!seen.contains("false"), "{seen}");
        let status = pgtrickle(&["status", "--database-url", &url]);
        assert!(status.status.success() && printed(&status).contains("app.t"), "{}", printed(&status));
        let doctor = printed(&pgtrickle(&["doctor", "--database-url", &url]));
        let told = doctor.lines().find(|line| line.contains(" pg.tls ")).unwrap_or_else(|| panic!("{doctor}"));
        assert!(told.starts_with("ok") && told.contains("encrypted (TLSv1."), "{told}");
        assert!(told.contains("verify-full: the server's certificate and name are checked"), "{told}");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
