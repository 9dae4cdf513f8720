//! Users' code and users' rights.

use super::Scene;
use crate::harness::servers::for_each_major;
use crate::harness::wait::{SOON, wait_until};

/// A trigger of the owner's on a stream table, and a function of the owner's in its query, run as the owner.
#[tokio::test(flavor = "multi_thread")]
async fn a5_code_of_users_never_runs_as_the_sidecar() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table t (id int primary key, v int); insert into t values (1, 1);
             create table seen (who text); grant insert on seen to public;
             create function spy() returns trigger language plpgsql as $$ begin
                insert into app.seen values (current_user); perform set_config('search_path', 'evil', false);
                perform set_config('timezone', 'Asia/Tokyo', false); return new; end $$;
             create function whoami(int) returns text immutable language sql as $$ select current_user::text $$;
             create function deep(int) returns text immutable language plpgsql as $$ begin
                perform set_config('role', 'none', false); return current_user; exception when others then return current_user; end $$;",
        )
        .await;
        scene.create("watched", "select id, v from t").await;
        scene.create("times", "select id, timezone('UTC', to_timestamp(v)) as at, md5(v::text) as hash from t").await;
        scene.run("create trigger spy before insert or update on watched for each row execute function spy()").await;
        scene.run("update t set v = 2; insert into t values (2, 2)").await;
        scene.check(&["watched", "times"]).await;
        scene.run("select pgtrickle.create_stream_table('called', 'select id, whoami(v) as who, deep(v) as deep from t')").await;
        scene.wait_status("called", "ACTIVE").await;
        scene.run("insert into t values (3, 3)").await;
        scene.run("select pgtrickle.refresh_stream_table('called')").await;
        const WHO: &str = "select string_agg(distinct who, ',') from
            (select who from app.seen union all select who from app.called union all select deep from app.called) a";
        let who: String = scene.dba.query_one(WHO, &[]).await.unwrap().get(0);
        assert_eq!(who, "app");
        // A changed setting does not stay on the writing session.
        scene.run("update t set v = v + 1").await;
        scene.check(&["watched", "times"]).await;
    })
    .await;
}

/// The view does not depend on a function's body.
#[tokio::test(flavor = "multi_thread")]
async fn a6_a_function_body_is_replaced_under_a_live_stream_table() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table t (id int primary key, v int); insert into t select i, i from generate_series(1, 9) i;
             create function im(int) returns int immutable language sql as $$ select $1 + 1 $$",
        )
        .await;
        scene.run("select pgtrickle.create_stream_table('called', 'select id, im(v) as w from t', schedule => '1s')").await;
        scene.wait_status("called", "ACTIVE").await;
        scene.run("create or replace function im(int) returns int immutable language sql as $$ select $1 * 10 $$").await;
        scene.run("update t set v = v + 1 where id < 4; delete from t where id = 5").await;
        wait_until("the new values", SOON, || async {
            let rows = scene.differs("called").await;
            if rows.is_empty() { Ok(()) } else { Err(rows.join(", ")) }
        })
        .await;
    })
    .await;
}

/// Who loses SELECT on a source is not fed any more.
#[tokio::test(flavor = "multi_thread")]
async fn b9_a_revoked_right_stops_the_stream_table() {
    for_each_major(async |server| {
        let scene = Scene::start(server, "create table mine (id int primary key)").await;
        scene
            .dba
            .batch_execute(
                "create table public.theirs (id int primary key, v int); insert into public.theirs values (1, 1);
                 grant select on public.theirs to app, pgtrickle",
            )
            .await
            .unwrap();
        scene.create("copy_of_theirs", "select id, v from public.theirs").await;
        scene.create("copy_of_mine", "select id from mine").await;
        scene.dba.batch_execute("revoke select on public.theirs from app").await.unwrap();
        wait_until("the stream table to stop", SOON, || async {
            let state = scene.column("copy_of_theirs", "last_error_sqlstate").await;
            if state.as_deref() == Some("42501") { Ok(()) } else { Err(format!("{state:?}")) }
        })
        .await;
        scene.dba.batch_execute("insert into public.theirs values (2, 2)").await.unwrap();
        scene.run("insert into mine values (2)").await;
        scene.check(&["copy_of_mine"]).await;
        let rows: i64 = scene.dba.query_one("select count(*) from app.copy_of_theirs", &[]).await.unwrap().get(0);
        assert_eq!(rows, 1, "it was fed after the right was gone");
        scene.dba.batch_execute("grant select on public.theirs to app").await.unwrap();
        if scene.status("copy_of_theirs").await.starts_with("SUSPENDED") {
            scene.run("select pgtrickle.resume_stream_table('copy_of_theirs')").await;
        }
        scene.check_in_time(&["copy_of_theirs"]).await;
    })
    .await;
}

/// The owner replaces the defining view behind us.
#[tokio::test(flavor = "multi_thread")]
async fn b9_the_defining_view_is_replaced() {
    for_each_major(async |server| {
        let scene = Scene::start(
            server,
            "create table t (id int primary key, v int); insert into t values (1, 1), (2, 20)",
        )
        .await;
        scene.create("copy", "select id, v from t").await;
        let view = scene.column("copy", "query_view").await.unwrap();
        scene
            .run(&format!("create or replace view {view} as select id, v + 1 as v from t where v < 10"))
            .await;
        scene.check_in_time(&["copy"]).await;
        scene.run("insert into t values (3, 3)").await;
        scene.check(&["copy"]).await;
    })
    .await;
}
