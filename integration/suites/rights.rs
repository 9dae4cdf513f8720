//! Invariant 6: a user without SELECT on a source can't read it through a stream table, nor run code as the sidecar.

use tokio_postgres::Client;

use super::bad_input::{TRACES, live, refused, settled, value, wait_value};
use crate::harness::database::connect;
use crate::harness::oracle::assert_equal;
use crate::harness::{SOON, TestDatabase, for_each_major};

/// A second user of the database, with his own schema, who may create stream tables.
pub async fn second_user(db: &TestDatabase, dba: &Client) -> (String, Client) {
    let name = format!("bob_{}", db.name);
    dba.batch_execute(&format!(
        "create role {name} login; select pgtrickle.grant_usage('{name}');
         create schema bob authorization {name}; grant usage on schema bob to pgtrickle;
         alter default privileges for role {name} in schema bob grant select on tables to pgtrickle;
         grant usage on schema app to {name}; alter role {name} set search_path = bob, app"
    ))
    .await
    .unwrap();
    let client = connect(&db.url(&name)).await;
    (name, client)
}

pub async fn forget_user(db: TestDatabase, dba: Client, name: &str) {
    dba.batch_execute(&format!("drop owned by {name} cascade")).await.unwrap();
    dba.batch_execute(&format!("drop role {name}")).await.unwrap();
    drop(db);
}

const SECRET: &str = "
    create table secret (id int primary key, what text not null);
    insert into secret values (1, 'hush-4711'), (2, 'hush-4712')";

#[tokio::test(flavor = "multi_thread")]
async fn without_select_a_source_is_neither_read_nor_told_by_errors_functions_or_views() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let (name, bob) = second_user(&db, &dba).await;
        app.batch_execute(SECRET).await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('mine', 'select id, what from secret where what <> ''hush-0''')")
            .await
            .unwrap();
        settled(&dba).await;
        bob.batch_execute("create table own (id int primary key, n int); insert into own values (1, 5)").await.unwrap();
        bob.batch_execute("select pgtrickle.create_stream_table('legal', 'select id, n from own')").await.unwrap();
        settled(&dba).await;
        let before = value(&dba, TRACES).await;
        let create = |query: &str, mode: &str| {
            format!("select pgtrickle.create_stream_table('spy', $q${query}$q$, refresh_mode => '{mode}')")
        };
        for query in [
            "select id, what from app.secret",
            "select count(*) as n from app.secret",
            "select o.id, s.what from own o join app.secret s on s.id = o.id",
            "select id, (select max(what) from app.secret) as m from own",
            "select id from own where id in (select id from app.secret)",
            // Errors that would quote a value if the query were run.
            "select what::int as n from app.secret",
            "select id, what from app.mine",
        ] {
            for mode in ["AUTO", "DIFFERENTIAL", "FULL"] {
                let told = refused(&bob, &create(query, mode)).await;
                assert_eq!(told.state, "42501", "{query}: {}", told.message);
                assert!(!format!("{}{}", told.message, told.hint).contains("hush"), "{}", told.message);
            }
            let alter = format!("select pgtrickle.alter_stream_table('legal', query => $q${query}$q$)");
            assert_eq!(refused(&bob, &alter).await.state, "42501");
        }
        assert_eq!(value(&dba, TRACES).await, before);
        // Foreign stream tables: health is visible, query and reasons are not; nothing can be done to them.
        let views = "select string_agg(i::text, ' ') from pgtrickle.stream_tables_info i";
        let history = "select coalesce(string_agg(h::text, ' '), '') from pgtrickle.refresh_history_info h";
        for sql in [views, history, "select string_agg(s::text, ' ') from pgtrickle.pgt_status() s"] {
            assert!(!value(&bob, sql).await.contains("hush"), "{sql}");
        }
        for function in ["refresh_stream_table", "suspend_stream_table", "drop_stream_table", "list_sources", "explain_refresh_mode"] {
            let told = refused(&bob, &format!("select * from pgtrickle.{function}('app.mine')")).await;
            assert_eq!(told.state, "42501", "{function}");
        }
        // A row of the catalog that names somebody else's view or table, and a forged request.
        let steal = "update pgtrickle.pgt_stream_tables set query_view = (select query_view from pgtrickle.query_views q
            join pgtrickle.stream_table_names n using (pgt_id) where n.pgt_name = 'mine') where pgt_name = 'legal'";
        assert_eq!(refused(&bob, steal).await.state, "42501");
        bob.batch_execute(
            "select pg_logical_emit_message(false, 'pgtrickle', '{\"request\": 990, \"kind\": \"analyze\", \"role\": null,
                \"mode\": \"AUTO\", \"query\": \"select (what || $$x$$)::int as n from app.secret\"}');
             select pg_logical_emit_message(false, 'pgtrickle', 'no json');
             select pg_logical_emit_message(false, 'pgtrickle', '{\"request\": 991, \"kind\": \"refresh\", \"pgt_id\": 1}');
             insert into own values (2, 6)",
        )
        .await
        .unwrap();
        bob.batch_execute("select pgtrickle.refresh_stream_table('legal')").await.unwrap();
        assert_equal(&bob, "select id, n from own", "legal", "id, n").await;
        let answers = "select coalesce(string_agg(a.answer::text, ' '), '') from pgtrickle.pgt_answers a";
        assert!(!value(&bob, answers).await.contains("hush"));
        assert!(!sidecar.logs().contains("hush"), "the log tells values");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        forget_user(db, dba, &name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_select_suspends_the_stream_table_within_seconds_and_a_grant_lets_it_resume() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let (name, bob) = second_user(&db, &dba).await;
        app.batch_execute(SECRET).await.unwrap();
        app.batch_execute(&format!(
            "create table plain (id int primary key, a int, b int); insert into plain values (1, 1, 1);
             create view door as select id, what from secret;
             grant select (id, what) on secret to {name}; grant select on plain, door to {name}"
        ))
        .await
        .unwrap();
        for (table, query) in [
            ("one", "select id, what from app.secret"),
            ("two", "select id, what from app.door"),
            ("three", "select p.id, p.a from app.plain p"),
            ("whole", "select id, what from app.secret order by id limit 1"),
        ] {
            bob.execute("select pgtrickle.create_stream_table($1, $2)", &[&table, &query]).await.unwrap();
        }
        settled(&dba).await;
        let told = |table: &str| {
            format!("select concat_ws('|', s.status, i.last_error_sqlstate, s.last_error_message) from pgtrickle.pgt_status() s
                join pgtrickle.stream_tables_info i on i.pgt_name = '{table}' where s.name = 'bob.{table}'")
        };
        // A column that a stream table does not use is none of its business.
        app.batch_execute(&format!("revoke select on plain from {name}; grant select (id, a) on plain to {name}")).await.unwrap();
        app.batch_execute(&format!("revoke select (what) on secret from {name}")).await.unwrap();
        for table in ["one", "whole"] {
            wait_value(&bob, &format!("select ({}) like 'SUSPENDED|42501|role {name} has no SELECT right on column what of app.secret%grant select%'", told(table)), "true").await;
        }
        app.batch_execute("insert into secret values (3, 'hush-4713'); insert into plain values (2, 2, 2)").await.unwrap();
        // The view's owner may still read it; the column that `three` uses was granted.
        wait_value(&bob, "select count(*) from two", "3").await;
        wait_value(&bob, "select count(*) from three", "2").await;
        assert_eq!(value(&bob, "select count(*) from one where what like '%4713'").await, "0");
        // A refresh leaves it out, with a trace.
        bob.batch_execute("select pgtrickle.refresh_stream_table('one')").await.unwrap();
        let skipped = "select status || ' ' || sqlstate from pgtrickle.get_refresh_history('one', 1)";
        assert_eq!(value(&bob, skipped).await, "SKIPPED 42501");
        // Resumed without the right it is suspended again, with nothing new in it; so it is after a restart.
        bob.batch_execute("select pgtrickle.resume_stream_table('one')").await.unwrap();
        wait_value(&bob, &format!("select ({}) like 'SUSPENDED|42501|%'", told("one")), "true").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        bob.batch_execute("select pgtrickle.resume_stream_table('one')").await.unwrap();
        sidecar.start_again();
        wait_value(&bob, &format!("select ({}) like 'SUSPENDED|42501|%'", told("one")), "true").await;
        assert_eq!(value(&bob, "select count(*) from one where what like '%4713'").await, "0");
        // Behind a view its owner counts, and the right on the view itself.
        app.batch_execute(&format!("revoke select on door from {name}")).await.unwrap();
        wait_value(&bob, &format!("select ({}) like 'SUSPENDED|42501|%app.door%'", told("two")), "true").await;
        app.batch_execute(&format!("grant select on secret, door to {name}")).await.unwrap();
        for table in ["one", "two", "whole"] {
            bob.batch_execute(&format!("select pgtrickle.resume_stream_table('{table}')")).await.unwrap();
        }
        for table in ["one", "two", "whole"] {
            wait_value(&bob, &told(table), "ACTIVE").await;
            bob.batch_execute(&format!("select pgtrickle.refresh_stream_table('{table}')")).await.unwrap();
        }
        assert_equal(&bob, "select id, what from app.secret", "one", "id, what").await;
        assert_equal(&bob, "select id, what from app.door", "two", "id, what").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        forget_user(db, dba, &name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_of_users_on_a_stream_table_runs_as_its_owner() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        app.batch_execute(
            "create table src (id int primary key, v int); create table ran (what text, who text);
             create function note(what text) returns boolean language plpgsql as $f$
                begin insert into app.ran values (what, current_user); return true; end $f$;
             create function on_row() returns trigger language plpgsql as $f$
                begin perform app.note('trigger'); return new; end $f$;
             create function on_commit() returns trigger language plpgsql as $f$
                begin perform app.note('deferred'); return null; end $f$;
             create function noted(v int) returns int language plpgsql immutable as $f$
                begin perform app.note('index'); return v; end $f$;
             create function noted_default() returns int language plpgsql as $f$
                begin perform app.note('default'); return 7; end $f$;
             create type wrapped as (v int);
             create function wrap(v int) returns wrapped language plpgsql immutable as $f$
                begin perform app.note('cast'); return row(v)::app.wrapped; end $f$;
             create cast (int as wrapped) with function wrap(int);
             create domain small as int check (app.note('domain'));
             select pgtrickle.create_stream_table('t', 'select id, v from src');
             select pgtrickle.create_stream_table('d', 'select id, v::small as v from src')",
        )
        .await
        .unwrap();
        settled(&dba).await;
        // Before 18 what waits for COMMIT would run as whoever commits: see the suite security.
        let late = if db.major >= 18 { "deferrable initially deferred" } else { "not deferrable" };
        app.batch_execute(&format!(
            "alter table t add check (app.note('check'));
             alter table t add check (v::app.wrapped is not null);
             create index on t (app.noted(v));
             alter table t add column extra int default app.noted_default();
             create trigger row_level before insert on t for each row execute function on_row();
             create constraint trigger late after insert on t {late} for each row execute function on_commit();
             truncate ran; insert into src values (1, 1)"
        ))
        .await
        .unwrap();
        for table in ["t", "d"] {
            app.batch_execute(&format!("select pgtrickle.refresh_stream_table('{table}')")).await.unwrap();
            assert_equal(&app, "select id, v from src", table, "id, v").await;
        }
        let who = "select string_agg(distinct what || ' ' || who, ', ' order by what || ' ' || who) from ran";
        let seen = value(&app, who).await;
        for what in ["trigger", "check", "domain", "deferred", "index", "default", "cast"] {
            assert!(seen.contains(&format!("{what} app")), "{what} did not run: {seen}");
        }
        assert!(!seen.contains("pgtrickle"), "{seen}");
        // It was the sidecar that wrote, not the caller's session while the sidecar was away.
        assert!(!sidecar.logs().contains("starting again"), "{}", sidecar.logs());
        // A deferred constraint that fails is the matter of that stream table alone.
        app.batch_execute(
            "drop trigger late on t;
             create function no() returns trigger language plpgsql as $f$ begin raise exception 'not this one'; end $f$;
             create constraint trigger late after insert on t deferrable initially deferred for each row execute function no();
             insert into src values (2, 2)",
        )
        .await
        .unwrap();
        app.batch_execute("select pgtrickle.refresh_stream_table('d')").await.unwrap();
        assert_equal(&app, "select id, v from src", "d", "id, v").await;
        let failed = "select last_error_message like '%not this one%' from pgtrickle.pgt_status() where name = 'app.t'";
        wait_value(&app, failed, "true").await;
        assert!(!sidecar.logs().contains("starting again"), "{}", sidecar.logs());
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_that_are_not_the_owners_own_are_not_called() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let (name, bob) = second_user(&db, &dba).await;
        bob.batch_execute(
            "create table src (id int primary key); create table ran (who text);
             create function whose(int) returns text immutable language plpgsql as $f$ begin return current_user; end $f$",
        )
        .await
        .unwrap();
        app.batch_execute("create table fine (id int primary key)").await.unwrap();
        for (table, mode) in [("inc", "DIFFERENTIAL"), ("all_of_it", "FULL")] {
            bob.batch_execute(&format!(
                "select pgtrickle.create_stream_table('{table}', 'select id from src', refresh_mode => '{mode}')"
            ))
            .await
            .unwrap();
        }
        bob.batch_execute("select pgtrickle.create_stream_table('eval', 'select id, bob.whose(id) as who from src')").await.unwrap();
        app.batch_execute("select pgtrickle.create_stream_table('sound', 'select id from fine')").await.unwrap();
        settled(&dba).await;
        // Nobody but the owner and the sidecar may call them.
        let open = "select count(*) from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
            where p.pronamespace = 'pgtrickle_queries'::regnamespace
              and a.grantee not in (p.proowner, 'pgtrickle'::regrole)";
        assert_eq!(value(&dba, open).await, "0");
        let id = async |table: &str| {
            value(&dba, &format!("select pgt_id from pgtrickle.stream_table_names where pgt_name = '{table}'")).await
        };
        let (inc, full) = (id("inc").await, id("all_of_it").await);
        let evaluates = format!("select p.oid::regprocedure from pg_proc p where p.proname like 'evaluate_{}_%'", id("eval").await);
        let evaluates = value(&dba, &evaluates).await;
        assert_eq!(refused(&app, &format!("select pgtrickle_queries.recompute_{full}()")).await.state, "42501");
        bob.batch_execute(&format!(
            "grant insert on ran to public; grant usage on schema bob to public;
             create or replace function pgtrickle_queries.apply_{inc}(deleted text[], inserted text[],
                out deleted_rows bigint, out inserted_rows bigint, out replaced_rows bigint) language plpgsql security invoker as $f$
                begin insert into bob.ran values (current_user); deleted_rows := 0; inserted_rows := 1; replaced_rows := 0; end $f$;
             create or replace function pgtrickle_queries.recompute_{full}(out inserted_rows bigint,
                out updated_rows bigint, out deleted_rows bigint) language plpgsql security invoker as $f$
                begin insert into bob.ran values (current_user); inserted_rows := 1; end $f$;
             insert into src values (1)"
        ))
        .await
        .unwrap();
        app.batch_execute("insert into fine values (1)").await.unwrap();
        for table in ["inc", "all_of_it"] {
            // An error while it is tried, left out once it has failed.
            drop(bob.batch_execute(&format!("select pgtrickle.refresh_stream_table('{table}')")).await);
            let failed = format!("select coalesce(max(last_error_sqlstate), '') || ' ' || coalesce(max(last_error_message), '') like '42501 %does not run as the stream table''s owner%'
                from pgtrickle.pgt_stream_tables where pgt_name = '{table}'");
            wait_value(&bob, &failed, "true").await;
        }
        app.batch_execute("select pgtrickle.refresh_stream_table('sound')").await.unwrap();
        assert_equal(&app, "select id from fine", "sound", "id").await;
        assert_eq!(value(&bob, "select count(*) from ran").await, "0", "the function ran");
        // Resuming makes them again.
        for table in ["inc", "all_of_it"] {
            bob.batch_execute(&format!(
                "select case when status in ('ERROR', 'SUSPENDED') then pgtrickle.resume_stream_table('bob.{table}') end
                   from pgtrickle.pgt_status() where name = 'bob.{table}'"
            ))
            .await
            .unwrap();
            bob.batch_execute(&format!("select pgtrickle.refresh_stream_table('{table}')")).await.unwrap();
            assert_equal(&bob, "select id from src", table, "id").await;
        }
        assert_eq!(value(&bob, "select count(*) from ran").await, "0", "the function ran");
        // So it is with the functions that evaluate expressions; the query is then recomputed as its owner.
        bob.batch_execute(&format!("alter function {evaluates} security invoker; insert into src values (2)")).await.unwrap();
        let own = format!("select count(*) filter (where who <> '{name}') || ' ' || count(*) from eval");
        wait_value(&bob, &own, "0 2").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        forget_user(db, dba, &name).await;
    })
    .await;
}
