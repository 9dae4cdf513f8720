//! Code of users never runs with the rights of whoever maintains their stream tables or captures their changes: a
//! superuser who calls the functions of the manual, the installing role whose capture functions are called by triggers.

use super::bad_input::{live, settled, value, wait_value};
use super::rights::{forget_user, second_user};
use crate::harness::{SOON, for_each_major};

/// The owner of a table may define a cast of its rows, also to text.
#[tokio::test(flavor = "multi_thread")]
async fn a_cast_of_a_sources_rows_is_not_called_by_its_capture() {
    for_each_major(async |server| {
        for mode in ["auto", "trigger"] {
            let (db, mut sidecar) = live(server).await;
            let dba = db.as_dba().await;
            let (name, bob) = second_user(&db, &dba).await;
            bob.batch_execute(&format!(
                "create table p (id int, v text) partition by range (id);
                 create table p1 partition of p for values from (0) to (1000);
                 create table plain (id int, v text);
                 create table ran (who text); grant insert on ran to public; grant usage on schema bob to public;
                 create function own(p1) returns text language plpgsql as
                    $$ begin insert into bob.ran values (current_user); return '(1,forged)'; end $$;
                 create function own(plain) returns text language plpgsql as
                    $$ begin insert into bob.ran values (current_user); return '(1,forged)'; end $$;
                 create cast (p1 as text) with function own(p1); create cast (plain as text) with function own(plain);
                 select pgtrickle.create_stream_table('of_p', 'select id, v from p', cdc_mode => '{mode}');
                 select pgtrickle.create_stream_table('of_plain', 'select id, v from plain', cdc_mode => '{mode}')"
            ))
            .await
            .unwrap();
            settled(&dba).await;
            let triggers = "select count(*) from pg_trigger where tgname like 'pgtrickle_capture_insert%'";
            wait_value(&dba, triggers, "2").await;
            bob.batch_execute("insert into p values (1, 'x'); insert into plain values (1, 'y'); update p set v = 'z'; update plain set v = v || '!'")
                .await
                .unwrap();
            wait_value(&bob, "select string_agg(v, ' ') from (select v from of_p union all select v from of_plain order by v) r", "y! z").await;
            assert_eq!(value(&dba, "select coalesce(string_agg(who, ' '), 'nobody') from bob.ran").await, "nobody");
            assert_eq!(sidecar.terminate(SOON).await, Some(0));
            drop(bob);
            forget_user(db, dba, &name).await;
        }
    })
    .await;
}

/// Migrations, restores, refreshes and resumes by a superuser.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_superuser_maintains_runs_as_its_owner() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let dba = db.as_dba().await;
        let (name, bob) = second_user(&db, &dba).await;
        bob.batch_execute(
            "create table src (id int primary key); insert into src values (1);
             create table ran (who text); grant insert on ran to public; grant usage on schema bob to public;
             create function e2() returns int language plpgsql as
                $$ begin insert into bob.ran values (current_user); return 1; end $$;
             create function e1() returns int immutable language plpgsql as $$ begin return bob.e2(); end $$;
             create function f(int) returns int immutable language plpgsql as $$ begin return $1 + 1; end $$;
             select pgtrickle.create_stream_table('t', 'select id from src');
             select pgtrickle.create_stream_table('e', 'select id, bob.f(id) as n from src');
             select pgtrickle.create_stream_table('whole', 'select id from src', refresh_mode => 'FULL', schedule => 'manual')",
        )
        .await
        .unwrap();
        settled(&dba).await;
        let others = format!("select count(*) from bob.ran where who <> '{name}'");
        // A parked query that its owner has exchanged.
        bob.batch_execute(
            "update pgtrickle.pgt_stream_tables set status = 'SUSPENDED', parked_for = 'bob.src',
                parked_query = 'select id from bob.src where bob.e1() > 0' where pgt_name = 't'",
        )
        .await
        .unwrap();
        // It may be refused (the query changes rows), but never runs as the superuser.
        drop(dba.batch_execute("select pgtrickle.begin_ddl('bob.src'); select pgtrickle.end_ddl('bob.src')").await);
        assert_eq!(value(&dba, &others).await, "0");
        bob.batch_execute("update pgtrickle.pgt_stream_tables set parked_for = null, parked_query = null where pgt_name = 't'").await.unwrap();
        // A refresh function that its owner has exchanged for one that runs as its caller.
        let id = value(&dba, "select pgt_id from pgtrickle.stream_table_names where pgt_name = 'whole'").await;
        bob.batch_execute(&format!(
            "create or replace function pgtrickle_queries.recompute_{id}(out inserted_rows bigint, out updated_rows bigint,
                out deleted_rows bigint) language plpgsql security invoker as $f$
                begin insert into bob.ran values (current_user); inserted_rows := 1; end $f$"
        ))
        .await
        .unwrap();
        drop(dba.batch_execute("select pgtrickle.refresh_stream_table('bob.whole')").await);
        // One that is made again by a superuser belongs to its owner all the same.
        bob.batch_execute("select pgtrickle.suspend_stream_table('e')").await.unwrap();
        dba.batch_execute("select pgtrickle.resume_stream_table('bob.e')").await.unwrap();
        settled(&dba).await;
        let strangers = "select count(*) from pg_proc p where p.pronamespace = 'pgtrickle_queries'::regnamespace
            and pg_get_userbyid(p.proowner) <> $q$".to_owned() + &name + "$q$";
        assert_eq!(value(&dba, &strangers).await, "0");
        bob.batch_execute("insert into src values (7)").await.unwrap();
        wait_value(&bob, "select count(*) from e where n = 8", "1").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        drop(dba.batch_execute("select pgtrickle.refresh_stream_table('bob.whole')").await);
        drop(dba.batch_execute("select * from pgtrickle.restore_stream_tables()").await);
        assert_eq!(value(&dba, &others).await, "0");
        bob.batch_execute("select pgtrickle.drop_stream_table('e')").await.unwrap();
        drop(bob);
        forget_user(db, dba, &name).await;
    })
    .await;
}

/// A member of the owner runs a migration that changes a type which the query shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_the_owner_runs_a_migration() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let deploy = format!("deploy_{}", db.name);
        dba.batch_execute(&format!("create role {deploy} login; grant app to {deploy}; alter role {deploy} set search_path = app")).await.unwrap();
        app.batch_execute(
            "create table orders (id int primary key, amount numeric(12, 2)); insert into orders values (1, 2.5);
             select pgtrickle.create_stream_table('amounts', 'select id, amount from orders')",
        )
        .await
        .unwrap();
        settled(&dba).await;
        let client = crate::harness::database::connect(&db.url(&deploy)).await;
        client
            .batch_execute(
                "begin; select pgtrickle.begin_ddl('app.orders'); alter table orders alter amount type numeric(14, 4);
                 select pgtrickle.end_ddl('app.orders'); commit;
                 insert into orders values (2, 1.2345)",
            )
            .await
            .unwrap();
        wait_value(&app, "select string_agg(amount::text, ' ' order by id) from amounts", "2.5000 1.2345").await;
        client.batch_execute("select pgtrickle.alter_stream_table('amounts', query => 'select id, amount * 2 as twice from orders')").await.unwrap();
        wait_value(&app, "select string_agg(twice::text, ' ' order by id) from amounts", "5.0000 2.4690").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        drop(client);
        dba.batch_execute(&format!("drop owned by {deploy}; drop role {deploy}")).await.unwrap();
    })
    .await;
}

/// Everybody can read the mark of a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_the_mark_of_another_users_snapshot_is_not_taken_for_it() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let (dba, app) = (db.as_dba().await, db.as_app().await);
        let (name, bob) = second_user(&db, &dba).await;
        app.batch_execute(
            "create table src (id int primary key); insert into src values (1), (2);
             select pgtrickle.create_stream_table('kept', 'select id from src')",
        )
        .await
        .unwrap();
        settled(&dba).await;
        let made = value(&app, "select pgtrickle.snapshot_stream_table('kept')").await;
        let mark = value(&app, &format!("select obj_description('{made}'::regclass, 'pg_class')")).await;
        bob.batch_execute(&format!(
            "create table forged (id int); insert into forged values (3), (4); grant select on forged to public;
             grant usage on schema bob to public; comment on table forged is '{mark}'"
        ))
        .await
        .unwrap();
        // Renamed, it is found by its mark alone.
        app.batch_execute(&format!("alter table {made} rename to zz_kept")).await.unwrap();
        let named = "select string_agg(snapshot_table, ' ') from pgtrickle.list_snapshots('kept')";
        assert_eq!(value(&app, named).await, "app.zz_kept");
        app.batch_execute("insert into src values (5); select pgtrickle.suspend_stream_table('kept')").await.unwrap();
        app.batch_execute("select pgtrickle.restore_from_snapshot('kept', 'app.zz_kept')").await.unwrap();
        assert_eq!(value(&app, "select string_agg(id::text, ' ' order by id) from kept").await, "1 2");
        // Gone, there is none: not for its owner, not for a superuser.
        app.batch_execute("drop table zz_kept").await.unwrap();
        assert_eq!(value(&app, named).await, "");
        assert_eq!(value(&dba, named).await, "");
        for client in [&app, &dba] {
            let sql = "select pgtrickle.restore_from_snapshot('app.kept', 'bob.forged')";
            let error = client.batch_execute(sql).await.expect_err("that is no snapshot");
            assert!(matches!(error.code().map(|c| c.code()), Some("42501" | "42809")), "{error:?}");
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        drop((bob, app));
        forget_user(db, dba, &name).await;
    })
    .await;
}
