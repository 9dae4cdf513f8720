-- name: fin_positions
select ticker, sum(case side when 'B' then qty else -qty end) as position, count(*) filter (where side = 'S') as sells,
       sum(case side when 'B' then qty * price else -qty * price end) as cost
from trades group by ticker;

-- name: fin_running_position
select id, ticker, sum(case side when 'B' then qty else -qty end) over (partition by ticker order by at, id) as position from trades;

-- name: fin_trade_to_quote
select t.id, t.price, q.close, t.price - q.close as off from trades t left join quotes q on q.ticker = t.ticker and q.day = (t.at at time zone 'UTC')::date;

-- name: fin_best_day
select ticker, day, close from quotes q where close = (select max(close) from quotes x where x.ticker = q.ticker);

-- name: fin_correlation
select a.ticker as t1, b.ticker as t2, round(corr(a.close, b.close)::numeric, 6) as corr, regr_count(a.close, b.close) as n,
       round(regr_slope(a.close, b.close)::numeric, 6) as slope, round(covar_pop(a.close, b.close)::numeric, 6) as cov
from quotes a join quotes b on a.day = b.day and a.ticker < b.ticker group by 1, 2;

-- name: fin_volatility
select ticker, round(stddev(close), 6) as sd, round(variance(close), 6) as var, max(high) - min(low) as range from quotes group by ticker;

-- name: fin_salary_rank
select id, dept, salary, rank() over (partition by dept order by salary desc nulls last) as r,
       round(salary - avg(salary) over (partition by dept), 2) as off from staff;

-- name: fin_second_highest_salary
select max(salary) as second from staff where salary < (select max(salary) from staff);

-- name: fin_nth_salary
select distinct salary from staff where salary is not null order by salary desc offset 2 limit 1;

-- name: fin_top_earner_per_dept
select distinct on (dept) dept, id, name, salary from staff order by dept, salary desc nulls last, id;

-- name: fin_dept_above_company
select dept, avg(salary) as mean from staff where left_on is null group by dept having avg(salary) > (select avg(salary) from staff);

-- name: fin_salary_percentiles
select dept, percentile_cont(0.9) within group (order by salary) as p90, percentile_disc(0.5) within group (order by salary) as median,
       rank(3500.0::numeric) within group (order by salary) as hypothetical from staff group by dept;

-- name: fin_headcount_by_month
select m::date as month, count(s.id) as heads, sum(s.salary) as wages
from generate_series(timestamp '2020-01-01', timestamp '2024-06-01', interval '6 months') as m
left join staff s on s.hired <= m and (s.left_on is null or s.left_on > m) group by m;

-- name: fin_tenure
select id, age(coalesce(left_on, date '2024-06-01'), hired) as tenure, extract(year from age(date '2024-06-01', hired)) as years,
       (hired + interval '1 year')::date as anniversary, date_part('doy', hired) as doy from staff;

-- name: fin_birthday_cohort
select width_bucket(salary, 3000, 4500, 5) as band, count(*) as n, array_agg(id order by id) as ids from staff group by 1;

-- name: fin_bonus_money
select dept, sum(bonus) as bonus, max(bonus) as most, count(*) filter (where bonus > 100::money) as n from staff group by dept;

-- name: fin_loan_schedule
select l.id, g.n, (l.start + make_interval(months => g.n))::date as due, round(l.principal / nullif(l.months, 0), 2) as part
from loans l cross join lateral generate_series(1, l.months) as g(n);

-- name: fin_annuity
select id, round(principal * (rate / 12) / nullif(1 - power(1 + rate / 12, -months), 0), 2) as payment from loans where rate > 0 and months > 0;

-- name: fin_loan_balance_recursive
with recursive s as (
    select id, 0 as n, principal::numeric as principal, round(principal / nullif(months, 0), 2) as part, months from loans
    union all
    select id, n + 1, round(principal - part, 2), part, months from s where n < least(months, 12)
)
select id, n, principal from s;

-- name: fin_active_loans
select l.id, p.name from loans l left join parties p on p.id = l.party_id where l.term @> date '2024-04-01' and not isempty(l.term);

-- name: fin_overlapping_loans
select a.party_id, a.id, b.id as other, a.term * b.term as overlap from loans a join loans b on a.party_id = b.party_id and a.id < b.id and a.term && b.term;

-- name: fin_loan_union_ranges
select party_id, range_agg(term) as covered, count(*) as n from loans group by party_id;

-- name: fin_reversed
select j.id, r.id as reversal, r.posted - j.posted as days from journal j left join journal r on r.id = j.reversed_by where j.reversed_by is not null;

-- name: fin_reversal_never_approved
select id from journal j where j.approved is not true and j.id not in (select reversed_by from journal where reversed_by is not null);

-- name: fin_not_in_with_nulls
select id from journal where id not in (select reversed_by from journal);

-- name: fin_approval_states
select coalesce(approved::text, 'pending') as state, count(*) as n, min(posted) as first, bool_and(memo is not null) as all_memo from journal group by 1;

-- name: fin_memo_union
select memo as text, 'journal' as source from journal where memo is not null union select name, 'chart' from chart union select name, 'party' from parties
order by 1, 2;

-- name: fin_cost_center_pivot
select cost_center, sum(debit) filter (where ccy = 'EUR') as eur, sum(debit) filter (where ccy = 'USD') as usd, sum(debit) filter (where ccy not in ('EUR', 'USD')) as other
from lines group by cost_center;

-- name: fin_cost_center_cube
select cost_center, ccy, sum(debit) as debit, count(*) as n from lines group by cube (cost_center, ccy) having count(*) > 1;

-- name: fin_distinct_currencies
select account, string_agg(distinct ccy, '+' order by ccy) as currencies, count(distinct cost_center) as centers from lines group by account;

-- name: fin_json_journal
select j.id, jsonb_build_object('posted', j.posted, 'lines', jsonb_agg(jsonb_build_object('account', l.account, 'debit', l.debit, 'credit', l.credit) order by l.line)) as doc
from journal j join lines l on l.journal_id = j.id group by j.id, j.posted;

-- name: fin_row_to_json
select i.id, row_to_json(row(i.number, i.amount, i.ccy)) as doc from invoices i where i.amount > 500;

-- name: fin_benford
select left(trim(leading '0.' from amount::text), 1) as digit, count(*) as n from invoices group by 1;

-- name: fin_rounding
select id, round(amount, 1) as r1, trunc(amount) as t, ceil(amount / 100) * 100 as up, floor(amount) as down, mod(amount, 7) as rest, sign(amount - 500) as s,
       amount::numeric(12,1) as n1, (amount * 100)::bigint as cents, div(amount, 3) as d from invoices;

-- name: fin_iban_mask
select id, overlay(iban placing '************' from 5 for 12) as masked, rtrim(iban) as trimmed, iban || '|' as padded, upper(country) as country from parties;

-- name: fin_char_compare
select p.id, q.id as other from parties p join parties q on p.country = q.country and p.id < q.id where p.country in ('DE', 'CH ') ;

-- name: fin_lateral_latest_receipts
select i.id, r.received, r.amount, r.n from invoices i cross join lateral (
    select received, amount, row_number() over (order by received desc, id desc) as n from receipts where invoice_id = i.id order by received desc, id desc limit 2) r;

-- name: fin_counts_in_one_row
select (select count(*) from invoices) as invoices, (select count(*) from receipts) as receipts, (select sum(amount) from invoices where paid_on is null) as open,
       (select max(day) from fx) as last_rate;

-- name: fin_receipts_vs_mean
select r.id, r.amount, r.amount > m.mean as above from receipts r cross join (select avg(amount) as mean from receipts) m;

-- name: fin_set_op_chain
(select party_id from invoices where ccy = 'USD' intersect select party_id from invoices where ccy = 'EUR') except select party_id from loans
union select id from parties where credit_limit is null;

-- name: fin_ratio_to_report
select kind, total, round(total / nullif(sum(total) over (), 0), 4) as share from (
    select c.kind, sum(coalesce(l.debit, 0) + coalesce(l.credit, 0)) as total from chart c join lines l on l.account = c.code group by c.kind) t;

-- name: fin_exclusive_customers
select p.id from parties p where not exists (select 1 from invoices i where i.party_id = p.id and i.paid_on is null)
  and exists (select 1 from invoices i where i.party_id = p.id);

-- name: fin_every_currency
select p.id from parties p where not exists (
    select 1 from (select distinct ccy from invoices) c where not exists (select 1 from invoices i where i.party_id = p.id and i.ccy = c.ccy));

-- name: fin_union_debits_credits
select account, 'D' as side, debit as amount from lines where debit is not null union all select account, 'C', credit from lines where credit is not null;

-- name: fin_unpivot
select l.journal_id, l.line, v.side, v.amount from lines l cross join lateral (values ('debit', l.debit), ('credit', l.credit)) as v(side, amount) where v.amount is not null;

-- name: fin_max_drawdown
with peaks as (select ticker, day, close, max(close) over (partition by ticker order by day) as peak from quotes)
select ticker, min(close / nullif(peak, 0) - 1) as drawdown from peaks group by ticker;
