-- An organisation, graphs, places, and telemetry in partitions.
create table people (id int primary key, name text not null, manager_id int references people on delete set null on update cascade,
    dept_id int, title text, skills text[], since date);
create table departments (id int primary key, parent_id int, name text not null, budget numeric);
create table edges (src int not null, dst int not null, weight int not null, kind text, primary key (src, dst));
create table parts (assembly int not null, part int not null, qty int not null, primary key (assembly, part));
create table places (id int primary key, name text not null, pos point not null, area box, opened time, zone text, net macaddr);
create table devices (id int primary key, serial varchar(12) not null unique, place_id int references places on delete set null on update cascade,
    model text, installed date, firmware int[], config jsonb, mask bit(8));
create table readings (device_id int not null, at timestamptz not null, metric text not null, value double precision, quality smallint)
    partition by range (at);
create table readings_early partition of readings for values from (minvalue) to ('2024-05-05 00:00Z');
create table readings_mid partition of readings for values from ('2024-05-05 00:00Z') to ('2024-05-12 00:00Z');
create table readings_late partition of readings for values from ('2024-05-12 00:00Z') to (maxvalue);
alter table readings_early replica identity full;
alter table readings_mid replica identity full;
alter table readings_late replica identity full;
create table alarms (id int not null, device_id int, severity text not null, during tstzrange, acked_by text, primary key (id, severity))
    partition by list (severity);
create table alarms_high_p partition of alarms for values in ('high', 'critical');
create table alarms_rest partition of alarms default;
create table shifts (person_id int, day date not null, starts time not null, ends time not null, slot int4range);
alter table shifts replica identity full;
create table tasks (id int primary key, project text, person_id int, estimate interval, spent interval, depends_on int[], done_at timestamp);

insert into people select i, 'P' || i, case when i > 1 then i / 3 + 1 end, 1 + i % 9, (array['dev', 'ops', 'lead', null])[1 + i % 4],
    (array['{sql,rust}', '{sql}', '{go,rust,sql}', null, '{}'])[1 + i % 5]::text[], date '2020-01-01' + i * 23 from generate_series(1, 45) i;
update people set manager_id = null where id = manager_id;
insert into departments select i, case when i > 1 then i / 2 end, 'Dept ' || i, i * 1000.5 from generate_series(1, 10) i;
insert into edges select a, b, 1 + (a * b) % 9, (array['road', 'rail', null])[1 + (a + b) % 3] from generate_series(1, 14) a, generate_series(1, 14) b
    where a <> b and (a * 3 + b) % 7 = 0;
insert into parts select a, b, 1 + (a + b) % 3 from generate_series(1, 12) a, generate_series(2, 24) b where b > a and (b = 2 * a or b = 2 * a + 1);
insert into places select i, 'Place ' || i, point(i * 3 % 20, i * 7 % 20), case when i % 4 <> 0 then box(point(i, i), point(i + 4, i + 2)) end,
    time '06:00' + i * interval '17 minutes', (array['Europe/Berlin', 'UTC', 'Asia/Tokyo'])[1 + i % 3], ('08:00:2b:01:02:' || lpad(to_hex(i), 2, '0'))::macaddr
    from generate_series(1, 20) i;
insert into devices select i, 'SN' || lpad(i::text, 5, '0'), case when i % 6 <> 0 then 1 + i % 20 end, (array['T1', 'T2', 'H7'])[1 + i % 3], date '2024-01-01' + i,
    array[1, i % 4, i % 3], jsonb_build_object('interval', i % 5 * 10, 'alarm', jsonb_build_object('max', 20 + i % 5)), (i % 256)::bit(8)
    from generate_series(1, 40) i;
insert into readings select 1 + i * 7 % 40, timestamptz '2024-05-01 00:00Z' + i * interval '53 minutes', (array['temp', 'humidity', 'volt'])[1 + i % 3],
    case when i % 10 <> 0 then 10 + i % 37 * 0.5 end, nullif(i % 4, 0) from generate_series(1, 500) i;
insert into alarms select i, 1 + i * 3 % 45, (array['low', 'medium', 'high', 'critical'])[1 + i % 4],
    tstzrange(timestamptz '2024-05-01 00:00Z' + i * interval '5 hours', case when i % 3 <> 0 then timestamptz '2024-05-01 02:00Z' + i * interval '6 hours' end),
    case when i % 4 = 0 then 'ops' || i % 3 end from generate_series(1, 70) i;
insert into shifts select 1 + i % 45, date '2024-05-01' + i / 9, time '08:00' + i % 3 * interval '2 hours', time '14:00' + i % 4 * interval '1 hour',
    int4range(8 + i % 3 * 2, 14 + i % 4) from generate_series(1, 120) i;
insert into tasks select i, 'prj' || i % 6, 1 + i * 5 % 45, i % 9 * interval '3 hours', case when i % 3 <> 0 then i % 7 * interval '200 minutes' end,
    case when i % 2 = 0 then array[i - 1, i / 2] end, case when i % 4 = 0 then timestamp '2024-05-01 12:00' + i * interval '1 day' end from generate_series(1, 60) i;
