//! The Dockerfile: read with a parser, compared with what `bare_root` proves.

use parse_dockerfile::{Command, HealthcheckArguments, Instruction, Source};

const PATH: &str = "Dockerfile";

/// The words of a command in exec form; a shell would be needed for any other.
fn words(command: &Command<'_>) -> Vec<String> {
    match command {
        Command::Exec(words) => words.value.iter().map(|word| word.value.to_string()).collect(),
        Command::Shell(text) => panic!("{PATH}: there is no shell in the image: {}", text.value),
        other => panic!("{PATH}: {other:?}"),
    }
}

#[test]
fn the_image_runs_as_nobody_with_the_files_that_are_proved_and_asks_for_its_health() {
    let text = super::text(PATH);
    let file = parse_dockerfile::parse(&text).unwrap_or_else(|e| panic!("{PATH}: {e}"));
    let stages: Vec<_> = file.stages().collect();
    let (last, others) = stages.split_last().expect("stages");
    // Bases by Debian release; the image itself stands on nothing.
    assert_eq!(last.from.image.value, "scratch");
    for stage in others {
        let image = &stage.from.image.value;
        let by_stage =
            others.iter().any(|s| s.from.as_.as_ref().is_some_and(|(_, name)| name.value == *image));
        assert!(
            by_stage || image.ends_with("-bookworm"),
            "{PATH}: {image} is not pinned to a Debian release"
        );
    }
    let mut copied = Vec::new();
    let (mut user, mut entrypoint, mut default, mut health, mut stop) = (None, None, None, None, None);
    let mut labels = String::new();
    for instruction in last.instructions {
        match instruction {
            Instruction::Copy(copy) => {
                let from =
                    copy.options.iter().find(|o| o.name.value == "from").and_then(|o| o.value.as_ref());
                let from = from.map(|value| value.value.to_string()).unwrap_or_default();
                for source in &copy.src {
                    let Source::Path(path) = source else { panic!("{PATH}: a file from nowhere") };
                    copied.push((from.clone(), path.value.to_string(), copy.dest.value.to_string()));
                }
            }
            Instruction::User(i) => user = Some(i.arguments.value.to_string()),
            Instruction::Entrypoint(i) => entrypoint = Some(words(&i.arguments)),
            Instruction::Cmd(i) => default = Some(words(&i.arguments)),
            Instruction::Stopsignal(i) => stop = Some(i.arguments.value.to_string()),
            Instruction::Healthcheck(i) => match &i.arguments {
                HealthcheckArguments::Cmd { arguments, .. } => health = Some(words(arguments)),
                other => panic!("{PATH}: {other:?}"),
            },
            Instruction::Label(i) => labels.push_str(&i.arguments.value),
            Instruction::Arg(_) | Instruction::Env(_) | Instruction::Expose(_) => {}
            other => panic!("{PATH}: the image's stage has more than it needs: {other:?}"),
        }
    }
    // One directory, made by the script that `bare_root` runs: no file comes into the image by another way.
    assert_eq!(copied, [("build".to_owned(), "/image".to_owned(), "/".to_owned())]);
    let script = "deploy/image/assemble.sh target/release/pgtrickle /image";
    assert!(text.contains(script), "{PATH}: the root directory is made by {script}");
    assert_eq!(user.as_deref(), Some("65532:65532"));
    assert_eq!(entrypoint.unwrap_or_default(), ["/usr/bin/pgtrickle"]);
    assert_eq!(default.unwrap_or_default(), ["run"]);
    assert_eq!(health.unwrap_or_default(), ["/usr/bin/pgtrickle", "healthcheck"]);
    assert_eq!(stop.as_deref(), Some("SIGTERM"));
    for label in ["title", "description", "version", "revision", "created", "licenses", "source"] {
        assert!(labels.contains(&format!("org.opencontainers.image.{label}=")), "{PATH}: no label {label}");
    }
}

#[test]
fn the_image_is_built_from_the_lock_file_and_holds_no_secret() {
    let text = super::text(PATH);
    let file = parse_dockerfile::parse(&text).unwrap_or_else(|e| panic!("{PATH}: {e}"));
    assert!(text.contains("cargo build --release --locked"), "{PATH}: the lock file decides");
    let words = ["password", "secret", "token", "pgpass", "database_url"];
    for instruction in &file.instructions {
        let values = match instruction {
            Instruction::Env(i) => i.arguments.value.to_string(),
            Instruction::Arg(i) => i.arguments.value.to_string(),
            Instruction::Label(i) => i.arguments.value.to_string(),
            Instruction::Add(i) => panic!("{PATH}: ADD fetches what nobody has checked: {:?}", i.dest),
            _ => continue,
        };
        let values = values.to_ascii_lowercase();
        assert!(!words.iter().any(|word| values.contains(word)), "{PATH}: {values}");
    }
    // Only what the build reads comes to the builder: everything is left out first.
    let ignore = super::text(".dockerignore");
    let rules: Vec<&str> = ignore.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    assert_eq!(rules.first(), Some(&"*"));
    for needed in ["Cargo.toml", "Cargo.lock", "src", "schema", "static", "templates", "docs", "deploy/image"]
    {
        assert!(rules.contains(&format!("!{needed}").as_str()), ".dockerignore leaves {needed} out");
        assert!(super::root().join(needed).exists(), "{needed}");
    }
}

/// What the builder would get: paths that a rule with `!` takes back from the first rule, `*`.
fn context(folder: &std::path::Path) {
    let ignore = super::text(".dockerignore");
    for kept in ignore.lines().filter_map(|line| line.strip_prefix('!')) {
        let to = folder.join(kept);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        let copied =
            std::process::Command::new("cp").arg("-r").arg(super::root().join(kept)).arg(&to).status();
        assert!(copied.is_ok_and(|status| status.success()), "{kept}");
    }
}

#[test]
fn the_builder_gets_all_that_the_build_reads() {
    let folder = tempfile::tempdir().expect("a folder");
    context(folder.path());
    // The manifest names targets: each must be there, or cargo refuses it.
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked", "--offline"])
        .current_dir(folder.path())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", crate::harness::database::printed(&output));
    let mut open = vec![folder.path().join("src")];
    let mut included = 0;
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).expect("a folder").map(|e| e.expect("an entry").path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        for call in ["include_str!(\"", "include_bytes!(\""] {
            for rest in text.split(call).skip(1) {
                let file = path.parent().expect("a folder").join(rest.split('"').next().expect("a path"));
                assert!(file.exists(), "{} includes {}", path.display(), file.display());
                included += 1;
            }
        }
    }
    assert!(included > 10, "only {included} files are included");
}
