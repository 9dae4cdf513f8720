//! Every aggregate of the server: one that no case calls fails the test, so a new major brings its own work along.
//!
//! `{f}` is where a FILTER goes, `{d}` where DISTINCT does: each case is a column for each form it has, once over groups and
//! once over all rows. Rows come, change, and go until groups and then the table are empty; everything is compared text by
//! text. Floats are multiples of an eighth, and what is rounded on the way to an answer is rounded in the query.

use std::collections::BTreeSet;

use super::{columns_of, not_active};
use crate::harness::database::TestDatabase;
use crate::harness::left_out;
use crate::harness::oracle::difference_of_text;
use crate::harness::servers::{Server, for_each_major};
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};
use crate::suites::oracle::prng::{Prng, seed};

/// The values; `s` numbers them, small differences meet in groups.
const SCHEMA: &str = "
    create type mood as enum ('sad', 'ok', 'happy');
    create type pair as (a int, b text);
    create table v (id int primary key, g int, b bool, i2 int2, i4 int4, i8 int8, n numeric(8,2), r float4, f float8,
        d date, tm time, tz timetz, ts timestamp, tsz timestamptz, iv interval, mo money, tx text, ch char(4), a int[],
        en mood, ip inet, lsn pg_lsn, x8 xid8, o oid, ti tid, bi bit(4), by bytea, j jsonb, rg int4range,
        mr int4multirange, p pair);
    create function sample(id int, s int) returns v language sql stable as $$
        select id, nullif(s % 5, 4), s % 3 <> 0, nullif(s % 7, 6)::int2, nullif(s % 11 - 4, 5), (s % 6) * 5000000000,
            (array[1.25, -3.50, null, 99.75])[1 + s % 4], ((s % 9) / 8.0)::float4, nullif((s % 13 - 5) / 8.0, 0.25)::float8,
            date '2024-02-27' + nullif(s % 6, 3), time '10:00' + s % 5 * interval '1 min', '10:00+01'::timetz + s % 4 * interval '1 hour',
            timestamp '2024-01-01 10:00' + s % 8 * interval '1 day', timestamptz '2024-01-01 10:00+00' + s % 7 * interval '1 hour',
            nullif(s % 9, 2) * interval '1 hour 7 min', (s % 10 * 1.5)::numeric::money, (array['a', 'Ab', 'b', null, '', 'é'])[1 + s % 6],
            (array['x', 'yy', null])[1 + s % 3], case when s % 5 > 0 then array[s % 3, s % 2] end,
            (array['sad', 'ok', 'happy', null])[1 + s % 4]::mood, ('10.0.0.' || s % 6)::inet, ('0/' || s % 7)::pg_lsn,
            (s % 8)::text::xid8, (s % 9)::oid, ('(1,' || s % 5 || ')')::tid, (array[b'1010', b'0001', b'0111', null])[1 + s % 4]::bit(4),
            (array['\\x00ff', '\\x01', null])[1 + s % 3]::bytea, (array['1', '\"x\"', '[1, null]', null, '{\"k\": 2}'])[1 + s % 5]::jsonb,
            int4range(s % 4, s % 4 + 3), int4multirange(int4range(s % 3, s % 3 + 4), int4range(20, 21 + s % 3)),
            row(s % 4, (array['p', 'q'])[1 + s % 2])::pair $$;
    insert into v select (sample(i, i * 7 % 60)).* from generate_series(1, 45) i;
";

/// The aggregate as `regprocedure` writes it, the first major that has it, and a call.
type Call = (&'static str, u32, &'static str);

/// They return an anonymous record, whose text can depend on anything: recomputed.
const RECORDS: &str = "records";

/// What becomes one stream table over groups and one over all rows: aggregates with a native form stay by themselves, for
/// beside others PostgreSQL would compute them too.
const SETS: &[(&str, &[Call])] = &[
    (
        "sums",
        &[
            ("count(\"any\")", 14, "count({d}i4){f}"),
            ("count()", 14, "count(*){f}"),
            ("sum(smallint)", 14, "sum({d}i2){f}"),
            ("sum(integer)", 14, "sum({d}i4){f}"),
            ("sum(bigint)", 14, "sum({d}i8){f}"),
            ("sum(numeric)", 14, "sum({d}n){f}"),
            ("sum(real)", 14, "sum({d}r){f}"),
            ("sum(double precision)", 14, "sum({d}f){f}"),
            ("avg(smallint)", 14, "avg({d}i2){f}"),
            ("avg(integer)", 14, "avg({d}i4){f}"),
            ("avg(bigint)", 14, "avg({d}i8){f}"),
            ("avg(numeric)", 14, "avg({d}n){f}"),
            ("avg(real)", 14, "avg({d}r){f}"),
            ("avg(double precision)", 14, "avg({d}f){f}"),
        ],
    ),
    (
        "extremes",
        &[
            ("min(smallint)", 14, "min({d}i2){f}"),
            ("max(smallint)", 14, "max({d}i2){f}"),
            ("min(integer)", 14, "min({d}i4){f}"),
            ("max(integer)", 14, "max({d}i4){f}"),
            ("min(bigint)", 14, "min({d}i8){f}"),
            ("max(bigint)", 14, "max({d}i8){f}"),
            ("min(numeric)", 14, "min({d}n){f}"),
            ("max(numeric)", 14, "max({d}n){f}"),
            ("min(real)", 14, "min({d}r){f}"),
            ("max(real)", 14, "max({d}r){f}"),
            ("min(double precision)", 14, "min({d}f){f}"),
            ("max(double precision)", 14, "max({d}f){f}"),
            ("min(date)", 14, "min({d}d){f}"),
            ("max(date)", 14, "max({d}d){f}"),
            ("min(timestamp without time zone)", 14, "min({d}ts){f}"),
            ("max(timestamp without time zone)", 14, "max({d}ts){f}"),
            ("min(timestamp with time zone)", 14, "min({d}tsz){f}"),
            ("max(timestamp with time zone)", 14, "max({d}tsz){f}"),
            ("min(text)", 14, "min({d}tx collate \"C\"){f}"),
            ("max(text)", 14, "max({d}tx collate \"C\"){f}"),
            ("bool_and(boolean)", 14, "bool_and(b){f}"),
            ("bool_or(boolean)", 14, "bool_or(b){f}"),
            ("every(boolean)", 14, "every(i4 > 0){f}"),
        ],
    ),
    (
        "extremes_of_others",
        &[
            ("min(text)", 14, "min({d}tx){f}"),
            ("max(text)", 14, "max({d}tx){f}"),
            ("min(oid)", 14, "min({d}o){f}"),
            ("max(oid)", 14, "max({d}o){f}"),
            ("min(time without time zone)", 14, "min({d}tm){f}"),
            ("max(time without time zone)", 14, "max({d}tm){f}"),
            ("min(time with time zone)", 14, "min({d}tz){f}"),
            ("max(time with time zone)", 14, "max({d}tz){f}"),
            ("min(money)", 14, "min({d}mo){f}"),
            ("max(money)", 14, "max({d}mo){f}"),
            ("min(interval)", 14, "min({d}iv){f}"),
            ("max(interval)", 14, "max({d}iv){f}"),
            ("min(anyarray)", 14, "min({d}a){f}"),
            ("max(anyarray)", 14, "max({d}a){f}"),
            ("min(character)", 14, "min({d}ch){f}"),
            ("max(character)", 14, "max({d}ch){f}"),
            ("min(tid)", 14, "min({d}ti){f}"),
            ("max(tid)", 14, "max({d}ti){f}"),
            ("min(inet)", 14, "min({d}ip){f}"),
            ("max(inet)", 14, "max({d}ip){f}"),
            ("min(pg_lsn)", 14, "min({d}lsn){f}"),
            ("max(pg_lsn)", 14, "max({d}lsn){f}"),
            ("min(xid8)", 15, "min({d}x8){f}"),
            ("max(xid8)", 15, "max({d}x8){f}"),
            ("min(anyenum)", 14, "min({d}en){f}"),
            ("max(anyenum)", 14, "max({d}en){f}"),
            ("min(bytea)", 18, "min({d}by){f}"),
            ("max(bytea)", 18, "max({d}by){f}"),
        ],
    ),
    (RECORDS, &[("min(record)", 18, "(min({d}p){f})::text"), ("max(record)", 18, "(max({d}p){f})::text")]),
    (
        "sums_of_others",
        &[
            ("sum(money)", 14, "sum({d}mo){f}"),
            ("sum(interval)", 14, "sum({d}iv){f}"),
            ("avg(interval)", 14, "avg({d}iv){f}"),
        ],
    ),
    (
        "variances",
        &[
            ("var_pop(smallint)", 14, "var_pop({d}i2){f}"),
            ("var_pop(integer)", 14, "var_pop({d}i4){f}"),
            ("var_pop(bigint)", 14, "var_pop({d}i8){f}"),
            ("var_pop(numeric)", 14, "var_pop({d}n){f}"),
            ("var_pop(real)", 14, "round(var_pop({d}r){f}::numeric, 9)"),
            ("var_pop(double precision)", 14, "round(var_pop({d}f){f}::numeric, 9)"),
            ("var_samp(smallint)", 14, "var_samp({d}i2){f}"),
            ("var_samp(integer)", 14, "var_samp({d}i4){f}"),
            ("var_samp(bigint)", 14, "var_samp({d}i8){f}"),
            ("var_samp(numeric)", 14, "var_samp({d}n){f}"),
            ("var_samp(real)", 14, "round(var_samp({d}r){f}::numeric, 9)"),
            ("var_samp(double precision)", 14, "round(var_samp({d}f){f}::numeric, 9)"),
            ("variance(smallint)", 14, "variance({d}i2){f}"),
            ("variance(integer)", 14, "variance({d}i4){f}"),
            ("variance(bigint)", 14, "variance({d}i8){f}"),
            ("variance(numeric)", 14, "variance({d}n){f}"),
            ("variance(real)", 14, "round(variance({d}r){f}::numeric, 9)"),
            ("variance(double precision)", 14, "round(variance({d}f){f}::numeric, 9)"),
        ],
    ),
    (
        "deviations",
        &[
            ("stddev_pop(smallint)", 14, "stddev_pop({d}i2){f}"),
            ("stddev_pop(integer)", 14, "stddev_pop({d}i4){f}"),
            ("stddev_pop(bigint)", 14, "stddev_pop({d}i8){f}"),
            ("stddev_pop(numeric)", 14, "stddev_pop({d}n){f}"),
            ("stddev_pop(real)", 14, "round(stddev_pop({d}r){f}::numeric, 9)"),
            ("stddev_pop(double precision)", 14, "round(stddev_pop({d}f){f}::numeric, 9)"),
            ("stddev_samp(smallint)", 14, "stddev_samp({d}i2){f}"),
            ("stddev_samp(integer)", 14, "stddev_samp({d}i4){f}"),
            ("stddev_samp(bigint)", 14, "stddev_samp({d}i8){f}"),
            ("stddev_samp(numeric)", 14, "stddev_samp({d}n){f}"),
            ("stddev_samp(real)", 14, "round(stddev_samp({d}r){f}::numeric, 9)"),
            ("stddev_samp(double precision)", 14, "round(stddev_samp({d}f){f}::numeric, 9)"),
            ("stddev(smallint)", 14, "stddev({d}i2){f}"),
            ("stddev(integer)", 14, "stddev({d}i4){f}"),
            ("stddev(bigint)", 14, "stddev({d}i8){f}"),
            ("stddev(numeric)", 14, "stddev({d}n){f}"),
            ("stddev(real)", 14, "round(stddev({d}r){f}::numeric, 9)"),
            ("stddev(double precision)", 14, "round(stddev({d}f){f}::numeric, 9)"),
        ],
    ),
    (
        "regressions",
        &[
            ("regr_count(double precision,double precision)", 14, "regr_count({d}f, i4){f}"),
            ("regr_sxx(double precision,double precision)", 14, "round(regr_sxx({d}f, i4){f}::numeric, 9)"),
            ("regr_syy(double precision,double precision)", 14, "round(regr_syy({d}f, i4){f}::numeric, 9)"),
            ("regr_sxy(double precision,double precision)", 14, "round(regr_sxy({d}f, i4){f}::numeric, 9)"),
            ("regr_avgx(double precision,double precision)", 14, "round(regr_avgx({d}f, i4){f}::numeric, 9)"),
            ("regr_avgy(double precision,double precision)", 14, "round(regr_avgy({d}f, i4){f}::numeric, 9)"),
            ("regr_r2(double precision,double precision)", 14, "round(regr_r2({d}f, i4){f}::numeric, 9)"),
            (
                "regr_slope(double precision,double precision)",
                14,
                "round(regr_slope({d}f, i4){f}::numeric, 9)",
            ),
            (
                "regr_intercept(double precision,double precision)",
                14,
                "round(regr_intercept({d}f, i4){f}::numeric, 9)",
            ),
            ("covar_pop(double precision,double precision)", 14, "round(covar_pop({d}f, r){f}::numeric, 9)"),
            (
                "covar_samp(double precision,double precision)",
                14,
                "round(covar_samp({d}f, r){f}::numeric, 9)",
            ),
            ("corr(double precision,double precision)", 14, "round(corr({d}f, r){f}::numeric, 9)"),
        ],
    ),
    (
        "bits_and_ranges",
        &[
            ("bit_and(smallint)", 14, "bit_and({d}i2){f}"),
            ("bit_and(integer)", 14, "bit_and({d}i4){f}"),
            ("bit_and(bigint)", 14, "bit_and({d}i8){f}"),
            ("bit_and(bit)", 14, "bit_and({d}bi){f}"),
            ("bit_or(smallint)", 14, "bit_or({d}i2){f}"),
            ("bit_or(integer)", 14, "bit_or({d}i4){f}"),
            ("bit_or(bigint)", 14, "bit_or({d}i8){f}"),
            ("bit_or(bit)", 14, "bit_or({d}bi){f}"),
            ("bit_xor(smallint)", 14, "bit_xor({d}i2){f}"),
            ("bit_xor(integer)", 14, "bit_xor({d}i4){f}"),
            ("bit_xor(bigint)", 14, "bit_xor({d}i8){f}"),
            ("bit_xor(bit)", 14, "bit_xor({d}bi){f}"),
            ("range_agg(anyrange)", 14, "range_agg({d}rg){f}"),
            ("range_agg(anymultirange)", 15, "range_agg({d}mr){f}"),
            ("range_intersect_agg(anyrange)", 14, "range_intersect_agg({d}rg){f}"),
            ("range_intersect_agg(anymultirange)", 14, "range_intersect_agg({d}mr){f}"),
            // Any of the group's: here there is only one.
            ("any_value(anyelement)", 16, "any_value({d}case when i4 > 0 then 'g' end){f}"),
        ],
    ),
    (
        "lists",
        &[
            ("array_agg(anynonarray)", 14, "array_agg({d}tx order by tx desc nulls last){f}"),
            ("array_agg(anyarray)", 14, "array_agg({d}array[id, i4] order by array[id, i4]){f}"),
            ("string_agg(text,text)", 14, "string_agg({d}tx, ',' order by tx){f}"),
            ("string_agg(bytea,bytea)", 14, "string_agg({d}by, '\\x2c' order by by){f}"),
        ],
    ),
    (
        "json",
        &[
            ("json_agg(anyelement)", 14, "json_agg({d}n order by n){f}"),
            ("json_agg(anyelement)", 14, "json_agg(p order by id){f}"),
            ("jsonb_agg(anyelement)", 14, "jsonb_agg({d}j order by j){f}"),
            ("json_object_agg(\"any\",\"any\")", 14, "json_object_agg(id, tx order by id){f}"),
            ("jsonb_object_agg(\"any\",\"any\")", 14, "jsonb_object_agg({d}id, ts){f}"),
            ("json_agg_strict(anyelement)", 16, "json_agg_strict({d}n order by n){f}"),
            ("jsonb_agg_strict(anyelement)", 16, "jsonb_agg_strict(tx order by id){f}"),
            ("json_object_agg_strict(\"any\",\"any\")", 16, "json_object_agg_strict(id, tx order by id){f}"),
            ("jsonb_object_agg_strict(\"any\",\"any\")", 16, "jsonb_object_agg_strict(id, tx){f}"),
            ("json_object_agg_unique(\"any\",\"any\")", 16, "json_object_agg_unique(id, n order by id){f}"),
            ("jsonb_object_agg_unique(\"any\",\"any\")", 16, "jsonb_object_agg_unique(id, j){f}"),
            (
                "json_object_agg_unique_strict(\"any\",\"any\")",
                16,
                "json_object_agg_unique_strict(id, tx order by id){f}",
            ),
            (
                "jsonb_object_agg_unique_strict(\"any\",\"any\")",
                16,
                "jsonb_object_agg_unique_strict(id, a){f}",
            ),
        ],
    ),
    (
        "json_of_the_standard",
        &[
            ("json_agg_strict(anyelement)", 16, "json_arrayagg(n order by id absent on null){f}"),
            ("json_agg(anyelement)", 16, "json_arrayagg(tx order by id null on null){f}"),
            ("json_agg_strict(anyelement)", 16, "json_arrayagg(n order by id returning text){f}"),
            ("json_agg_strict(anyelement)", 16, "json_arrayagg(n order by id returning varchar(900)){f}"),
            ("jsonb_agg_strict(anyelement)", 16, "json_arrayagg(i4 order by i4, id returning jsonb){f}"),
            ("jsonb_object_agg(\"any\",\"any\")", 16, "json_objectagg(id: tx returning jsonb){f}"),
            (
                "jsonb_object_agg_strict(\"any\",\"any\")",
                16,
                "json_objectagg(id value a absent on null returning jsonb){f}",
            ),
            (
                "jsonb_object_agg_unique_strict(\"any\",\"any\")",
                16,
                "json_objectagg(id: n absent on null with unique keys returning jsonb){f}",
            ),
        ],
    ),
    (
        "ordered",
        &[
            (
                "percentile_disc(double precision,anyelement)",
                14,
                "percentile_disc(0.4) within group (order by tx){f}",
            ),
            (
                "percentile_cont(double precision,double precision)",
                14,
                "percentile_cont(0.3) within group (order by f){f}",
            ),
            (
                "percentile_cont(double precision,interval)",
                14,
                "percentile_cont(0.5) within group (order by iv desc){f}",
            ),
            (
                "percentile_disc(double precision[],anyelement)",
                14,
                "percentile_disc(array[0, 0.5, null, 1]) within group (order by d){f}",
            ),
            (
                "percentile_cont(double precision[],double precision)",
                14,
                "percentile_cont(array[0.25, 0.75]) within group (order by i4){f}",
            ),
            (
                "percentile_cont(double precision[],interval)",
                14,
                "percentile_cont(array[0.1, 1]) within group (order by iv){f}",
            ),
            ("mode(anyelement)", 14, "mode() within group (order by ch){f}"),
            ("rank(\"any\")", 14, "rank(2, 'b') within group (order by i4, tx){f}"),
            ("dense_rank(\"any\")", 14, "dense_rank(2) within group (order by i4 desc){f}"),
            ("percent_rank(\"any\")", 14, "percent_rank(1) within group (order by i4 nulls first){f}"),
            ("cume_dist(\"any\")", 14, "cume_dist(0.5) within group (order by f){f}"),
        ],
    ),
    ("xml", &[("xmlagg(xml)", 14, "(xmlagg(xmlcomment(tx) order by id){f})::text")]),
];

const BUILT_IN: &str =
    "select aggfnoid::regprocedure::text from pg_aggregate a join pg_proc p on p.oid = a.aggfnoid
    where p.pronamespace = 'pg_catalog'::regnamespace";

/// Both directions: no aggregate without a case, no case for what is not there.
async fn assert_complete(app: &tokio_postgres::Client, major: u32) {
    let names = |row: &tokio_postgres::Row| row.get::<_, String>(0);
    let there: BTreeSet<String> = app.query(BUILT_IN, &[]).await.unwrap().iter().map(names).collect();
    let calls = SETS.iter().flat_map(|(_, calls)| calls.iter());
    let called: BTreeSet<String> =
        calls.filter(|c| c.1 <= major).map(|(signature, ..)| (*signature).to_owned()).collect();
    let missing: Vec<_> = there.difference(&called).collect();
    assert!(missing.is_empty(), "PostgreSQL {major} has aggregates without a case: {missing:#?}");
    let gone: Vec<_> = called.difference(&there).collect();
    assert!(gone.is_empty(), "PostgreSQL {major} does not have: {gone:#?}");
}

/// Name and query of each stream table that this server can have.
async fn queries(server: &Server, app: &tokio_postgres::Client) -> Vec<(String, String)> {
    let xml = app.batch_execute("select '<a/>'::xml").await.is_ok();
    let mut queries = Vec::new();
    for (name, calls) in SETS {
        if *name == "xml" && !xml {
            left_out(&format!("PostgreSQL {} is built without XML: xmlagg", server.major));
            continue;
        }
        let mut list = Vec::new();
        for (_, _, call) in calls.iter().filter(|c| c.1 <= server.major) {
            for (distinct, filter) in [("", ""), ("", " filter (where b)"), ("distinct ", "")] {
                if distinct.is_empty() || call.contains("{d}") {
                    let column = call.replace("{d}", distinct).replace("{f}", filter);
                    list.push(format!("{column} as a{}", list.len()));
                }
            }
        }
        if !list.is_empty() {
            let list = list.join(", ");
            queries.push((format!("by_{name}"), format!("select g, {list} from v group by g")));
            queries.push((format!("all_{name}"), format!("select {list} from v")));
        }
    }
    queries
}

/// Columns that a change may touch, all but the key.
async fn columns(app: &tokio_postgres::Client) -> Vec<String> {
    const SQL: &str = "select attname::text from pg_attribute where attrelid = 'v'::regclass and attnum > 1 order by attnum";
    app.query(SQL, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

fn change(rng: &mut Prng, columns: &[String]) -> String {
    let (id, other, group) = (rng.below(50), rng.below(500), rng.below(4));
    let values = columns.iter().filter(|c| *c != "g");
    match rng.below(9) {
        0 | 1 => format!("delete from v where id = {id}; insert into v select (sample({id}, {other})).*"),
        2 => {
            let sets: Vec<String> = columns.iter().map(|c| format!("{c} = s.{c}")).collect();
            let which = rng.below(9);
            format!("update v set {} from sample(0, {other}) as s where v.id % 9 = {which}", sets.join(", "))
        }
        // A group of NULLs alone.
        3 => {
            let sets: Vec<String> = values.map(|c| format!("{c} = null")).collect();
            format!("update v set {} where g = {group}", sets.join(", "))
        }
        4 => format!("delete from v where g = {group} or g is null and {other} % 2 = 0"),
        5 => format!("delete from v where id % 8 = {}", rng.below(8)),
        6 => format!("update v set g = nullif({group}, 3) where id % 6 = {}", rng.below(6)),
        7 => format!("update v set b = not b where id % 4 = {}", rng.below(4)),
        _ => format!(
            "insert into v select (sample(i, i + {other})).* from generate_series({id}, {id} + 6) i on conflict do nothing"
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_aggregate_of_the_server_equals_its_query() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        assert_complete(&app, server.major).await;
        app.batch_execute(SCHEMA).await.unwrap();
        let (mut queries, columns) = (queries(server, &app).await, columns(&app).await);
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let mut refused = Vec::new();
        for (name, query) in &queries {
            let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
            match (app.execute(create, &[name, query]).await, name.ends_with(RECORDS)) {
                (Ok(_), false) => {}
                (Err(error), true) if format!("{error:?}").contains("from record to text") => {}
                (outcome, _) => refused.push(format!("{query}: {outcome:?}")),
            }
        }
        queries.retain(|(name, _)| !name.ends_with(RECORDS));
        assert!(refused.is_empty(), "on {}: {refused:#?}", server.major);
        wait_until("all stream tables are active", SOON, || async {
            not_active(&app).await.map_or(Ok(()), Err)
        })
        .await;
        let seed = seed() + 60;
        println!("PGTRICKLE_ORACLE_SEED={} on PostgreSQL {}", seed - 60, server.major);
        let mut rng = Prng::new(seed);
        for batch in 0..14 {
            let changes = match batch {
                0 => vec!["-- as loaded".to_owned()],
                10 => vec!["delete from v".to_owned()],
                _ => (0..1 + rng.below(5)).map(|_| change(&mut rng, &columns)).collect(),
            };
            app.batch_execute(&format!("begin;\n{};\ncommit", changes.join(";\n")))
                .await
                .unwrap_or_else(|e| panic!("{changes:?}: {e:?}"));
            let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
            assert!(passed, "the frontier did not pass in time");
            let mut wrong = Vec::new();
            for (name, query) in &queries {
                let columns = columns_of(&app, name).await;
                match difference_of_text(&app, query, name, &columns).await {
                    Ok(rows) if rows.is_empty() => {}
                    other => wrong.push(format!("{name}: {other:?}\n{query}")),
                }
            }
            let inactive = not_active(&app).await;
            assert!(
                wrong.is_empty() && inactive.is_none(),
                "seed {}, batch {batch} on {}: {wrong:#?}\n{inactive:?}\nafter {changes:#?}",
                seed - 60,
                server.major
            );
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
