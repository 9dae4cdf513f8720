-- The statements behind captured_15.hex (wal_level = logical, one session, an empty UTF8 database).
create type mood as enum ('sad', 'ok', 'happy');
create table item (id int primary key, name text, qty bigint, mood mood, ok boolean, big text);
alter table item alter big set storage external;
create table whole (a int, b text, big text);
alter table whole alter big set storage external;
alter table whole replica identity full;
create table part (id int, note text, primary key (id)) partition by range (id);
create table part_low (note text, id int not null);
alter table part attach partition part_low for values from (0) to (10);
create table other (id int primary key);
create table longkey (note text, k text not null);
alter table longkey alter k set storage external;
create unique index longkey_k on longkey (k);
alter table longkey replica identity using index longkey_k;
create publication p for table item, whole, part_low, other, longkey;
select pg_create_logical_replication_slot('s', 'pgoutput');
select pg_replication_origin_create('elsewhere');

-- 1: inserts of every class
begin;
insert into item values (1, 'one', 9000000000, 'happy', true, repeat('x', 2500));
insert into item values (2, null, -5, null, false, 'ü');
insert into part values (3, 'leaf');
commit;
-- 2: unchanged TOAST, without and with a change of the key
begin;
update item set qty = 7 where id = 1;
update item set id = 10 where id = 1;
delete from item where id = 2;
commit;
-- 3: REPLICA IDENTITY FULL
begin;
insert into whole values (1, 'b', repeat('y', 2500)), (1, null, null);
update whole set b = 'c' where b = 'b';
delete from whole where b is null;
commit;
-- 4: REPLICA IDENTITY USING INDEX on a key that is stored out of line
begin;
insert into longkey values ('n', repeat('z', 2500));
update longkey set note = 'm';
delete from longkey;
commit;
-- 5: a changed relation in the middle of a transaction, then TRUNCATE of two relations
begin;
insert into other values (1);
alter table other add extra text default 'e';
insert into other values (2, 'f');
truncate item, other restart identity;
truncate whole cascade;
commit;
-- 6: messages; the second one is not transactional and is sent before the transaction
begin;
select pg_logical_emit_message(true, 'pgtrickle', 'inside');
select pg_logical_emit_message(false, 'pgtrickle', 'outside');
insert into other values (3, 'g');
commit;
-- 7: replayed from elsewhere
select pg_replication_origin_session_setup('elsewhere');
begin;
select pg_replication_origin_xact_setup('0/1234', '2024-01-02 03:04:05+00');
insert into other values (4, 'h');
commit;
