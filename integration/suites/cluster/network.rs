//! A process behind a network of its own, which can be cut without anybody's connection being closed.

use super::{converge, leader, says, scene, write};
use crate::harness::cluster::{Members, PATIENCE, SILENCE};
use crate::harness::network::Namespace;
use crate::harness::{SOON, for_each_major};
use crate::suites::oracle::prng::seed;
use crate::suites::oracle::round::{Options, play};

/// Whether this machine permits networks of our own; says so if it does not.
fn permitted() -> bool {
    match Namespace::new() {
        Ok(_) => true,
        Err(why) => {
            crate::harness::left_out(&format!("this machine permits no network namespace: {why}"));
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_in_two_networks_give_the_same_answers_at_every_commit() {
    if !permitted() {
        return;
    }
    for_each_major(async |server| {
        let members = || Members::start_in_two_networks(PATIENCE).unwrap();
        let options = Options { members: Some(members), transactions: 150, ..Options::default() };
        play(server, seed() + 9000, options).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_network_is_cut_is_given_up_and_taken_back() {
    if !permitted() {
        return;
    }
    for_each_major(async |server| {
        let (database, app) = scene(server, 1_000).await;
        let members = Members::start_in_two_networks(SILENCE).unwrap();
        let mut sidecar = leader(&database, &members);
        sidecar.wait_ready(SOON).await;
        converge(&app, "in two networks").await;
        let named = sidecar.logs().matches("process 2 ").count();
        members.network().cut();
        write(&app, 1).await;
        says(&sidecar, "process 2 ", named).await;
        says(&sidecar, "starting again", 0).await;
        says(&members.processes[1], "the run was lost", 0).await;
        write(&app, 2).await;
        members.network().mend();
        converge(&app, "the network was cut and mended").await;
    })
    .await;
}
