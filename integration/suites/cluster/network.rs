//! A process behind a network of its own that can be cut, without anybody's connection being closed.

use std::process::Command;

use super::{converge, leader, says, scene, write};
use crate::harness::cluster::{Members, SILENCE, free_port};
use crate::harness::{SOON, Sidecar, for_each_major};

/// A network namespace with a cable to this one; both end with this value.
struct Namespace {
    name: String,
    /// This end of the cable.
    cable: String,
    /// Three parts of the addresses of both ends.
    net: String,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Namespace {
    /// `Err`: why this machine does not let us.
    fn new() -> Result<Namespace, String> {
        let number = std::process::id() % 60_000;
        let name = format!("pgtrickle{number}");
        let (cable, inner) = (format!("pgt{number}a"), format!("pgt{number}b"));
        let net = format!("10.{}.{}", 200 + number / 256 % 50, number % 256);
        run("ip", &["netns", "add", &name])?;
        let made = Namespace { name: name.clone(), cable: cable.clone(), net: net.clone() };
        run("ip", &["link", "add", &cable, "type", "veth", "peer", "name", &inner, "netns", &name])?;
        run("ip", &["addr", "add", &format!("{net}.1/24"), "dev", &cable])?;
        run("ip", &["link", "set", &cable, "up"])?;
        run("ip", &["-n", &name, "addr", "add", &format!("{net}.2/24"), "dev", &inner])?;
        run("ip", &["-n", &name, "link", "set", &inner, "up"])?;
        run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
        Ok(made)
    }

    fn cut(&self) {
        run("ip", &["link", "set", &self.cable, "down"]).unwrap();
    }

    fn mend(&self) {
        run("ip", &["link", "set", &self.cable, "up"]).unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The cable goes with it.
        let _ = run("ip", &["netns", "del", &self.name]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_network_is_cut_is_given_up_and_taken_back() {
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(why) => {
            crate::harness::left_out(&format!("this machine permits no network namespace: {why}"));
            return;
        }
    };
    for_each_major(async |server| {
        let (database, app) = scene(server, 1_000).await;
        let net = &namespace.net;
        let hosts = [
            format!("{net}.1:{}", free_port()),
            format!("{net}.1:{}", free_port()),
            format!("{net}.2:{}", free_port()),
        ];
        let mut members = Members::prepare(&hosts, SILENCE);
        let near = Members::process(&members.arguments(1));
        let inside: Vec<String> = ["netns", "exec", &namespace.name, env!("CARGO_BIN_EXE_pgtrickle"), "run"]
            .map(str::to_owned)
            .into_iter()
            .chain(members.arguments(2))
            .collect();
        let far = Sidecar::start_program("ip".into(), inside);
        members.processes.extend([near, far]);
        let mut sidecar = leader(&database, &members);
        sidecar.wait_ready(SOON).await;
        converge(&app, "in two networks").await;
        let named = sidecar.logs().matches("process 2 ").count();
        namespace.cut();
        write(&app, 1).await;
        says(&sidecar, "process 2 ", named).await;
        says(&sidecar, "starting again", 0).await;
        says(&members.processes[1], "the run was lost", 0).await;
        write(&app, 2).await;
        namespace.mend();
        converge(&app, "the network was cut and mended").await;
    })
    .await;
}
