//! The queries of the suite, over two small tables with NULLs, duplicates and values that are equal but look different.

pub const SCHEMA: &str = "
    create type mood as enum ('sad', 'ok', 'happy');
    create type pair as (a int, b numeric);
    do $$ begin
        create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    exception when others then
        create collation ci from \"C\";
    end $$;
    create table t (id int primary key, g int, h text, v int, n numeric, f float8, d date, ts timestamp, j jsonb,
        a int[], ip inet, b bool, m mood, r int4range, na numeric[], bt bit(4), c text collate ci, p pair, e text collate \"C\");
    create table u (id int primary key, t_id int, k text, j jsonb, na numeric[], x int, c text collate ci);
    create function sample(i int) returns t language sql stable as $$
        select i, nullif(i % 5, 3), chr(97 + i % 3), i % 7, (array[1.0, 1.00, 2.5, null])[1 + i % 4], ((i % 9) / 2.0)::float8,
            date '2024-01-01' + i % 12, timestamp '2024-01-01 10:00' + i * interval '1 hour',
            (array['{\"k\": 1}', '{\"k\": 1.0}', '[1, 2]', null, '{\"k\": [1, 2], \"z\": \"x\"}'])[1 + i % 5]::jsonb,
            case when i % 6 = 0 then null else array[i % 3, i % 4] end, ('10.0.0.' || i % 4)::inet, i % 3 = 0,
            (array['sad', 'ok', 'happy', null])[1 + i % 4]::mood, int4range(i % 4, i % 4 + 2),
            array[(array[1.0, 1.00, 2])[1 + i % 3]], (array[b'1010', b'0001', null])[1 + i % 3]::bit(4),
            (array['Ab', 'aB', 'x', null])[1 + i % 4], row(i % 2, (array[1.0, 1.00])[1 + i % 2])::pair,
            repeat(case when i % 5 < 2 then lower(chr(65 + i % 4)) else chr(65 + i % 4) end, 1 + i % 2) $$;
    insert into t select (sample(i)).* from generate_series(1, 40) i;
    insert into u select i, i % 25, (array['a', 'b', 'c'])[1 + i % 3], (array['{\"k\": 1}', '{\"k\": 1.00}', '[1, 2]', null])[1 + i % 4]::jsonb,
        array[(array[1, 1.000, 2.0])[1 + i % 3]], i % 6, (array['AB', 'X', 'y'])[1 + i % 3] from generate_series(1, 30) i;
    create aggregate product(numeric) (sfunc = numeric_mul, stype = numeric, initcond = '1');
    create function glued(state text, next text) returns text immutable language sql as 'select $1 || ''<'' || coalesce($2, ''-'')';
    create aggregate glue(text) (sfunc = glued, stype = text, initcond = '');
    create function countdown(n int) returns setof int immutable language plpgsql as 'begin for i in reverse n..1 loop return next i; end loop; end';
    create function parts(s text) returns table (pos bigint, part text) immutable language sql
        as 'select o, p from regexp_split_to_table($1, '''') with ordinality x(p, o)';
";

/// Name and query.
pub type Case = (&'static str, &'static str);

pub const CASES: &[Case] = &[
    // Aggregates that PostgreSQL computes.
    ("string_agg", "select g, string_agg(h, ',' order by id) as s from t group by g"),
    ("string_agg_distinct", "select g, string_agg(distinct h, '|') as s, count(*) as n from t group by g"),
    (
        "array_agg",
        "select g, array_agg(v order by v desc nulls last, id) as a, sum(v) as s from t group by g",
    ),
    ("array_agg_filter", "select h, array_agg(id order by id) filter (where b) as a from t group by h"),
    ("array_agg_arrays", "select g, array_agg(array[id, v] order by id) as a from t group by g"),
    ("jsonb_agg", "select g, jsonb_agg(j order by id) as a, jsonb_object_agg(id, v) as o from t group by g"),
    ("json_agg_text", "select g, json_agg(h order by id)::text as a from t group by g"),
    (
        "json_rows",
        "select h, jsonb_agg(jsonb_build_object('id', id, 'd', d) order by id) as a from t group by h",
    ),
    (
        "percentiles",
        "select g, percentile_cont(0.5) within group (order by f) as c, percentile_disc(0.25) within group (order by v) as d from t group by g",
    ),
    ("percentile_array", "select percentile_disc(array[0.1, 0.9]) within group (order by id) as p from t"),
    ("mode", "select h, mode() within group (order by v) as m from (select h, 5 as v from t) x group by h"),
    (
        "hypothetical",
        "select g, rank(3) within group (order by v) as r, dense_rank(3) within group (order by v) as dr, round(cume_dist(3) within group (order by v)::numeric, 6) as cd from t group by g",
    ),
    (
        "statistics",
        "select g, round(stddev(v), 8) as a, round(variance(n), 8) as b, round(stddev_pop(f)::numeric, 6) as c, round(corr(f, v)::numeric, 6) as d from t group by g",
    ),
    (
        "regression",
        "select g, round(regr_slope(f, v)::numeric, 6) as a, regr_count(f, v) as b, round(covar_pop(f, v)::numeric, 6) as c from t group by g",
    ),
    ("bits", "select g, bit_and(v) as a, bit_or(v) as o, bool_and(b) as x, every(b) as y from t group by g"),
    (
        "min_max_text",
        "select g, min(h) as lo, max(h) as hi, min(e) as c, max(lower(h)) as l from t group by g",
    ),
    ("min_max_other", "select g, min(m) as m, max(ip) as ip, min(a) as a, max(d) as d from t group by g"),
    (
        "count_distinct_jsonb",
        "select g, count(distinct j) as j, count(distinct na) as na, count(distinct a) as a from t group by g",
    ),
    (
        "sum_distinct_and_array",
        "select g, sum(distinct v) as s, array_agg(distinct v) as a from t group by g",
    ),
    ("user_aggregate", "select g, product(n) as p, glue(h order by id) as s from t group by g"),
    (
        "aggregate_of_expression",
        "select v % 2 as k, string_agg(upper(h) || id, '' order by id) || '!' as s from t group by v % 2",
    ),
    (
        "having_remote",
        "select g, max(h) as x from t group by g having string_agg(h, '' order by id) like '%b%' and count(*) > 1",
    ),
    ("global_remote", "select string_agg(h, '' order by id) as s, max(h) as m from t where v > 3"),
    (
        "global_empty",
        "select array_agg(id order by id) as s, count(*) as n, product(n) as p from t where id < 0",
    ),
    ("range_agg", "select g, range_merge(int4range(min(id), max(id)), 'empty') as r from t group by g"),
    (
        "group_of_groups",
        "select n, string_agg(s, '+' order by s) as s from (select g, count(*) as n, max(h) || g as s from t group by g) x group by n",
    ),
    (
        "group_join",
        "select u.k, string_agg(t.h, '' order by t.id, u.id) as s from t join u on u.t_id = t.id group by u.k",
    ),
    (
        "division_guarded",
        "select g, array_agg(10 / v order by id) filter (where v <> 0) as s from t group by g",
    ),
    ("aggregate_order_using", "select g, array_agg(h order by h using ~>~, id) as s from t group by g"),
    // Window functions.
    ("row_number", "select id, row_number() over (partition by g order by v, id) as n from t"),
    (
        "ranks",
        "select id, rank() over w as r, dense_rank() over w as d, ntile(3) over (partition by g order by id) as t from t window w as (partition by g order by v)",
    ),
    (
        "percent_rank",
        "select id, round(percent_rank() over w::numeric, 6) as p from t window w as (order by v)",
    ),
    (
        "running_sum",
        "select id, sum(v) over (partition by h order by id) as s, count(*) over (partition by h) as n from t",
    ),
    (
        "lag_lead",
        "select id, lag(v) over (order by id) as a, lead(h, 2, 'none') over (partition by g order by id) as b from t",
    ),
    (
        "first_last",
        "select id, first_value(v) over w as a, last_value(v) over w as z, nth_value(id, 2) over w as n from t window w as (partition by g order by id rows between unbounded preceding and unbounded following)",
    ),
    (
        "rows_frame",
        "select id, sum(v) over (order by id rows between 2 preceding and 1 following) as s from t",
    ),
    (
        "rows_exclude",
        "select id, array_agg(id) over (partition by g order by id rows between 1 preceding and 1 following exclude current row) as s from t",
    ),
    (
        "range_frame",
        "select id, count(*) over (order by d range between interval '2 days' preceding and interval '1 day' following) as n from t",
    ),
    (
        "range_exclude",
        "select id, sum(v) over (order by v range between 1 preceding and 1 following exclude ties) as s from t",
    ),
    (
        "groups_frame",
        "select id, sum(id) over (partition by h order by v groups between 1 preceding and current row exclude group) as s from t",
    ),
    (
        "window_filter",
        "select id, count(*) filter (where b) over (partition by g) as n, string_agg(h, '') filter (where v > 2) over (partition by g order by id) as s from t",
    ),
    (
        "window_expression",
        "select id, v * 100 / nullif(sum(v) over (partition by g), 0) as share, v - lag(v, 1, 0) over (order by id) as step from t",
    ),
    (
        "window_over_groups",
        "select g, sum(v) as s, rank() over (order by sum(v), g) as r, sum(sum(v)) over () as total from t group by g",
    ),
    (
        "window_two_partitions",
        "select id, count(*) over (partition by g) as a, count(*) over (partition by h, b) as b, max(v) over () as c from t",
    ),
    (
        "window_where",
        "select id, n from (select id, row_number() over (partition by g order by v desc, id) as n from t) x where n <= 2",
    ),
    ("window_jsonb", "select id, count(*) over (partition by j) as n from t"),
    (
        "window_named_copy",
        "select id, sum(v) over (w order by id) as a, sum(v) over (w order by id rows 1 preceding) as b from t window w as (partition by g)",
    ),
    ("window_user_aggregate", "select id, product(n) over (partition by g order by id) as p from t"),
    (
        "window_ties_free",
        "select g, sum(n) as s from (select g, row_number() over (partition by g order by h) as n from t) x group by g",
    ),
    // ORDER BY with LIMIT, DISTINCT ON.
    ("limit_native", "select id, v from t order by v desc nulls last, id limit 5"),
    ("limit_offset", "select id, d from t order by d, id desc offset 3 limit 4"),
    ("limit_only_offset", "select id from t order by id offset 30"),
    ("limit_text", "select id, h from t order by h, id limit 6"),
    ("limit_c_text", "select id, e from t order by e desc, id limit 6"),
    ("limit_ties", "select id, v from t order by v fetch first 4 rows with ties"),
    ("limit_ties_text", "select id, h from t order by h desc fetch first 4 rows with ties"),
    ("limit_expression", "select id from t order by id limit 1 + 2"),
    ("limit_null_zero", "select id from t order by id limit null"),
    ("limit_junk_order", "select h from t order by v * 2, id limit 7"),
    (
        "limit_in_subquery",
        "select x.id, u.k from (select id from t order by v, id limit 8) x left join u on u.t_id = x.id",
    ),
    ("limit_groups", "select g, count(*) as n from t group by g order by count(*) desc, g limit 2"),
    ("limit_of_union", "select id from t union all select id + 100 from u order by id limit 9"),
    ("limit_without_order", "select count(*) as n from (select id from t limit 5) x"),
    ("distinct_limit", "select distinct h, b from t order by h, b limit 3"),
    ("distinct_on", "select distinct on (g) g, id, v from t order by g, v desc nulls last, id"),
    (
        "distinct_on_expression",
        "select distinct on (v % 3, h) v % 3 as k, h, id from t order by v % 3, h, id desc",
    ),
    ("distinct_on_text_order", "select distinct on (g) g, h, id from t order by g, h, id"),
    ("distinct_on_jsonb", "select distinct on (j) id from t order by j, id"),
    // GROUPING SETS.
    ("rollup", "select g, h, count(*) as n, sum(v) as s, grouping(g, h) as m from t group by rollup (g, h)"),
    ("cube", "select g, b, max(h) as x, grouping(b) as m from t group by cube (g, b)"),
    ("grouping_sets", "select g, h, b, count(*) as n from t group by grouping sets ((g, h), (b), ())"),
    (
        "grouping_sets_mixed",
        "select g, h, string_agg(id::text, ',' order by id) as s from t group by g, grouping sets ((h), ())",
    ),
    (
        "rollup_having",
        "select g, sum(v) as s from t group by rollup (g) having grouping(g) = 1 or sum(v) > 20",
    ),
    ("rollup_expression", "select v % 2 as k, d, count(*) as n from t group by rollup (v % 2, (d))"),
    (
        "rollup_window",
        "select g, sum(v) as s, rank() over (partition by grouping(g) order by sum(v) desc, g) as r from t group by rollup (g)",
    ),
    // Functions that return sets.
    ("unnest_lateral", "select t.id, x from t, unnest(t.a) as x"),
    ("unnest_ordinality", "select t.id, x.v, x.o from t cross join unnest(t.a) with ordinality as x(v, o)"),
    ("unnest_left", "select t.id, x from t left join unnest(t.a) as x on true"),
    ("unnest_several", "select t.id, x.a, x.b from t, unnest(t.a, array[t.v, t.id, 7]) as x(a, b)"),
    (
        "rows_from",
        "select t.id, x.* from t, rows from (generate_series(1, t.v), unnest(t.a)) with ordinality as x(p, q, o)",
    ),
    (
        "series",
        "select g, count(t.id) as n from generate_series(0, 5) as x(k) left join t on t.g = x.k group by g",
    ),
    ("series_join", "select x.k, t.id from generate_series(1, 6) as x(k) join t on t.v = x.k"),
    (
        "jsonb_elements",
        "select t.id, e from t, jsonb_array_elements(case jsonb_typeof(j) when 'array' then j end) as e",
    ),
    (
        "jsonb_each",
        "select t.id, e.key, e.value from t, jsonb_each(case jsonb_typeof(j) when 'object' then j end) as e",
    ),
    (
        "jsonb_recordset",
        "select t.id, x.a, x.b from t, jsonb_to_recordset(jsonb_build_array(jsonb_build_object('a', t.v, 'b', t.h), '{\"a\": 1}'::jsonb)) as x(a int, b text)",
    ),
    (
        "split",
        "select t.id, w, o from t, regexp_split_to_table(t.h || ' ' || t.e, ' ') with ordinality as x(w, o)",
    ),
    ("lateral_then_join", "select t.id, u.k from t, unnest(t.a) as x(v) join u on u.x = x.v"),
    ("lateral_chain", "select t.id, y from t, unnest(t.a) as x, generate_series(1, x) as y where x < 3"),
    ("set_in_select", "select id, unnest(a) as x from t"),
    ("sets_in_step", "select id, generate_series(1, v) as s, unnest(a) as x, h from t"),
    // Values that nobody reads still decide how many rows there are, and whether there are any.
    (
        "sets_unread",
        "select x.h, count(*) as n from (select h, generate_series(1, v % 3) as s, unnest(a) as u from t) x group by x.h",
    ),
    (
        "sets_read_in_part",
        "select x.id, x.s from (select id, generate_series(1, v % 3) as s, unnest(a) as u from t) x",
    ),
    ("set_counted", "select count(*) as n from (select unnest(a) as u from t) x"),
    ("set_from_unread", "select t.id from t, unnest(t.a, array[t.v]) as x(p, q)"),
    ("set_nested", "select id, 10 * generate_series(1, v) + id as s from t where v < 4"),
    ("set_distinct", "select distinct unnest(a) as x from t"),
    ("set_grouped", "select x, count(*) as n from (select unnest(a) as x from t) y group by x"),
    ("set_of_users", "select t.id, k from t, countdown(t.v) as k where t.v < 5"),
    ("table_of_users", "select t.id, p.pos, p.part from t, parts(t.e) as p"),
    ("set_limit", "select id, unnest(a) as x from t order by id, x limit 9"),
    // Equality that only the server knows, or that the text tells.
    ("group_jsonb", "select count(*) as n, sum(v) as s from t group by j"),
    ("group_jsonb_shown", "select j, count(*) as n from t group by j"),
    ("group_arrays", "select a, count(*) as n from t group by a"),
    ("group_numeric_arrays", "select na, array_agg(id order by id) as n from t group by na"),
    ("group_other", "select ip, r, bt, count(*) as n from t group by ip, r, bt"),
    ("group_composite", "select p, count(*) as n from t group by p"),
    ("group_collation", "select count(*) as n, min(id) as i from t group by c"),
    ("group_other_collation", "select count(*) as n, min(id) as i from t group by e collate ci"),
    ("group_collation_c_of_ci", "select c collate \"C\" as k, count(*) as n from t group by 1"),
    (
        "window_other_collation",
        "select id, count(*) over (partition by c collate \"C\") as n, count(*) over (partition by e collate ci) as m from t",
    ),
    ("distinct_on_collation", "select distinct on (c collate \"C\") id from t order by c collate \"C\", id"),
    ("limit_collated", "select id from t order by c, e collate \"C\", id limit 7"),
    ("distinct_other", "select distinct j, ip, na from t"),
    ("union_jsonb", "select j from t union select j from u"),
    ("intersect_jsonb", "select j, na from t intersect select j, na from u"),
    ("except_arrays", "select na from t except all select na from u where x > 2"),
    // Branches whose type another branch decides.
    ("union_char_text", "select h::char(3) as x from t union select k || ' ' from u"),
    (
        "union_all_char_varchar",
        "select e::char(3) as x, id from t union all select (k || ' ')::varchar(9), x from u",
    ),
    ("intersect_char_text", "select h::char(3) as x from t intersect all select k from u"),
    ("except_char_text", "select h::char(3) as x from t except select k from u where x < 3"),
    (
        "group_char_text",
        "select x, count(*) as n from (select h::char(3) as x from t union all select distinct k || repeat(' ', x % 2) from u) q group by x",
    ),
    ("union_name_text", "select h::name as x from t union select repeat(k, 30 * x) from u"),
    (
        "union_bits",
        "select bt as x from t union select bt::varbit(3) from t union select b'1'::varbit from u",
    ),
    ("union_varbit_bit", "select bt::varbit(3) as x, id from t union all select bt, g from t"),
    ("union_addresses", "select ip::cidr as x from t union all select ip from t where v > 2"),
    (
        "union_macaddr",
        "select macaddr '08:00:2b:01:02:03' as x, v from t union all select macaddr8 '08:00:2b:ff:fe:01:02:04', x from u",
    ),
    ("union_oid", "select v::oid as x from t union select x - 2 from u"),
    (
        "union_moments",
        "select d as x from t union select ts::timestamptz from t where v > 2 union all select ts from t where b",
    ),
    ("join_jsonb", "select t.id as a, u.id as b from t join u on u.j = t.j where u.x < 3"),
    ("left_join_jsonb", "select t.id as a, u.id as b from t left join u on u.j = t.j and u.x = t.g"),
    ("join_numeric_arrays", "select t.id as a, u.id as b from u left join t on u.na = t.na and t.v = u.x"),
    ("join_arrays", "select x.id as a, y.id as b from t x join t y on x.a = y.a and x.id < y.id"),
    ("join_collation", "select t.id as a, u.id as b from t join u on u.c = t.c where u.x = 1"),
    ("join_composite", "select x.id as a, y.id as b from t x join t y on x.p = y.p and x.v = y.v"),
    // With subqueries.
    (
        "correlated_top",
        "select t.id, (select u.id from u where u.t_id = t.id order by u.x desc, u.id limit 1) as first from t",
    ),
    (
        "lateral_top",
        "select t.g, x.id, x.k from (select distinct g from t) t, lateral (select u.id, u.k from u where u.x = t.g order by u.k, u.id limit 2) x",
    ),
    (
        "correlated_string_agg",
        "select t.id, (select string_agg(u.k, '' order by u.id) from u where u.t_id = t.id) as s from t",
    ),
    (
        "lateral_window",
        "select t.id, x.n from t, lateral (select u.id, row_number() over (order by u.id) as n from u where u.t_id = t.id) x",
    ),
    ("lateral_unnest", "select t.id, (select sum(x) from unnest(t.a) x) as s from t"),
    ("exists_in_array", "select t.id from t where exists (select 1 from unnest(t.a) x where x = t.g)"),
];

/// For [`ICU_CASES`]; a server that is built without ICU refuses it.
pub const ICU: &str = "
    create table w (id int primary key, g int, i text collate \"en-x-icu\");
    create type spread as range (subtype = text, collation = \"en-x-icu\");
    insert into w select i, i % 3, (array['a', 'B', 'b', 'A', 'ä', 'z', 'Z', 'cote', 'coté', 'côte', 'côté', 'co-op', null])[1 + i * 5 % 13]
        from generate_series(1, 30) i;";

/// Text in the order of a language, which is not that of its bytes.
pub const ICU_CASES: &[Case] = &[
    ("icu_min_max", "select g, min(i) as lo, max(i) as hi, count(distinct i) as n from w group by g"),
    ("icu_top", "select id, i from w order by i desc nulls last, id limit 5"),
    ("icu_top_ties", "select id, i from w order by i fetch first 6 rows with ties"),
    ("icu_first_of_each", "select distinct on (g) g, i, id from w order by g, i, id"),
    (
        "icu_windows",
        "select id, row_number() over (partition by g order by i, id) as n, rank() over (order by i desc) as r, \
         lag(i) over (partition by g order by i, id) as before, max(i) over (partition by g order by id rows 2 preceding) as m from w",
    ),
    ("icu_between", "select id, i from w where i > 'b' and i <= 'coté' or i between 'X' and 'z'"),
    ("icu_compared", "select a.id, b.id as other from w a join w b on a.g = b.g and a.i < b.i"),
    ("icu_outer", "select a.id, b.id as other from w a left join w b on a.i >= b.i and b.id < 5"),
    ("icu_any", "select id from w where i > any (select i from w where g = 1)"),
    ("icu_greatest", "select id, greatest(i, 'côte') as g, least(i, 'B') as l from w"),
    (
        "icu_ordered_list",
        "select g, string_agg(i, ',' order by i, id) as s, array_agg(distinct i order by i desc) as a from w group by g",
    ),
    (
        "icu_percentile",
        "select g, percentile_disc(0.5) within group (order by i) as m, mode() within group (order by i) as o from w group by g",
    ),
    ("icu_groups", "select i, count(*) as n from w group by i having i > 'a'"),
    (
        "icu_in_range",
        "select id, spread('B', 'côté') @> i as inside, spread(least(i, 'm'), 'm') * spread('c', null) as s from w",
    ),
    ("icu_ranges", "select g, range_agg(spread(least(i, 'k'), 'k')) as r from w group by g"),
    (
        "icu_beside_c",
        "select id, rank() over (order by i collate \"C\") as c, rank() over (order by i) as u from w",
    ),
];

/// Refused, with a word of the reason.
pub const REFUSED: &[Case] = &[("volatile", "select g, sum(v + random()) over () as s from t")];

/// Queries that show one of several equal values: PostgreSQL may show another one.
pub const CHOICE: &[&str] = &[
    "group_jsonb_shown",
    "group_numeric_arrays",
    "group_composite",
    "distinct_other",
    "union_jsonb",
    "intersect_jsonb",
    "except_arrays",
    "union_char_text",
    "intersect_char_text",
    "except_char_text",
    "group_char_text",
];
