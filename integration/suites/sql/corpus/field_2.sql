-- name: tele_hourly
select device_id, metric, date_trunc('hour', at) as hour, count(value) as n, min(value) as low, max(value) as high, round(avg(value)::numeric, 6) as mean
from readings group by 1, 2, 3;

-- name: tele_daily_by_place
select p.name, (r.at at time zone 'UTC')::date as day, r.metric, count(*) as n, max(r.value) as high
from readings r join devices d on d.id = r.device_id left join places p on p.id = d.place_id group by 1, 2, 3;

-- name: tele_local_day
select p.zone, (r.at at time zone p.zone)::date as day, count(*) as n from readings r join devices d on d.id = r.device_id join places p on p.id = d.place_id group by 1, 2;

-- name: tele_latest
select distinct on (device_id, metric) device_id, metric, at, value from readings order by device_id, metric, at desc, value desc nulls last, quality desc nulls last;

-- name: tele_latest_row_number
select device_id, at, value from (select r.*, row_number() over (partition by device_id order by at desc, metric, value, quality) as rn from readings r) t where rn = 1;

-- name: tele_over_limit
select r.device_id, r.at, r.value from readings r join devices d on d.id = r.device_id
where r.metric = 'temp' and r.value > (d.config #>> '{alarm,max}')::double precision;

-- name: tele_silent_devices
select d.id, d.serial from devices d where not exists (select 1 from readings r where r.device_id = d.id and r.at > timestamptz '2024-05-10 00:00Z');

-- name: tele_quality
select metric, count(*) as n, count(*) filter (where quality >= 2) as good, round(100.0 * count(*) filter (where value is null) / count(*), 1) as missing from readings group by metric;

-- name: tele_gaps
select device_id, at, next - at as gap from (select device_id, at, lead(at) over (partition by device_id order by at, metric, value, quality) as next from readings) t where next - at > interval '12 hours';

-- name: tele_moving_max
select device_id, metric, at, max(value) over (partition by device_id, metric order by at range between interval '2 days' preceding and current row) as high2d from readings;

-- name: tele_change
select device_id, metric, at, value, value - lag(value) over w as change from readings window w as (partition by device_id, metric order by at, value, quality);

-- name: tele_state_islands
with s as (
    select device_id, at, value > 20 as hot, row_number() over (partition by device_id order by at, value, quality) - row_number() over (partition by device_id, value > 20 order by at, value, quality) as grp
    from readings where metric = 'temp' and value is not null
)
select device_id, hot, min(at) as since, max(at) as until, count(*) as n from s group by device_id, hot, grp;

-- name: tele_percentiles
select metric, percentile_cont(array[0.05, 0.5, 0.95]) within group (order by value) as p, mode() within group (order by quality) as usual from readings group by metric;

-- name: tele_top_devices
select device_id, max(value) as high from readings where metric = 'temp' group by device_id order by max(value) desc nulls last, device_id limit 5;

-- name: tele_pivot
select device_id, date_trunc('day', at at time zone 'UTC') as day, max(value) filter (where metric = 'temp') as temp, max(value) filter (where metric = 'humidity') as hum,
       max(value) filter (where metric = 'volt') as volt from readings group by 1, 2;

-- name: tele_time_bucket
select date_bin(interval '6 hours', at, timestamptz '2024-05-01 00:00Z') as slot, metric, count(*) as n from readings group by 1, 2;

-- name: tele_gapfill
select s.slot, d.id, count(r.at) as n from generate_series(timestamptz '2024-05-01 00:00Z', timestamptz '2024-05-03 00:00Z', interval '6 hours') s(slot)
cross join (select id from devices where model = 'T1') d
left join readings r on r.device_id = d.id and r.at >= s.slot and r.at < s.slot + interval '6 hours' group by s.slot, d.id;

-- name: tele_partition_leaf
select device_id, count(*) as n from readings_mid group by device_id;

-- name: tele_partition_and_leaf
select l.device_id, l.at, count(*) as all_readings from readings_late l join readings r on r.device_id = l.device_id group by l.device_id, l.at;

-- name: tele_devices_firmware
select d.id, d.firmware[1] || '.' || d.firmware[2] || '.' || d.firmware[3] as version, d.firmware > array[1, 2, 0] as modern, d.mask & b'00001111' as low, get_bit(d.mask, 7) as odd
from devices d;

-- name: tele_newest_firmware
select model, max(firmware) as newest, count(distinct firmware) as versions from devices group by model;

-- name: tele_devices_by_mask
select mask, count(*) as n from devices group by mask;

-- name: alarm_open
select a.id, a.device_id, a.severity, d.serial from alarms a left join devices d on d.id = a.device_id where upper_inf(a.during) and a.acked_by is null;

-- name: alarm_overlap
select a.id, b.id as other from alarms a join alarms b on a.device_id = b.device_id and a.id < b.id and a.during && b.during;

-- name: alarm_length
select severity, count(*) as n, avg(upper(during) - lower(during)) as mean, range_agg(during) as covered from alarms group by severity;

-- name: alarm_readings
select a.id, count(r.value) as n, max(r.value) as high from alarms a left join readings r on r.device_id = a.device_id and r.at <@ a.during group by a.id;

-- name: alarm_severity_rank
select id, severity, case severity when 'critical' then 1 when 'high' then 2 when 'medium' then 3 else 4 end as rank,
       count(*) over (partition by device_id) as alarms_of_device from alarms;

-- name: alarm_high_leaf
select severity, count(*) as n from alarms_high_p group by severity;

-- name: shift_overlaps
select a.person_id, a.day, a.slot * b.slot as both_slots from shifts a join shifts b on a.person_id = b.person_id and a.day = b.day and a.slot && b.slot and a.starts < b.starts;

-- name: shift_hours
select person_id, sum(ends - starts) as time, sum(extract(epoch from ends - starts)) / 3600 as hours, count(*) as shifts from shifts group by person_id;

-- name: shift_duplicates
select person_id, day, starts, count(*) as n from shifts group by person_id, day, starts having count(*) > 1;

-- name: shift_cover
select day, string_agg(p.name, ', ' order by p.name, s.starts) as who, range_agg(s.slot) as cover from shifts s join people p on p.id = s.person_id group by day;

-- name: shift_days_off
select p.id, d.day::date as day from people p cross join generate_series(date '2024-05-01', date '2024-05-05', interval '1 day') d(day)
except select person_id, day from shifts;

-- name: task_estimates
select project, sum(estimate) as planned, sum(spent) as spent, sum(spent) filter (where spent > estimate) as over, avg(estimate) as mean, justify_hours(sum(estimate)) as days
from tasks group by project;

-- name: task_blocked
select t.id, array_agg(b.id order by b.id) as waits_for from tasks t join tasks b on b.id = any (t.depends_on) where t.done_at is null and b.done_at is null group by t.id;

-- name: task_dependency_depth
with recursive d as (
    select id, 0 as depth from tasks where depends_on is null
    union
    select t.id, d.depth + 1 from d join tasks t on d.id = any (t.depends_on) where d.depth < 6
)
select id, max(depth) as depth from d group by id;

-- name: task_unnested_dependencies
select t.id, x.dep, b.project from tasks t cross join unnest(t.depends_on) with ordinality as x(dep, n) left join tasks b on b.id = x.dep;

-- name: task_progress
select project, count(*) as n, count(done_at) as done, round(count(done_at)::numeric / count(*), 3) as part, max(done_at)::date as last from tasks group by project;

-- name: task_least_loaded
select p.id, coalesce(sum(t.estimate) filter (where t.done_at is null), interval '0') as load from people p left join tasks t on t.person_id = p.id group by p.id
order by load, p.id limit 8;

-- name: task_interval_bands
select case when estimate < interval '6 hours' then 'small' when estimate <= interval '1 day' then 'medium' else 'large' end as size, count(*) as n from tasks group by 1;

-- name: org_task_matrix
select d.name, t.project, count(t.id) as n from departments d left join people p on p.dept_id = d.id left join tasks t on t.person_id = p.id group by grouping sets ((d.name, t.project), (d.name), ());

-- name: place_device_documents
select p.id, p.name, (select jsonb_agg(jsonb_build_object('serial', d.serial, 'config', d.config) order by d.id) from devices d where d.place_id = p.id) as devices from places p;
