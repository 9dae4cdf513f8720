//! The queries of the suite, over four small tables with NULLs, duplicates and values that are equal but look different.

pub const SCHEMA: &str = "
    create table a (id int primary key, x int, y int, t text, n numeric);
    create table b (id int primary key, a_id int, x int, y int, t text not null, n numeric);
    create table c (k int, v int, t text);
    alter table c replica identity full;
    create table e (id int primary key, x int not null, y int);
    insert into a select g, nullif(g % 7, 3), g % 4, chr(97 + g % 3), (array[1.0, 1.00, 2.5, null])[1 + g % 4]
        from generate_series(1, 24) g;
    insert into b select g, nullif(g % 30, 5), nullif(g % 6, 2), g % 5, chr(97 + g % 4), (array[1, 2.50, 2.5, null])[1 + g % 4]
        from generate_series(1, 40) g;
    insert into c select nullif(g % 8, 6), nullif(g % 3, 1), chr(97 + g % 5) from generate_series(1, 20) g;
    insert into c select k, v, t from c where k = 4;
    create table f (id int primary key, d jsonb, k int);
    insert into f select g, (array['{\"a\": 1}', '{\"a\": 1.0}', '[]', null])[1 + g % 4]::jsonb, g % 3 from generate_series(1, 12) g;
";

/// Name and query.
pub type Case = (&'static str, &'static str);

pub const CASES: &[Case] = &[
    // EXISTS and NOT EXISTS.
    ("exists_keyed", "select id, x from a where exists (select 1 from b where b.a_id = a.id)"),
    (
        "exists_two_keys",
        "select id from a where exists (select * from b where b.x = a.x and b.y = a.y and b.y > 1)",
    ),
    ("exists_residual", "select id from a where exists (select 1 from b where b.x = a.x and b.y > a.y)"),
    (
        "exists_remote",
        "select id from a where exists (select 1 from b where b.x = a.x and lower(b.t) || a.t > 'bb')",
    ),
    ("exists_unkeyed", "select id from a where exists (select 1 from e where e.x > a.x)"),
    ("exists_uncorrelated", "select id, t from a where exists (select 1 from e where y > 2)"),
    ("not_exists_uncorrelated", "select id, t from a where not exists (select from e)"),
    ("not_exists_keyed", "select id, x from a where not exists (select 1 from b where b.a_id = a.id)"),
    (
        "not_exists_residual",
        "select id from a where not exists (select 1 from c where c.k = a.x and c.v <> a.y)",
    ),
    (
        "not_exists_numeric",
        "select id, n from a where not exists (select 1 from b where b.n = a.n and b.id > 5)",
    ),
    (
        "exists_join_inside",
        "select id from a where exists (select 1 from b join c on c.k = b.x where b.a_id = a.id and c.v = a.y)",
    ),
    (
        "exists_nested",
        "select id from a where exists (select 1 from b where b.a_id = a.id and exists (select 1 from c where c.k = b.x and c.v = a.y))",
    ),
    (
        "exists_nested_not",
        "select id from a where exists (select 1 from b where b.x = a.x and not exists (select 1 from c where c.k = b.y and c.t = a.t))",
    ),
    (
        "exists_grouped",
        "select id from a where exists (select b.x from b where b.y = a.y group by b.x having count(*) > 1 and max(b.x) >= a.x)",
    ),
    (
        "exists_limit",
        "select id from a where exists (select b.x from b where b.x = a.x order by b.id limit 1)",
    ),
    ("exists_aggregate", "select id from a where exists (select count(*) from b where b.x = a.x)"),
    (
        "exists_or",
        "select id from a where exists (select 1 from b where b.a_id = a.id) or exists (select 1 from c where c.k = a.x and c.v = 0) or y = 3",
    ),
    (
        "exists_value",
        "select id, exists (select 1 from b where b.a_id = a.id and b.y > 1) as f, not exists (select 1 from e where e.x = a.x) as g from a",
    ),
    (
        "exists_case",
        "select id, case when exists (select 1 from c where c.k = a.id) then 'c' when exists (select 1 from e where e.id = a.id) then 'e' else t end as s from a",
    ),
    (
        "exists_not_distinct",
        "select id from a where exists (select 1 from b where b.x is not distinct from a.x and b.id < 20)",
    ),
    (
        "exists_union",
        "select id from a where exists (select x from b where b.a_id = a.id union all select v from c where c.k = a.x)",
    ),
    (
        "exists_in_where_of_outer_join",
        "select a.id, b.id as b from a left join b on b.a_id = a.id where exists (select 1 from c where c.k = b.x or b.x is null)",
    ),
    ("exists_duplicates", "select k, v from c where exists (select 1 from a where a.x = c.k)"),
    (
        "not_exists_duplicates",
        "select k, v from c where not exists (select 1 from a where a.x = c.v and a.y = c.k)",
    ),
    // IN and NOT IN.
    ("in_simple", "select id from a where x in (select y from b)"),
    ("in_filtered", "select id, t from a where x in (select x from b where t = 'a')"),
    ("in_correlated", "select id from a where x in (select b.y from b where b.t = a.t)"),
    ("in_expression", "select id from a where x + 1 in (select y * 2 from b)"),
    ("in_row", "select id from a where (x, y) in (select x, y from b)"),
    ("in_grouped", "select id from a where x in (select v from c group by v having count(*) > 2)"),
    ("in_distinct_union", "select id from a where x in (select distinct y from b union select v from c)"),
    ("in_numeric", "select id, n from a where n in (select n from b)"),
    ("in_text_remote", "select id from a where t in (select lower(t) from b where x > 2)"),
    (
        "in_value",
        "select id, x in (select y from b where b.x = 4) as f, x in (select v from c where c.k = a.y) as g from a",
    ),
    ("in_row_value", "select id, (x, y) in (select k, v from c) as f from a"),
    ("in_or", "select id from a where x in (select v from c) or y in (select x from e)"),
    ("not_in_nullable", "select id, x from a where x not in (select v from c where v is not null or k > 6)"),
    ("not_in_not_null", "select id, x from a where id not in (select x from e)"),
    ("not_in_correlated", "select id, x from a where x not in (select b.y from b where b.a_id = a.id)"),
    (
        "not_in_correlated_nullable",
        "select id, x from a where x not in (select b.x from b where b.y = a.y and b.t = a.t)",
    ),
    ("not_in_empty", "select id, x from a where x not in (select y from e)"),
    ("not_in_row", "select id, x, y from a where (x, y) not in (select k, v from c where t <> 'a')"),
    ("not_in_value", "select id, x not in (select v from c) as f, x not in (select y from e) as g from a"),
    ("not_in_negated_or", "select id from a where not (x in (select v from c) or y = 2)"),
    // ANY and ALL.
    ("any_greater", "select id from a where x > any (select y from e)"),
    ("all_greater", "select id from a where x >= all (select y from e)"),
    ("all_correlated", "select id from a where y > all (select b.y from b where b.a_id = a.id)"),
    ("all_not_equal", "select id, x from a where x <> all (select v from c where k = 2)"),
    (
        "any_value",
        "select id, x < any (select v from c where c.k = a.y) as f, x <= all (select v from c where c.k = a.y) as g from a",
    ),
    (
        "some_remote",
        "select id from a where t || 'x' like any (select lower(t) || '%' from b where b.x = a.x)",
    ),
    // Scalar subqueries.
    ("scalar_count", "select id, (select count(*) from b where b.a_id = a.id) as n from a"),
    ("scalar_sum", "select id, (select sum(b.y) from b where b.x = a.x and b.t = a.t) as s from a"),
    (
        "scalar_sum_filter",
        "select id, (select sum(b.y) filter (where b.t = a.t) from b where b.x = a.x) as s, (select count(distinct b.t) from b where b.x = a.x) as d from a",
    ),
    (
        "scalar_uncorrelated",
        "select id, x, (select max(y) from e) as m from a where x < (select avg(x) from b)",
    ),
    ("scalar_key", "select id, (select t from a where a.id = b.a_id) as t, x from b"),
    ("scalar_key_remote", "select id, upper((select t from a where a.id = b.a_id)) || b.t as t from b"),
    ("scalar_in_where", "select id from a where y > (select avg(b.y) from b where b.x = a.x)"),
    (
        "scalar_in_where_or",
        "select id from a where y = (select min(b.y) from b where b.x = a.x) or x is null",
    ),
    (
        "scalar_nested",
        "select id, (select sum((select count(*) from c where c.k = b.x and c.v <= a.y)) from b where b.a_id = a.id) as s from a",
    ),
    (
        "scalar_expression",
        "select id, coalesce((select max(b.y) from b where b.a_id = a.id), -1) + (select count(*) from e) as s from a",
    ),
    (
        "scalar_having",
        "select x, count(*) as n from a group by x having count(*) > (select count(*) from c where c.k = a.x)",
    ),
    (
        "scalar_in_aggregate",
        "select y, sum((select count(*) from b where b.a_id = a.id)) as s, count(*) filter (where exists (select 1 from c where c.k = a.x)) as f from a group by y",
    ),
    (
        "scalar_group_by",
        "select (select min(c.t collate \"C\") from c where c.k = a.x) as g, count(*) as n from a group by 1",
    ),
    (
        "scalar_of_outer_aggregate",
        "select y, (select count(*) from c where c.k < sum(a.x)) as n from a group by y",
    ),
    (
        "scalar_of_group",
        "select y, (select count(*) from c where c.k = a.y) as n, max(id) as m from a group by y",
    ),
    ("scalar_row", "select id from a where (x, y) = (select max(b.x), max(b.y) from b where b.a_id = a.id)"),
    ("scalar_constant", "select id, (select a.x + 1) as s, (select 7) as c from a"),
    ("scalar_global", "select (select count(*) from a) as a, (select count(*) from b where x > 2) as b"),
    ("scalar_distinct", "select id, (select distinct b.n from b where b.n = a.n and b.y = 0) as s from a"),
    (
        "scalar_union",
        "select id, (select max(u.v) from (select b.y as v from b where b.a_id = a.id union select c.v from c where c.k = a.x) u) as m from a",
    ),
    (
        "scalar_intersect",
        "select id, (select count(*) from (select b.x from b where b.y = a.y intersect select c.k from c) u) as m from a",
    ),
    (
        "scalar_outer_join_inside",
        "select id, (select count(c.t) from b left join c on c.k = b.x and c.v = a.y where b.a_id = a.id) as m from a",
    ),
    (
        "scalar_cte",
        "select id, (with w as (select y from b where b.a_id = a.id) select count(*) from w w1 join w w2 on w1.y = w2.y) as m from a",
    ),
    ("scalar_values", "select id, (select max(v) from (values (a.x), (a.y), (2)) w(v)) as m from a"),
    (
        "scalar_having_inside",
        "select id, (select count(*) from b where b.x = a.x having min(b.y) > 0) as m from a",
    ),
    (
        "scalar_grouped_inside",
        "select id, (select max(n) from (select count(*) as n from b where b.x = a.x group by b.y) u) as m from a",
    ),
    ("scalar_numeric_key", "select id, n, (select count(*) from b where b.n = a.n) as m from a"),
    (
        "scalar_in_join_condition",
        "select a.id, b.id as b from a join b on b.a_id = a.id and b.y >= (select min(c.v) from c where c.k = a.x)",
    ),
    (
        "exists_in_outer_join_condition",
        "select a.id, b.id as b from a left join b on b.a_id = a.id and exists (select 1 from c where c.k = b.x and c.v = a.y)",
    ),
    // LATERAL.
    (
        "lateral_inner",
        "select a.id, s.y from a, lateral (select b.y from b where b.a_id = a.id and b.x > 1) s",
    ),
    (
        "lateral_aggregate",
        "select a.id, s.m, s.n from a cross join lateral (select max(b.y) as m, count(*) as n from b where b.x = a.x) s",
    ),
    (
        "lateral_left",
        "select a.id, s.y, s.t from a left join lateral (select b.y, b.t from b where b.a_id = a.id) s on s.y > a.y",
    ),
    (
        "lateral_group",
        "select a.id, s.y, s.n from a left join lateral (select b.y, count(*) as n from b where b.x = a.x group by b.y) s on true",
    ),
    (
        "lateral_of_lateral",
        "select a.id, s.y, r.k from a, lateral (select b.y from b where b.a_id = a.id) s, lateral (select c.k from c where c.v = s.y and c.k >= a.y) r",
    ),
    (
        "lateral_then_key",
        "select a.id, s.y, c.v from a, lateral (select b.y, b.x from b where b.a_id = a.id) s, c where c.k = s.x",
    ),
    ("lateral_expression", "select a.id, s.d from a, lateral (select a.x * 2 as d where a.x > 1) s"),
    ("lateral_values", "select a.id, v.w, v.z from a, lateral (values ('x', a.x), ('y', a.y)) v(w, z)"),
    (
        "lateral_distinct",
        "select a.id, s.n from a, lateral (select distinct b.n from b where b.y = a.y and b.n is not null) s",
    ),
    (
        "lateral_union",
        "select a.id, s.v from a, lateral (select b.y as v from b where b.a_id = a.id union select c.v from c where c.k = a.x) s",
    ),
    // Set operations.
    ("intersect", "select x, y from a intersect select x, y from b"),
    ("intersect_all", "select x from a intersect all select y from b"),
    ("except", "select x, y from a except select k, v from c"),
    ("except_all", "select y from b except all select x from a"),
    ("except_numeric", "select n, t from a except select n, t from b where y > 1"),
    (
        "set_nested",
        "(select x from a union all select y from b) except all (select k from c intersect all select x from b)",
    ),
    ("set_casts", "select x, n from a intersect select y::bigint, x from b"),
    ("set_server_casts", "select date '2024-01-01' + x as d from a union select timestamp '2024-01-03'"),
    (
        "set_in_from",
        "select s.x, count(*) as n from (select x from a except select v from c) s join b on b.x = s.x group by s.x",
    ),
    // Joins.
    ("full_join", "select a.id, b.id as b, a.x, b.y from a full join b on b.a_id = a.id"),
    ("full_join_duplicates", "select a.x, c.v from a full join c on c.k = a.x and c.v < a.y"),
    ("full_join_using", "select x, a.id, e.id as e from a full join e using (x)"),
    (
        "full_join_filter",
        "select a.id, b.id as b from a full join b on b.a_id = a.id and b.y = a.y where coalesce(a.y, b.y) > 1",
    ),
    (
        "full_join_remote",
        "select a.id, b.id as b from a full join b on b.x = a.x and b.y = a.y and (upper(a.t) < upper(b.t)) is not false where a.y is null or a.y < 3",
    ),
    (
        "left_join_remote",
        "select a.id, b.id as b from a left join b on b.x = a.x and lower(a.t) || b.t > 'ab'",
    ),
    ("left_join_range", "select a.id, e.id as e from a left join e on a.x between e.x and e.y"),
    ("cross_join", "select a.id, e.x from a cross join e where a.y > 1"),
    ("natural_join", "select * from (select x, y from a) l natural join (select x, y, t from b) r"),
    ("inner_range", "select a.id, e.id as e from a join e on e.x < a.x and e.y >= a.y"),
    ("join_not_distinct", "select a.id, c.v from a join c on c.k is not distinct from a.x"),
    (
        "join_of_eight",
        "select a.id, b.t, c.v, e.y from a join b on b.a_id = a.id left join c on c.k = b.x left join e on e.x = c.v join a a2 on a2.id = b.a_id \
     left join b b2 on b2.id = a2.x full join e e2 on e2.id = b2.id join c c2 on c2.k = a.y and c2.v = 0",
    ),
    ("join_jsonb", "select f.id, g.id as g from f join f g on g.d = f.d"),
    ("left_join_jsonb", "select f.id, g.k from f left join f g on g.d = f.d and g.id <> f.id and g.k > f.k"),
    ("exists_jsonb", "select id from f where exists (select 1 from f g where g.d = f.d and g.k = 2)"),
    (
        "not_in_jsonb",
        "select id from f where d not in (select d from f where k = 1) and k in (select x from a)",
    ),
    // CTEs.
    (
        "cte_twice",
        "with w as (select x, count(*) as n from b group by x) select l.x, l.n, r.n as m from w l join w r on r.x = l.x + 1",
    ),
    (
        "cte_in_subquery",
        "with w as (select x, y from b where t <> 'a') select id from a where exists (select 1 from w where w.x = a.x) and y not in (select y from w where w.x = 4)",
    ),
    (
        "cte_of_cte",
        "with w as (select k, sum(v) as s from c group by k), u as (select k from w where s > (select avg(s) from w)) select a.id, u.k from a join u on u.k = a.y",
    ),
    (
        "values_expressions",
        "select v.p, a.id from (values (1, upper('q')), (2, 'r'), (1 + 2, null)) v(p, q) join a on a.x = v.p",
    ),
];

/// Queries that stay FULL, and a word of the reason.
pub const REFUSED: &[(&str, &str)] = &[
    ("select ctid, id from a", "system column"),
    ("select to_jsonb(j) as j from (a join b on b.a_id = a.id) j", "whole row"),
    ("select id, (select count(*) from b full join c on c.k = b.x and b.y = a.y) as n from a", "FULL JOIN"),
];
