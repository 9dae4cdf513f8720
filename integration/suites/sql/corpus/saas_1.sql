-- name: saas_dau
select (at at time zone 'UTC')::date as day, count(distinct user_id) as dau from events group by 1;

-- name: saas_wau_mau
select date_trunc('week', at at time zone 'UTC') as week, count(distinct user_id) as wau,
       count(distinct user_id) filter (where kind = 'purchase') as buyers
from events group by 1;

-- name: saas_events_per_hour
select date_trunc('hour', at) as hour, kind, count(*) as n from events group by 1, 2;

-- name: saas_events_day_of_week
select extract(dow from at) as dow, extract(hour from at) as hour, count(*) as n from events group by 1, 2;

-- name: saas_to_char_day
select to_char(at, 'YYYY-MM-DD') as day, count(*) as n from events group by to_char(at, 'YYYY-MM-DD');

-- name: saas_cast_date
select at::date as day, count(*) as n from events group by at::date;

-- name: saas_date_bin
select date_bin('15 minutes', at, timestamptz '2024-01-01 00:00Z') as slot, count(*) as n from events group by 1;

-- name: saas_page_views
select props ->> 'page' as page, count(*) as views, count(distinct user_id) as visitors
from events where kind = 'view' and props ? 'page' group by 1;

-- name: saas_purchase_amount
select user_id, sum((props ->> 'amount')::numeric) as spent from events
where kind = 'purchase' and props ->> 'amount' is not null group by user_id;

-- name: saas_utm
select coalesce(props #>> '{ref,utm}', 'direct') as source, count(*) as n from events group by 1;

-- name: saas_event_tags
select t.tag, count(*) as n from events e cross join lateral jsonb_array_elements_text(e.props -> 'tags') as t(tag) group by t.tag;

-- name: saas_jsonb_path
select id, jsonb_path_query_first(props, '$.tags[*] ? (@ starts with "t")') as tag from events
where jsonb_path_exists(props, '$.ms ? (@ > 40)');

-- name: saas_jsonb_to_record
select e.id, r.page, r.ms from events e, jsonb_to_record(e.props) as r(page text, ms int) where jsonb_typeof(e.props) = 'object';

-- name: saas_jsonb_each
select p.key, jsonb_typeof(p.value) as type, count(*) as n from events e, jsonb_each(e.props) as p group by 1, 2;

-- name: saas_group_by_jsonb
select props -> 'ref' as ref, count(*) as n from events group by props -> 'ref';

-- name: saas_distinct_jsonb
select distinct settings -> 'limits' as limits, settings ->> 'theme' as theme from accounts;

-- name: saas_feature_accounts
select f.feature, array_agg(a.name order by a.name) as accounts
from accounts a, jsonb_array_elements_text(a.settings -> 'features') as f(feature) group by f.feature;

-- name: saas_setting_containment
select id, name from accounts where settings @> '{"features": ["sso"]}' and not settings @> '{"theme": "dark"}';

-- name: saas_jsonb_agg_users
select a.id, a.name, jsonb_agg(jsonb_build_object('id', u.id, 'email', u.email) order by u.id) filter (where u.id is not null) as users
from accounts a left join users u on u.account_id = a.id group by a.id, a.name;

-- name: saas_json_tree
select a.id, jsonb_build_object('name', a.name, 'tickets', coalesce((select jsonb_agg(t.title order by t.id) from tickets t
    where t.account_id = a.id and t.state = 'open'), '[]')) as doc
from accounts a;

-- name: saas_role_counts
select r.role, count(*) as n from users u left join lateral unnest(u.roles) as r(role) on true group by r.role;

-- name: saas_admins
select id, email from users where roles @> array['admin'] or 'viewer' = any (roles);

-- name: saas_array_overlap
select t.id, u.email from tickets t join users u on u.id = t.assignee where t.labels && array['bug', 'billing'];

-- name: saas_array_agg_distinct
select account_id, array_agg(distinct l.label order by l.label) as labels
from tickets t cross join unnest(t.labels) as l(label) group by account_id;

-- name: saas_array_length
select id, array_length(roles, 1) as n, coalesce(cardinality(roles), 0) as c, array_to_string(roles, ',', '-') as txt,
       roles[1] as first, roles[array_upper(roles, 1)] as last from users;

-- name: saas_session_lengths
select device, count(*) as n, avg(ended - started) as mean, max(ended - started) as longest,
       percentile_disc(0.5) within group (order by ended - started) as median
from sessions group by device;

-- name: saas_concurrent_sessions
select a.user_id, a.started, count(*) as others from sessions a join sessions b
  on a.span && b.span and (a.user_id, a.started) is distinct from (b.user_id, b.started)
group by a.user_id, a.started;

-- name: saas_session_pages
select s.user_id, s.started, p.page, p.n from sessions s, unnest(s.pages) with ordinality as p(page, n);

-- name: saas_range_functions
select user_id, lower(span) as l, upper(span) as u, isempty(span) as e, span @> timestamptz '2024-03-03 00:00Z' as open_then,
       upper(span) - lower(span) as length from sessions;

-- name: saas_merged_sessions
select user_id, range_agg(span) as spans, range_intersect_agg(span) as common from sessions where span is not null group by user_id;

-- name: saas_unnest_multirange
select m.user_id, r.span from (select user_id, range_agg(span) as spans from sessions group by user_id) m, unnest(m.spans) as r(span);

-- name: saas_sessionise
with gaps as (
    select id, user_id, at, case when at - lag(at) over (partition by user_id order by at, id) < interval '30 minutes' then 0 else 1 end as new
    from events
), numbered as (
    select id, user_id, at, sum(new) over (partition by user_id order by at, id) as session from gaps
)
select user_id, session, min(at) as started, max(at) as ended, count(*) as events from numbered group by user_id, session;

-- name: saas_first_touch
select distinct on (user_id) user_id, props #>> '{ref,utm}' as source, at from events
where props #>> '{ref,utm}' is not null order by user_id, at, id;

-- name: saas_funnel_steps
with s as (
    select user_id, min(at) filter (where kind = 'signup') as signup, min(at) filter (where kind = 'view') as view,
           min(at) filter (where kind = 'purchase') as purchase
    from events group by user_id
)
select count(signup) as signed, count(*) filter (where view > signup) as viewed,
       count(*) filter (where purchase > view and view > signup) as bought from s;

-- name: saas_funnel_exists
select u.id from users u where exists (select from events e where e.user_id = u.id and e.kind = 'signup'
    and exists (select from events f where f.user_id = e.user_id and f.kind = 'purchase' and f.at > e.at
        and f.at < e.at + interval '7 days'));

-- name: saas_retention
with first as (select user_id, min(date_trunc('week', at at time zone 'UTC')) as cohort from events group by user_id),
weeks as (select distinct user_id, date_trunc('week', at at time zone 'UTC') as week from events)
select f.cohort, ((extract(epoch from w.week - f.cohort)) / 604800)::int as week_no, count(*) as users
from first f join weeks w on w.user_id = f.user_id group by 1, 2;

-- name: saas_time_to_next
select id, user_id, kind, lead(kind) over w as next, lead(at) over w - at as wait from events window w as (partition by user_id order by at, id);

-- name: saas_transitions
select kind, next, count(*) as n from (
    select kind, lead(kind) over (partition by user_id order by at, id) as next from events) t
where next is not null group by kind, next;

-- name: saas_streaks
with d as (select distinct user_id, (at at time zone 'UTC')::date as day from events),
g as (select user_id, day, day - row_number() over (partition by user_id order by day)::int as grp from d)
select user_id, min(day) as since, count(*) as days from g group by user_id, grp having count(*) > 1;

-- name: saas_longest_streak
with d as (select distinct user_id, (at at time zone 'UTC')::date as day from events),
g as (select user_id, day, day - row_number() over (partition by user_id order by day)::int as grp from d),
s as (select user_id, count(*) as days from g group by user_id, grp)
select user_id, max(days) as best from s group by user_id;

-- name: saas_latency_percentiles
select kind, percentile_cont(array[0.5, 0.9, 0.99]) within group (order by took_ms) as p,
       count(took_ms) as n, min(took_ms) as low, max(took_ms) as high
from events group by kind;

-- name: saas_latency_filter
select kind, round((avg(took_ms) filter (where took_ms > 10))::numeric, 6) as mean,
       round(stddev_pop(took_ms)::numeric, 6) as dev
from events group by kind;

-- name: saas_rolling_week
select day, users, sum(users) over (order by day range between interval '6 days' preceding and current row) as week
from (select date_trunc('day', at at time zone 'UTC') as day, count(distinct user_id) as users from events group by 1) d;

-- name: saas_active_accounts
select a.id, a.name, max(e.at) as last_event, count(distinct u.id) as users
from accounts a left join users u on u.account_id = a.id left join events e on e.user_id = u.id group by a.id, a.name;
