-- name: org_chart
with recursive org as (
    select id, name, manager_id, 0 as level, array[id] as chain from people where manager_id is null
    union all
    select p.id, p.name, p.manager_id, o.level + 1, o.chain || p.id from people p join org o on p.manager_id = o.id where o.level < 10 and not p.id = any (o.chain)
)
select id, name, level, chain from org;

-- name: org_span_of_control
select m.id, m.name, count(p.id) as reports, array_agg(p.name order by p.name) as names from people m join people p on p.manager_id = m.id group by m.id, m.name;

-- name: org_all_reports
with recursive r as (
    select manager_id as boss, id from people where manager_id is not null
    union
    select r.boss, p.id from r join people p on p.manager_id = r.id
)
select boss, count(*) as people from r group by boss;

-- name: org_leaf_people
select id, name from people p where not exists (select 1 from people q where q.manager_id = p.id);

-- name: org_managers_paid_by_dept
select d.name, count(p.id) as people, count(distinct p.manager_id) as managers, d.budget / nullif(count(p.id), 0) as per_head
from departments d left join people p on p.dept_id = d.id group by d.name, d.budget;

-- name: org_department_paths
with recursive d as (
    select id, name, name::text as path, 1 as n from departments where parent_id is null
    union all
    select c.id, c.name, d.path || '>' || c.name, n + 1 from departments c join d on c.parent_id = d.id where n < 12
)
select id, path from d;

-- name: org_budget_subtree
with recursive d as (select id as root, id from departments union select d.root, c.id from d join departments c on c.parent_id = d.id)
select d.root, sum(x.budget) as total, count(*) as units from d join departments x on x.id = d.id group by d.root;

-- name: org_same_title
select a.id, b.id as other from people a join people b using (title, dept_id) where a.id < b.id;

-- name: org_skill_matrix
select s.skill, count(*) as people, count(*) filter (where p.title = 'dev') as devs, min(p.since) as first from people p, unnest(p.skills) s(skill) group by s.skill;

-- name: org_skilled_in_both
select id from people where skills @> '{sql,rust}' order by id;

-- name: org_no_skills
select id, coalesce(array_length(skills, 1), 0) as n, skills is null as unknown, skills = '{}' as none from people where coalesce(cardinality(skills), 0) = 0;

-- name: org_longest_serving
select dept_id, id, since from (select p.*, rank() over (partition by dept_id order by since) as r from people p) t where r = 1;

-- name: org_anniversaries
select id, (since + interval '5 years')::date as five, extract(month from since)::int as month, to_char(since, 'DD.MM.YYYY') as shown from people;

-- name: graph_degree
select n, count(*) as degree, sum(weight) as weight from (select src as n, weight from edges union all select dst, weight from edges) e group by n;

-- name: graph_reachable
with recursive r as (
    select 1 as n
    union
    select e.dst from r join edges e on e.src = r.n
)
select n from r;

-- name: graph_transitive_closure
with recursive tc(src, dst) as (
    select src, dst from edges
    union
    select tc.src, e.dst from tc join edges e on e.src = tc.dst
)
select src, count(*) as reach from tc group by src;

-- name: graph_cycles
with recursive tc(src, dst) as (select src, dst from edges union select tc.src, e.dst from tc join edges e on e.src = tc.dst)
select src as on_cycle from tc where src = dst;

-- name: graph_paths_by_array
with recursive p as (
    select src, dst, weight as cost, array[src, dst] as path from edges where src = 1
    union all
    select p.src, e.dst, p.cost + e.weight, p.path || e.dst from p join edges e on e.src = p.dst where not e.dst = any (p.path) and cardinality(p.path) < 5
)
select dst, min(cost) as cost from p group by dst;

-- name: graph_hops
with recursive h(n, hops) as (
    select 1, 0
    union
    select e.dst, h.hops + 1 from h join edges e on e.src = h.n where h.hops < 4
)
select n, min(hops) as hops from h group by n;

-- name: graph_triangles
select count(*) as triangles from edges a join edges b on b.src = a.dst join edges c on c.src = b.dst and c.dst = a.src;

-- name: graph_mutual
select a.src, a.dst from edges a join edges b on a.src = b.dst and a.dst = b.src where a.src < a.dst;

-- name: graph_sinks
select distinct dst from edges except select src from edges;

-- name: graph_search_cycle_clause
with recursive r(src, dst) as (
    select src, dst from edges where src = 2
    union all
    select e.src, e.dst from edges e join r on e.src = r.dst
) cycle dst set looped using path
select dst, count(*) filter (where looped) as looped, count(*) as n from r group by dst;

-- name: bom_explosion
with recursive b as (
    select assembly as root, part, qty::bigint as qty, 1 as level from parts
    union all
    select b.root, p.part, b.qty * p.qty, b.level + 1 from b join parts p on p.assembly = b.part where b.level < 6
)
select root, part, sum(qty) as qty from b group by root, part;

-- name: bom_leaf_parts
select distinct part from parts where part not in (select assembly from parts);

-- name: numbers_recursive
with recursive n(i, f) as (select 1, 1::numeric union all select i + 1, f * (i + 1) from n where i < 15)
select p.id, n.f from people p join n on n.i = p.dept_id;

-- name: geo_distance
select a.id, b.id as other, round((a.pos <-> b.pos)::numeric, 6) as far from places a join places b on a.id < b.id where a.pos <-> b.pos < 6;

-- name: geo_nearest
select a.id, n.id as nearest from places a cross join lateral (select b.id from places b where b.id <> a.id order by b.pos <-> a.pos, b.id limit 1) n;

-- name: geo_in_box
select b.id as box, p.id from places b join places p on p.pos <@ b.area where b.area is not null;

-- name: geo_box_facts
select id, pos[0] as x, pos[1] as y, area(area) as size, center(area) as mid, pos, area from places;

-- name: geo_haversine
select id, round((2 * 6371 * asin(sqrt(power(sin(radians(pos[1] - 10) / 2), 2) + cos(radians(10)) * cos(radians(pos[1])) * power(sin(radians(pos[0]) / 2), 2))))::numeric, 3) as km
from places;

-- name: place_open_hours
select id, opened, opened + interval '8 hours' as closes, extract(hour from opened) as hour, opened between '07:00' and '09:00' as early from places;

-- name: place_macs
select trunc(net) as vendor, count(*) as n, min(name) as first from places group by trunc(net);
