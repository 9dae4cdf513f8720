//! Who may ask: the secret beyond loopback, names of the host, HTTPS.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::client::{Answer, ask, ask_over, free_port, get};
use crate::harness::database::{SIDECAR, pgtrickle, printed};
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

const SECRET: &str = "a-secret-of-thirty-characters!";

/// Waits until the process answers at all.
pub async fn answers(port: u16) {
    wait_until("the web server to answer", SOON, || async {
        match get(port, "/healthz").await? {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// What a path answers to a request with an `Authorization`.
async fn with(port: u16, path: &str, authorization: &str) -> Answer {
    ask(port, "GET", path, &[("Authorization", authorization)], "").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_a_secret_is_asked_for_and_its_absence_is_refused_at_the_start() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let port = free_port();
        let any = format!("0.0.0.0:{port}");
        let url = db.url(SIDECAR);
        let refused = pgtrickle(&["run", "--http", &any, "--database-url", &url]);
        let said = printed(&refused);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("http_token_file") && said.contains("--http-insecure"), "{said}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let path = file.display().to_string();
        for (content, wanted) in [(None, "can't be read"), (Some("short\n"), "too short")] {
            content.into_iter().for_each(|c| std::fs::write(&file, c).unwrap());
            let refused =
                pgtrickle(&["run", "--http", &any, "--http-token-file", &path, "--database-url", &url]);
            let said = printed(&refused);
            assert!(refused.status.code() == Some(2) && said.contains(wanted), "{said}");
        }
        std::fs::write(&file, format!("{SECRET}\n")).unwrap();
        let mut sidecar = Sidecar::start(&db, &["--http", &any, "--http-token-file", &path]);
        answers(port).await;
        let paths =
            ["/", "/tables", "/metrics", "/api/v1/pipelines", "/api/v1/events", "/static/app.css", "/none"];
        for path in paths {
            let answer = ask(port, "GET", path, &[], "").await.unwrap();
            assert_eq!(answer.status, 401, "{path}: {answer:?}");
            assert!(answer.header("www-authenticate").starts_with("Basic"), "{path}: {answer:?}");
            assert!(!answer.body.contains(&db.name), "{path}: {answer:?}");
            assert!(answer.header("content-security-policy").contains("default-src 'none'"), "{path}");
        }
        assert_eq!(with(port, "/", &format!("Bearer {SECRET}")).await.status, 200);
        assert_eq!(with(port, "/metrics", &format!("Bearer {SECRET}")).await.status, 200);
        // `pgtrickle` and the secret, as a browser sends them.
        let basic = "Basic cGd0cmlja2xlOmEtc2VjcmV0LW9mLXRoaXJ0eS1jaGFyYWN0ZXJzIQ==";
        assert_eq!(with(port, "/", basic).await.status, 200);
        for wrong in ["Bearer no", "Basic cGd0cmlja2xlOg==", "Bearer"] {
            assert_eq!(with(port, "/", wrong).await.status, 401, "{wrong}");
        }
        // Whoever has the secret may ask under any name; readiness is for all, its reasons are not.
        let foreign = [("Host", "db.example"), ("Authorization", basic)];
        assert_eq!(ask(port, "GET", "/", &foreign, "").await.unwrap().status, 200);
        wait_until("readiness to be told without reasons", SOON, || async {
            let (told, body) = get(port, "/readyz").await?;
            let json: serde_json::Value = serde_json::from_str(&body).map_err(|e| e.to_string())?;
            let known = with(port, "/readyz", basic).await.json();
            assert!(json.get("reasons").is_none() && known.get("reasons").is_some(), "{json} {known}");
            if told == 200 { Ok(()) } else { Err(body) }
        })
        .await;
        assert!(!sidecar.logs().contains(SECRET), "the secret is in the log");
        assert!(sidecar.logs().contains("travels unencrypted"), "no warning");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_loopback_a_name_that_is_not_ours_is_not_answered() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let mut sidecar =
            Sidecar::start(&db, &["--http", &address, "--http-hosts", "ops.example, other.example"]);
        answers(port).await;
        for (host, status) in [
            ("localhost", 200),
            (address.as_str(), 200),
            ("[::1]:9642", 200),
            ("OPS.example:443", 200),
            ("evil.example", 421),
            ("127.0.0.1.evil.example", 421),
        ] {
            let answer = ask(port, "GET", "/", &[("Host", host)], "").await.unwrap();
            assert_eq!(answer.status, status, "{host}");
            assert!(status == 200 || !answer.body.contains(&db.name), "{answer:?}");
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_say_nothing_or_do_not_end_are_closed_and_keep_nobody_waiting() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let port = free_port();
        let mut sidecar = Sidecar::start(&db, &["--http", &format!("127.0.0.1:{port}")]);
        answers(port).await;
        let connect = async |said: &str| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            stream
        };
        // From loopback, as from any peer, so many and no more.
        let (mut held, mut refused) = (Vec::new(), 0);
        for n in 0..150 {
            let said = ["", "GET / HTTP/1.1\r\nHost: loc", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"][n % 3];
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            match stream.write_all(said.as_bytes()).await {
                Ok(()) => held.push(stream),
                Err(_) => refused += 1,
            }
        }
        // Each of them ends, though nobody here closes it; then there is room again.
        let read_to_end = async |mut stream: TcpStream| {
            let mut text = Vec::new();
            tokio::time::timeout(SOON, stream.read_to_end(&mut text)).await.expect("it is closed").is_ok()
        };
        let ended = futures_util::future::join_all(held.into_iter().map(read_to_end)).await;
        println!("  {} connections ended, {refused} were refused while writing", ended.len());
        assert_eq!(get(port, "/healthz").await.unwrap().0, 200);
        // A body that does not come is not waited for either.
        let body = "POST /theme HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\n";
        let mut stream = connect(body).await;
        let mut answer = [0; 64];
        let n = tokio::time::timeout(SOON, stream.read(&mut answer)).await.expect("it is answered").unwrap();
        let answer = String::from_utf8_lossy(&answer[..n]);
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_served_with_the_given_certificate_and_plain_text_is_not_understood() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let url = db.url(SIDECAR);
        let (cert, key) = (path("cert.pem"), path("key.pem"));
        // Half of a pair, and files that are none.
        for wrong in [vec!["--http-tls-cert", &cert], vec!["--http-tls-cert", &key, "--http-tls-key", &cert]]
        {
            let mut arguments = vec!["run", "--http", &address, "--database-url", &url];
            arguments.extend(wrong);
            let refused = pgtrickle(&arguments);
            let said = printed(&refused);
            assert!(refused.status.code() == Some(2) && said.contains("http_tls_key"), "{said}");
        }
        let flags = ["--http", &address, "--http-tls-cert", &cert, "--http-tls-key", &key];
        let mut sidecar = Sidecar::start(&db, &flags);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(made.cert.der().to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        // Somebody who connects and says nothing keeps nobody waiting.
        wait_until("the dashboard over HTTPS", SOON, || {
            let connector = connector.clone();
            async move {
                let _silent = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
                let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
                let name = ServerName::try_from("localhost").unwrap();
                let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
                match ask_over(stream, "GET", "/", &[], "").await {
                    // rustls reports a connection that ended without a goodbye.
                    Ok(answer) if answer.status == 200 && answer.body.contains("pgtrickle") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            }
        })
        .await;
        // The health check follows the configuration, or is told.
        let check = |more: &[&str]| {
            let arguments = [&["healthcheck", "--http", &address], more].concat();
            tokio::task::block_in_place(|| pgtrickle(&arguments))
        };
        let told = check(&["--https"]);
        assert!(told.status.success() && printed(&told).contains("ok"), "{}", printed(&told));
        let untold = check(&[]);
        assert!(
            untold.status.code() == Some(1) && printed(&untold).contains("--https"),
            "{}",
            printed(&untold)
        );
        let file = path("pgtrickle.toml");
        let written = format!("http = {address:?}\nhttp_tls_cert = {cert:?}\nhttp_tls_key = {key:?}\n");
        std::fs::write(&file, written).unwrap();
        let configured = tokio::task::block_in_place(|| pgtrickle(&["--config", &file, "healthcheck"]));
        assert!(configured.status.success(), "{}", printed(&configured));
        // Many who say nothing do not either.
        let silent = |_| TcpStream::connect(("127.0.0.1", port));
        let silent = futures_util::future::join_all((0..100).map(silent)).await;
        assert!(silent.iter().all(Result::is_ok));
        let told = check(&["--https", "--timeout", "3"]);
        assert!(told.status.success(), "{}", printed(&told));
        drop(silent);
        // A certificate that was renewed is the one of the next connection.
        let renewed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&cert, renewed.cert.pem()).unwrap();
        let torn = check(&["--https"]);
        assert!(torn.status.success(), "the key is still the former one's: {}", printed(&torn));
        std::fs::write(&key, renewed.signing_key.serialize_pem()).unwrap();
        wait_until("the renewed certificate to be shown", SOON, || {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
                let name = ServerName::try_from("localhost").unwrap();
                match connector.connect(name, stream).await {
                    Ok(_) => Err("the former one is".to_owned()),
                    Err(_) => Ok(()),
                }
            }
        })
        .await;
        let told = check(&["--https"]);
        assert!(told.status.success(), "{}", printed(&told));
        let plain = get(port, "/healthz").await;
        assert!(!matches!(plain, Ok((200, _))), "{plain:?}");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
