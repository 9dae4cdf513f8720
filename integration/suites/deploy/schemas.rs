//! `deploy/` and `docker-compose.yml` by the schemas of those who read them; the chart rendered by helm.
//!
//! The tools are fetched into the build's scratch folder, each pinned by digest, where `PGTRICKLE_DEPLOY=1` is set.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::manifests::{hardened, variables};
use crate::harness::database::printed;

/// Python packages of the checks.
const PACKAGES: &[&str] = &["kubernetes-validate==1.37.0", "jsonschema==4.26.0", "PyYAML==6.0.3"];

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", printed(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// A Python of the checks' own, with `packages`.
pub fn python(folder: &Path, packages: &[&str]) -> PathBuf {
    let place = folder.join("venv");
    let python = place.join("bin/python");
    let marker = place.join(packages.join(" "));
    if !marker.exists() {
        output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place));
        output(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages));
        std::fs::write(&marker, "").expect("a marker");
    }
    python
}

#[test]
fn compose_kubernetes_and_the_operators_accept_every_file_and_what_the_chart_renders() {
    if !super::has_tools() {
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("deploy-tools");
    std::fs::create_dir_all(&folder).expect("a folder");
    let python = python(&folder, PACKAGES);
    let here = super::root().join("integration/suites/deploy");
    let tools = output(Command::new(&python).arg(here.join("tools.py")).arg(&folder));
    let tools: Value = serde_json::from_str(&tools).expect("places");
    let path = |value: &Value| value.as_str().expect("a path").to_owned();
    let mut check = Command::new(&python);
    check
        .arg(here.join("schemas.py"))
        .arg(super::root())
        .arg(path(&tools["helm"]))
        .arg(path(&tools["compose"]));
    check.args(tools["crates"].as_array().expect("crates").iter().map(path));
    let found: Value = serde_json::from_str(&output(&mut check)).expect("an answer");
    println!("  checked: {}", found["checked"]);
    assert_eq!(found["failures"], Value::Array(Vec::new()));
    let rendered = found["rendered"].as_object().expect("cases");
    assert_eq!(rendered.len(), 5);
    // The schema is made at the installation, and upgraded only where that was asked for.
    let init = |case: &str| {
        let job = rendered[case].as_array().expect("documents").iter().find(|d| d["kind"] == "Job");
        job.map(|job| {
            job["spec"]["template"]["spec"]["containers"][0]["args"].to_string().contains("--upgrade")
        })
    };
    assert_eq!([init("the least"), init("everything"), init("an upgrade")], [None, Some(false), Some(true)]);
    for (case, documents) in rendered {
        let documents = documents.as_array().expect("documents");
        for document in documents {
            hardened(document, case);
            variables(document, case);
        }
        let has = |kind: &str| documents.iter().any(|d| d["kind"] == kind);
        assert!(has("Deployment"), "{case}");
        // Alerts reach the cluster as they are in monitoring/.
        if let Some(rule) = documents.iter().find(|d| d["kind"] == "PrometheusRule") {
            assert_eq!(rule["spec"]["groups"], super::yaml("monitoring/prometheus/rules.yml")[0]["groups"]);
        }
        assert_eq!(
            has("PrometheusRule") && has("ServiceMonitor") && has("ConfigMap"),
            ["everything", "an upgrade"].contains(&case.as_str()),
            "{case}"
        );
    }
}
