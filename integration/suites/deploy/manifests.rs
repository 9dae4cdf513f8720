//! `deploy/`: its files agree with each other, with the program and with monitoring/, and say what was checked.
//!
//! `PGTRICKLE_DEPLOY_FILES=write` writes those that are made from monitoring/.

use std::path::PathBuf;
use std::process::Command;

use pgtrickle::config::options::CHOICES;
use serde_json::{Value, json};

use super::yaml;
use crate::harness::certificates::Authority;
use crate::harness::database::printed;

const RULES: &str = "monitoring/prometheus/rules.yml";
const RULE: &str = "deploy/kubernetes/prometheusrule.yaml";
const CHART: &str = "deploy/helm/pgtrickle";

/// Files below a folder of deploy/ that end so.
fn files(folder: &str, end: &str) -> Vec<String> {
    let mut open = vec![super::root().join(folder)];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path).expect("a folder") {
            let path: PathBuf = entry.expect("an entry").path();
            match path.is_dir() {
                true => open.push(path),
                false => found.push(path.strip_prefix(super::root()).expect("inside").display().to_string()),
            }
        }
    }
    found.retain(|path| path.ends_with(end) && !path.contains("/compose/secrets/"));
    found.sort();
    found
}

/// Every pod keeps to the strictest of the Pod Security Standards, and reads its root alone.
pub(super) fn hardened(document: &Value, name: &str) {
    let pod = &document["spec"]["template"]["spec"];
    if pod.is_null() {
        return;
    }
    assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
    let security = &pod["securityContext"];
    assert_eq!((&security["runAsNonRoot"], &security["runAsUser"]), (&json!(true), &json!(65532)), "{name}");
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{name}");
    for container in pod["containers"].as_array().expect("containers") {
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }), "{name}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{name}: no limit of memory");
    }
    if document["kind"] == "Deployment" {
        assert_eq!(pod["terminationGracePeriodSeconds"], 30, "{name}: the drain takes up to 20 s");
        let container = &pod["containers"][0];
        let asks = |probe: &str, path: &str, flag: Option<&str>| {
            let probe = &container[probe];
            let command = ["/usr/bin/pgtrickle", "healthcheck"].into_iter().chain(flag).collect::<Vec<_>>();
            probe["httpGet"]["path"] == path || probe["exec"]["command"] == json!(command)
        };
        assert!(asks("startupProbe", "/healthz", None), "{name}");
        assert!(asks("livenessProbe", "/healthz", None), "{name}: a server that is away kills nobody");
        assert!(asks("readinessProbe", "/readyz", Some("--ready")), "{name}");
    }
}

/// Every variable is one that the program knows.
pub(super) fn variables(document: &Value, name: &str) {
    let containers =
        document["spec"]["template"]["spec"]["containers"].as_array().cloned().unwrap_or_default();
    for variable in containers.iter().flat_map(|c| c["env"].as_array().cloned().unwrap_or_default()) {
        let variable = variable["name"].as_str().expect("a name").to_owned();
        assert!(CHOICES.iter().any(|choice| choice.variable == variable), "{name}: {variable}");
    }
}

#[test]
fn every_file_says_what_was_checked_and_what_was_not() {
    let mut all = files("deploy", ".yaml");
    all.extend(files("deploy", ".service"));
    all.retain(|path| !path.contains("/templates/") && path != &format!("{CHART}/values.yaml"));
    assert!(all.len() > 14, "{all:?}");
    all.extend(["Dockerfile".to_owned(), "docker-compose.yml".to_owned()]);
    for path in all {
        let text = super::text(&path);
        let head: String =
            text.lines().take_while(|l| l.starts_with('#')).map(|l| l.to_ascii_lowercase()).collect();
        assert!(head.contains("checked by tests") && head.contains("not "), "{path}: {head}");
    }
}

#[test]
fn the_rules_and_the_dashboard_are_those_of_monitoring() {
    let rules = super::text(RULES);
    let (_, groups) = rules.split_once("\ngroups:\n").expect("groups");
    if std::env::var("PGTRICKLE_DEPLOY_FILES").is_ok_and(|v| v == "write") {
        let old = super::text(RULE);
        let head = old.split_once("\n  groups:\n").expect("a head").0;
        let indented: String =
            groups.lines().map(|l| if l.is_empty() { "\n".to_owned() } else { format!("  {l}\n") }).collect();
        std::fs::write(super::root().join(RULE), format!("{head}\n  groups:\n{indented}")).expect("written");
        for (from, to) in
            [(RULES, "rules.yml"), ("monitoring/grafana/dashboards/pgtrickle.json", "dashboard.json")]
        {
            std::fs::copy(super::root().join(from), super::root().join(CHART).join("files").join(to))
                .expect("copied");
        }
    }
    let made = yaml(RULE).remove(0);
    assert_eq!(
        made["spec"]["groups"],
        yaml(RULES)[0]["groups"],
        "PGTRICKLE_DEPLOY_FILES=write makes it anew"
    );
    assert!(made["spec"]["groups"][0]["rules"].as_array().is_some_and(|rules| rules.len() >= 14));
    for (from, to) in
        [(RULES, "rules.yml"), ("monitoring/grafana/dashboards/pgtrickle.json", "dashboard.json")]
    {
        assert_eq!(
            super::text(from),
            super::text(&format!("{CHART}/files/{to}")),
            "{to}: PGTRICKLE_DEPLOY_FILES=write"
        );
    }
}

#[test]
fn the_manifests_fit_together() {
    let one = |name: &str| yaml(&format!("deploy/kubernetes/{name}.yaml")).remove(0);
    let deployment = one("deployment");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(
        deployment["spec"]["strategy"]["rollingUpdate"],
        json!({ "maxSurge": 1, "maxUnavailable": 0 })
    );
    let service = one("service");
    for selector in [
        &service["spec"]["selector"],
        &one("poddisruptionbudget")["spec"]["selector"]["matchLabels"],
        &one("servicemonitor")["spec"]["selector"]["matchLabels"],
        &one("networkpolicy")["spec"]["podSelector"]["matchLabels"],
    ] {
        let selector = selector.as_object().expect("labels");
        assert!(selector.iter().all(|(name, value)| labels[name] == *value), "{selector:?}");
    }
    // The monitor selects services, and the rules go by the job that it names.
    assert_eq!(service["metadata"]["labels"]["app.kubernetes.io/name"], "pgtrickle");
    assert_eq!(one("servicemonitor")["spec"]["jobLabel"], "app.kubernetes.io/name");
    // Every mounted key is in the example of the secrets.
    let secrets = yaml("deploy/kubernetes/secret.example.yaml");
    let has = |secret: &str, key: &str| {
        secrets.iter().any(|s| s["metadata"]["name"] == secret && s["stringData"].get(key).is_some())
    };
    for (secret, key) in [
        ("pgtrickle", "password"),
        ("pgtrickle", "http-token"),
        ("pgtrickle", "ca.crt"),
        ("pgtrickle-installer", "password"),
    ] {
        assert!(has(secret, key), "{secret}: {key}");
    }
    let listed = yaml("deploy/kubernetes/kustomization.yaml").remove(0);
    for resource in listed["resources"].as_array().expect("resources") {
        let path = super::root().join("deploy/kubernetes").join(resource.as_str().expect("a name"));
        assert!(path.exists(), "{}", path.display());
    }
    for path in ["deployment", "init-job"] {
        hardened(&one(path), path);
        variables(&one(path), path);
    }
}

#[test]
fn all_images_are_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let wanted = format!("pgtrickle:{version}");
    let chart = yaml(&format!("{CHART}/Chart.yaml")).remove(0);
    assert_eq!((&chart["version"], &chart["appVersion"]), (&version.into(), &version.into()));
    assert!(super::text("Dockerfile").contains(&format!("ARG VERSION={version}\n")));
    for path in ["deploy/kubernetes/deployment.yaml", "deploy/kubernetes/init-job.yaml"] {
        assert_eq!(yaml(path)[0]["spec"]["template"]["spec"]["containers"][0]["image"], wanted, "{path}");
    }
    let compose = yaml("docker-compose.yml").remove(0);
    for service in ["init", "pgtrickle"] {
        assert_eq!(compose["services"][service]["image"], wanted, "{service}");
    }
}

#[test]
fn the_program_accepts_the_environment_of_the_deployment() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a secret");
    write("password", "x");
    write("http-token", "0123456789abcdef0123456789abcdef");
    write("ca.crt", &Authority::new("authority").certificate);
    let container =
        yaml("deploy/kubernetes/deployment.yaml")[0]["spec"]["template"]["spec"]["containers"][0].clone();
    assert_eq!(container["args"], json!(["run"]));
    let variables = container["env"].as_array().expect("variables").iter().map(|variable| {
        let value = variable["value"].as_str().expect("a value");
        (
            variable["name"].as_str().expect("a name").to_owned(),
            value.replace("/run/secrets/pgtrickle", &folder.path().display().to_string()),
        )
    });
    let variables: Vec<(String, String)> = variables.collect();
    let output = Command::new(env!("CARGO_BIN_EXE_pgtrickle"))
        .args(["config", "check", "--json"])
        .env_clear()
        .envs(variables.clone())
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", printed(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    // Each is heard: it is the origin of a value.
    let text = answer["settings"].to_string();
    for (name, _) in variables {
        assert!(text.contains(&format!("environment variable {name}")), "{name} is not heard: {text}");
    }
}
