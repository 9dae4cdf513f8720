-- A service: accounts, users, events with jsonb, sessions, subscriptions, tickets.
create domain score as int check (value between -1000000 and 10000000);
create type ticket_state as enum ('open', 'pending', 'solved', 'closed');
create type address as (street text, zip text, country char(2));
create table accounts (
    id uuid primary key, name text not null, plan text not null, seats int, created_at timestamptz not null, settings jsonb not null
        default '{}', billing address, ip_ranges cidr[]);
create table users (
    id bigint primary key, account_id uuid references accounts on delete cascade on update cascade, email text not null,
    roles text[], joined timestamptz not null, last_ip inet, score score, avatar bytea, timezone text);
create table events (
    id bigint primary key, user_id bigint references users on delete cascade on update cascade, at timestamptz not null,
    kind text not null, props jsonb, took_ms double precision);
create table sessions (
    user_id bigint, started timestamptz, ended timestamptz, device text, pages int[], span tstzrange);
alter table sessions replica identity full;
create table subscriptions (
    id int primary key, account_id uuid references accounts on delete cascade on update cascade, plan text not null,
    mrr numeric(10,2) not null, started date not null, ended date, addons text[]);
create table tickets (
    id int primary key, account_id uuid references accounts on delete cascade on update cascade, opened timestamptz not null,
    closed timestamptz, state ticket_state not null, priority smallint, assignee bigint, labels text[], title text);
create table flags (name text primary key, enabled boolean not null, rollout real, user_ids bigint[], rules json);
create table usage_daily (account_id uuid not null references accounts on delete cascade on update cascade, day date not null,
    metric text not null, value bigint not null, primary key (account_id, day, metric));

insert into accounts
select md5(i::text)::uuid, 'Account ' || i, (array['free', 'team', 'team', 'enterprise'])[1 + i % 4], nullif(i % 6, 0) * 5,
       timestamptz '2024-01-01 00:00Z' + i * interval '29 hours',
       jsonb_build_object('theme', (array['dark', 'light'])[1 + i % 2], 'limits', jsonb_build_object('api', i * 100, 'seats', i % 7),
           'features', case when i % 3 = 0 then '["sso", "audit"]'::jsonb else '["api"]' end),
       case when i % 4 <> 0 then row('Main St ' || i, (10000 + i)::text, (array['DE', 'US'])[1 + i % 2])::address end,
       case when i % 2 = 0 then array['10.' || i || '.0.0/16', '192.168.0.0/24']::cidr[] end
  from generate_series(1, 24) i;
insert into users
select i, md5((1 + i % 24)::text)::uuid, 'u' || i || '@acct' || 1 + i % 24 || '.test',
       (array['{admin,dev}', '{dev}', '{viewer}', null, '{}'])[1 + i % 5]::text[],
       timestamptz '2024-01-02 00:00Z' + i * interval '11 hours', ('10.' || i % 24 || '.0.' || i % 250)::inet,
       case when i % 4 <> 0 then i * 13 % 100 end, case when i % 3 = 0 then decode(md5(i::text), 'hex') end,
       (array['UTC', 'Europe/Berlin', 'America/New_York'])[1 + i % 3]
  from generate_series(1, 80) i;
insert into events
select i, 1 + i * 17 % 80, timestamptz '2024-03-01 00:00Z' + i * interval '47 minutes' + i % 7 * interval '3 days',
       (array['signup', 'view', 'view', 'click', 'purchase', 'error'])[1 + i % 6],
       case i % 4 when 0 then jsonb_build_object('page', '/p' || i % 9, 'ms', i % 90, 'tags', jsonb_build_array('a', 't' || i % 3))
           when 1 then jsonb_build_object('page', '/p' || i % 5, 'ref', jsonb_build_object('utm', (array['ads', 'mail'])[1 + i % 2]))
           when 2 then jsonb_build_object('amount', (i % 40) * 1.5, 'page', null) end,
       case when i % 5 <> 0 then i % 90 * 0.5 end
  from generate_series(1, 400) i;
insert into sessions
select 1 + i * 7 % 80, t, t + i % 90 * interval '1 minute', (array['ios', 'android', 'web', null])[1 + i % 4], array[i % 5, i % 3, i % 7],
       tstzrange(t, t + i % 90 * interval '1 minute')
  from generate_series(1, 150) i, lateral (select timestamptz '2024-03-01 06:00Z' + i * interval '101 minutes' as t) s;
insert into subscriptions
select i, md5((1 + i % 24)::text)::uuid, (array['team', 'enterprise', 'free'])[1 + i % 3], (i % 7) * 19.5,
       date '2024-01-05' + i * 4, case when i % 3 = 0 then date '2024-02-05' + i * 5 end, (array['{}', '{sms}', '{sms,storage}'])[1 + i % 3]::text[]
  from generate_series(1, 50) i;
insert into tickets
select i, md5((1 + i * 5 % 24)::text)::uuid, timestamptz '2024-02-01 08:00Z' + i * interval '9 hours',
       case when i % 3 <> 0 then timestamptz '2024-02-02 09:00Z' + i * interval '9 hours 40 minutes' end,
       (array['open', 'pending', 'solved', 'closed'])[1 + i % 4]::ticket_state, nullif(i % 4, 0), 1 + i % 10,
       (array['{bug}', '{bug,ui}', '{billing}', null])[1 + i % 4]::text[], 'Ticket about ' || (array['login', 'invoice', 'crash'])[1 + i % 3]
  from generate_series(1, 90) i;
insert into flags
select 'flag' || i, i % 2 = 0, i * 0.125, array[i, i + 1, i * 3], json_build_object('min', i, 'plan', 'team') from generate_series(1, 12) i;
insert into usage_daily
select md5(a::text)::uuid, date '2024-03-01' + d, m, (a * 31 + d * 7) % 100
  from generate_series(1, 24) a, generate_series(0, 13) d, unnest(array['api', 'storage']) m where (a + d) % 3 <> 0;
