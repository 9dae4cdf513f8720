//! The bill of materials: what a released binary is made of, as CycloneDX 1.5.
//!
//! Written to `pgtrickle.cdx.json` in the target folder, or where `PGTRICKLE_SBOM` says. It is made of `Cargo.lock` and
//! of what the crates say about themselves, without a network, and the same tree gives the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What cargo resolved, for a system and with the default features.
fn metadata() -> Value {
    let arguments = [
        "metadata",
        "--format-version=1",
        "--locked",
        "--offline",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ];
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(arguments).current_dir(ROOT).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo's JSON")
}

/// SHA-256 of each package, by name and version, from the lock file.
fn checksums() -> BTreeMap<(String, String), String> {
    let lock = std::fs::read_to_string(Path::new(ROOT).join("Cargo.lock")).expect("Cargo.lock");
    let lock: toml::Table = lock.parse().expect("a lock file");
    let text = |p: &toml::Value, key: &str| p.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    let packages = lock["package"].as_array().expect("packages");
    let entry = |p: &toml::Value| Some(((text(p, "name")?, text(p, "version")?), text(p, "checksum")?));
    packages.iter().filter_map(entry).collect()
}

fn strings<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Who depends on whom at run time or at build time, from the program down. Tests' own dependencies are in no binary.
fn shipped(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let nodes: BTreeMap<&str, &Value> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|n| (strings(n, "id"), n)).collect();
    let mut found = BTreeMap::new();
    let mut open = vec![strings(&metadata["resolve"], "root").to_owned()];
    while let Some(id) = open.pop() {
        if found.contains_key(&id) {
            continue;
        }
        let dependencies = nodes[id.as_str()]["deps"].as_array().unwrap();
        let is_shipped = |d: &&Value| {
            d["dep_kinds"].as_array().unwrap().iter().any(|k| k["kind"].is_null() || k["kind"] == "build")
        };
        let below: BTreeSet<String> =
            dependencies.iter().filter(is_shipped).map(|d| strings(d, "pkg").to_owned()).collect();
        open.extend(below.iter().cloned());
        found.insert(id, below);
    }
    found
}

fn purl(package: &Value) -> String {
    format!("pkg:cargo/{}@{}", strings(package, "name"), strings(package, "version"))
}

fn component(package: &Value, kind: &str, checksum: Option<&String>) -> Value {
    let mut component = json!({
        "type": kind, "bom-ref": purl(package), "name": package["name"], "version": package["version"],
        "purl": purl(package),
        // What older crates write with a slash.
        "licenses": [{ "expression": strings(package, "license").replace('/', " OR ") }],
    });
    if let Some(checksum) = checksum {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    if let Some(repository) = package["repository"].as_str() {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

fn bill() -> Value {
    let (metadata, checksums) = (metadata(), checksums());
    let packages: BTreeMap<&str, &Value> =
        metadata["packages"].as_array().unwrap().iter().map(|p| (strings(p, "id"), p)).collect();
    let tree = shipped(&metadata);
    let root = strings(&metadata["resolve"], "root");
    let of = |id: &str| {
        let package = packages[id];
        let key = (strings(package, "name").to_owned(), strings(package, "version").to_owned());
        component(package, "library", checksums.get(&key))
    };
    let mut components: Vec<Value> = tree.keys().filter(|id| *id != root).map(|id| of(id)).collect();
    components.sort_by_key(|c| strings(c, "bom-ref").to_owned());
    let mut dependencies: Vec<Value> = tree
        .iter()
        .map(|(id, below)| {
            let mut on: Vec<String> = below.iter().map(|b| purl(packages[b.as_str()])).collect();
            on.sort();
            json!({ "ref": purl(packages[id.as_str()]), "dependsOn": on })
        })
        .collect();
    dependencies.sort_by_key(|d| strings(d, "ref").to_owned());
    json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": { "component": component(packages[root], "application", None) },
        "components": components, "dependencies": dependencies,
    })
}

#[test]
fn the_bill_of_materials_names_every_crate_with_version_licence_and_checksum() {
    let bill = bill();
    let components = bill["components"].as_array().unwrap();
    for component in components {
        let name = strings(component, "bom-ref");
        let checksum = component["hashes"][0]["content"].as_str().unwrap_or_default();
        assert!(checksum.len() == 64, "{name} has no checksum: it does not come from the registry");
        assert!(!strings(&component["licenses"][0], "expression").is_empty(), "{name} has no licence");
    }
    let names: BTreeSet<&str> = components.iter().map(|c| strings(c, "name")).collect();
    for there in ["tokio-postgres", "timely", "differential-dataflow", "rustls", "pgwire-replication"] {
        assert!(names.contains(there), "{there} is missing");
    }
    for absent in ["criterion", "insta", "proptest", "rcgen", "opentelemetry"] {
        assert!(!names.contains(absent), "{absent} is in no released binary");
    }
    // Everything that is depended upon is there, and is reached.
    let references: BTreeSet<&str> = components.iter().map(|c| strings(c, "bom-ref")).collect();
    let mut reached = BTreeSet::new();
    for dependency in bill["dependencies"].as_array().unwrap() {
        for on in dependency["dependsOn"].as_array().unwrap() {
            assert!(references.contains(on.as_str().unwrap()), "{on} is not listed");
            reached.insert(on.as_str().unwrap());
        }
    }
    assert_eq!(reached, references);
    let folder =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(ROOT).join("target"), PathBuf::from);
    let path =
        std::env::var_os("PGTRICKLE_SBOM").map_or_else(|| folder.join("pgtrickle.cdx.json"), PathBuf::from);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, format!("{bill:#}\n")).unwrap();
    println!("  {} crates, written to {}", components.len(), path.display());
}

/// The validator of those who write the specification; its schemas are inside.
const VALIDATOR: &[&str] = &["cyclonedx-python-lib[json-validation]==11.12.0"];

const VALIDATE: &str = "
import json, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
validator = JsonStrictValidator(SchemaVersion.V1_5)
print(json.dumps([str(e)[:2000] if (e := validator.validate_str(text)) else None for text in json.load(sys.stdin)]))";

#[test]
fn the_bill_of_materials_is_valid_cyclonedx() {
    if !super::deploy::has_tools() {
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sbom-tools");
    std::fs::create_dir_all(&folder).unwrap();
    let python = super::deploy::schemas::python(&folder, VALIDATOR);
    let good = bill();
    let mut wrong = [good.clone(), good.clone(), good.clone(), good.clone()];
    wrong[0]["components"][0]["hashes"][0]["alg"] = json!("SHA-257");
    wrong[1]["components"][0].as_object_mut().unwrap().remove("name");
    wrong[2]["components"][0]["licence"] = json!("MIT");
    wrong[3]["dependencies"][0]["dependsOn"] = json!("all");
    let texts: Vec<String> = std::iter::once(&good).chain(&wrong).map(Value::to_string).collect();
    let mut child = Command::new(python)
        .args(["-c", VALIDATE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python runs");
    child.stdin.take().unwrap().write_all(json!(texts).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let found: Vec<Option<String>> = serde_json::from_slice(&output.stdout).expect("an answer");
    assert_eq!(found[0], None, "the bill is not valid");
    assert!(found[1..].iter().all(Option::is_some), "what is wrong is accepted: {found:?}");
}

/// What `deny.toml` demands of licences, crates and sources holds, also where `cargo deny` is not installed.
#[test]
fn every_dependency_keeps_the_rules_of_deny_toml() {
    let rules = std::fs::read_to_string(Path::new(ROOT).join("deny.toml")).expect("deny.toml");
    let rules: toml::Table = rules.parse().expect("a table");
    let texts = |value: &toml::Value| -> Vec<String> {
        value.as_array().expect("a list").iter().map(|v| v.as_str().expect("a text").to_owned()).collect()
    };
    let allowed = texts(&rules["licenses"]["allow"]);
    let allowed: Vec<spdx::Licensee> =
        allowed.iter().map(|text| spdx::Licensee::parse(text).expect("a licence")).collect();
    let banned = rules["bans"]["deny"].as_array().expect("a list");
    let banned: Vec<&str> = banned.iter().map(|ban| ban["name"].as_str().expect("a name")).collect();
    let index = &texts(&rules["sources"]["allow-registry"])[0];
    let metadata = metadata();
    let root = strings(&metadata["resolve"], "root");
    let mut looked_at = 0;
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let (name, source) = (strings(package, "name"), strings(package, "source"));
        let licence = strings(package, "license").replace('/', " OR ");
        let expression = spdx::Expression::parse(&licence).unwrap_or_else(|e| panic!("{name}: {e}"));
        if !expression.evaluate(|wanted| allowed.iter().any(|a| a.satisfies(wanted))) {
            wrong.push(format!("{name}: {licence}"));
        }
        if banned.contains(&name) {
            wrong.push(format!("{name} is banned"));
        }
        if strings(package, "id") != root && source != format!("registry+{index}") {
            wrong.push(format!("{name} comes from {source:?}"));
        }
        looked_at += 1;
    }
    assert!(looked_at > 200 && !banned.is_empty(), "{looked_at} crates");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("  {looked_at} crates keep {} licences and {} bans", allowed.len(), banned.len());
}
