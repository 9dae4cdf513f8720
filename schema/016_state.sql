-- What stream tables hold in the sidecar's memory, and how much each may.

-- MB of state of its own that a stream table may hold; null: the setting state_limit_mb, else half of the sidecar's
-- memory limit.
alter table pgtrickle.pgt_stream_tables add column if not exists state_limit_mb int check (state_limit_mb > 0);

-- Figures of the live sidecar, at most 30 seconds old while it runs. No foreign key: storing them must never wait for
-- somebody's open transaction. Rows of a stream table that is gone are removed by the next start.
create table if not exists pgtrickle.pgt_operator_state (
    pgt_id bigint not null,
    position int not null,
    operator text not null,
    part text not null,
    rows bigint not null,
    bytes bigint not null,
    shared boolean not null,
    updated_at timestamptz not null default clock_timestamp(),
    primary key (pgt_id, position)
);

-- Operators tell the query.
alter table pgtrickle.pgt_operator_state enable row level security;
drop policy if exists pgt_owner on pgtrickle.pgt_operator_state;
create policy pgt_owner on pgtrickle.pgt_operator_state for select
    using (pgt_id in (select s.pgt_id from pgtrickle.pgt_stream_tables s));

-- Sizes alone, of all stream tables: rows and bytes of their own state.
create or replace view pgtrickle.stream_table_sizes as
select n.pgt_id, n.pgt_schema, n.pgt_name, sum(o.rows)::bigint as state_rows, sum(o.bytes)::bigint as state_bytes,
       max(o.updated_at) as updated_at
  from pgtrickle.pgt_operator_state o
  join pgtrickle.stream_table_names n on n.pgt_id = o.pgt_id
 where not o.shared
 group by n.pgt_id, n.pgt_schema, n.pgt_name;

-- A limit from the settings; null where it is 0. Read at every look of the sidecar, so it never fails: what is no
-- number (it can only come from ALTER DATABASE) counts as not set.
drop function if exists pgtrickle._limit_setting(text);
create or replace function pgtrickle._limit_setting(name text, pipe text) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when v ~ '^[0-9]{1,15}(\.[0-9]+)?$' then nullif(ceil(v::numeric), 0)::bigint end
      from pgtrickle._setting(name, pipe) v
$$;

create or replace function pgtrickle._state(id bigint)
returns table (operator text, part text, rows bigint, bytes bigint, shared boolean, updated_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select o.operator, o.part, o.rows, o.bytes, o.shared, o.updated_at
      from pgtrickle.pgt_operator_state o where o.pgt_id = id order by o.position
$$;

-- What a stream table holds, operator by operator as in `pgtrickle explain`; only for its owner, because it tells the
-- query. `shared`: sources and arrangements that other stream tables use, too.
create or replace function pgtrickle.stream_table_state(name text)
returns table (operator text, part text, rows bigint, bytes bigint, shared boolean, updated_at timestamptz)
language sql volatile as $$
    select * from pgtrickle._state(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true))
$$;

create or replace function pgtrickle._set_state_limit(id bigint, mb int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if mb <= 0 then
        raise exception 'invalid limit: % MB', mb using errcode = '22023',
            hint = 'Pass a positive number of MB, or null for the setting state_limit_mb.';
    end if;
    update pgtrickle.pgt_stream_tables t set state_limit_mb = mb, updated_at = now() where t.pgt_id = id;
end $$;

-- Bounds the state of one stream table; null: back to the setting. Takes effect at once, nothing is computed anew.
create or replace function pgtrickle.set_state_limit(name text, mb int) returns void
language sql volatile as $$
    select pgtrickle._set_state_limit(pgtrickle._find($1, pg_catalog.current_setting('search_path'), true), $2)
$$;
