//! Expressions are given back as SQL that the server analyses to the same tree, on every major.

use tokio_postgres::{Client, NoTls};

pub(super) struct Server {
    pub(super) major: u32,
    pub(super) client: Client,
}

/// A fresh database with `schema` on every server that is there.
pub(super) async fn servers(schema: &str) -> Vec<Server> {
    let majors = std::env::var("PGTRICKLE_TEST_MAJORS").unwrap_or_else(|_| "14,15,16,17,18".to_owned());
    let mut servers = Vec::new();
    for major in majors.split(',').filter_map(|m| m.parse::<u32>().ok()) {
        let connect = async |database: &str| {
            let config = format!("host=127.0.0.1 port={} user=postgres dbname={database}", 55200 + major);
            let (client, connection) = tokio_postgres::connect(&config, NoTls).await.expect("connects");
            tokio::spawn(connection);
            client
        };
        let name = format!("t{}_{:?}", std::process::id(), std::thread::current().id());
        let name = name.replace(['(', ')'], "_");
        let admin = connect("postgres").await;
        admin.batch_execute(&format!("create database \"{name}\"")).await.expect("creates");
        let client = connect(&name).await;
        client.batch_execute(schema).await.expect("schema");
        servers.push(Server { major, client });
    }
    servers
}
