//! Queries over the tables of the test of plans.

/// What PostgreSQL computes over groups, and the first rows of an order.
pub const QUERIES: &[&str] = &[
    "select c_id, string_agg(note, ',' order by id), array_agg(n order by id desc), count(*), sum(amount) from o group by c_id",
    "select percentile_cont(0.5) within group (order by amount), mode() within group (order by note), \
     rank(3) within group (order by n), string_agg(distinct note, '|') from o",
    "select max(name), min(note) from c, o where c.id = o.c_id and o.n > 100",
    "select n, round(regr_slope(amount, n)::numeric, 6), round(stddev(amount), 6), json_agg(note order by id), bit_or(n) filter (where paid) from o group by n",
    "select n + 1, round(corr(id, amount)::numeric, 6) from o group by n + 1 having array_agg(id order by id) <> '{}' and max(note) > 'A'",
    "select id, row_number() over (partition by c_id order by amount, id), sum(amount) over (partition by c_id) from o",
    "select id, sum(n) over (order by id rows between 2 preceding and 1 following exclude current row), \
     rank() over (partition by n order by amount desc nulls last), lag(note, 2, 'none') over w, count(*) filter (where paid) over w \
     from o window w as (partition by note order by id)",
    "select c_id, sum(sum(amount)) over (order by c_id), 100 * count(*) / sum(count(*)) over () from o group by c_id",
    "select id, first_value(day) over (order by day range between interval '3 days' preceding and current row) from o",
    "select id, amount from o order by amount desc, id limit 7",
    "select id, note from o order by note nulls first, id limit 10 offset 5",
    "select id, n from o order by n fetch first 13 rows with ties",
    "select id, note from o order by note desc fetch first 13 rows with ties",
    "select distinct on (c_id) c_id, id, amount from o order by c_id, amount desc, id",
    "select distinct on (upper(note)) id, note from o order by upper(note), id limit 2",
    "select x.id, c.name from (select * from o order by day, id limit 5) x left join c on c.id = x.c_id",
    "select n, paid, count(*), sum(amount), grouping(n, paid) from o group by rollup (n, paid)",
    "select n, note, max(note), grouping(note) from o group by cube (n, note) having count(*) > 1",
    "select n, paid, string_agg(note, '' order by id) from o group by grouping sets ((n), (paid), (), (n))",
    "select id, generate_series(1, n) as g, unnest(array[id, n]) from o",
    "select distinct generate_series(n, 3) from o order by 1 limit 2",
    "select '{}'::jsonb || jsonb_build_object('a', n), count(*) from o group by 1",
    "select distinct array[n, 1.0], upper(note) from o",
    "select jsonb_build_object('k', amount::int) from o union select jsonb_build_object('k', n * 1.0) from i",
    "select count(distinct jsonb_build_object('k', n)), count(distinct array[note]) from o",
    "select id, count(*) over (partition by jsonb_build_object('k', n % 2)) from o",
];
