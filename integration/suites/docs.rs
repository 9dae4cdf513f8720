//! The documentation: every `sql` and `sh` block of every page of the repository is run, or says why it is not, and the
//! tests, benches and fuzz targets that a page names are there.
//!
//! Blocks of a page run in order in a database of its own, beside a running sidecar, unless a comment says otherwise:
//! `<!-- not run: REASON -->` before a block leaves it out; `<!-- may end with: CODE -->` allows that exit code as well as 0; `<!-- as: ROLE -->` runs one block as another role than `app`;
//! `<!-- setup ... -->` holds SQL that runs first, unseen by readers; `<!-- from nothing -->` at the top of a page
//! that gets a server of its own and installs all itself, the sidecar by a block under `<!-- in the background -->`; `<!-- run by: TEST -->` at the top of a page leaves
//! it to a test of its own. `db.internal` stands for the server in every page.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use futures_util::future::join_all;

use super::snapshots::value;
use crate::harness::Sidecar;
use crate::harness::database::{TestDatabase, printed};
use crate::harness::servers::{Server, each, install, own_cluster, shared};
use crate::harness::wait::{SOON, wait_until};

/// What pages are written for: two tables, two stream tables.
const FIXTURE: &str = "
    create table customers (id bigint primary key, name text not null, region text not null);
    create table orders (id bigint primary key, customer_id bigint not null, amount numeric(12, 2) not null,
                         created_at timestamptz not null default now());
    insert into customers select i, 'customer ' || i, 'region ' || i % 5 from generate_series(1, 50) i;
    insert into orders select i, 1 + i % 50, i * 1.25 from generate_series(1, 500) i;
    select pgtrickle.create_stream_table('order_totals',
        'select customer_id, count(*) as orders, sum(amount) as total from orders group by customer_id');
    select pgtrickle.create_stream_table('customers_by_region',
        'select region, count(*) as customers from customers group by region');";

#[derive(Debug)]
struct Block {
    line: usize,
    sql: bool,
    text: String,
    role: String,
    background: bool,
    /// Exit code that is fine besides 0.
    may_end_with: i32,
    setup: String,
}

#[derive(Debug, Default)]
struct Page {
    blocks: Vec<Block>,
    /// Name of the test that runs the page instead.
    run_by: Option<String>,
    /// Blocks that are left out, each with its reason.
    left_out: usize,
    from_nothing: bool,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with this ending, but for what was built and what is hidden.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let (mut open, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("the folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            match path.is_dir() {
                true => open.push(path),
                false if path.extension().is_some_and(|e| e == ending) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

fn pages() -> Vec<PathBuf> {
    files(root(), "md")
}

/// Reads a page. Anything that the rules above do not know is an error.
fn read(text: &str) -> Result<Page, String> {
    let mut page = Page::default();
    let mut lines = text.lines().enumerate();
    let (mut role, mut background, mut skip, mut setup) = ("app".to_owned(), false, false, String::new());
    let mut may_end_with = 0;
    while let Some((number, line)) = lines.next() {
        let comment = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
        match comment {
            Some("in the background") => background = true,
            Some("from nothing") => page.from_nothing = true,
            Some(other) => match other.split_once(": ") {
                Some(("not run", reason)) if reason.len() > 3 => skip = true,
                Some(("as", name)) => role = name.to_owned(),
                Some(("may end with", code)) => {
                    may_end_with = code.parse().map_err(|e| format!("line {}: {e}", number + 1))?;
                }
                Some(("run by", test)) => page.run_by = Some(test.to_owned()),
                // Directives of the pages that have tests of their own.
                Some(("test", _)) if page.run_by.is_some() => {}
                _ => return Err(format!("line {}: unknown directive {other:?}", number + 1)),
            },
            None if line == "<!-- setup" => {
                for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "-->") {
                    setup += line;
                    setup.push('\n');
                }
            }
            None => {}
        }
        let Some(language) = line.strip_prefix("```") else { continue };
        let mut text = String::new();
        if !lines.by_ref().any(|(_, line)| {
            let end = line == "```";
            if !end {
                writeln!(text, "{line}").expect("a line");
            }
            end
        }) {
            return Err(format!("line {}: the block is not closed", number + 1));
        }
        match language {
            "sql" | "sh" if skip => page.left_out += 1,
            "sql" | "sh" => page.blocks.push(Block {
                line: number + 1,
                sql: language == "sql",
                text,
                role: std::mem::replace(&mut role, "app".to_owned()),
                background,
                may_end_with: std::mem::take(&mut may_end_with),
                setup: std::mem::take(&mut setup),
            }),
            "text" | "toml" | "mermaid" | "json" | "yaml" | "promql" => {}
            other => return Err(format!("line {}: a block of {other:?}", number + 1)),
        }
        (skip, background) = (false, false);
    }
    Ok(page)
}

#[test]
fn every_block_of_the_documentation_is_run_or_says_why_not() {
    let mut blocks = 0;
    let pages = pages();
    for wanted in ["README.md", "CONTRIBUTING.md", "docs/cli.md", "deploy/README.md", "fuzz/README.md"] {
        assert!(pages.contains(&root().join(wanted)), "{wanted} is not among {pages:?}");
    }
    for path in pages {
        let text = std::fs::read_to_string(&path).expect("the page");
        let page = read(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        println!(
            "{}: {} blocks run{}, {} left out",
            path.strip_prefix(root()).expect("inside").display(),
            page.blocks.len(),
            page.run_by.as_ref().map(|test| format!(" by {test}")).unwrap_or_default(),
            page.left_out
        );
        blocks += page.blocks.len();
    }
    assert!(blocks > 30, "only {blocks} blocks");
}

#[test]
fn a_page_that_breaks_the_rules_is_refused() {
    for (page, said) in [
        ("```sql\nselect 1;\n", "line 1: the block is not closed"),
        ("<!-- notrun: because -->\n", "line 1: unknown directive \"notrun: because\""),
        ("```bash\nls\n```\n", "line 1: a block of \"bash\""),
        // It could hold a command that nobody has looked at.
        ("```\nls\n```\n", "line 1: a block of \"\""),
    ] {
        assert_eq!(read(page).expect_err(said), said);
    }
    let page = read("<!-- setup\nselect 0;\n-->\n<!-- as: dba -->\n```sql\nselect 1;\n```\n<!-- not run: it is long -->\n```sh\nsleep 9\n```\n")
        .expect("a page");
    assert_eq!((page.blocks.len(), page.left_out), (1, 1));
    let Block { role, setup, text, .. } = &page.blocks[0];
    assert_eq!((role.as_str(), setup.as_str(), text.as_str()), ("dba", "select 0;\n", "select 1;\n"));
}

/// Words after each `mark` of a text, up to what can't be part of a name.
fn words_after<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
    let end = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    text.split(mark).skip(1).map(move |rest| rest.split(end).next().unwrap_or_default())
}

/// Paths of the integration tests as cargo knows them: `suites::docs::words_after`.
fn tests() -> Vec<String> {
    let folder = root().join("integration");
    let of_file = |file: PathBuf| {
        let module = file.strip_prefix(&folder).expect("inside").with_extension("");
        let parts = module.iter().map(|part| part.to_string_lossy().into_owned());
        let path = parts.filter(|part| part != "mod").collect::<Vec<String>>().join("::");
        let text = std::fs::read_to_string(file).expect("the file");
        let functions = words_after(&text, "fn ").map(|name| format!("{path}::{name}"));
        functions.collect::<Vec<String>>()
    };
    files(&folder, "rs").into_iter().flat_map(of_file).collect()
}

/// What a page says that is to be run with cargo, and is not there.
fn absent(text: &str, tests: &[String]) -> Vec<String> {
    let is_target = |manifest: &str, name: &str| {
        let manifest = std::fs::read_to_string(root().join(manifest)).expect("the manifest");
        manifest.contains(&format!("name = \"{name}\""))
    };
    // A filter may follow, or what ends the command.
    let filters = words_after(text, "--test integration ").filter(|word| !word.is_empty());
    let filters = filters.filter(|filter| !tests.iter().any(|test| test.contains(filter)));
    let benches = words_after(text, "--bench ").filter(|name| !is_target("Cargo.toml", name));
    let fuzzed = ["fuzz run ", "fuzz run --sanitizer none "].into_iter();
    let fuzzed = fuzzed.flat_map(|mark| words_after(text, mark)).filter(|name| !name.is_empty());
    let fuzzed = fuzzed.filter(|name| !is_target("fuzz/Cargo.toml", name));
    filters.chain(benches).chain(fuzzed).map(str::to_owned).collect()
}

#[test]
fn what_a_page_says_to_run_with_cargo_is_there() {
    let tests = tests();
    for path in pages() {
        let absent = absent(&std::fs::read_to_string(&path).expect("the page"), &tests);
        assert!(absent.is_empty(), "{} names what is not there: {absent:?}", path.display());
    }
    let wrong = "cargo test --test integration suites::docks
        cargo test --test integration -- --nocapture
        `cargo test --test integration suites::docs`
        cargo bench --bench decode --bench decoder
        cargo fuzz run --sanitizer none numeric && cargo fuzz run numerics";
    assert_eq!(absent(wrong, &tests), ["suites::docks", "decoder", "numerics"]);
}

/// One page on its server.
struct Scene<'a> {
    server: &'a Server,
    database: &'a TestDatabase,
    folder: tempfile::TempDir,
}

impl Scene<'_> {
    /// What makes the database's server the one of a shell's commands, as this role.
    fn exports(&self, role: &str) -> String {
        let bin = Path::new(env!("CARGO_BIN_EXE_pgtrickle")).parent().expect("a folder");
        // Some of the fetched servers come without psql.
        let psql = [self.server.major, 15, 18]
            .into_iter()
            .map(|major| install(major).bin_dir)
            .find(|folder| folder.join("psql").exists())
            .expect("psql of one of the majors");
        format!(
            "cd {}; unset DATABASE_URL; export PATH={}:{}:$PATH PGHOST=127.0.0.1 PGPORT={} PGUSER={role} PGDATABASE={}\n",
            self.folder.path().display(),
            bin.display(),
            psql.display(),
            self.database.port(),
            self.database.name
        )
    }

    fn shell(&self, role: &str, script: &str) -> Output {
        let script = format!("{}{}", self.exports(role), self.here(script));
        Command::new("bash").args(["-e", "-o", "pipefail", "-c", &script]).output().expect("bash starts")
    }

    /// A command that goes on until the page ends.
    fn background(&self, role: &str, command: &str) -> Sidecar {
        let script = format!("{}exec env {}", self.exports(role), self.here(command));
        Sidecar::start_program(PathBuf::from("bash"), vec!["-e".to_owned(), "-c".to_owned(), script])
    }

    /// The page's server is this one, and its database.
    fn here(&self, text: &str) -> String {
        text.replace(
            "@db.internal/app",
            &format!("@127.0.0.1:{}/{}", self.database.port(), self.database.name),
        )
    }

    fn sql(&self, role: &str, text: &str) -> Output {
        let file = self.folder.path().join("block.sql");
        std::fs::write(&file, self.here(text)).expect("the file");
        self.shell(role, "psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --file=block.sql")
    }

    /// The first block that fails ends the page.
    async fn run(&self, name: &str, page: &Page) -> Result<(), String> {
        let mut background: Vec<Sidecar> = Vec::new();
        for block in &page.blocks {
            let place = format!("{name}, line {}", block.line);
            for (setup, text) in [(true, &block.setup), (false, &block.text)] {
                if text.is_empty() {
                    continue;
                }
                if block.background && !setup {
                    let mut sidecar = self.background(&block.role, text);
                    sidecar.wait_ready(SOON).await;
                    background.push(sidecar);
                    continue;
                }
                let output = match block.sql || setup {
                    true => self.sql(&block.role, text),
                    false => self.shell(&block.role, text),
                };
                let fine = [0, if setup { 0 } else { block.may_end_with }];
                if !output.status.code().is_some_and(|code| fine.contains(&code)) {
                    return Err(format!("{place}: {}\n{text}\n{}", output.status, printed(&output)));
                }
            }
        }
        Ok(())
    }
}

async fn run_page(name: &str, page: &Page, major: u32) -> Result<(), String> {
    if page.from_nothing {
        let server = own_cluster(major, &[("wal_level", "logical"), ("max_slot_wal_keep_size", "1GB")]).await;
        let database = TestDatabase::create(&server).await;
        let dba = database.as_dba().await;
        // The page makes the sidecar's role itself.
        dba.batch_execute("drop owned by pgtrickle; drop role pgtrickle").await.expect("no role pgtrickle");
        let folder = tempfile::tempdir().expect("a folder");
        return Scene { server: &server, database: &database, folder }.run(name, page).await;
    }
    let server = shared(major).await;
    let database = TestDatabase::create(server).await;
    let folder = tempfile::tempdir().expect("a folder");
    let scene = Scene { server, database: &database, folder };
    database.install();
    let mut sidecar = Sidecar::start(&database, &["--http", "off"]);
    sidecar.wait_ready(SOON).await;
    let dba = database.as_dba().await;
    dba.batch_execute("create schema archive authorization app").await.expect("the schema archive");
    let fixture = scene.sql("app", FIXTURE);
    assert!(fixture.status.success(), "the fixture: {}", printed(&fixture));
    let app = database.as_app().await;
    wait_until("the fixture's stream tables to be maintained", SOON, || async {
        const WAITING: &str = "select count(*) from pgtrickle.pgt_status()
                                where status <> 'ACTIVE' or refresh_mode <> 'DIFFERENTIAL'";
        let waiting = value(&app, WAITING).await;
        if waiting == "0" { Ok(()) } else { Err(format!("{waiting} are not")) }
    })
    .await;
    scene.run(name, page).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_pages_does_what_it_says() {
    each(async |major| {
        let mut running = Vec::new();
        for path in pages() {
            let name = path.strip_prefix(root()).expect("inside").display().to_string();
            let page = read(&std::fs::read_to_string(&path).expect("the page")).expect("its rules");
            if page.run_by.is_none() && !page.blocks.is_empty() {
                running.push(async move { run_page(&name, &page, major).await });
            }
        }
        let failed: Vec<String> = join_all(running).await.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    })
    .await;
}

/// The exit codes in the first cells of a table: `2, 8`, `3 to 6`.
fn codes(page: &str) -> BTreeSet<u8> {
    let text = std::fs::read_to_string(root().join(page)).expect("the page");
    let cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next());
    let cells = cells.filter(|cell| cell.starts_with(|c: char| c.is_ascii_digit()));
    let number = |text: &str| text.trim().parse::<u8>().unwrap_or_else(|e| panic!("{page}: {text:?}: {e}"));
    let range = |text: &str| match text.split_once(" to ") {
        Some((first, last)) => number(first)..=number(last),
        None => number(text)..=number(text),
    };
    cells.flat_map(|cell| cell.split(',').flat_map(range).collect::<Vec<_>>()).collect()
}

#[test]
fn every_exit_code_of_the_program_is_on_both_pages() {
    let source = include_str!("../../src/error.rs");
    let arms = source.split("pub fn exit_code").nth(1).and_then(|rest| rest.split("\n    }\n").next());
    let arms = arms
        .expect("the function")
        .lines()
        .filter_map(|line| line.trim().strip_suffix(',')?.split(" => ").nth(1));
    let mut program: BTreeSet<u8> = arms.map(|code| code.parse().expect("a code")).collect();
    assert!(program.len() > 10, "{program:?}");
    // Success, and what a command has found or was told.
    program.extend([0, 1]);
    assert_eq!(codes("docs/exit-codes.md"), program);
    assert_eq!(codes("docs/deployment.md"), program);
}

#[test]
fn every_picture_is_on_a_page_and_every_page_has_its_pictures() {
    let folder = root().join("docs/images");
    let there: BTreeSet<String> = std::fs::read_dir(&folder)
        .expect("the pictures")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    let mut shown = BTreeSet::new();
    for path in pages() {
        let text = std::fs::read_to_string(&path).expect("the page");
        for place in text.split("![").skip(1).filter_map(|rest| rest.split_once("](")?.1.split(')').next()) {
            if let Some((_, name)) = place.rsplit_once("images/") {
                shown.insert(name.to_owned());
            }
        }
    }
    assert_eq!(there, shown, "left: files, right: what pages show");
}
