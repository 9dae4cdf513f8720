-- name: saas_mrr
select date_trunc('month', d.month)::date as month, sum(s.mrr) as mrr, count(*) as subscriptions
from generate_series(timestamp '2024-01-01', timestamp '2024-08-01', interval '1 month') as d(month)
join subscriptions s on s.started <= d.month and (s.ended is null or s.ended > d.month)
group by 1;

-- name: saas_mrr_movement
with m as (
    select account_id, date_trunc('month', started)::date as month, sum(mrr) as mrr from subscriptions group by 1, 2
), c as (
    select account_id, month, mrr, lag(mrr) over (partition by account_id order by month) as before from m
)
select month, sum(mrr) filter (where before is null) as new, sum(mrr - before) filter (where mrr > before) as expansion,
       sum(before - mrr) filter (where mrr < before) as contraction
from c group by month;

-- name: saas_churned
select a.id, a.name from accounts a
where exists (select 1 from subscriptions s where s.account_id = a.id)
  and not exists (select 1 from subscriptions s where s.account_id = a.id and s.ended is null);

-- name: saas_current_plan
select a.id, a.name, (select s.plan from subscriptions s where s.account_id = a.id and s.ended is null
    order by s.started desc, s.id desc limit 1) as plan from accounts a;

-- name: saas_plan_mismatch
select a.id from accounts a where a.plan <> all (select s.plan from subscriptions s where s.account_id = a.id);

-- name: saas_addon_revenue
select x.addon, sum(s.mrr) as mrr from subscriptions s left join lateral unnest(s.addons) as x(addon) on true group by x.addon;

-- name: saas_overlapping_subscriptions
select s.account_id, s.id, t.id as other from subscriptions s join subscriptions t
  on s.account_id = t.account_id and s.id < t.id
 and (s.started, coalesce(s.ended, 'infinity')) overlaps (t.started, coalesce(t.ended, 'infinity'));

-- name: saas_ticket_sla
select priority, count(*) as n, avg(closed - opened) as mean, count(*) filter (where closed - opened > interval '1 day 12 hours') as late
from tickets group by priority;

-- name: saas_ticket_backlog
select d.day::date as day, (select count(*) from tickets t where t.opened < d.day and (t.closed is null or t.closed >= d.day)) as backlog
from generate_series(timestamptz '2024-02-01 00:00Z', timestamptz '2024-03-20 00:00Z', interval '1 day') as d(day);

-- name: saas_open_tickets_per_assignee
select u.email, count(t.id) as open, min(t.opened) as oldest from users u left join tickets t
  on t.assignee = u.id and t.state in ('open', 'pending') group by u.email having count(t.id) > 0;

-- name: saas_ticket_labels_csv
select id, array_to_string(labels, ', ') as labels, labels[1:2] as two, array_position(labels, 'ui') is not null as ui from tickets;

-- name: saas_ticket_words
select w.word, count(*) as n from tickets t, string_to_table(lower(t.title), ' ') as w(word) group by w.word;

-- name: saas_ticket_search
select id, ts_rank(to_tsvector('simple', title), to_tsquery('simple', 'login | crash')) as rank from tickets
where to_tsvector('simple', title) @@ to_tsquery('simple', 'login | crash');

-- name: saas_flag_users
select f.name, u.id, u.email from flags f join users u on u.id = any (f.user_ids) where f.enabled;

-- name: saas_flag_rules
select name, (rules ->> 'min')::int as min, rules -> 'plan' as plan, rollout::numeric as rollout from flags;

-- name: saas_flags_by_account
select a.id, array_agg(f.name order by f.name) as flags
from accounts a join flags f on f.rules ->> 'plan' = a.plan and f.enabled group by a.id;

-- name: saas_composite_field
select id, (billing).country as country, (billing).street as street from accounts where (billing).zip > '10005';

-- name: saas_group_by_composite
select billing, count(*) as n from accounts group by billing;

-- name: saas_count_by_country
select (billing).country, count(*) as n, string_agg(name, '; ' order by name) as names from accounts group by (billing).country;

-- name: saas_ip_networks
select u.id, host(u.last_ip) as host, network(set_masklen(u.last_ip, 16)) as net, a.name
from users u join accounts a on u.last_ip <<= any (a.ip_ranges);

-- name: saas_ip_counts
select network(set_masklen(last_ip, 16)) as net, count(*) as n from users group by 1;

-- name: saas_bytea
select id, encode(avatar, 'hex') as hex, length(avatar) as len, substring(avatar from 1 for 2) as head from users where avatar is not null;

-- name: saas_group_by_bytea
select avatar, count(*) as n, min(id) as first from users group by avatar;

-- name: saas_domain_score
select score, count(*) as n, sum(score) as total from users group by score;

-- name: saas_score_bands
select case when score >= 75 then 'high' when score >= 40 then 'middle' when score is null then 'none' else 'low' end as band, count(*) as n
from users group by 1;

-- name: saas_uuid_text
select id::text as id, left(id::text, 8) as short, upper(name) as name from accounts;

-- name: saas_usage_pivot
select account_id, day, sum(value) filter (where metric = 'api') as api, sum(value) filter (where metric = 'storage') as storage
from usage_daily group by account_id, day;

-- name: saas_usage_crosstab_max
select account_id, max(case when metric = 'api' then value end) as api, max(case metric when 'storage' then value end) as storage
from usage_daily where day between '2024-03-03' and '2024-03-09' group by account_id;

-- name: saas_usage_change
select account_id, metric, day, value - lag(value) over (partition by account_id, metric order by day) as change from usage_daily;

-- name: saas_usage_top_accounts
select metric, account_id, total from (
    select metric, account_id, sum(value) as total, dense_rank() over (partition by metric order by sum(value) desc) as r
    from usage_daily group by metric, account_id) t where r <= 3;

-- name: saas_usage_over_limit
select d.account_id, d.day, d.value from usage_daily d join accounts a on a.id = d.account_id
where d.metric = 'api' and d.value > (a.settings #>> '{limits,api}')::int;

-- name: saas_usage_month_to_date
select account_id, metric, day, sum(value) over (partition by account_id, metric, date_trunc('month', day) order by day) as mtd from usage_daily;

-- name: saas_usage_ema_join
select a.account_id, a.day, avg(b.value) as mean3 from usage_daily a join usage_daily b
  on b.account_id = a.account_id and b.metric = a.metric and b.day between a.day - 2 and a.day
where a.metric = 'api' group by a.account_id, a.day;

-- name: saas_missing_days
select a.id, d.day::date as day from accounts a
cross join generate_series(date '2024-03-01', date '2024-03-14', interval '1 day') as d(day)
where not exists (select 1 from usage_daily u where u.account_id = a.id and u.day = d.day and u.metric = 'api');

-- name: saas_users_per_domain
select substring(email from '@(.*)$') as domain, count(*) as n from users group by 1;

-- name: saas_local_time
select id, joined at time zone timezone as local, (joined at time zone timezone)::date as day from users;

-- name: saas_extract_epoch
select id, extract(epoch from at)::bigint as unix, to_timestamp(floor(extract(epoch from at) / 300) * 300) as slot from events;

-- name: saas_age
select id, age(closed, opened) as age, justify_hours(closed - opened) as nice, date_part('day', closed - opened) as days from tickets where closed is not null;

-- name: saas_error_rate
select date_trunc('day', at at time zone 'UTC') as day, count(*) filter (where kind = 'error')::numeric / count(*) as rate from events group by 1;

-- name: saas_users_multi_device
select user_id, count(distinct device) as devices, bool_or(device is null) as unknown, every(device = 'ios') as ios_only
from sessions group by user_id having count(distinct device) > 1;

-- name: saas_union_activity
select user_id, at, kind from events union all select user_id, started, 'session:' || coalesce(device, '?') from sessions
union all select assignee, opened, 'ticket' from tickets;

-- name: saas_last_activity
select user_id, max(at) as last from (select user_id, at from events union all select user_id, ended from sessions) t group by user_id;

-- name: saas_inactive_users
select id from users except select user_id from events where kind = 'purchase' except select user_id from sessions;

-- name: saas_same_roles
select a.id, b.id as other from users a join users b on a.roles = b.roles and a.id < b.id and a.account_id = b.account_id;

-- name: saas_join_on_jsonb
select a.id, b.id as other from accounts a join accounts b on a.settings -> 'features' = b.settings -> 'features' and a.name < b.name;

-- name: saas_max_by
select user_id, (array_agg(kind order by at desc, id desc))[1] as last_kind, (array_agg(id order by took_ms nulls last, id))[1:3] as quickest
from events group by user_id;

-- name: saas_bit_aggregates
select account_id, bit_and(score::int) as a, bit_or(score::int) as o, count(*) filter (where score is null) as missing from users group by account_id;

-- name: saas_cume_dist
select id, score, cume_dist() over (order by score, id) as cd, count(*) over (partition by account_id) as colleagues,
       score - avg(score) over (partition by account_id) as off from users;

-- name: saas_exclude_frame
select id, account_id, sum(score) over (partition by account_id order by id rows between unbounded preceding and unbounded following exclude current row) as others
from users;

-- name: saas_groups_frame
select day, metric, value, sum(value) over (partition by account_id order by day groups between 1 preceding and current row) as recent from usage_daily;

-- name: saas_lateral_top_event
select u.id, t.kind, t.n from users u left join lateral (
    select e.kind, count(*) as n from events e where e.user_id = u.id group by e.kind order by n desc, e.kind limit 1) t on true;

-- name: saas_correlated_agg_having
select account_id, count(*) as n from tickets t group by account_id
having count(*) > (select count(*) / 2 from users u where u.account_id = t.account_id);

-- name: saas_in_grouped
select id, name from accounts where id in (select account_id from tickets group by account_id having count(*) filter (where state = 'open') >= 1);
