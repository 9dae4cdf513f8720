//! The program in the image's root directory: nothing there but itself, its libraries, the certificate authorities and
//! three files of names; read-only, as user 65532, without any capability, as process 1.
//!
//! The directory is made by the script that the Dockerfile runs. Namespaces of mounts and processes stand for the container
//! engine; they need root.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use elf::ElfBytes;
use elf::abi::DT_NEEDED;
use elf::endian::AnyEndian;

use crate::harness::certificates::{Authority, Pair, can_tls, give_files, reload};
use crate::harness::database::{TestDatabase, connect, printed};
use crate::harness::servers::{SUPERUSER, Server, each, own_cluster};
use crate::harness::sidecar::signal;
use crate::harness::{SOON, Sidecar, wait_until};
use crate::suites::http::client::{free_port, get};
use crate::suites::snapshots::value;

/// Libraries of glibc, and the part of GCC that unwinds stacks.
const LIBRARIES: &[&str] = &[
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
];

/// Names in the dynamic section (`NEEDED`).
fn needed(program: &Path) -> Vec<String> {
    let bytes = std::fs::read(program).expect("the program");
    let file = ElfBytes::<AnyEndian>::minimal_parse(&bytes).expect("an ELF file");
    let common = file.find_common_data().expect("its sections");
    let (dynamic, names) = (common.dynamic.expect("a dynamic section"), common.dynsyms_strs.expect("names"));
    let needed = dynamic.iter().filter(|entry| entry.d_tag == DT_NEEDED);
    needed.map(|entry| names.get(entry.d_val() as usize).expect("a name").to_owned()).collect()
}

#[test]
fn the_program_links_against_glibc_alone() {
    let needed = needed(&super::program());
    println!("  needs {}", needed.join(", "));
    let others: Vec<&String> = needed.iter().filter(|name| !LIBRARIES.contains(&name.as_str())).collect();
    assert!(others.is_empty(), "the image would need more: {others:?}");
    assert!(needed.iter().any(|name| name == "libc.so.6"), "{needed:?}");
}

/// The image's root directory, made as the Dockerfile makes it.
struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    fn assemble() -> Root {
        let folder = tempfile::Builder::new().prefix("pgtrickle-root-").tempdir().expect("a folder");
        let output = Command::new(super::root().join("deploy/image/assemble.sh"))
            .arg(super::program())
            .arg(folder.path())
            .output()
            .expect("the script starts");
        assert!(output.status.success(), "{}", printed(&output));
        Root { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What a mounted volume would bring.
    fn add(&self, path: &str, content: &str) {
        let path = self.path().join(path.trim_start_matches('/'));
        std::fs::write(&path, content).expect("a file");
        std::os::unix::fs::chown(&path, Some(65532), Some(65532)).expect("its owner");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o400))
            .expect("its mode");
    }

    fn files(&self) -> Vec<String> {
        let mut open = vec![self.path().to_path_buf()];
        let mut found = Vec::new();
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder") {
                let path: PathBuf = entry.expect("an entry").path();
                match path.is_dir() {
                    true => open.push(path),
                    false => {
                        found.push(format!("/{}", path.strip_prefix(self.path()).expect("inside").display()))
                    }
                }
            }
        }
        found.sort();
        found
    }

    /// Starts the program as process 1 of new namespaces, with this environment and nothing of ours.
    fn start(&self, environment: &[(&str, String)]) -> Sidecar {
        // As a container engine does it: a read-only root, /proc, no new privileges, no capability.
        const ENTER: &str = r#"mount --bind "$1" "$1"; mount -t proc proc "$1/proc"
            mount -o remount,bind,ro,nosuid,nodev "$1"; root=$1; shift
            exec env -i "$@" setpriv --no-new-privs /usr/sbin/chroot --userspec=65532:65532 --groups=65532 "$root" /usr/bin/pgtrickle run"#;
        let mut arguments: Vec<String> =
            ["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", ENTER, "sh"]
                .map(str::to_owned)
                .to_vec();
        arguments.push(self.path().display().to_string());
        arguments.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
        Sidecar::start_program(PathBuf::from("unshare"), arguments)
    }
}

/// Runs a further program in the namespaces of process `pid`, as `docker exec` would.
fn exec(pid: u32, environment: &[(&str, String)], arguments: &[&str]) -> Output {
    let target = pid.to_string();
    let variables = environment.iter().map(|(name, value)| format!("{name}={value}"));
    Command::new("env")
        .arg("-i")
        .args(variables)
        .args(["/usr/bin/nsenter", "--target", &target, "--mount", "--pid", "--root", "--setuid", "65532"])
        .args(["--setgid", "65532", "--", "/usr/bin/pgtrickle"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("nsenter starts")
}

/// The only child of a process.
fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Whether namespaces can be made here; says so loudly where they can't.
fn can_contain() -> bool {
    let made = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"])
        .output();
    let can = made.as_ref().is_ok_and(|output| output.status.success());
    if !can {
        crate::harness::left_out(&format!(
            "no namespaces of mounts and processes can be made here (they need root): {made:?}"
        ));
    }
    can
}

/// Beyond the superuser and the application everybody comes with a password, by TLS where the server has it.
fn hba(tls: bool) -> String {
    let host = if tls { "hostssl" } else { "host" };
    format!(
        "local all all trust\nhost all dba,app 127.0.0.1/32 trust\n{host} all,replication pgtrickle 127.0.0.1/32 scram-sha-256\n"
    )
}

/// A server that asks the sidecar for a password and shows `pair`; whether it has TLS.
async fn guarded(major: u32, pair: &Pair) -> (Server, bool) {
    let server = own_cluster(major, &[]).await;
    let tls = can_tls(&server).await;
    let dba = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
    let password = "set password_encryption = 'scram-sha-256'; alter role pgtrickle password 'correct horse'";
    dba.batch_execute(password).await.expect("a password");
    give_files(
        &server,
        &[("server.crt", &pair.certificate), ("server.key", &pair.key), ("pg_hba.conf", &hba(tls))],
    );
    if tls {
        dba.batch_execute("alter system set ssl = 'on'").await.expect("a setting");
    } else {
        crate::harness::left_out(&format!(
            "PostgreSQL {major} is built without TLS: the image is tried without"
        ));
    }
    reload(&server).await;
    (server, tls)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_has_all_that_the_program_needs() {
    if !can_contain() {
        return;
    }
    let root = Root::assemble();
    println!("  {}", root.files().join("\n  "));
    let authority = Authority::new("a company's authority");
    // What an administrator mounts: names, the password, an authority that is not everybody's.
    root.add("/etc/hosts", "127.0.0.1 localhost\n127.0.0.1 db.internal\n");
    root.add("/run/secrets/password", "correct horse\n");
    root.add("/etc/pgtrickle/root.crt", &authority.certificate);
    each(async |major| {
        let (server, tls) = guarded(major, &authority.server(&["db.internal"])).await;
        let database = TestDatabase::create(&server).await;
        database.install();
        let app = database.as_app().await;
        let tables = "create table orders (id int primary key, region text not null, amount numeric not null);
            insert into orders select i, 'region ' || i % 7, i from generate_series(1, 1000) i";
        app.batch_execute(tables).await.expect("a source");
        const QUERY: &str = "select region, count(*) as n, sum(amount) as total from orders group by region";
        app.batch_execute(&format!("select pgtrickle.create_stream_table('totals', '{QUERY}')")).await.expect("created");
        let http = free_port();
        let url = format!("postgresql://pgtrickle@db.internal:{}/{}", server.cluster.port(), database.name);
        let environment = [
            ("DATABASE_URL", url),
            ("PGTRICKLE_PASSWORD_FILE", "/run/secrets/password".to_owned()),
            ("PGSSLMODE", if tls { "verify-full" } else { "disable" }.to_owned()),
            ("PGSSLROOTCERT", "/etc/pgtrickle/root.crt".to_owned()),
            ("PGTRICKLE_HTTP", format!("127.0.0.1:{http}")),
            ("PGTRICKLE_LOG", "info".to_owned()),
        ];
        let mut sidecar = root.start(&environment);
        wait_until("/readyz to answer 200", SOON, || async {
            let (status, body) = get(http, "/readyz").await?;
            if status == 200 { Ok(()) } else { Err(format!("{status}: {body}")) }
        })
        .await;
        let pid = child_of(sidecar.pid()).expect("the program");
        is_contained(pid);
        for arguments in [&["healthcheck"][..], &["healthcheck", "--ready"]] {
            let output = exec(pid, &environment, arguments);
            assert!(output.status.success(), "{arguments:?}: {}", printed(&output));
        }
        let output = exec(pid, &environment, &["status"]);
        assert!(output.status.success(), "status: {}", printed(&output));
        let differs = format!(
            "select count(*) from ((select region, n, total from totals except all ({QUERY})) union all (({QUERY}) except all select region, n, total from totals)) d"
        );
        // Committed, one by one, up to the very moment at which it is told to stop.
        let begin = std::time::Instant::now();
        for n in 0..400 {
            let change = format!("insert into orders select {n} * 50 + i, 'region ' || i % 9, i from generate_series(1001, 1050) i");
            app.batch_execute(&change).await.expect("a change");
        }
        let writing = begin.elapsed();
        signal(pid, "TERM");
        let begin = std::time::Instant::now();
        assert_eq!(sidecar.wait_exit(SOON).await, Some(0), "{}", sidecar.logs());
        println!("  PostgreSQL {major}: 400 commits in {writing:.1?}, drained within {:.1?}", begin.elapsed());
        assert_eq!(value(&app, &differs).await, "0", "what was committed before the signal is written: {}", sidecar.logs());
        assert_eq!(value(&app, "select sum(n) from totals").await, "21000");
    })
    .await;
}

/// User, capabilities, a read-only root, and that nothing outside of it is mapped.
fn is_contained(pid: u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its state");
    for line in [
        "Uid:\t65532\t65532\t65532\t65532",
        "Gid:\t65532\t65532\t65532\t65532",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.lines().any(|l| l == line), "{line}: {status}");
    }
    assert!(status.lines().any(|l| l.starts_with("NSpid:") && l.ends_with("\t1")), "process 1: {status}");
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("its mounts");
    let of = |at: &str| {
        mounts.lines().find(|l| l.split(' ').nth(4) == Some(at)).map(|l| l.split(' ').nth(5).unwrap_or(""))
    };
    assert!(of("/").is_some_and(|options| options.split(',').any(|o| o == "ro")), "{mounts}");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its memory");
    let mut files: Vec<&str> =
        maps.lines().filter_map(|l| l.split_whitespace().nth(5)).filter(|f| f.starts_with('/')).collect();
    files.sort_unstable();
    files.dedup();
    println!("  mapped: {}", files.join(" "));
    for file in files {
        let name = file.rsplit('/').next().unwrap_or(file);
        assert!(name == "pgtrickle" || LIBRARIES.contains(&name), "{file} is mapped");
    }
}
