//! Who may not read a source learns nothing of its content: every function and every relation of ours is tried by such a
//! user, after everything that could have kept a value somewhere: errors, buffers, snapshots, history, recoveries.

use tokio_postgres::Client;

use super::super::bad_input::{settled, value, wait_value};
use super::super::http::client::{all_pages, free_port, get};
use crate::harness::database::connect;
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

/// The content that must not come out.
const SECRET: &str = "hush-4711";

/// What is said about a statement: rows, or the error with all of its parts.
async fn told(client: &Client, sql: &str) -> String {
    match client.simple_query(sql).await {
        Ok(messages) => {
            let mut text = String::new();
            for message in messages {
                if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                    (0..row.len()).for_each(|i| text.push_str(row.get(i).unwrap_or_default()));
                }
            }
            text
        }
        Err(error) => format!("{:?}", error.as_db_error()),
    }
}

/// Answers to requests, as somebody sees them.
async fn told_rows(user: &Client) -> String {
    told(user, "select a::text from pgtrickle.pgt_answers a").await
}

/// Every relation of our schemas, read whole, and every function, called with arguments that mean the secret table or
/// the stream table over it; each inside a transaction that is rolled back. Returns how many were tried.
async fn try_everything(user: &Client, dba: &Client, who: &str) -> usize {
    const RELATIONS: &str = "select format('select t::text from %s t', c.oid::regclass) from pg_class c
        where c.relnamespace in (select oid from pg_namespace where nspname like 'pgtrickle%') and c.relkind in ('r', 'v', 'm', 'p')";
    // One value per type; of texts and numbers several, one after the other.
    const CALLS: &str = r"
        select format('select x::text from %s(%s) x', p.oid::regproc, coalesce(string_agg(
            case when t.t in (25, 19) then quote_literal(case t.t when 19 then 'app' else v.name end)
                 when t.t in (20, 21, 23, 26) then v.number || '::' || format_type(t.t, null)
                 when t.t = 2205 then quote_literal(v.relation) || '::regclass'
                 when t.t = 16 then 'true' when t.t = 1186 then quote_literal('10 ms') || '::interval'
                 else 'null::' || format_type(t.t, null) end, ', ' order by t.n), ''))
          from pg_proc p
          cross join (values ('app.leaky', 1, 'app.leaky'), ('app.broken', 2, 'app.secret'), ('main', 3, 'app.secret'),
                             ('app.secret', 4, 'app.broken'), ('copied', 1, 'app.secret'),
                             ('select what from app.secret', 2, 'app.secret')) v (name, number, relation)
          left join lateral unnest(p.proargtypes) with ordinality t (t, n) on true
         where p.pronamespace in (select oid from pg_namespace where nspname like 'pgtrickle%')
           and p.prorettype <> 'trigger'::regtype and p.prokind = 'f'
         group by p.oid, v.name, v.number, v.relation";
    user.batch_execute("set statement_timeout = '3s'; set lock_timeout = '1s'").await.unwrap();
    let mut tried = 0;
    for list in [RELATIONS, CALLS] {
        for row in dba.query(list, &[]).await.unwrap() {
            let sql: String = row.get(0);
            user.batch_execute("begin").await.unwrap();
            let said = told(user, &sql).await;
            user.batch_execute("rollback").await.unwrap();
            assert!(!said.contains(SECRET), "{who} learns it by {sql}: {said}");
            tried += 1;
        }
    }
    tried
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_ours_tells_the_content_of_a_source_to_who_may_not_read_it() {
    for_each_major(async |server| {
        for mode in ["wal", "trigger"] {
            let db = TestDatabase::create(server).await;
            db.install();
            let (app, dba) = (db.as_app().await, db.as_dba().await);
            let (eve, mallory) = (format!("eve_{}", db.name), format!("mallory_{}", db.name));
            // One knows the schema of the application but has no right on it; the other has not even ours.
            dba.batch_execute(&format!(
                "create role {eve} login; select pgtrickle.grant_usage('{eve}'); grant usage on schema app to {eve};
                 create role {mallory} login"
            ))
            .await
            .unwrap();
            app.batch_execute(&format!(
                "create table secret (id int primary key, what text not null, part text);
                 insert into secret values (1, '{SECRET}', '1'), (2, '{SECRET}-b', '2')"
            ))
            .await
            .unwrap();
            let port = free_port();
            let http = format!("127.0.0.1:{port}");
            let mut sidecar = Sidecar::start(&db, &["--cdc-mode", mode, "--http", &http]);
            sidecar.wait_ready(SOON).await;
            app.batch_execute(
                "select pgtrickle.create_stream_table('leaky', 'select id, what, part from secret');
                 select pgtrickle.create_stream_table('broken', 'select id, part::int as n from secret')",
            )
            .await
            .unwrap();
            settled(&dba).await;
            app.batch_execute("select pgtrickle.refresh_stream_table('leaky')").await.unwrap();
            app.batch_execute("select pgtrickle.snapshot_stream_table('leaky')").await.unwrap();
            // PostgreSQL's error quotes the value; so does the status that the owner sees.
            app.batch_execute(&format!("insert into secret values (3, 'x', '{SECRET}-c')")).await.unwrap();
            let broken = format!("select count(*) > 0 from pgtrickle.pgt_stream_tables where last_error_message like '%{SECRET}%'");
            wait_value(&app, &broken, "true").await;
            for (role, name) in [(&eve, "a user of pgtrickle"), (&mallory, "anybody")] {
                let user = connect(&db.url(role)).await;
                let tried = try_everything(&user, &dba, name).await;
                println!("PostgreSQL {}, {mode}: {name} tried {tried} statements", db.major);
                assert!(tried > 300, "only {tried} statements were tried");
            }
            // The owner does learn it: the search above finds what there is to find.
            let own = told(&app, "select t::text from pgtrickle.pgt_stream_tables t").await;
            assert!(own.contains(SECRET), "the marker is nowhere");
            // A request is only a message, which anybody may write: in his own name, in nobody's, in the owner's.
            let user = connect(&db.url(&eve)).await;
            let id = value(&dba, "select pgt_id from pgtrickle.pgt_stream_tables where pgt_name = 'broken'").await;
            app.batch_execute("select pgtrickle.resume_stream_table('broken')").await.unwrap();
            for (n, role) in [format!("\"{eve}\""), "null".to_owned(), "\"app\"".to_owned()].iter().enumerate() {
                for (kind, number) in [("repair", 4710 + n), ("refresh", 4720 + n)] {
                    let forged = format!("{{\"request\": {number}, \"kind\": \"{kind}\", \"role\": {role}, \"pgt_id\": {id}}}");
                    let emit = "select pg_logical_emit_message(false, 'pgtrickle', $1::text)::text, nextval('pgtrickle.request_seq')::text";
                    user.query(emit, &[&forged]).await.unwrap();
                }
            }
            // The owner's own request comes after them, and is answered after them.
            if mode == "wal" {
                let told = app.batch_execute("select pgtrickle.repair_stream_table('broken')").await.unwrap_err();
                assert!(format!("{told:?}").contains(SECRET), "the owner is told: {told:?}");
                wait_value(&dba, "select count(*) from pgtrickle.pgt_answers where request_id between 4710 and 4729 and requested_by <> 'app'", "0").await;
                let heard = told_rows(&user).await;
                assert!(!heard.contains(SECRET), "{heard}");
            }
            // With the sidecar's triggers gone and back a recovery is told about, and values are compared.
            sidecar.kill9();
            app.batch_execute("delete from leaky where id = 1").await.unwrap_err();
            dba.batch_execute("set session_replication_role = replica; delete from app.leaky where id = 1").await.unwrap();
            sidecar.start_again();
            wait_value(&app, "select count(*) from leaky", "3").await;
            let user = connect(&db.url(&eve)).await;
            try_everything(&user, &dba, "a user of pgtrickle after a repair").await;
            // The pages know of the failure whose message quotes a value, and of the repair.
            wait_until("both stream tables and the repair on the pages", SOON, || async {
                let (_, broken) = get(port, "/api/v1/stream_tables/app.broken").await?;
                let (_, leaky) = get(port, "/api/v1/stream_tables/app.leaky").await?;
                let told = broken.contains("22P02") && leaky.contains("\"ACTIVE\"");
                if told { Ok(()) } else { Err(format!("{broken} {leaky}")) }
            })
            .await;
            for (path, body) in all_pages(port, &["app.leaky", "app.broken"]).await {
                assert!(!body.contains(SECRET), "{path} tells it: {body}");
            }
            for path in ["/healthz", "/readyz"] {
                let (_, body) = get(port, path).await.unwrap();
                assert!(!body.contains(SECRET), "{path} tells it: {body}");
            }
            assert!(!sidecar.logs().contains(SECRET), "the sidecar's log tells values");
            assert_eq!(sidecar.terminate(SOON).await, Some(0));
            dba.batch_execute(&format!("drop owned by {eve}, {mallory}; drop role {eve}; drop role {mallory}")).await.unwrap();
            assert_eq!(value(&dba, "select 1").await, "1");
        }
    })
    .await;
}
