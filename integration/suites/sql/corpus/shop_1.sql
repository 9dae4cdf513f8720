-- name: shop_order_totals
select o.id, o.status, count(*) as lines, sum(i.quantity) as items,
       sum(i.quantity * i.unit_price * (1 - coalesce(i.discount, 0))) as total
from orders o join order_items i on i.order_id = o.id
group by o.id, o.status;

-- name: shop_revenue_by_country
select c.country, count(distinct o.id) as orders, sum(i.quantity * i.unit_price) as revenue
from customers c
join orders o on o.customer_id = c.id
join order_items i on i.order_id = o.id
where o.status in ('paid', 'shipped')
group by c.country;

-- name: shop_revenue_by_month
select date_trunc('month', o.placed_at) as month, sum(i.quantity * i.unit_price) as revenue, count(distinct o.customer_id) as buyers
from orders o join order_items i on i.order_id = o.id
where o.status not in ('cart', 'cancelled')
group by 1
order by 1;

-- name: shop_revenue_by_weekday
select extract(isodow from placed_at) as dow, to_char(placed_at, 'Dy') as day, count(*) as n
from orders group by 1, 2;

-- name: shop_customers_without_orders
select c.id, c.name, c.email from customers c
left join orders o on o.customer_id = c.id
where o.id is null;

-- name: shop_customers_without_orders_not_exists
select c.id, c.name from customers c
where not exists (select 1 from orders o where o.customer_id = c.id and o.status <> 'cancelled');

-- name: shop_customers_with_big_order
select c.id, c.name from customers c
where exists (select 1 from orders o join payments p on p.order_id = o.id where o.customer_id = c.id and p.amount > 300);

-- name: shop_products_never_sold
select p.id, p.sku from products p
where p.id not in (select product_id from order_items where product_id is not null);

-- name: shop_products_never_sold_null_trap
select p.id, p.sku from products p
where p.id not in (select product_id from order_items where quantity > 2);

-- name: shop_above_average_price
select p.id, p.name, p.price from products p
where p.price > (select avg(price) from products);

-- name: shop_above_category_average
select p.id, p.name, p.price, p.category_id from products p
where p.price > (select avg(q.price) from products q where q.category_id = p.category_id);

-- name: shop_latest_order_per_customer
select distinct on (customer_id) customer_id, id, status, placed_at
from orders
order by customer_id, placed_at desc, id desc;

-- name: shop_latest_order_lateral
select c.id, c.name, l.id as order_id, l.placed_at
from customers c
cross join lateral (
    select o.id, o.placed_at from orders o where o.customer_id = c.id order by o.placed_at desc, o.id desc limit 1
) l;

-- name: shop_latest_two_orders_left_lateral
select c.id, l.id as order_id, l.status
from customers c
left join lateral (
    select o.id, o.status from orders o where o.customer_id = c.id order by o.placed_at desc, o.id desc limit 2
) l on true;

-- name: shop_latest_order_max_subquery
select o.customer_id, o.id, o.placed_at
from orders o
join (select customer_id, max(placed_at) as placed_at from orders group by customer_id) m
  on m.customer_id = o.customer_id and m.placed_at = o.placed_at;

-- name: shop_top_products
select p.id, p.name, sum(i.quantity) as sold
from order_items i join products p on p.id = i.product_id
group by p.id, p.name
order by sold desc, p.id
limit 10;

-- name: shop_top_products_with_ties
select product_id, count(*) as n from order_items
where product_id is not null
group by product_id order by count(*) desc fetch first 5 rows with ties;

-- name: shop_second_page
select id, name, price from products order by price desc, id offset 10 limit 10;

-- name: shop_top3_per_category
select category_id, id, name, price from (
    select p.*, row_number() over (partition by category_id order by price desc, id) as rn from products p
) ranked
where rn <= 3;

-- name: shop_price_rank
select id, category_id, price, rank() over (partition by category_id order by price desc) as r,
       dense_rank() over (order by price) as dr, percent_rank() over (order by price, id) as pr,
       ntile(4) over (order by price, id) as quartile
from products;

-- name: shop_running_total
select id, placed_at, sum(n) over (order by placed_at, id) as running
from (select o.id, o.placed_at, count(i.line) as n from orders o left join order_items i on i.order_id = o.id
      group by o.id, o.placed_at) t;

-- name: shop_customer_running_total
select p.id, o.customer_id, p.amount,
       sum(p.amount) over (partition by o.customer_id order by p.id rows between unbounded preceding and current row) as so_far
from payments p join orders o on o.id = p.order_id;

-- name: shop_moving_average
select day, revenue, avg(revenue) over (order by day rows between 6 preceding and current row) as ma7
from (select placed_at::date as day, sum(i.quantity * i.unit_price) as revenue
      from orders o join order_items i on i.order_id = o.id group by 1) d;

-- name: shop_days_between_orders
select customer_id, id, placed_at, placed_at - lag(placed_at) over (partition by customer_id order by placed_at, id) as gap
from orders where customer_id is not null;

-- name: shop_first_last_value
select id, customer_id,
       first_value(id) over w as first_order,
       last_value(id) over (partition by customer_id order by placed_at, id
           rows between unbounded preceding and unbounded following) as last_order,
       nth_value(id, 2) over w as second_order
from orders
window w as (partition by customer_id order by placed_at, id);

-- name: shop_share_of_category
select id, category_id, price, round(100.0 * price / sum(price) over (partition by category_id), 2) as share
from products;

-- name: shop_cumulative_share
with sold as (
    select product_id, sum(quantity * unit_price) as revenue from order_items where product_id is not null group by product_id
)
select product_id, revenue, sum(revenue) over (order by revenue desc, product_id) / nullif(sum(revenue) over (), 0) as pareto
from sold;

-- name: shop_abc_classes
with sold as (
    select product_id, sum(quantity * unit_price) as revenue from order_items where product_id is not null group by product_id
), shares as (
    select product_id, revenue, sum(revenue) over (order by revenue desc, product_id) as running, sum(revenue) over () as total
    from sold
)
select product_id, case when running <= 0.8 * total then 'A' when running <= 0.95 * total then 'B' else 'C' end as class
from shares;

-- name: shop_repeat_buyers
select customer_id, count(*) as orders, min(placed_at) as first, max(placed_at) as last
from orders where status <> 'cart'
group by customer_id having count(*) > 2;

-- name: shop_having_subquery
select category_id, avg(price) as mean from products
group by category_id
having avg(price) > (select avg(price) from products);

-- name: shop_pivot_status
select customer_id,
       count(*) filter (where status = 'cart') as carts,
       count(*) filter (where status = 'paid') as paid,
       count(*) filter (where status = 'shipped') as shipped,
       count(*) filter (where status in ('returned', 'cancelled')) as lost
from orders group by customer_id;

-- name: shop_pivot_case
select channel,
       sum(case when extract(month from placed_at) = 1 then 1 else 0 end) as jan,
       sum(case when extract(month from placed_at) = 2 then 1 else 0 end) as feb,
       sum(case when extract(month from placed_at) = 3 then 1 else 0 end) as mar
from orders group by channel;

-- name: shop_rollup
select coalesce(c.country, '--') as country, c.segment, count(*) as n, sum(p.amount) as paid
from customers c join orders o on o.customer_id = c.id join payments p on p.order_id = o.id
group by rollup (c.country, c.segment);

-- name: shop_cube
select channel, status, grouping(channel, status) as level, count(*) as n
from orders group by cube (channel, status);

-- name: shop_grouping_sets
select category_id, discontinued, count(*) as n, avg(price) as mean
from products group by grouping sets ((category_id), (discontinued), ());

-- name: shop_union_contacts
select email as contact, 'customer' as kind from customers where marketing
union
select 'review-' || customer_id, 'reviewer' from reviews where rating >= 4;

-- name: shop_union_all_timeline
select id::text as ref, placed_at as at, 'order' as what from orders
union all
select order_id::text, paid_at at time zone 'UTC', 'payment' from payments
union all
select product_id::text, created::timestamp, 'review' from reviews;

-- name: shop_bought_and_reviewed
select customer_id, product_id from orders o join order_items i on i.order_id = o.id
intersect
select customer_id, product_id from reviews;

-- name: shop_bought_not_reviewed
select o.customer_id, i.product_id from orders o join order_items i on i.order_id = o.id
except
select customer_id, product_id from reviews;

-- name: shop_except_all
select product_id from order_items except all select product_id from reviews;

-- name: shop_intersect_all
select product_id from order_items intersect all select product_id from reviews;

-- name: shop_category_tree
with recursive tree as (
    select id, parent_id, name, 1 as depth, name as path from categories where parent_id is null
    union all
    select c.id, c.parent_id, c.name, t.depth + 1, t.path || ' > ' || c.name
    from categories c join tree t on c.parent_id = t.id where t.depth < 8
)
select * from tree;

-- name: shop_revenue_per_category_subtree
with recursive closure as (
    select id as root, id from categories
    union
    select cl.root, c.id from closure cl join categories c on c.parent_id = cl.id
)
select cl.root, sum(i.quantity * i.unit_price) as revenue
from closure cl
join products p on p.category_id = cl.id
join order_items i on i.product_id = p.id
group by cl.root;

-- name: shop_referral_chain
with recursive chain as (
    select id, referred_by, 0 as depth, array[id] as path from customers
    union all
    select ch.id, c.referred_by, ch.depth + 1, ch.path || c.id
    from chain ch join customers c on c.id = ch.referred_by
    where not c.id = any(ch.path)
)
select id, max(depth) as depth from chain group by id;

-- name: shop_basket_pairs
select a.product_id as p1, b.product_id as p2, count(*) as together
from order_items a join order_items b on a.order_id = b.order_id and a.product_id < b.product_id
group by 1, 2;

-- name: shop_product_tags
select t.tag, count(*) as products, avg(p.price) as mean
from products p, unnest(p.tags) as t(tag)
group by t.tag;

-- name: shop_tags_with_ordinality
select p.id, t.tag, t.n from products p cross join lateral unnest(p.tags) with ordinality as t(tag, n);

-- name: shop_tagged_sale
select id, name from products where 'sale' = any(tags) and not tags @> '{eco}';

-- name: shop_string_agg_names
select o.id, string_agg(p.name, ', ' order by i.line) as products
from orders o join order_items i on i.order_id = o.id join products p on p.id = i.product_id
group by o.id;

-- name: shop_array_agg_products
select customer_id, array_agg(id order by placed_at, id) as orders from orders group by customer_id;

-- name: shop_json_orders
select o.id, json_agg(json_build_object('sku', p.sku, 'qty', i.quantity) order by i.line) as lines
from orders o join order_items i on i.order_id = o.id left join products p on p.id = i.product_id
group by o.id;

-- name: shop_jsonb_object_agg
select warehouse, jsonb_object_agg(product_id, on_hand) as stock from inventory group by warehouse;

-- name: shop_attr_color
select attrs ->> 'color' as color, count(*) as n, avg((attrs ->> 'weight')::numeric) as weight
from products group by 1;

-- name: shop_attr_contains
select id, name from products where attrs @> '{"color": "red"}' and (attrs -> 'dims' ->> 0)::int > 5;

-- name: shop_attr_keys
select k.key, count(*) as n from products p, jsonb_object_keys(p.attrs) as k(key) group by k.key;

-- name: shop_attr_each
select p.id, e.key, e.value from products p cross join jsonb_each_text(p.attrs) as e(key, value) where e.key <> 'dims';

-- name: shop_dims_elements
select p.id, d.value::int as dim from products p, jsonb_array_elements_text(p.attrs -> 'dims') as d(value);
