//! Creating pipelines, who may use them, their settings, and the commands.

use crate::harness::database::{APP, TestDatabase, pgtrickle, printed};
use crate::harness::for_each_major;
use crate::harness::servers::SUPERUSER;
use crate::suites::bad_input::value;

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_are_made_by_whoever_installed_and_used_by_whom_they_name() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let team = format!("team_{}", db.name);
        app.batch_execute("create table t (id int primary key, v int)").await.unwrap();
        dba.batch_execute(&format!(
            "create role {team}; select pgtrickle.create_pipeline('team', roles => array['{team}'],
             settings => '{{\"stale_after\": \"1 min\", \"slot_policy\": \"shed\"}}');
             select pgtrickle.create_pipeline('open')"
        ))
        .await
        .unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('mine', 'select id, v from t')").await.unwrap();
        let create = "select pgtrickle.create_stream_table('x', 'select id from t', pipeline => ";
        for (client, sql, code, said) in [
            (&app, "select pgtrickle.create_pipeline('other')".to_owned(), "42501", "permission denied for function create_pipeline"),
            (&app, "select pgtrickle.drop_pipeline('open')".to_owned(), "42501", "permission denied for function drop_pipeline"),
            (&app, format!("{create}'team')"), "42501", "role app may not have stream tables in pipeline team"),
            (&app, "select pgtrickle.move_stream_table('mine', 'team')".to_owned(), "42501", "role app may not have stream tables in pipeline team"),
            (&app, "update pgtrickle.pgt_stream_tables set pipeline = 'team'".to_owned(), "42501", "role app may not have stream tables in pipeline team"),
            (&app, format!("{create}'nowhere')"), "22023", "pipeline 'nowhere' does not exist"),
            (&app, "select pgtrickle.alter_stream_table('mine', pipeline => 'nowhere')".to_owned(), "22023", "pipeline 'nowhere' does not exist"),
            (&app, "select pgtrickle.wait_for(pipeline => 'nowhere')".to_owned(), "22023", "pipeline 'nowhere' does not exist"),
            (&app, "select pgtrickle.attach_source('t', 'nowhere')".to_owned(), "22023", "pipeline 'nowhere' does not exist"),
            (&dba, "select pgtrickle.create_pipeline('Team')".to_owned(), "42602", "invalid name of a pipeline: 'Team'"),
            (&dba, "select pgtrickle.create_pipeline('a23456789012345678901')".to_owned(), "42602", "invalid name of a pipeline: 'a23456789012345678901'"),
            (&dba, "select pgtrickle.create_pipeline(null)".to_owned(), "42602", "invalid name of a pipeline: null"),
            (&dba, "select pgtrickle.create_pipeline('team')".to_owned(), "42710", "pipeline 'team' already exists"),
            (&dba, "select pgtrickle.create_pipeline('z', roles => '{nobody_at_all}')".to_owned(), "42704", "role nobody_at_all does not exist"),
            (&dba, "select pgtrickle.create_pipeline('z', settings => '{\"stale_after\": \"soon\"}')".to_owned(), "22023", "setting stale_after = 'soon' is not a duration"),
            (&dba, "select pgtrickle.create_pipeline('z', settings => '{\"row_security\": \"warn\"}')".to_owned(), "22023", "setting row_security is the same for all pipelines"),
            (&dba, "insert into pgtrickle.settings values ('stale_after', '1 s', 'nowhere')".to_owned(), "22023", "pipeline 'nowhere' does not exist"),
            (&dba, "select pgtrickle.drop_pipeline('main')".to_owned(), "2BP01", "the pipeline main cannot be dropped"),
        ] {
            let error = client.batch_execute(&sql).await.expect_err(&sql);
            let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}"));
            assert_eq!((error.code().code(), error.message()), (code, said), "{sql}");
            assert!(error.hint().is_some() || said.starts_with("permission"), "{sql}: no hint");
        }
        assert_eq!(value(&dba, "select count(*) from pgtrickle.pgt_pipelines").await, "3");
        // A member may, everybody may in an open one, and moving back is free while nobody serves either.
        dba.batch_execute(&format!("grant {team} to {APP}")).await.unwrap();
        app.batch_execute("select pgtrickle.move_stream_table('mine', 'team')").await.unwrap();
        app.batch_execute("select pgtrickle.refresh_stream_table('mine')").await.unwrap();
        let place = "select concat_ws(' ', pipeline, coalesce(moving_from, '-'), status) from pgtrickle.stream_tables_info";
        assert_eq!(value(&app, place).await, "team - INITIALIZING");
        app.batch_execute("select pgtrickle.create_or_replace_stream_table('mine', 'select id, v from t')").await.unwrap();
        assert_eq!(value(&app, place).await, "team - INITIALIZING", "it stays where it is");
        let same = "begin; select pgtrickle.move_stream_table('mine', 'open'); select pgtrickle.refresh_stream_table('mine'); commit";
        let error = app.batch_execute(same).await.unwrap_err();
        assert_eq!(error.as_db_error().map(|e| e.code().code()), Some("25001"));
        app.batch_execute("rollback").await.unwrap();
        // Settings: the pipeline's own, else the database's.
        dba.batch_execute("insert into pgtrickle.settings values ('stale_after', '7 min')").await.unwrap();
        let of = "select concat_ws(', ', pgtrickle._setting('stale_after', 'team'), pgtrickle._setting('stale_after', 'open'),
            pgtrickle._setting('slot_policy', 'team'), pgtrickle._setting('slot_policy', 'main'))";
        assert_eq!(value(&dba, of).await, "1 min, 7 min, shed, alert");
        let shown = "select string_agg(concat_ws(' ', coalesce(pipeline, '-'), value), ', ' order by pipeline nulls first)
            from pgtrickle.pgt_settings where key = 'stale_after'";
        assert_eq!(value(&app, shown).await, "- 7 min, team 1 min");
        by_command(&db).await;
        dba.batch_execute("select pgtrickle.drop_pipeline('team', true)").await.unwrap();
        let left = "select count(*) from pgtrickle.pgt_stream_tables union all select count(*) from pgtrickle.settings where pipeline <> '' order by 1 desc limit 1";
        assert_eq!(value(&dba, left).await, "0");
        dba.batch_execute(&format!("drop role {team}")).await.unwrap();
    })
    .await;
}

/// The same by the program.
async fn by_command(db: &TestDatabase) {
    let (root, app) = (db.url(SUPERUSER), db.url(APP));
    let said = |arguments: &[&str], url: &str, code: i32| {
        let done = pgtrickle(&[arguments, &["--database-url", url]].concat());
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {}", printed(&done));
        printed(&done)
    };
    let created =
        said(&["pipelines", "create", "cli", "--set", "stale_after=2 min", "--roles", APP], &root, 0);
    assert!(created.contains("pgtrickle run --pipeline cli"), "{created}");
    said(&["create", "second", "select id from t", "--pipeline", "cli"], &app, 0);
    said(&["alter", "second", "--move-to", "open"], &app, 0);
    let moved = said(&["pipelines", "move", "second", "--to", "cli"], &app, 0);
    assert!(moved.contains("second: 1 stream tables moved to pipeline cli"), "{moved}");
    // Several are moved all or none.
    let torn = said(&["pipelines", "move", "second", "nosuch", "--to", "open"], &app, 9);
    assert!(torn.contains("nosuch") && !torn.contains("moved to"), "{torn}");
    let stayed = said(&["status", "--pipeline", "cli"], &app, 0);
    assert!(stayed.contains("app.second"), "{stayed}");
    for listed in [said(&["pipelines"], &app, 0), said(&["status"], &app, 0)] {
        for part in ["cli", "open", "team", "OFFLINE"] {
            assert!(listed.contains(part), "{part} is missing: {listed}");
        }
    }
    let one = said(&["status", "--pipeline", "cli"], &app, 0);
    assert!(one.contains("app.second") && !one.contains("app.mine"), "{one}");
    let refused = said(&["pipelines", "drop", "cli"], &root, 9);
    assert!(
        refused.contains("pipeline cli has 1 stream tables: app.second") && refused.contains("2BP01"),
        "{refused}"
    );
    said(&["pipelines", "drop", "cli", "--cascade"], &root, 0);
    let unknown = said(&["status", "--pipeline", "cli"], &app, 2);
    assert!(unknown.contains("there is no pipeline cli"), "{unknown}");
}
