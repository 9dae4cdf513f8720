//! Forms that stand for several things at once: whole rows, ARRAY(SELECT ...), functions on the optional side of a join,
//! casts to money. Each is compared with PostgreSQL's own answer under random changes.

use super::sql::{Case, Expect, Schema, conformance};
use crate::harness::oracle::{assert_equal, difference_of_text};
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

/// Rows of NULLs, rows that an outer join does not find, a column that was dropped, one that is generated.
const SCHEMA: Schema = Schema::new(
    "forms",
    "create table person (id int primary key, gone int, name text, born date, boss int, tags text[],
         initial text generated always as (left(name, 1)) stored);
     alter table person drop column gone;
     insert into person (id, name, born, boss, tags)
         select i, nullif('p' || i % 7, 'p0'), date '1980-01-01' + i % 9, nullif(i / 3, 0), (array['{a,b,b}', '{}', '{c}', null])[1 + i % 4]::text[]
         from generate_series(1, 24) i;
     create table pet (owner int, name text, weight numeric(6,2));
     insert into pet select nullif(i % 13, 0), nullif('pet' || i % 5, 'pet0'), nullif(i % 6, 0) * 1.25 from generate_series(1, 30) i;
     insert into pet values (null, null, null), (null, null, null);
     create table account (id int primary key, balance numeric(12,2), cents bigint, price money);
     insert into account select i, i * 1.255 - 10, i * 7, (i * 3)::numeric::money from generate_series(1, 20) i;
     create table event (at date not null, name text not null) partition by range (at);
     create table event_old (name text not null, at date not null);
     alter table event attach partition event_old for values from (minvalue) to ('2024-03-01');
     create table event_new partition of event for values from ('2024-03-01') to (maxvalue);
     insert into event select date '2024-02-01' + i * 3, 'e' || i % 3 from generate_series(1, 20) i;
     create type pair as (a int, b text);
     create view adult as select id, name from person where born < '1980-01-06';
     create function label(p person) returns text immutable language sql as 'select p.id || coalesce(p.name, ''?'')';",
);

const fn case(name: &'static str, query: &'static str) -> Case {
    Case { name, query, expect: Expect::Incremental }
}

const ROWS: &[Case] = &[
    case("r_itself", "select p from person p"),
    case("r_to_jsonb", "select id, to_jsonb(p) as j from person p"),
    case("r_row_to_json", "select id, row_to_json(p.*)::text as j from person p"),
    case("r_minus", "select to_jsonb(p) - 'id' as j from person p"),
    case("r_without_key", "select to_jsonb(pet) as j from pet"),
    case("r_text", "select p::text as t from person p where p is not null"),
    case("r_null_tests", "select owner, pet is null as n, pet is not null as nn from pet"),
    case("r_count", "select count(p) as n, count(*) as m from person p"),
    case("r_count_outer", "select p.id, count(t) as n, count(*) as m from person p left join pet t on t.owner = p.id group by p.id"),
    case("r_outer", "select p.id, to_jsonb(t) as pet from person p left join pet t on t.owner = p.id"),
    case("r_outer_null", "select p.id from person p left join pet t on t.owner = p.id where t is null"),
    case("r_full", "select to_jsonb(p) as p, to_jsonb(t) as t from person p full join pet t on t.owner = p.id"),
    case("r_right", "select to_jsonb(p) as p, t.name from person p right join pet t on t.owner = p.id"),
    case("r_agg", "select boss, jsonb_agg(p order by id) as people from person p group by boss"),
    case("r_agg_json", "select json_agg(p order by p.id)::text as people from person p"),
    case("r_agg_outer", "select p.id, jsonb_agg(t order by t.name, t.weight) filter (where t.name is not null) as pets
        from person p left join pet t on t.owner = p.id group by p.id"),
    case("r_subquery", "select row_to_json(r)::text as j from (select id, name as \"Full Name\", upper(name) as \"row\" from person) r"),
    case("r_subquery_agg", "select jsonb_agg(r order by r.name, r.n) as j from (select name, count(*) as n from person group by name) r"),
    case("r_subquery_outer", "select p.id, to_jsonb(r) as j from person p
        left join (select owner, count(*) as n, max(weight) as w from pet group by owner) r on r.owner = p.id"),
    case("r_cte", "with r as (select id, name from person where id % 2 = 0) select to_jsonb(r) as j from r"),
    case("r_values", "select p.id, to_jsonb(v) as v from person p join (values (1, 'one'), (2, 'two')) v(a, b) on v.a = p.boss"),
    case("r_scalar", "select p.id, (select jsonb_agg(t order by t.name, t.weight) from pet t where t.owner = p.id) as pets from person p"),
    case("r_lateral", "select p.id, to_jsonb(l) as l from person p left join lateral
        (select t.name, t.weight from pet t where t.owner = p.id order by t.weight desc nulls last, t.name limit 1) l on true"),
    case("r_correlated", "select p.id, (select count(*) from pet t where t.owner = p.id and label(p) like '%p1') as n from person p"),
    case("r_function", "select label(p) as l from person p"),
    case("r_view", "select to_jsonb(a) as j from adult a"),
    case("r_partitions", "select at, to_jsonb(e) as j from event e"),
    case("r_distinct", "select distinct t from pet t"),
    case("r_group", "select t, count(*) as n from pet t group by t"),
    case("r_compared", "select a.id, b.id as other from person a join person b on a.boss = b.boss and a is distinct from b"),
    case("r_grouped_by_key", "select to_jsonb(p) as j, count(t.name) as n from person p left join pet t on t.owner = p.id group by p.id"),
    case("r_build", "select jsonb_build_object('person', p, 'pets', (select count(*) from pet t where t.owner = p.id)) as j from person p"),
    case("r_window", "select p.id, row_number() over (partition by p.boss order by p.id) as n, to_jsonb(p) as j from person p"),
    case("r_union", "select to_jsonb(p) as j from person p union all select to_jsonb(t) from pet t"),
];

const ARRAYS: &[Case] = &[
    case(
        "a_correlated",
        "select id, array(select t.name from pet t where t.owner = p.id order by t.weight, t.name) as pets from person p",
    ),
    case(
        "a_descending",
        "select id, array(select t.weight from pet t where t.owner = p.id order by t.weight desc nulls last) as w from person p",
    ),
    case(
        "a_by_other",
        "select id, array(select t.name from pet t where t.owner = p.id order by t.weight nulls first, t.name desc) as n from person p",
    ),
    case(
        "a_uncorrelated",
        "select id, array(select distinct t.owner from pet t where t.owner is not null order by 1) as owners from person p where id < 4",
    ),
    case("a_empty", "select array(select name from pet where weight > 1000) as none"),
    case(
        "a_limit",
        "select id, array(select t.weight from pet t where t.owner = p.id order by t.weight desc nulls last, t.name limit 2) as w from person p",
    ),
    case(
        "a_of_arrays",
        "select boss, array(select array[q.id, q.id % 3] from person q where q.boss = p.boss order by q.id) as a from (select distinct boss from person) p",
    ),
    case(
        "a_where",
        "select id from person p where 'pet1' = any (array(select t.name from pet t where t.owner = p.id))",
    ),
    case(
        "a_to_string",
        "select id, array_to_string(array(select t.name from pet t where t.owner = p.id order by t.name, t.weight), ',') as s from person p",
    ),
    case(
        "a_cardinality",
        "select id, cardinality(array(select 1 from pet t where t.owner = p.id)) as n from person p",
    ),
    case(
        "a_unnest_ordered",
        "select id, array(select upper(x) from unnest(p.tags) x order by 1) as tags from person p",
    ),
    case(
        "a_nested",
        "select id, array(select array_length(array(select 1 from pet u where u.name = t.name), 1) from pet t where t.owner = p.id order by 1) as n from person p",
    ),
    case(
        "a_union",
        "select array(select id from person where id < 5 union select owner from pet order by 1) as ids",
    ),
    case(
        "a_grouped",
        "select owner, array(select q.name from person q where q.id = pet.owner order by q.id) as n, count(*) as c from pet group by owner",
    ),
];

const FUNCTIONS: &[Case] = &[
    case("f_on", "select p.id, x from person p left join lateral unnest(p.tags) x on x <> 'b'"),
    case(
        "f_on_both",
        "select p.id, x, n from person p left join lateral unnest(p.tags) with ordinality u(x, n) on u.n < 2 and p.id % 2 = 0",
    ),
    case(
        "f_on_equal",
        "select p.id, g from person p left join lateral generate_series(1, p.boss) g on g = p.id % 4",
    ),
    case(
        "f_on_third",
        "select p.id, t.name, x from person p join pet t on t.owner = p.id left join lateral unnest(p.tags) x on x = left(t.name, 1)",
    ),
    case(
        "f_on_null",
        "select p.id, x from person p left join lateral unnest(p.tags) x on x > p.name where x is null",
    ),
];

const MONEY: &[Case] = &[
    case("m_from_numeric", "select id, balance::money as m from account"),
    case("m_from_int", "select id, id::money as m, cents::money as c from account"),
    case("m_to_numeric", "select id, price::numeric as n from account"),
    case("m_sum", "select sum(price) as s, sum(balance::money) as b from account"),
    case("m_text", "select id, price::text as t from account"),
    case("m_filter", "select id from account where price > 10::money"),
];

const LIMITS: &[Case] = &[
    case("l_subquery", "select id, name from person order by id limit (select count(*) from pet where owner is null)"),
    case("l_offset", "select id from person order by id desc offset (select min(id) from account where id > 1) limit (select count(distinct name) from pet)"),
    case("l_null", "select id from person order by id limit (select max(id) from person where id < 0)"),
    case("l_ties", "select id, boss from person order by boss fetch first (select count(*) / 4 from pet) rows with ties"),
    case("l_expression", "select id from person order by id limit length('four') + 1"),
    case("l_text_order", "select name, id from person order by name desc, id limit (select count(*) from account) / 2"),
    case("l_correlated", "select p.id, l.name from person p cross join lateral
        (select t.name from pet t where t.owner = p.id order by t.weight, t.name limit (select count(*) from account a where a.id < p.id)) l"),
    case("l_without_order", "select count(*) as n from (select id from person limit (select count(*) from pet)) q"),
];

const TABLE_EXPRESSIONS: &[Case] = &[
    case("t_deeper", "select p.id, (with mine as (select * from pet t where t.owner = p.id)
        select (select count(*) from mine) + (select count(*) from mine where weight > 2)) as n from person p"),
    case("t_exists", "select p.id from person p where (with mine as (select weight as w from pet t where t.owner = p.id)
        select exists (select from mine where w > (select avg(w) from mine)))"),
    case("t_two", "select p.id, l.* from person p cross join lateral (with one as (select t.name, t.weight from pet t where t.owner = p.id),
        two as (select name, count(*) as n from one group by name) select (select max(n) from two) as most, (select sum(weight) from one) as w) l"),
    case("t_join", "select p.id, l.n from person p cross join lateral (with mine as (select t.name from pet t where t.owner = p.id)
        select count(*) as n from mine a where exists (select from mine b where b.name > a.name)) l"),
];

const QUANTIFIERS: &[Case] = &[
    case("q_gt_any", "select id, balance > any (select weight from pet) as q from account"),
    case(
        "q_le_all",
        "select id, balance <= all (select weight from pet where weight is not null) as q from account",
    ),
    case("q_nulls", "select id, balance < all (select weight from pet) as q from account"),
    case(
        "q_none",
        "select id, id < all (select id from account where id < 0) as a, id > any (select id from account where id < 0) as b from person",
    ),
    case("q_where", "select id from account where balance >= all (select weight from pet where owner = 3)"),
    case("q_where_any", "select id from account where id > any (select owner from pet)"),
    case(
        "q_not",
        "select id from account where not (balance > any (select weight from pet where owner > 4 and weight > 1))",
    ),
    case(
        "q_left_null",
        "select id, boss > any (select owner from pet) as q, boss >= all (select owner from pet where owner < 3) as r from person",
    ),
    case(
        "q_correlated",
        "select p.id, p.boss < any (select q.id from person q where q.boss = p.boss) as q from person p",
    ),
    case("q_dates", "select id, born > all (select at from event where name = 'e1') as q from person"),
    case("q_turned", "select id from account where 3 < all (select id from person where boss = 2)"),
];

#[tokio::test(flavor = "multi_thread")]
async fn limits_table_expressions_and_quantifiers_are_maintained() {
    let cases: Vec<Case> = [LIMITS, TABLE_EXPRESSIONS, QUANTIFIERS].concat();
    for_each_major(async |server| conformance(server, &SCHEMA, &cases).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_rows_are_values() {
    for_each_major(async |server| conformance(server, &SCHEMA, ROWS).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arrays_of_subqueries_functions_under_conditions_and_money_are_maintained() {
    let cases: Vec<Case> = [ARRAYS, FUNCTIONS, MONEY].concat();
    for_each_major(async |server| conformance(server, &SCHEMA, &cases).await).await;
}

/// A whole row has the columns of the moment; what is computed as the owner has to be agreed to by the owner again.
#[tokio::test(flavor = "multi_thread")]
async fn columns_that_come_and_go_are_seen_in_whole_rows() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute("create table t (id int primary key, a text); insert into t select i, 'a' || i from generate_series(1, 9) i")
            .await
            .unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let (own, whole) = ("select id, to_jsonb(t)::text as j from t", "select id, (t is not null) as f, count(t) as n from t group by id");
        for (name, query) in [("own", own), ("whole", whole)] {
            app.execute("select pgtrickle.create_stream_table($1, $2)", &[&name, &query]).await.unwrap();
        }
        let mode = async |name: &str, wanted: &str| {
            wait_until(&format!("{name} to be {wanted}"), SOON, || async {
                let sql = "select concat_ws(' ', refresh_mode, status, refresh_reason) from pgtrickle.stream_tables_info where pgt_name = $1";
                let state: String = app.query_one(sql, &[&name]).await.unwrap().get(0);
                if state.starts_with(wanted) { Ok(()) } else { Err(state) }
            })
            .await;
        };
        let equal = async |name: &str, query: &str, columns: &str| {
            wait_until(&format!("the rows of {name}"), SOON, || async {
                match difference_of_text(&app, query, name, columns).await {
                    Ok(rows) if rows.is_empty() => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        };
        for change in [
            "insert into t values (10, 'a10')",
            "alter table t add column b int default 7",
            "insert into t values (11, 'a11', 8); update t set b = null where id = 1",
            "alter table t drop column a",
            "alter table t rename column b to c",
            "delete from t where id = 2",
        ] {
            app.batch_execute(change).await.unwrap();
            if change.contains("add column") || change.contains("drop column") {
                mode("own", "FULL").await;
                app.execute("select pgtrickle.alter_stream_table('own', query => $1)", &[&own]).await.unwrap();
            }
            mode("own", "DIFFERENTIAL ACTIVE").await;
            mode("whole", "DIFFERENTIAL ACTIVE").await;
            equal("own", own, "id, j").await;
            equal("whole", whole, "id, f, n").await;
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A condition of ON that PostgreSQL computes and that fails for a pair of rows is an error of the query.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_a_condition_of_an_outer_join_is_not_lost() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        let tables = "create table a (id int primary key); create table b (a_id int, x int);
            create function inverse(x int) returns int immutable language plpgsql as 'begin return 10 / x; end';
            insert into a select generate_series(1, 5); insert into b select i % 4, i from generate_series(1, 12) i";
        app.batch_execute(tables).await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let queries = [
            ("left_side", "select a.id, b.x from a left join b on b.a_id = a.id and inverse(a.id) > 2", "id, x"),
            ("right_side", "select a.id, b.x from a full join b on b.a_id = a.id and inverse(b.a_id) > 2", "id, x"),
            ("no_match", "select a.id from a where not exists (select from b where b.a_id = a.id and inverse(a.id) > 2)", "id"),
        ];
        let state = async |wanted: &str| {
            wait_until(&format!("all to be {wanted}"), SOON, || async {
                let sql = "select string_agg(concat_ws(' ', pgt_name, status, last_error_sqlstate), ', ')
                    from pgtrickle.stream_tables_info where concat_ws(' ', status, last_error_sqlstate) not like '%' || $1 || '%'";
                app.query_one(sql, &[&wanted]).await.unwrap().get::<_, Option<String>>(0).map_or(Ok(()), Err)
            })
            .await;
        };
        for (name, query, _) in queries {
            let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
            app.execute(create, &[&name, &query]).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        }
        // The rows that would make a pair of zeros are not there yet.
        app.batch_execute("delete from b where a_id = 0").await.unwrap();
        state("ACTIVE").await;
        app.batch_execute("begin; insert into a values (0); insert into b values (0, 5); commit").await.unwrap();
        state("22012").await;
        app.batch_execute("delete from a where id = 0; delete from b where a_id = 0").await.unwrap();
        state("ACTIVE").await;
        let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
        assert!(passed);
        for (name, query, columns) in queries {
            assert_equal(&app, query, name, columns).await;
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A division by zero in a row that no row of the outer query asks for is none, whatever plan PostgreSQL would choose.
#[tokio::test(flavor = "multi_thread")]
async fn a_condition_of_exists_fails_only_for_rows_that_are_asked_for() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        let tables = "create table a (id int primary key); create table b (a_id int, x int);
            insert into a select generate_series(1, 5); insert into b select i % 4, i from generate_series(1, 12) i";
        app.batch_execute(tables).await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let queries = [
            ("found", "select id from a where exists (select from b where b.a_id = a.id and {} > 1)"),
            ("not_found", "select id from a where not exists (select from b where b.a_id = a.id and {} > 1)"),
            ("among", "select id from a where id in (select a_id from b where b.a_id = a.id and {} > 1)"),
        ];
        for (name, query) in queries {
            let create = "select pgtrickle.create_stream_table($1, $2, refresh_mode => 'DIFFERENTIAL')";
            app.execute(create, &[&name, &query.replace("{}", "10 / b.x")]).await.unwrap();
        }
        let all = async |wanted: &str| {
            wait_until(&format!("all to be {wanted}"), SOON, || async {
                let sql = "select string_agg(concat_ws(' ', pgt_name, status, last_error_sqlstate), ', ')
                    from pgtrickle.stream_tables_info where concat_ws(' ', status, last_error_sqlstate) not like '%' || $1 || '%'";
                app.query_one(sql, &[&wanted]).await.unwrap().get::<_, Option<String>>(0).map_or(Ok(()), Err)
            })
            .await;
        };
        let equal = async || {
            let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
            assert!(passed);
            for (name, query) in queries {
                let query = query.replace("{}", "case when b.x <> 0 then 10 / b.x end");
                assert_equal(&app, &query, name, "id").await;
            }
        };
        all("ACTIVE").await;
        equal().await;
        app.batch_execute("insert into b values (99, 0), (null, 0); update b set x = 3 where x = 11; delete from b where x = 1")
            .await
            .unwrap();
        equal().await;
        all("ACTIVE").await;
        app.batch_execute("insert into a values (99)").await.unwrap();
        all("22012").await;
        app.batch_execute("delete from b where x = 0").await.unwrap();
        all("ACTIVE").await;
        equal().await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
