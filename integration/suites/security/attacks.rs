//! Code of a stream table's owner runs inside the sidecar's sessions, as the owner. Whatever it leaves behind there must
//! not make anything run as the sidecar, nor change what other owners' stream tables hold.

use tokio_postgres::Client;

use super::super::bad_input::{live, refused, settled, value, wait_value};
use super::super::rights::{forget_user, second_user};
use crate::harness::oracle::assert_equal;
use crate::harness::{SOON, for_each_major};

/// `note` tells as whom it runs. The operators are those that our statements use; `poison` is called by a trigger of a
/// stream table, or inside of a query: it sets parameters for the session, exchanges prepared statements and defers
/// constraints.
const HOSTILE: &str = r#"
create table ran (what text, who text); grant insert on ran to public; grant usage on schema bob to public;
create function note(what text) returns boolean language plpgsql as $f$
    begin insert into bob.ran values (what, current_user); return true; end $f$;
create function eq(text, text) returns boolean language plpgsql as $f$
    begin perform bob.note('operator'); return $1 operator(pg_catalog.=) $2; end $f$;
create function eq(bigint, bigint) returns boolean language plpgsql as $f$
    begin perform bob.note('operator'); return $1 operator(pg_catalog.=) $2; end $f$;
create function eq(oid, oid) returns boolean language plpgsql as $f$
    begin perform bob.note('operator'); return $1 operator(pg_catalog.=) $2; end $f$;
create operator = (leftarg = text, rightarg = text, function = eq);
create operator = (leftarg = bigint, rightarg = bigint, function = eq);
create operator = (leftarg = oid, rightarg = oid, function = eq);
create function poison() returns void language plpgsql as $f$
declare
    s record;
    arguments text;
begin
    perform set_config('search_path', 'bob, pg_catalog', false), set_config('extra_float_digits', '-15', false),
            set_config('datestyle', 'SQL, DMY', false), set_config('timezone', 'Asia/Tokyo', false),
            set_config('bytea_output', 'escape', false), set_config('intervalstyle', 'iso_8601', false),
            set_config('default_transaction_read_only', 'on', false), set_config('transform_null_equals', 'on', false),
            set_config('default_transaction_isolation', 'serializable', false);
    for s in select name, parameter_types from pg_catalog.pg_prepared_statements loop
        execute pg_catalog.format('deallocate %I', s.name);
        arguments := pg_catalog.array_to_string(s.parameter_types, ', ');
        execute pg_catalog.format('prepare %I%s as select bob.note(%L)::text, 1', s.name,
            case when arguments <> '' then '(' || arguments || ')' else '' end, 'prepared statement');
    end loop;
    set constraints all deferred;
end $f$;
create function on_row() returns trigger language plpgsql as $f$
    begin perform bob.note('trigger'); perform bob.poison(); return new; end $f$;
create function odd(x int) returns int language plpgsql as $f$ begin perform bob.poison(); return x + 1; end $f$;
create table own (id int primary key, n int)
"#;

/// What another owner has at stake: values whose text depends on settings, through a function and without one.
const VICTIM: &str = "
create table measured (id int primary key, f float8, t timestamptz, b bytea, i interval);
create function twice(f float8) returns float8 language sql immutable as $f$ select $1 * 2 $f$;
insert into measured values (1, 0.1::float8 + 0.2, '2024-03-01 12:00+00', '\\x00ff', '1 day 02:00')";

const MEASURED: &str = "select id, f, t, b, i from measured";
const DOUBLED: &str =
    "select id, app.twice(f) as d, f / 3 as third, t + i as later from measured where t < '2100-01-01'";

async fn ran_as_bob_alone(bob: &Client, name: &str, what: &[&str]) {
    let ran = "select coalesce(string_agg(distinct what || ' ' || who, ', '), '') from bob.ran";
    let seen = value(bob, ran).await;
    let strangers = format!("select count(*) from bob.ran where who <> '{name}'");
    assert_eq!(value(bob, &strangers).await, "0", "code of {name} ran as somebody else: {seen}");
    for one in what {
        assert!(seen.contains(one), "{one} did not run at all: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_code_leaves_no_settings_operators_or_statements_behind() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let (name, bob) = second_user(&db, &dba).await;
        bob.batch_execute(HOSTILE).await.unwrap();
        app.batch_execute(VICTIM).await.unwrap();
        // Created before and after the hostile ones, so that it comes before and after them in a step.
        app.execute("select pgtrickle.create_stream_table('before', $1)", &[&MEASURED]).await.unwrap();
        for (table, query, mode) in [
            ("by_trigger", "select id, n from bob.own", "DIFFERENTIAL"),
            ("by_function", "select id, bob.odd(n) as n from bob.own", "AUTO"),
            ("whole", "select id, n from bob.own", "FULL"),
        ] {
            bob.execute("select pgtrickle.create_stream_table($1, $2, refresh_mode => $3)", &[&table, &query, &mode])
                .await
                .unwrap();
        }
        app.execute("select pgtrickle.create_stream_table('after', $1)", &[&DOUBLED]).await.unwrap();
        settled(&dba).await;
        bob.batch_execute(
            "create trigger poisoned before insert or update on by_trigger for each row execute function on_row();
             create trigger poisoned before insert or update on whole for each row execute function on_row()",
        )
        .await
        .unwrap();
        for round in 1..=4 {
            bob.batch_execute(&format!("insert into own values ({round}, {round})")).await.unwrap();
            app.batch_execute(&format!(
                "insert into measured select {round} + 10, 0.1::float8 * {round} + 0.2, '2024-12-03 04:05:06.7+00', '\\x{round}0ff', '{round} days 03:00'"
            ))
            .await
            .unwrap();
            for table in ["by_trigger", "whole"] {
                bob.batch_execute(&format!("select pgtrickle.refresh_stream_table('{table}')")).await.unwrap();
                assert_equal(&bob, "select id, n from bob.own", table, "id, n").await;
            }
            for (table, query, columns) in
                [("before", MEASURED, "id, f, t, b, i"), ("after", DOUBLED, "id, d, third, later")]
            {
                app.batch_execute(&format!("select pgtrickle.refresh_stream_table('{table}')")).await.unwrap();
                assert_equal(&app, query, table, columns).await;
            }
        }
        bob.batch_execute("select pgtrickle.refresh_stream_table('by_function')").await.unwrap();
        assert_equal(&bob, "select id, n + 1 as n from bob.own", "by_function", "id, n").await;
        ran_as_bob_alone(&bob, &name, &["trigger"]).await;
        assert!(!sidecar.logs().contains("starting again"), "{}", sidecar.logs());
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        forget_user(db, dba, &name).await;
    })
    .await;
}

/// Before 18 a deferred trigger runs with the rights of whoever commits.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_owner_defers_to_the_commit_never_runs_as_the_sidecar() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let (app, dba) = (db.as_app().await, db.as_dba().await);
        let (name, bob) = second_user(&db, &dba).await;
        bob.batch_execute(HOSTILE).await.unwrap();
        // Fired while constraints are checked for the last time inside of the owner's function, it defers again and
        // leaves work in another table; the second one hides it in the recheck of a unique constraint.
        bob.batch_execute(
            "create function told(x int) returns int language plpgsql immutable as $f$ begin perform bob.note('recheck'); return 1; end $f$;
             create table trap (id int generated always as identity primary key, v int);
             create function sprung() returns trigger language plpgsql as $f$ begin perform bob.note('deferred'); return null; end $f$;
             create constraint trigger late after insert on trap deferrable initially deferred for each row execute function sprung();
             create function again() returns trigger language plpgsql as $f$
                begin set constraints all deferred; insert into bob.trap (v) values (1); return null; end $f$;
             create table hidden (id int, exclude using btree ((bob.told(id)) with =) deferrable initially deferred);
             create function rechecked() returns trigger language plpgsql as $f$
                begin set constraints all deferred; insert into bob.hidden values (1), (2); delete from bob.hidden where id = 1; return null; end $f$;
             create table other (id int primary key, n int)",
        )
        .await
        .unwrap();
        app.batch_execute("create table fine (id int primary key); select pgtrickle.create_stream_table('sound', 'select id from fine')")
            .await
            .unwrap();
        for (table, source, mode) in
            [("inc", "own", "DIFFERENTIAL"), ("full_one", "own", "FULL"), ("rechecks", "other", "DIFFERENTIAL")]
        {
            bob.execute(
                "select pgtrickle.create_stream_table($1, $2, refresh_mode => $3)",
                &[&table, &format!("select id, n from bob.{source}"), &mode],
            )
            .await
            .unwrap();
        }
        settled(&dba).await;
        bob.batch_execute(
            "create constraint trigger t after insert on inc deferrable initially deferred for each row execute function again();
             create constraint trigger t after insert on full_one deferrable initially deferred for each row execute function again();
             create constraint trigger t after insert on rechecks deferrable initially deferred for each row execute function rechecked();
             insert into own values (1, 1); insert into other values (1, 1)",
        )
        .await
        .unwrap();
        app.batch_execute("insert into fine values (1)").await.unwrap();
        for table in ["inc", "full_one", "rechecks"] {
            drop(bob.batch_execute(&format!("select pgtrickle.refresh_stream_table('{table}')")).await);
        }
        app.batch_execute("select pgtrickle.refresh_stream_table('sound')").await.unwrap();
        assert_equal(&app, "select id from fine", "sound", "id").await;
        if db.major >= 18 {
            for table in ["inc", "full_one"] {
                wait_value(&bob, &format!("select count(*) from {table}"), "1").await;
            }
            ran_as_bob_alone(&bob, &name, &["deferred"]).await;
        } else {
            for table in ["inc", "full_one", "rechecks"] {
                let told = format!("select coalesce(max(last_error_sqlstate || ' ' || last_error_message), '') like '42501 %deferrable%'
                    from pgtrickle.pgt_stream_tables where pgt_name = '{table}'");
                wait_value(&bob, &told, "true").await;
            }
            ran_as_bob_alone(&bob, &name, &[]).await;
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        forget_user(db, dba, &name).await;
    })
    .await;
}

/// A name may be another relation by the time it is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_in_the_place_of_a_stream_table_is_not_read_as_the_sidecar() {
    use pgtrickle::apply::reconcile::read_stored;
    use pgtrickle::row::TypeClass;
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let dba = db.as_dba().await;
        let (name, bob) = second_user(&db, &dba).await;
        bob.batch_execute(HOSTILE).await.unwrap();
        bob.batch_execute("select pgtrickle.create_stream_table('mine', 'select id from bob.own')")
            .await
            .unwrap();
        settled(&dba).await;
        let relation: u32 = dba.query_one("select 'bob.mine'::regclass::oid", &[]).await.unwrap().get(0);
        let side = db.as_sidecar().await;
        let columns = [("id".to_owned(), TypeClass::Int4)];
        assert!(read_stored(&side, relation, "bob", "mine", &columns).await.unwrap().is_empty());
        bob.batch_execute(
            "alter table mine rename to gone;
             create view mine as select 1 as id where bob.note('view'); grant select on mine to public",
        )
        .await
        .unwrap();
        let error = read_stored(&side, relation, "bob", "mine", &columns).await.unwrap_err();
        assert!(error.to_string().contains("another relation"), "{error}");
        // The session is usable as before.
        side.query_one("select 1", &[]).await.unwrap();
        ran_as_bob_alone(&bob, &name, &[]).await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        forget_user(db, dba, &name).await;
    })
    .await;
}

/// What has no way in at all: the role, and the functions of others.
#[tokio::test(flavor = "multi_thread")]
async fn set_role_and_session_authorization_fail_inside_an_owners_function() {
    for_each_major(async |server| {
        let (db, mut sidecar) = live(server).await;
        let dba = db.as_dba().await;
        let (name, bob) = second_user(&db, &dba).await;
        bob.batch_execute(HOSTILE).await.unwrap();
        bob.batch_execute(
            "create function escape() returns trigger language plpgsql as $f$
             declare
                step text;
             begin
                foreach step in array array['reset role', 'set role none', 'set role pgtrickle', 'set local role pgtrickle',
                                            'reset session authorization', 'set session authorization pgtrickle',
                                            'set session authorization default'] loop
                    begin
                        execute step;
                        perform bob.note('escaped by ' || step);
                    exception when others then
                        perform bob.note('refused');
                    end;
                end loop;
                begin
                    perform set_config('role', 'pgtrickle', true);
                exception when others then
                    perform bob.note('refused');
                end;
                perform bob.note('after all');
                return new;
             end $f$;
             create table source (id int primary key);
             select pgtrickle.create_stream_table('t', 'select id from bob.source')",
        )
        .await
        .unwrap();
        settled(&dba).await;
        bob.batch_execute("create trigger e before insert on t for each row execute function escape(); insert into source values (1)")
            .await
            .unwrap();
        bob.batch_execute("select pgtrickle.refresh_stream_table('t')").await.unwrap();
        assert_equal(&bob, "select id from source", "t", "id").await;
        ran_as_bob_alone(&bob, &name, &["refused", "after all"]).await;
        // Nor may he call what is the sidecar's.
        for call in [
            "pgtrickle.publication_sync('pgtrickle_1_00000000_main', null)",
            "pgtrickle._install_capture(1, 'buffer')",
            "pgtrickle._forget_capture(1)",
            "pgtrickle.set_sidecar_role('bob')",
            "pgtrickle.grant_usage('bob')",
        ] {
            assert_eq!(refused(&bob, &format!("select {call}")).await.state, "42501", "{call}");
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        forget_user(db, dba, &name).await;
    })
    .await;
}
