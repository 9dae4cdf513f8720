//! Further processes of a cluster beside the one that a test starts as its sidecar.

use std::net::TcpListener;
use std::path::PathBuf;

use super::network::Namespace;
use super::sidecar::Sidecar;

/// How long a process of a cluster may be silent, where a test is about that.
pub const SILENCE: &str = "5s";
/// Where it is not: a busy machine stops processes for seconds.
pub const PATIENCE: &str = "60s";

/// Hosts file, secret, and the processes 1, 2 ...
pub struct Members {
    folder: tempfile::TempDir,
    silence: &'static str,
    /// Process n is at n - 1.
    pub processes: Vec<Sidecar>,
    /// Where the last of them is, if that is elsewhere. Goes after them.
    network: Option<Namespace>,
}

/// A port of loopback that nobody uses now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

impl Members {
    /// The files of a cluster of so many processes on loopback, and all of them but process 0.
    pub fn start(processes: usize, silence: &'static str) -> Members {
        let hosts: Vec<String> = (0..processes).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let mut members = Members::prepare(&hosts, silence);
        for process in 1..processes {
            let arguments = members.arguments(process);
            members.processes.push(Members::process(&arguments));
        }
        members
    }

    /// Of three processes the last one is behind a network of its own.
    ///
    /// # Errors
    /// Why this machine does not let us.
    pub fn start_in_two_networks(silence: &'static str) -> Result<Members, String> {
        let network = Namespace::new()?;
        let net = &network.net;
        let hosts = [1, 1, 2].map(|end| format!("{net}.{end}:{}", free_port()));
        let mut members = Members::prepare(&hosts, silence);
        let near = Members::process(&members.arguments(1));
        let inside =
            ["netns", "exec", &network.name, env!("CARGO_BIN_EXE_pgtrickle"), "run"].map(str::to_owned);
        let far = Sidecar::start_program("ip".into(), [&inside[..], &members.arguments(2)].concat());
        members.processes.extend([near, far]);
        members.network = Some(network);
        Ok(members)
    }

    /// The network of the last process.
    pub fn network(&self) -> &Namespace {
        self.network.as_ref().expect("it was started in a network of its own")
    }

    /// The files alone.
    pub fn prepare(hosts: &[String], silence: &'static str) -> Members {
        let folder = tempfile::Builder::new().prefix("pgtrickle-cluster-").tempdir().expect("a folder");
        std::fs::write(folder.path().join("hosts.txt"), hosts.join("\n")).expect("a hosts file");
        std::fs::write(folder.path().join("secret"), "a secret of this test alone\n").expect("a secret");
        Members { folder, silence, processes: Vec::new(), network: None }
    }

    /// Path of one of its files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a process is started with, besides `run`.
    pub fn arguments(&self, process: usize) -> Vec<String> {
        let path = |name: &str| self.path(name).to_str().expect("a path").to_owned();
        let number = process.to_string();
        let (hosts, secret) = (path("hosts.txt"), path("secret"));
        [
            "--cluster",
            &hosts,
            "--process",
            &number,
            "--cluster-secret-file",
            &secret,
            "--cluster-timeout",
            self.silence,
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// A process that is not process 0.
    pub fn process(arguments: &[String]) -> Sidecar {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_pgtrickle"));
        Sidecar::start_program(program, [&["run".to_owned()], arguments].concat())
    }
}
