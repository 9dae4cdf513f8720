-- Always applied last: takes every function from PUBLIC and gives what the files above created to the roles that
-- had been granted before. Functions of stream tables that an older version made are made again.

do $$
declare
    r record;
    f record;
    sidecar text := (select s.value from pgtrickle.settings s where s.key = 'sidecar_role');
begin
    for f in select p.oid::regprocedure as sig from pg_catalog.pg_proc p
              where p.pronamespace = 'pgtrickle'::regnamespace loop
        execute pg_catalog.format('revoke all on function %s from public', f.sig);
    end loop;
    for r in select distinct o.rolname from pg_catalog.pg_namespace n
               cross join lateral pg_catalog.aclexplode(n.nspacl) a
               join pg_catalog.pg_roles o on o.oid = a.grantee
              where n.nspname = 'pgtrickle' and a.privilege_type = 'USAGE' and a.grantee <> n.nspowner loop
        if r.rolname = sidecar then
            perform pgtrickle.set_sidecar_role(r.rolname);
        else
            perform pgtrickle._grant_rights(r.rolname);
        end if;
    end loop;
end $$;

select pgtrickle._renew_functions();
