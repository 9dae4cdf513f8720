-- Computes the results in scalar.tsv again, on PostgreSQL 15 with a UTF8 database:
--   \i scalar.sql
--   \copy cases from scalar.tsv
--   \copy (select op, a, b, ev(op, a, b) from cases) to scalar.tsv
create or replace function ev(op text, a text, b text) returns text language plpgsql set extra_float_digits=1 set intervalstyle=postgres set datestyle='ISO' set timezone='UTC' as $$
declare r text; begin
case op
 when 'nadd' then return a::numeric+b::numeric; when 'nsub' then return a::numeric-b::numeric;
 when 'nmul' then return a::numeric*b::numeric; when 'ndiv','ndivs' then return a::numeric/b::numeric;
 when 'nround' then return round(a::numeric,b::int); when 'ntypmod' then return pg_catalog."numeric"(a::numeric,b::int);
 when 'nneg' then return -(a::numeric); when 'nabs' then return abs(a::numeric); when 'ncmp' then return numeric_cmp(a::numeric,b::numeric);
 when 'nint2' then return a::numeric::int2; when 'nint4' then return a::numeric::int4; when 'nint8' then return a::numeric::int8;
 when 'nsum' then return (select sum(x) from unnest(a::numeric[]) x); when 'navg' then return (select avg(x) from unnest(a::numeric[]) x);
 when 'isum8' then return (select sum(x) from unnest(a::int8[]) x); when 'iavg8' then return (select avg(x) from unnest(a::int8[]) x);
 when 'iavg4' then return (select avg(x) from unnest(a::int4[]) x);
 when 'f8text' then return a::float8; when 'f4text' then return a::float4; when 'f4to8' then return a::float4::float8; when 'i8tof8' then return a::int8::float8;
 when 'f8neg' then return -(a::float8); when 'f4neg' then return -(a::float4);
 when 'f8cmp' then return btfloat8cmp(a::float8,b::float8);
 when 'fsum' then return (select sum(x) from unnest(a::float8[]) x);
 when 'ivcmp' then return a::interval::text||'|'||b::interval::text||'|'||interval_cmp(a::interval,b::interval);
 when 'date' then return a::date::text||'|'||encode(date_send(a::date),'hex');
 when 'time' then return a::time::text||'|'||encode(time_send(a::time),'hex');
 when 'ts' then return a::timestamp::text||'|'||encode(timestamp_send(a::timestamp),'hex');
 when 'tstz' then return a::timestamptz::text||'|'||encode(timestamptz_send(a::timestamptz),'hex');
 when 'datesub' then return a::date-b::date;
 when 'like' then return case when a like b then 't' else 'f' end; when 'notlike' then return case when a not like b then 't' else 'f' end;
 when 'concat' then return a||b; when 'length' then return length(a); when 'starts' then return case when starts_with(a,b) then 't' else 'f' end;
 when 'bpcmp' then return bpcharcmp(a::bpchar,b::bpchar); when 'bptext' then return text(a::bpchar); when 'ccmp' then return bttextcmp(a,b collate "C");
 when 'record' then return row(1,true,null,a,b,'')::text;
 else
  if op ~ '^i(add|sub|mul|div|mod)' then
   execute format('select (%L::int%s %s %L::int%s)::text', a, right(op,1), case substr(op,2,3) when 'add' then '+' when 'sub' then '-' when 'mul' then '*' when 'div' then '/' else '%' end, b, right(op,1)) into r;
  elsif op ~ '^i(neg|abs)' then
   execute format('select (%s(%L::int%s))::text', case substr(op,2,3) when 'neg' then '-' else 'abs' end, a, right(op,1)) into r;
  elsif op ~ '^icast' then
   execute format('select %L::int8::int%s::text', a, right(op,1)) into r;
  else
   execute format('select (%L::float%s %s %L::float%s)::text', a, right(op,1), case substr(op,2,3) when 'add' then '+' when 'sub' then '-' when 'mul' then '*' else '/' end, b, right(op,1)) into r;
  end if;
  return r;
end case;
exception when others then return '!'||sqlstate||':'||sqlerrm;
end $$;
create table if not exists cases (op text, a text, b text, expected text);
