//! Settings of a database: what is documented is what there is, and what can't be used is refused where it is written.

use super::snapshots::value;
use crate::harness::database::TestDatabase;
use crate::harness::servers::for_each_major;

const PAGE: &str = include_str!("../../docs/configuration.md");

#[tokio::test(flavor = "multi_thread")]
async fn the_page_about_configuration_has_every_setting() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        database.install();
        let dba = database.as_dba().await;
        let wanted = value(
            &dba,
            "select string_agg(format('| `%s` | %s | `%s` | %s |', key,
                        case when kind like '%|%' then '`' || replace(kind, '|', '`, `') || '`' else kind end,
                        fallback, meaning), E'\\n' order by n)
               from pgtrickle._known_settings() with ordinality as s (key, kind, fallback, meaning, n)
              where kind <> 'internal'",
        )
        .await;
        let start = PAGE.find("| `cdc_mode` | `auto`").expect("the table of settings");
        assert_eq!(PAGE[start..].trim_end(), wanted);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_cannot_be_used_is_refused_where_it_is_written() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        database.install();
        let dba = database.as_dba().await;
        // The tests' own.
        dba.batch_execute("delete from pgtrickle.settings where key = 'analysis_timeout'").await.unwrap();
        for (key, bad, code, said) in [
            ("slot_polcy", "shed", "42704", "there is no setting 'slot_polcy'"),
            ("slot_policy", "sched", "22023", "setting slot_policy = 'sched' is not one of alert, shed"),
            ("refresh_timeout", "soon", "22023", "setting refresh_timeout = 'soon' is not a duration"),
            ("refresh_timeout", "-1 s", "22023", "setting refresh_timeout = '-1 s' is not a duration"),
            ("buffer_limit_mb", "1GB", "22023", "setting buffer_limit_mb = '1GB' is not a number of megabytes"),
        ] {
            let error = dba
                .execute("insert into pgtrickle.settings values ($1, $2)", &[&key, &bad])
                .await
                .expect_err(said);
            let error = error.as_db_error().expect("the server's answer");
            assert_eq!((error.code().code(), error.message()), (code, said));
            assert!(error.hint().is_some_and(|hint| hint.contains("set")), "{:?}", error.hint());
        }
        assert_eq!(
            value(&dba, "select count(*) from pgtrickle.pgt_settings where source <> 'default'").await,
            "0"
        );
        dba.batch_execute(
            "insert into pgtrickle.settings values ('refresh_timeout', '2 min');
             set pg_trickle.slot_policy = 'shed'; set pg_trickle.refresh_timeout = '1 s'; set pg_trickle.stale_after = 'x'",
        )
        .await
        .unwrap();
        let seen = "select string_agg(concat_ws(' ', key, value, source), ', ' order by key)
                      from pgtrickle.pgt_settings where key in ('refresh_timeout', 'slot_policy', 'buffer_limit_mb')";
        assert_eq!(
            value(&dba, seen).await,
            "buffer_limit_mb 1024 default, refresh_timeout 2 min pgtrickle.settings, slot_policy shed pg_trickle.slot_policy"
        );
        // What was set elsewhere is only known when it is read.
        let error = dba.simple_query("select pgtrickle._setting_interval('stale_after')").await.unwrap_err();
        assert_eq!(error.as_db_error().expect("the server's answer").message(), "setting stale_after = 'x' is not a duration");
    })
    .await;
}
