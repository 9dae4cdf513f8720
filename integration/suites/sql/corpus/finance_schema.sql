-- Bookkeeping: a chart of accounts, a journal, invoices, exchange rates, stock prices, salaries.
create type account_kind as enum ('asset', 'liability', 'equity', 'income', 'expense');
create domain currency as char(3) check (value ~ '^[A-Z]{3}$');
create table chart (code text primary key, parent text references chart on delete cascade on update cascade, name text not null,
    kind account_kind not null);
create table journal (id bigint primary key, posted date not null, memo text, reversed_by bigint, approved boolean);
create table lines (
    journal_id bigint not null references journal on delete cascade on update cascade, line smallint not null,
    account text references chart on delete cascade on update cascade, debit numeric(18,4), credit numeric(18,4),
    ccy currency not null default 'EUR', cost_center varchar(10), primary key (journal_id, line));
create table fx (day date not null, ccy currency not null, rate numeric(12,6) not null, primary key (day, ccy));
create table parties (id int primary key, name text not null, country char(2), credit_limit numeric(14,2), iban char(22));
create table invoices (
    id int primary key, party_id int references parties on delete cascade on update cascade, number varchar(20) not null,
    issued date not null, due date, amount numeric(14,2) not null, ccy currency not null, paid_on date, vat numeric(5,4));
create table receipts (id int primary key, invoice_id int references invoices on delete cascade on update cascade, received date not null,
    amount numeric(14,2) not null);
create table budgets (account text not null, month date not null, amount numeric(14,2), primary key (account, month));
create table quotes (ticker text not null, day date not null, open numeric, high numeric, low numeric, close numeric, volume bigint,
    primary key (ticker, day));
create table trades (id int primary key, ticker text not null, at timestamptz not null, side char(1) not null, qty int not null, price numeric(12,4) not null);
create table staff (id int primary key, name text not null, dept text, salary numeric(10,2), hired date not null, left_on date, bonus money);
create table loans (id int primary key, party_id int, principal numeric(14,2) not null, rate numeric(6,5) not null, months int not null,
    start date not null, term daterange);

insert into chart values ('1', null, 'Assets', 'asset'), ('10', '1', 'Cash', 'asset'), ('100', '10', 'Bank', 'asset'), ('101', '10', 'Till', 'asset'),
    ('14', '1', 'Receivables', 'asset'), ('2', null, 'Liabilities', 'liability'), ('20', '2', 'Payables', 'liability'), ('3', null, 'Equity', 'equity'),
    ('4', null, 'Income', 'income'), ('40', '4', 'Sales', 'income'), ('41', '4', 'Services', 'income'), ('5', null, 'Expenses', 'expense'),
    ('50', '5', 'Wages', 'expense'), ('51', '5', 'Rent', 'expense');
insert into journal select i, date '2024-01-01' + i * 2, (array['sale', 'wages', 'rent', null])[1 + i % 4],
    case when i % 11 = 0 then i + 1 end, case when i % 5 <> 0 then i % 2 = 0 end from generate_series(1, 90) i;
insert into lines
select i, l, case l when 1 then (array['100', '101', '14', '50'])[1 + i % 4] else (array['40', '41', '20', '100'])[1 + i % 4] end,
       case when l = 1 then 100 + i * 3.1250 end, case when l = 2 then 100 + i * 3.1250 - (case when i % 13 = 0 then 0.01 else 0 end) end,
       (array['EUR', 'EUR', 'USD', 'CHF'])[1 + i % 4], case when i % 3 <> 0 then 'CC' || i % 4 end
  from generate_series(1, 90) i, generate_series(1, 2) l;
insert into fx select date '2024-01-01' + d, c, case c when 'USD' then 0.92 when 'CHF' then 1.05 else 0.0061 end + (d % 9) * 0.001
    from generate_series(0, 180, 3) d, unnest(array['USD', 'CHF', 'JPY']) c where (d + length(c)) % 7 <> 0 or c = 'USD';
insert into parties select i, 'Party ' || chr(64 + i % 26 + 1) || i, (array['DE', 'CH', 'US', null])[1 + i % 4], nullif(i % 5, 0) * 1000,
    lpad(i::text, 22, 'DE89') from generate_series(1, 25) i;
insert into invoices select i, 1 + i * 7 % 25, 'INV-' || 2024 || '-' || lpad(i::text, 4, '0'), date '2024-01-03' + i, date '2024-01-03' + i + 14 + i % 3 * 14,
    50 + i % 37 * 33.33, (array['EUR', 'USD', 'CHF'])[1 + i % 3], case when i % 3 = 0 then date '2024-01-20' + i end, (array[0.19, 0.07, null])[1 + i % 3]
    from generate_series(1, 120) i;
insert into receipts select i, 1 + i * 3 % 120, date '2024-01-15' + i, 25 + i % 20 * 20 from generate_series(1, 130) i;
insert into budgets select c, date '2024-01-01' + make_interval(months => m), 500 + m * 10 from unnest(array['40', '41', '50', '51']) c, generate_series(0, 5) m;
insert into quotes select t, date '2024-01-01' + d, 100 + d % 9, 105 + d % 11, 95 + d % 7, 100 + (d * 7 + length(t)) % 10, d * 1000
    from unnest(array['AAA', 'BBB', 'CCCC']) t, generate_series(1, 40) d where d % 7 < 5;
insert into trades select i, (array['AAA', 'BBB', 'CCCC'])[1 + i % 3], timestamptz '2024-01-02 09:00Z' + i * interval '5 hours',
    case when i % 3 = 1 then 'S' else 'B' end, 10 + i % 5, 100 + (i * 7 % 10) * 0.25 from generate_series(1, 110) i;
insert into staff select i, 'Employee ' || i, (array['sales', 'it', 'hr', null])[1 + i % 4], 3000 + i * 37 % 1500, date '2015-03-01' + i * 61,
    case when i % 6 = 0 then date '2024-02-01' + i end, (i % 5 * 100)::money from generate_series(1, 45) i;
insert into loans select i, 1 + i % 25, 1000 * i, 0.01 + i % 5 * 0.005, 6 + i % 3 * 3, date '2024-01-15' + i * 3,
    daterange(date '2024-01-15' + i * 3, date '2024-07-15' + i * 3) from generate_series(1, 20) i;
