//! Counters that tell of trouble: it is provoked, they grow, and the pipeline gets over it.

use super::hazards::Scene;
use super::monitoring::{free_port, get, value_of};
use crate::harness::{SOON, for_each_major, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn applies_that_give_way_are_counted_and_what_they_wrote_in_the_end() {
    for_each_major(async |server| {
        let http = free_port();
        let scene = Scene::start_with(
            server,
            "create table t (id int primary key, v int not null); insert into t values (1, 1)",
            &["--http", &format!("127.0.0.1:{http}")],
        )
        .await;
        scene.create("st", "select id, v from t").await;
        scene.check_in_time(&["st"]).await;
        assert_eq!(value_of(&get(http, "/metrics").await.unwrap(), "apply_conflicts_total"), 0.0);
        scene.dba.batch_execute("begin; lock table app.st in access exclusive mode").await.unwrap();
        scene.run("insert into t select i, i from generate_series(2, 101) i").await;
        wait_until("an apply to give way", SOON, || async {
            let text = get(http, "/metrics").await?;
            let conflicts = value_of(&text, "apply_conflicts_total");
            if conflicts >= 1.0 { Ok(()) } else { Err(format!("{conflicts}")) }
        })
        .await;
        scene.dba.batch_execute("rollback").await.unwrap();
        scene.check_in_time(&["st"]).await;
        // The row that was there at the creation was written by that.
        wait_until("what was written to be counted", SOON, || async {
            let rows = value_of(&get(http, "/metrics").await?, "apply_batch_rows_sum");
            if rows == 100.0 { Ok(()) } else { Err(format!("{rows}")) }
        })
        .await;
    })
    .await;
}

/// Nobody but who reads the token can write such a message; a server that is broken could send anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_be_decoded_is_counted_and_got_over() {
    for_each_major(async |server| {
        let http = free_port();
        let scene = Scene::start_with(
            server,
            "create table bag (v int); insert into bag values (1)",
            &["--http", &format!("127.0.0.1:{http}")],
        )
        .await;
        scene.create("st", "select v from bag").await;
        scene.check_in_time(&["st"]).await;
        assert_eq!(value_of(&get(http, "/metrics").await.unwrap(), "decode_errors_total"), 0.0);
        const FORGED: &str = "
            select pg_logical_emit_message(true, 'pgtrickle:' || s.source_id,
                       t.token || ' ' || pgtrickle._shape_of('app.bag'::regclass) || ' I(no row')
              from pgtrickle.pgt_sources s join pgtrickle.pgt_tokens t on t.pipeline = s.pipeline
             where s.source_name = 'app.bag' and s.capture = 'trigger'";
        assert_eq!(scene.dba.execute(FORGED, &[]).await.unwrap(), 1);
        wait_until("the message to be met", SOON, || async {
            let errors = value_of(&get(http, "/metrics").await?, "decode_errors_total");
            if errors >= 1.0 { Ok(()) } else { Err(format!("{errors}")) }
        })
        .await;
        scene.run("insert into bag values (2)").await;
        scene.check_in_time(&["st"]).await;
    })
    .await;
}
