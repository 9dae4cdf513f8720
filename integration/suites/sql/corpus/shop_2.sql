-- name: shop_price_on_day
select o.id, i.line, i.product_id, h.price
from orders o
join order_items i on i.order_id = o.id
join price_history h on h.product_id = i.product_id and h.valid @> o.placed_at::date;

-- name: shop_overlapping_prices
select a.product_id, a.valid * b.valid as both_valid
from price_history a join price_history b on a.product_id = b.product_id and a.valid && b.valid and a.price < b.price;

-- name: shop_price_bounds
select product_id, min(lower(valid)) as since, max(upper(valid)) as until, range_agg(valid) as covered
from price_history group by product_id;

-- name: shop_stock
select p.id, p.name, coalesce(sum(v.on_hand), 0) as on_hand, coalesce(sum(v.on_hand - coalesce(v.reserved, 0)), 0) as free
from products p left join inventory v on v.product_id = p.id
group by p.id, p.name;

-- name: shop_out_of_stock
select p.id from products p
where coalesce((select sum(on_hand) from inventory v where v.product_id = p.id), 0) < 5;

-- name: shop_scalar_in_select
select c.id, c.name,
       (select count(*) from orders o where o.customer_id = c.id) as orders,
       (select max(o.placed_at) from orders o where o.customer_id = c.id) as last_order,
       (select sum(p.amount) from payments p join orders o on o.id = p.order_id where o.customer_id = c.id) as paid
from customers c;

-- name: shop_exists_in_select
select p.id, exists (select 1 from reviews r where r.product_id = p.id and r.rating <= 2) as has_bad_review,
       p.id in (select product_id from inventory where on_hand > 20) as plenty
from products p;

-- name: shop_exists_or
select o.id from orders o
where o.coupon = 'VIP10' or exists (select 1 from payments p where p.order_id = o.id and p.method = 'voucher');

-- name: shop_all_subquery
select p.id, p.price from products p
where p.price >= all (select q.price from products q where q.category_id = p.category_id);

-- name: shop_any_subquery
select p.id from products p
where p.price < any (select i.unit_price from order_items i where i.product_id = p.id);

-- name: shop_row_in
select r.id from reviews r
where (r.customer_id, r.product_id) in (select o.customer_id, i.product_id from orders o join order_items i on i.order_id = o.id);

-- name: shop_full_join
select coalesce(s.product_id, r.product_id) as product_id, s.sold, r.reviews
from (select product_id, sum(quantity) as sold from order_items group by product_id) s
full join (select product_id, count(*) as reviews from reviews group by product_id) r on r.product_id = s.product_id;

-- name: shop_right_join
select o.id, p.method, p.amount from payments p right join orders o on o.id = p.order_id and p.amount > 100;

-- name: shop_full_join_payments
select o.id, p.id as payment from orders o full outer join payments p on p.order_id = o.id;

-- name: shop_self_join_referrals
select c.name, r.name as referrer from customers c left join customers r on r.id = c.referred_by;

-- name: shop_cross_join_matrix
select s.segment, w.warehouse, count(o.id) as n
from (select distinct segment from customers) s
cross join (select distinct warehouse from inventory) w
left join customers c on c.segment = s.segment
left join orders o on o.customer_id = c.id
group by s.segment, w.warehouse;

-- name: shop_using_natural
select product_id, warehouse, on_hand, price from inventory join price_history using (product_id) where on_hand > 3;

-- name: shop_eight_tables
select c.country, cat.name as category, v.warehouse, p.method, count(*) as n
from customers c
join orders o on o.customer_id = c.id
join order_items i on i.order_id = o.id
join products pr on pr.id = i.product_id
join categories cat on cat.id = pr.category_id
left join inventory v on v.product_id = pr.id
left join payments p on p.order_id = o.id
left join reviews r on r.product_id = pr.id and r.customer_id = c.id
group by 1, 2, 3, 4;

-- name: shop_range_join
select p.id, b.label from products p
join (values (0, 50, 'cheap'), (50, 200, 'middle'), (200, 100000, 'dear')) as b(low, high, label)
  on p.price >= b.low and p.price < b.high;

-- name: shop_price_histogram
select width_bucket(price, 0, 500, 10) as bucket, count(*) as n, min(price) as low, max(price) as high
from products group by 1;

-- name: shop_median_price
select category_id, percentile_cont(0.5) within group (order by price) as median,
       percentile_disc(array[0.25, 0.75]) within group (order by price) as quartiles,
       mode() within group (order by (price / 50)::int) as mode
from products group by category_id;

-- name: shop_rating_stats
select product_id, count(rating) as n, avg(rating) as mean, round(stddev_samp(rating), 6) as dev, round(var_pop(rating), 6) as v,
       min(rating) as worst, max(rating) as best, bool_or(rating = 1) as any_bad, bool_and(rating > 2) as all_good
from reviews group by product_id;

-- name: shop_distinct_aggregates
select channel, count(distinct customer_id) as customers, count(distinct coupon) as coupons,
       string_agg(distinct coupon, ',' order by coupon) as used
from orders group by channel;

-- name: shop_global_empty
select count(*) as n, sum(amount) as total, max(paid_at) as last from payments where method = 'bitcoin';

-- name: shop_margin
select p.id, p.name, p.price - p.cost as margin, round((p.price - p.cost) / nullif(p.price, 0) * 100, 1) as percent,
       case when p.cost is null then 'unknown' when p.price - p.cost < 10 then 'thin' else 'good' end as class
from products p;

-- name: shop_greatest_least
select id, greatest(price, cost * 1.2) as ask, least(price, coalesce(cost, price)) as floor, nullif(category_id, 9) as cat
from products;

-- name: shop_email_domain
select split_part(email, '@', 2) as domain, count(*) as n, min(signup) as first from customers group by 1;

-- name: shop_text_functions
select id, upper(left(name, 1)) || lower(substr(name, 2)) as nice, length(email) as len, position('@' in email) as at,
       initcap(lower(name)) as cap, lpad(id::text, 6, '0') as number, regexp_replace(email, '@.*$', '') as local,
       reverse(name) as back, md5(email) as hash, concat_ws(', ', city, country) as place
from customers;

-- name: shop_like_search
select id, body from reviews where body ilike '%great%' or body ~ '^Broke';

-- name: shop_word_count
select w.word, count(*) as n from reviews r, regexp_split_to_table(lower(r.body), '[^a-z]+') as w(word)
where w.word <> '' group by w.word;

-- name: shop_text_search
select id from reviews where to_tsvector('english', coalesce(body, '')) @@ to_tsquery('english', 'great & !late');

-- name: shop_cohorts
with first as (
    select customer_id, min(date_trunc('month', placed_at)) as cohort from orders where status <> 'cart' group by customer_id
)
select f.cohort, (extract(year from age(date_trunc('month', o.placed_at), f.cohort)) * 12
        + extract(month from age(date_trunc('month', o.placed_at), f.cohort)))::int as month_no,
       count(distinct o.customer_id) as customers
from orders o join first f using (customer_id)
where o.status <> 'cart'
group by 1, 2;

-- name: shop_rfm
with base as (
    select customer_id, max(placed_at::date) as last, count(*) as frequency, sum(total) as monetary
    from (select o.id, o.customer_id, o.placed_at, sum(i.quantity * i.unit_price) as total
          from orders o join order_items i on i.order_id = o.id group by o.id, o.customer_id, o.placed_at) t
    where customer_id is not null
    group by customer_id
)
select customer_id, ntile(5) over (order by last, customer_id) as r, ntile(5) over (order by frequency, customer_id) as f,
       ntile(5) over (order by monetary, customer_id) as m
from base;

-- name: shop_islands_of_days
with days as (select distinct placed_at::date as day from orders),
grouped as (select day, day - (row_number() over (order by day))::int as grp from days)
select min(day) as from_day, max(day) as to_day, count(*) as days from grouped group by grp;

-- name: shop_calendar_gaps
select d.day::date as day, count(o.id) as orders
from generate_series(date '2024-01-01', date '2024-06-30', interval '1 day') as d(day)
left join orders o on o.placed_at >= d.day and o.placed_at < d.day + interval '1 day'
group by d.day;

-- name: shop_funnel
select count(*) filter (where placed) as placed, count(*) filter (where placed and paid) as paid,
       count(*) filter (where placed and paid and shipped) as shipped
from (select o.id, o.status <> 'cart' as placed, exists (select 1 from payments p where p.order_id = o.id) as paid,
             o.shipped_at is not null as shipped from orders o) s;

-- name: shop_shipping_time
select channel, avg(shipped_at - placed_at) as mean, max(shipped_at - placed_at) as longest,
       sum(extract(epoch from shipped_at - placed_at)) as seconds
from orders where shipped_at > placed_at group by channel;

-- name: shop_view_of_views
with paid as (select order_id, sum(amount) as paid from payments group by order_id),
due as (select order_id, sum(quantity * unit_price) as due from order_items group by order_id),
both_sides as (select order_id, due, coalesce(paid, 0) as paid from due left join paid using (order_id))
select b.order_id, b.due - b.paid as open, (select count(*) from both_sides x where x.due - x.paid > b.due - b.paid) as worse
from both_sides b where b.due > b.paid;

-- name: shop_delta_to_previous_price
select product_id, valid, price, price - lag(price, 1, price) over (partition by product_id order by valid, price) as change
from price_history;

-- name: shop_values_lookup
select o.id, v.label from orders o
left join (values ('cart'::order_status, 'open'), ('placed', 'open'), ('paid', 'done'), ('shipped', 'done')) as v(status, label)
  on v.status = o.status;

-- name: shop_enum_order
select status, count(*) as n from orders where status > 'placed' group by status order by status;

-- name: shop_max_enum
select customer_id, max(status) as furthest, min(status) as first from orders group by customer_id;

-- name: shop_any_array_literal
select id from orders where channel = any (array['web', 'app']) and customer_id <> all ('{1,2,3}');

-- name: shop_between_dates
select id from orders where placed_at between '2024-02-01' and '2024-03-01' and (shipped_at is null) is not true;

-- name: shop_distinct_rows
select distinct c.country, c.segment, o.channel from customers c join orders o on o.customer_id = c.id;

-- name: shop_nested_aggregates
select avg(n) as mean, max(n) as most, percentile_cont(0.9) within group (order by n) as p90
from (select customer_id, count(*) as n from orders group by customer_id) t;

-- name: shop_best_customer_per_country
select country, id, paid from (
    select c.country, c.id, sum(p.amount) as paid, row_number() over (partition by c.country order by sum(p.amount) desc, c.id) as rn
    from customers c join orders o on o.customer_id = c.id join payments p on p.order_id = o.id
    group by c.country, c.id
) t where rn = 1;

-- name: shop_percent_of_total
select channel, count(*) as n, round(100.0 * count(*) / sum(count(*)) over (), 2) as percent from orders group by channel;

-- name: shop_yoy
with m as (select date_trunc('month', placed_at) as month, count(*) as n from orders group by 1)
select month, n, lag(n) over (order by month) as before, n - lag(n) over (order by month) as change, lead(n, 2, 0) over (order by month) as later
from m;

-- name: shop_lateral_stats
select c.id, s.n, s.spent from customers c,
lateral (select count(*) as n, coalesce(sum(p.amount), 0) as spent from orders o left join payments p on p.order_id = o.id
         where o.customer_id = c.id) s;

-- name: shop_generate_units
select i.order_id, i.line, u.n from order_items i cross join lateral generate_series(1, i.quantity) as u(n) where i.quantity < 10;

-- name: shop_unnest_in_select
select id, unnest(tags) as tag from products;

-- name: shop_array_ops
select id, cardinality(tags) as n, tags || array['x'] as more, array_to_string(tags, '/') as txt, tags[1] as first,
       array_position(tags, 'sale') as pos, array_remove(tags, 'new') as rest
from products;

-- name: shop_nested_case
select id, case status when 'cart' then case when coupon is null then 'plain' else 'coupon' end when 'returned' then 'bad' else status::text end as kind
from orders;

-- name: shop_not_distinct_join
select a.id, b.id as other from orders a join orders b on a.coupon is not distinct from b.coupon and a.id < b.id and a.channel = b.channel;

-- name: shop_dedup_keep_first
select id, product_id, customer_id from (
    select r.*, row_number() over (partition by product_id, customer_id order by created, id) as rn from reviews r) t where rn = 1;

-- name: shop_json_row
select id, to_jsonb(tags) as tags, jsonb_build_object('name', name, 'price', price) as doc, attrs - 'dims' as slim,
       attrs || '{"x": 1}' as more, jsonb_set(coalesce(attrs, '{}'), '{color}', '"none"') as grey
from products;

-- name: shop_having_distinct
select customer_id from orders group by customer_id having count(distinct channel) = 3 and bool_or(status = 'shipped');

-- name: shop_group_by_expression
select lower(substr(name, 1, 1)) as letter, signup > date '2023-09-01' as late, count(*) as n from customers group by 1, 2;
