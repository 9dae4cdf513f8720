//! `docker-compose.yml`: the settings of its server, its roles, the arguments and variables of its containers do their work
//! against a real server. Only paths below /run/secrets, host and port, and the superuser's name are replaced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pgtrickle::config::options::CHOICES;
use serde_json::Value;

use super::{documents, yaml};
use crate::harness::certificates::give_files;
use crate::harness::database::{connect, printed};
use crate::harness::servers::{SUPERUSER, Server, each, install, own_cluster};
use crate::harness::{SOON, Sidecar, wait_until};
use crate::suites::http::client::{ask, free_port, get};
use crate::suites::snapshots::value;

const PATH: &str = "docker-compose.yml";

/// The file with its merge keys (`<<`) resolved.
fn file() -> Value {
    let mut file = yaml(PATH).remove(0);
    for service in file["services"].as_object_mut().expect("services").values_mut() {
        let Some(environment) = service.get_mut("environment").and_then(Value::as_object_mut) else {
            continue;
        };
        if let Some(Value::Object(merged)) = environment.remove("<<") {
            for (name, value) in merged {
                environment.entry(name).or_insert(value);
            }
        }
    }
    file
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().map(|text| text.as_str().expect("a text").to_owned()).collect()
}

fn environment(service: &Value) -> BTreeMap<String, String> {
    let all = service["environment"].as_object().expect("variables");
    all.iter().map(|(name, value)| (name.clone(), value.as_str().expect("a text").to_owned())).collect()
}

#[test]
fn containers_wait_for_each_other_and_have_no_more_rights_than_they_need() {
    let file = file();
    let services = &file["services"];
    let ready = |name: &str, on: &str| services[name]["depends_on"][on]["condition"].clone();
    assert_eq!(ready("init", "postgres"), "service_healthy");
    assert_eq!(ready("pgtrickle", "postgres"), "service_healthy");
    assert_eq!(ready("pgtrickle", "init"), "service_completed_successfully");
    assert_eq!(
        texts(&services["pgtrickle"]["healthcheck"]["test"])[1..],
        ["/usr/bin/pgtrickle", "healthcheck", "--ready"]
    );
    for name in ["init", "pgtrickle"] {
        let service = &services[name];
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{name}");
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
    }
    for (name, profile) in
        [("prometheus", true), ("grafana", true), ("postgres", false), ("pgtrickle", false)]
    {
        let in_profile = services[name].get("profiles").is_some_and(|p| texts(p) == ["monitoring"]);
        assert_eq!(in_profile, profile, "{name}");
    }
    // Nothing is reachable from other machines, and every secret is a file that the script makes.
    let folder = tempfile::tempdir().expect("a folder");
    let made = Command::new(super::root().join("deploy/compose/secrets.sh")).arg(folder.path()).output();
    assert!(made.is_ok_and(|output| output.status.success()));
    let declared: Vec<&String> = file["secrets"].as_object().expect("secrets").keys().collect();
    for name in &declared {
        let text =
            std::fs::read_to_string(folder.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(text.len() >= 32, "{name}");
        assert_eq!(file["secrets"][name]["file"], format!("deploy/compose/secrets/{name}"));
    }
    for (name, service) in services.as_object().expect("services") {
        for port in service.get("ports").map(texts).unwrap_or_default() {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for secret in service.get("secrets").map(texts).unwrap_or_default() {
            assert!(declared.contains(&&secret), "{name}: {secret}");
        }
        for volume in service.get("volumes").map(texts).unwrap_or_default() {
            let from = volume.split(':').next().expect("a path");
            assert!(
                !from.starts_with('.') || super::root().join(from).exists(),
                "{name}: {from} does not exist"
            );
        }
        let image = service["image"].as_str().expect("an image");
        assert!(image.split_once(':').is_some_and(|(_, tag)| tag != "latest"), "{name}: {image}");
    }
    // What monitoring mounts is what monitoring/ has.
    let scrape = &yaml("deploy/compose/prometheus.yml")[0]["scrape_configs"][0];
    assert_eq!(
        (&scrape["job_name"], &scrape["static_configs"][0]["targets"][0]),
        (&"pgtrickle".into(), &"pgtrickle:9642".into())
    );
    let mut source = yaml("deploy/compose/grafana-datasource.yml").remove(0);
    source["datasources"][0]["url"] = "http://127.0.0.1:9090".into();
    assert_eq!(source, yaml("monitoring/grafana/provisioning/datasources/prometheus.yml")[0]);
}

#[test]
fn every_variable_of_the_program_is_one_that_it_knows() {
    for service in ["init", "pgtrickle"] {
        for name in environment(&file()["services"][service]).keys() {
            assert!(CHOICES.iter().any(|choice| choice.variable == name), "{service}: {name}");
        }
    }
}

/// The server as its container starts it.
async fn server(major: u32, service: &Value) -> Server {
    let command = texts(&service["command"]);
    let given: Vec<(String, String)> = command
        .windows(2)
        .filter(|pair| pair[0] == "-c")
        .map(|pair| pair[1].split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())).expect("a setting"))
        .collect();
    let settings: Vec<(&str, &str)> = given.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert!(settings.contains(&("wal_level", "logical")));
    assert!(settings.iter().any(|(name, _)| *name == "max_slot_wal_keep_size"));
    let server = own_cluster(major, &settings).await;
    // A new database: no roles of ours, and everybody needs a password, as in the image.
    let dba = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
    for sql in ["drop role app", "drop role pgtrickle", "create database app"] {
        dba.batch_execute(sql).await.expect(sql);
    }
    server
}

struct Containers {
    file: Value,
    secrets: PathBuf,
    port: u16,
    http: u16,
}

impl Containers {
    /// The variables of a service, as they are on this machine.
    fn variables(&self, service: &str) -> BTreeMap<String, String> {
        let mut variables = environment(&self.file["services"][service]);
        for value in variables.values_mut() {
            *value = value
                .replace("/run/secrets", &self.secrets.display().to_string())
                .replace("postgres@postgres/", &format!("{SUPERUSER}@postgres/"))
                .replace("@postgres/", &format!("@127.0.0.1:{}/", self.port))
                .replace(":9642", &format!(":{}", self.http));
        }
        variables
    }

    fn run(&self, service: &str, arguments: &[String]) -> Output {
        Command::new(super::program())
            .args(arguments)
            .env_clear()
            .envs(self.variables(service))
            .output()
            .expect("the program starts")
    }
}

fn secret(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).expect("a secret").trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_containers_do_works_on_a_real_server() {
    each(async |major| {
        let file = file();
        let services = &file["services"];
        let server = server(major, &services["postgres"]).await;
        let folder = tempfile::tempdir().expect("a folder");
        let made = Command::new(super::root().join("deploy/compose/secrets.sh")).arg(folder.path()).output();
        assert!(made.is_ok_and(|output| output.status.success()));
        let port = server.cluster.port();
        // Of the fetched servers some come without psql.
        let psql = [major, 15, 18].into_iter().map(|m| install(m).bin_dir).find(|f| f.join("psql").exists()).expect("psql");
        let roles = Command::new(super::root().join("deploy/compose/roles.sh"))
            .env("PATH", format!("{}:{}", psql.display(), std::env::var("PATH").unwrap_or_default()))
            .envs([("PGHOST", "127.0.0.1"), ("PGPORT", &port.to_string()), ("POSTGRES_USER", SUPERUSER), ("POSTGRES_DB", "app")])
            .env("SECRETS", folder.path())
            .output()
            .expect("the script starts");
        assert!(roles.status.success(), "{}", printed(&roles));
        // From here on everybody needs a password; the superuser's is the image's.
        let dba = connect(&server.cluster.conninfo("app", SUPERUSER)).await;
        let password = secret(folder.path(), "postgres_password");
        dba.batch_execute(&format!("alter role {SUPERUSER} password '{password}'")).await.expect("a password");
        give_files(&server, &[("pg_hba.conf", "local all all trust\nhost all,replication all 127.0.0.1/32 scram-sha-256\n")]);
        dba.batch_execute("select pg_reload_conf()").await.expect("a reload");
        let http = free_port();
        let containers = Containers { file: file.clone(), secrets: folder.path().to_path_buf(), port, http };
        let init = texts(&services["init"]["command"]);
        // Again at every start of the containers.
        for turn in ["first", "second"] {
            let output = containers.run("init", &init);
            assert!(output.status.success(), "the {turn} init: {}", printed(&output));
        }
        let mut arguments = vec!["-i".to_owned()];
        arguments.extend(containers.variables("pgtrickle").iter().map(|(n, v)| format!("{n}={v}")));
        arguments.push(super::program().display().to_string());
        arguments.extend(texts(&services["pgtrickle"]["command"]));
        let mut sidecar = Sidecar::start_program(PathBuf::from("env"), arguments);
        let app = connect(&format!("postgresql://app:{}@127.0.0.1:{port}/app", secret(folder.path(), "app_password"))).await;
        app.batch_execute("create table orders (id int primary key, amount numeric); insert into orders values (1, 2.5)").await.expect("a source");
        wait_until("the healthcheck to be content", SOON, || async {
            let check = texts(&services["pgtrickle"]["healthcheck"]["test"]);
            let output = containers.run("pgtrickle", &check[2..]);
            if output.status.success() { Ok(()) } else { Err(printed(&output)) }
        })
        .await;
        let created = "select pgtrickle.create_stream_table('total', 'select count(*) as n, sum(amount) as total from orders')";
        app.batch_execute(created).await.expect("a stream table");
        let mode = "select refresh_mode || ' ' || status from pgtrickle.pgt_status()";
        wait_until("the stream table to be maintained", SOON, || async {
            let seen = value(&app, mode).await;
            if seen == "DIFFERENTIAL ACTIVE" { Ok(()) } else { Err(seen) }
        })
        .await;
        app.batch_execute("insert into orders select i, i from generate_series(2, 100) i").await.expect("changes");
        assert_eq!(value(&app, "select pgtrickle.wait_for()").await, "true");
        assert_eq!(value(&app, "select n || ' ' || total from total").await, "100 5051.5");
        // Probes need no secret; numbers do, and Prometheus brings it.
        assert_eq!(get(http, "/readyz").await.map(|(status, _)| status), Ok(200));
        assert_eq!(get(http, "/metrics").await.map(|(status, _)| status), Ok(401));
        let bearer = format!("Bearer {}", secret(folder.path(), "http_token"));
        let answer = ask(http, "GET", "/metrics", &[("Authorization", bearer.as_str()), ("Host", "pgtrickle:9642")], "").await.expect("an answer");
        assert_eq!(answer.status, 200);
        assert!(answer.body.contains("pgtrickle_build_info{"));
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[test]
fn documents_of_one_file_are_told_apart() {
    assert_eq!(documents("a: 1\n---\n---\nb: [x]\n").expect("YAML").len(), 2);
    assert!(documents("a: [").is_err());
}
