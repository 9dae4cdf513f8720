//! Two replicas: the one that stands by counts as ready, so that a rolling update goes on, and takes over.

use std::time::Instant;

use crate::harness::database::TestDatabase;
use crate::harness::servers::for_each_major;
use crate::harness::{SOON, Sidecar, wait_until};
use crate::suites::http::client::{free_port, get};
use crate::suites::snapshots::value;

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stands_by_is_ready_and_takes_over() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        database.install();
        let app = database.as_app().await;
        app.batch_execute("create table t (id int primary key); insert into t values (1)")
            .await
            .expect("a source");
        let create = "select pgtrickle.create_stream_table('st', 'select id from t')";
        app.batch_execute(create).await.expect("a stream table");
        let mut sidecars = Vec::new();
        for _ in 0..2 {
            let http = free_port();
            let address = format!("127.0.0.1:{http}");
            let sidecar = Sidecar::start(&database, &["--standby", "--http", &address]);
            wait_until("/readyz to answer 200", SOON, || async {
                let (status, body) = get(http, "/readyz").await?;
                if status == 200 { Ok(()) } else { Err(format!("{status}: {body}")) }
            })
            .await;
            sidecars.push(sidecar);
        }
        let mut first = sidecars.remove(0);
        let mut second = sidecars.remove(0);
        assert!(!second.logs().contains("streaming started"), "the second one stands by: {}", second.logs());
        assert_eq!(first.terminate(SOON).await, Some(0));
        let begin = Instant::now();
        app.batch_execute("insert into t values (2)").await.expect("a change");
        second.wait_ready(SOON).await;
        println!("  PostgreSQL {}: taken over within {:.1?}", database.major, begin.elapsed());
        assert_eq!(value(&app, "select pgtrickle.wait_for()").await, "true");
        assert_eq!(value(&app, "select count(*) from st").await, "2");
        assert_eq!(second.terminate(SOON).await, Some(0));
    })
    .await;
}
