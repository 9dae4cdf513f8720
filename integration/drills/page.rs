//! The page docs/backup-and-restore.md: every `sh` and `sql` block in it is executed, in order, on one server under load.
//!
//! `<!-- test: database NAME -->` says where the next `sql` blocks run; `<!-- test: needs PROGRAM -->` leaves the next block
//! out where the program is missing. Blocks marked `text` are not commands for the reader's server.

use std::fmt::Write;
use std::path::Path;

use super::external::BackRest;
use super::physical::borrowed;
use super::proof::{Expect, prove};
use super::scene::{Database, NAME, Scene};
use super::tools::{Drill, When, drill, installed};

/// A command block of the page.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    line: usize,
    sql: bool,
    text: String,
    database: String,
    needs: Option<String>,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let (mut database, mut needs, mut open) = (NAME.to_owned(), None, None);
    for (number, line) in page.lines().enumerate() {
        let directive = line.strip_prefix("<!-- test: ").and_then(|rest| rest.strip_suffix(" -->"));
        match (&mut open, line) {
            (Some(_), "```") => found.extend(open.take()),
            (Some(block), _) => {
                let block: &mut Block = block;
                writeln!(block.text, "{line}").expect("a line");
            }
            (None, "```sh" | "```sql") => {
                let sql = line == "```sql";
                let (database, needs) = (database.clone(), needs.take());
                open = Some(Block { line: number + 1, sql, text: String::new(), database, needs });
            }
            (None, _) => match directive.and_then(|d| d.split_once(' ')) {
                Some(("database", name)) => database = name.to_owned(),
                Some(("needs", program)) => needs = Some(program.to_owned()),
                Some(other) => panic!("line {}: unknown directive {other:?}", number + 1),
                None => {}
            },
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/backup-and-restore.md");
    std::fs::read_to_string(path).expect("the page")
}

#[test]
fn the_page_has_only_blocks_that_are_run_or_marked_as_text() {
    for (number, line) in page().lines().enumerate() {
        let known = ["```", "```sh", "```sql", "```text"];
        assert!(!line.starts_with("```") || known.contains(&line), "line {}: {line}", number + 1);
    }
    assert!(blocks(&page()).len() > 10);
}

/// Ends a server that the page has started, also when a block fails.
struct Started<'a> {
    drill: &'a Drill,
    data: String,
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        let stop = format!("pg_ctl --pgdata={} --mode=immediate --wait stop; rm -rf {0}", self.data);
        let _ = self.drill.command(0, &stop).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_page_does_what_it_says() {
    drill("page", When::All, async |drill| {
        // PostgreSQL programs that another version has made can't read each other's backups; pgBackRest of Debian is for 15.
        let backrest = (drill.major <= 15 && installed("pgbackrest")).then(|| BackRest::prepare(drill));
        let archive = drill.subfolder("archive");
        let copy = format!("cp %p {0}/.new && mv {0}/.new {0}/%f", archive.display());
        let mut settings = vec![("archive_mode", "on".to_owned())];
        settings.push(("archive_command", copy.clone()));
        if let Some((_, more)) = &backrest {
            let push = more.iter().find(|(name, _)| *name == "archive_command").expect("its command");
            settings[1].1 =
                format!("{copy} && {}", push.1.replace("%p", &format!("{}/%f", archive.display())));
        }
        let scene = Scene::set(drill, &borrowed(&settings)).await;
        let port = free_port();
        let folder = drill.folder().display();
        let mut environment = format!(
            "export BACKUPS={} ARCHIVE={} RESTORED={folder}/restored PORT={port}\n",
            drill.subfolder("backups").display(),
            archive.display()
        );
        if let Some((backrest, _)) = &backrest {
            let cluster = &scene.server.cluster;
            environment += &backrest.environment(&cluster.data_dir(), scene.db.port, cluster.folder());
            let create = format!("{environment}pgbackrest --stanza=drill stanza-create");
            drill.shell(scene.db.port, &create).await;
        }
        let _started = Started { drill, data: format!("{folder}/restored") };
        for block in blocks(&page()) {
            if block.needs.is_some() && backrest.is_none() {
                println!(
                    "drill page on {}: line {} is left out: no {:?}",
                    drill.major, block.line, block.needs
                );
                continue;
            }
            println!("drill page on {}: line {}", drill.major, block.line);
            let lines = match block.sql {
                true => format!(
                    "psql -X -v ON_ERROR_STOP=1 -d {} 2>&1 <<'END_OF_BLOCK'\n{}END_OF_BLOCK\n",
                    block.database, block.text
                ),
                false => format!("{environment}{}", block.text),
            };
            drill.shell(scene.db.port, &lines).await;
        }
        for name in ["mydb_restored", "mydb_sections", "mydb_directory", "mydb_plain", "mydb_renamed"] {
            prove(drill, &scene.db.sibling(name), Expect::Repair).await;
        }
        let restored = Database { port, ..scene.db.clone() };
        let late = restored.value("to_regclass('public.after_the_target')").await;
        assert_eq!(late, None, "recovery went past its target");
        prove(drill, &restored, Expect::Repair).await;
        scene.finish().await;
    })
    .await;
}

/// A port on which nobody listens now.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).expect("a port").port()
}
