//! The shape of the source tree: imports point downwards, files stay short.

use std::path::{Path, PathBuf};

/// Folders of `src`, lowest first. A file may import its own folder and those before it.
const LAYERS: &[&str] = &[
    "error",
    "row",
    "plan",
    "kernel",
    "postgres",
    "pgoutput",
    "analyzer",
    "replication",
    "dataflow",
    "cluster",
    "capture",
    "catalog",
    "apply",
    "evaluate",
    "recovery",
    "observe",
    "http",
    "supervisor",
    "launcher",
    "config",
    "cli",
];

/// Longest file, in lines.
const LONGEST: usize = 500;

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs" || e == "sql") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(path).display().to_string()
}

/// The layer of a file: the first part of its path below `src`.
fn layer(path: &Path) -> Option<usize> {
    let relative = relative(path);
    let name = relative.strip_prefix("src/")?.split(['/', '.']).next()?;
    LAYERS.iter().position(|l| *l == name)
}

#[test]
fn imports_point_downwards() {
    let mut wrong = Vec::new();
    for path in sources("src") {
        let Some(own) = layer(&path) else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for part in code.split("crate::").skip(1) {
                let name: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if LAYERS.iter().position(|l| *l == name).is_some_and(|used| used > own) {
                    wrong.push(format!("{}:{}: imports {name}", relative(&path), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports that point upwards:\n{}", wrong.join("\n"));
}

#[test]
fn every_folder_of_the_library_has_a_layer() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for line in lib.lines() {
        if let Some(name) = line.strip_prefix("pub mod ").and_then(|l| l.strip_suffix(';')) {
            assert!(LAYERS.contains(&name), "{name} has no place in LAYERS");
        }
    }
}

#[test]
fn no_file_is_longer_than_five_hundred_lines() {
    let mut long = Vec::new();
    for folder in ["src", "schema", "integration", "benches"] {
        for path in sources(folder) {
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            // Fixtures are data that pg_dump wrote.
            if lines > LONGEST && !relative(&path).contains("/fixtures/") {
                long.push(format!("{}: {lines} lines", relative(&path)));
            }
        }
    }
    assert!(long.is_empty(), "split by purpose:\n{}", long.join("\n"));
}
