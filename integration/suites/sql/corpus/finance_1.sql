-- name: fin_trial_balance
select c.code, c.name, sum(l.debit) as debit, sum(l.credit) as credit, coalesce(sum(l.debit), 0) - coalesce(sum(l.credit), 0) as balance
from chart c left join lines l on l.account = c.code group by c.code, c.name;

-- name: fin_unbalanced
select journal_id, sum(coalesce(debit, 0)) - sum(coalesce(credit, 0)) as diff from lines group by journal_id
having sum(coalesce(debit, 0)) <> sum(coalesce(credit, 0));

-- name: fin_account_tree
with recursive t as (
    select code, code as root, 1 as depth from chart
    union all
    select c.code, t.root, t.depth + 1 from chart c join t on c.parent = t.code where t.depth < 6
)
select t.root, coalesce(sum(l.debit), 0) as debit, coalesce(sum(l.credit), 0) as credit from t left join lines l on l.account = t.code group by t.root;

-- name: fin_tree_path
with recursive p as (
    select code, name, name as path, array[code] as codes from chart where parent is null
    union all
    select c.code, c.name, p.path || '/' || c.name, p.codes || c.code from chart c join p on p.code = c.parent where not c.code = any (p.codes)
)
select code, path, cardinality(codes) as level from p;

-- name: fin_running_balance
select l.account, j.posted, l.journal_id, l.line,
       sum(coalesce(l.debit, 0) - coalesce(l.credit, 0)) over (partition by l.account order by j.posted, l.journal_id, l.line) as balance
from lines l join journal j on j.id = l.journal_id;

-- name: fin_month_end_balance
select account, month, sum(change) over (partition by account order by month) as closing from (
    select l.account, date_trunc('month', j.posted::timestamp)::date as month, sum(coalesce(l.debit, 0) - coalesce(l.credit, 0)) as change
    from lines l join journal j on j.id = l.journal_id group by 1, 2) m;

-- name: fin_profit_by_quarter
select extract(year from j.posted) as year, extract(quarter from j.posted) as quarter,
       sum(case c.kind when 'income' then coalesce(l.credit, 0) - coalesce(l.debit, 0)
                       when 'expense' then coalesce(l.credit, 0) - coalesce(l.debit, 0) else 0 end) as profit
from lines l join journal j on j.id = l.journal_id join chart c on c.code = l.account group by 1, 2;

-- name: fin_kind_rollup
select c.kind, c.code, sum(coalesce(l.debit, 0)) as debit, grouping(c.kind) + grouping(c.code) as level
from chart c left join lines l on l.account = c.code group by rollup (c.kind, c.code);

-- name: fin_in_euro
select l.journal_id, l.line, round(coalesce(l.debit, l.credit) * coalesce(f.rate, 1), 2) as eur
from lines l join journal j on j.id = l.journal_id left join fx f on f.ccy = l.ccy and f.day = j.posted;

-- name: fin_asof_rate
select i.id, i.amount, i.ccy, round(i.amount * r.rate, 2) as eur
from invoices i left join lateral (select f.rate from fx f where f.ccy = i.ccy and f.day <= i.issued order by f.day desc limit 1) r on true;

-- name: fin_asof_scalar
select i.id, coalesce((select f.rate from fx f where f.ccy = i.ccy and f.day <= i.issued order by f.day desc limit 1), 1) as rate from invoices i;

-- name: fin_latest_rates
select distinct on (ccy) ccy, day, rate from fx order by ccy, day desc;

-- name: fin_rate_periods
select ccy, day as from_day, coalesce(lead(day) over (partition by ccy order by day), 'infinity') as to_day, rate from fx;

-- name: fin_rate_gaps
select ccy, day, next, next - day as days from (select ccy, day, lead(day) over (partition by ccy order by day) as next from fx) t where next - day > 3;

-- name: fin_rate_change
select ccy, day, round((rate / nullif(lag(rate) over (partition by ccy order by day), 0) - 1) * 100, 4) as percent from fx;

-- name: fin_fill_forward
with days as (select d::date as day from generate_series(date '2024-01-01', date '2024-02-15', interval '1 day') d),
grid as (select d.day, c.ccy, f.rate from days d cross join (select distinct ccy from fx) c left join fx f on f.day = d.day and f.ccy = c.ccy),
marked as (select day, ccy, rate, count(rate) over (partition by ccy order by day) as grp from grid)
select day, ccy, max(rate) over (partition by ccy, grp) as rate from marked;

-- name: fin_ageing
select party_id,
       sum(amount) filter (where date '2024-05-01' - due <= 0) as not_due,
       sum(amount) filter (where date '2024-05-01' - due between 1 and 30) as d30,
       sum(amount) filter (where date '2024-05-01' - due between 31 and 60) as d60,
       sum(amount) filter (where date '2024-05-01' - due > 60) as older
from invoices where paid_on is null group by party_id;

-- name: fin_open_items
select i.id, i.number, i.amount - coalesce(sum(r.amount), 0) as open from invoices i left join receipts r on r.invoice_id = i.id
group by i.id having i.amount - coalesce(sum(r.amount), 0) > 0;

-- name: fin_overpaid
select i.id from invoices i where i.amount < (select sum(r.amount) from receipts r where r.invoice_id = i.id);

-- name: fin_over_limit
select p.id, p.name, p.credit_limit, o.open from parties p
join (select party_id, sum(amount) as open from invoices where paid_on is null group by party_id) o on o.party_id = p.id
where o.open > coalesce(p.credit_limit, 500);

-- name: fin_payment_allocation
select r.id, r.invoice_id, r.amount, least(r.amount, greatest(i.amount - coalesce(sum(r.amount) over (partition by r.invoice_id
    order by r.received, r.id rows between unbounded preceding and 1 preceding), 0), 0)) as applied
from receipts r join invoices i on i.id = r.invoice_id;

-- name: fin_vat
select coalesce(vat, 0) as rate, count(*) as n, sum(round(amount * coalesce(vat, 0), 2)) as vat, sum(amount) as net from invoices group by 1;

-- name: fin_vat_by_month
select to_char(issued, 'YYYY-MM') as month, ccy, sum(amount) as net, sum(round(amount * vat, 2)) as vat from invoices group by 1, 2;

-- name: fin_number_parts
select id, split_part(number, '-', 2)::int as year, right(number, 4) as seq, number like 'INV-2024-00%' as early, length(number) as len
from invoices where number ~ '^INV-[0-9]{4}-[0-9]+$';

-- name: fin_missing_numbers
select n from generate_series(1, 125) n where not exists (select 1 from invoices i where i.number = 'INV-2024-' || lpad(n::text, 4, '0'));

-- name: fin_duplicate_invoices
select a.id, b.id as twin from invoices a join invoices b on a.party_id = b.party_id and a.amount = b.amount and a.id < b.id and abs(a.issued - b.issued) < 60;

-- name: fin_dso
select date_trunc('month', issued::timestamp) as month, avg(paid_on - issued) as days, percentile_cont(0.5) within group (order by paid_on - issued) as median
from invoices where paid_on is not null group by 1;

-- name: fin_budget_variance
select b.account, b.month, b.amount as budget, coalesce(a.actual, 0) as actual, coalesce(a.actual, 0) - b.amount as variance
from budgets b left join (
    select l.account, date_trunc('month', j.posted::timestamp)::date as month, sum(coalesce(l.credit, 0) - coalesce(l.debit, 0)) as actual
    from lines l join journal j on j.id = l.journal_id group by 1, 2) a using (account, month);

-- name: fin_budget_full_join
select coalesce(b.account, l.account) as account, b.budget, l.actual
from (select account, sum(amount) as budget from budgets group by account) b
full join (select account, sum(credit) as actual from lines group by account) l on l.account = b.account;

-- name: fin_ytd
select account, month, amount, sum(amount) over (partition by account, extract(year from month) order by month) as ytd from budgets;

-- name: fin_moving_average_close
select ticker, day, close, round(avg(close) over (partition by ticker order by day rows between 4 preceding and current row), 6) as ma5,
       max(high) over (partition by ticker order by day rows between 9 preceding and current row) as high10
from quotes;

-- name: fin_returns
select ticker, day, close / nullif(lag(close) over (partition by ticker order by day), 0) - 1 as ret from quotes;

-- name: fin_new_highs
select ticker, day, close from (
    select ticker, day, close, max(close) over (partition by ticker order by day rows between unbounded preceding and 1 preceding) as before from quotes) t
where before is null or close > before;

-- name: fin_weekly_ohlc
select ticker, date_trunc('week', day::timestamp)::date as week, (array_agg(open order by day))[1] as open, max(high) as high, min(low) as low,
       (array_agg(close order by day desc))[1] as close, sum(volume) as volume
from quotes group by 1, 2;

-- name: fin_up_streaks
with m as (select ticker, day, case when close > lag(close) over (partition by ticker order by day) then 0 else 1 end as down from quotes),
g as (select ticker, day, sum(down) over (partition by ticker order by day) as grp from m)
select ticker, grp, count(*) - 1 as ups, min(day) as since from g group by ticker, grp having count(*) > 2;

-- name: fin_vwap
select ticker, (at at time zone 'UTC')::date as day, sum(qty * price) / nullif(sum(qty), 0) as vwap, sum(qty) as volume from trades group by 1, 2;
