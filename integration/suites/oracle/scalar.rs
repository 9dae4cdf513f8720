//! Random scalar expressions and conditions over the columns in scope.
//!
//! Invariant: no generated expression can fail for a value that the generator makes, so every difference is a fault of
//! the engine; and each says how exactly its text is determined ([`Image`]).

use super::prng::Prng;
use super::types::Ty;

/// How exactly PostgreSQL determines the text of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Image {
    /// Every right answer has the same text.
    Exact,
    /// Equal values with several texts (1.0 and 1.00 in one group, a and A where case is no difference): only the value is
    /// determined.
    Value,
    /// A float: compared to ten digits.
    Approximate,
}

/// A column that an expression may use.
#[derive(Debug, Clone)]
pub struct Field {
    /// How it is written.
    pub sql: String,
    /// Its name in its relation.
    pub name: String,
    pub ty: Ty,
    pub image: Image,
    /// Made for joins: its values are selective enough.
    pub join: bool,
}

/// An expression with its type.
#[derive(Debug, Clone)]
pub struct Scalar {
    pub sql: String,
    pub ty: Ty,
    pub image: Image,
    pub join: bool,
}

/// A field as an expression.
pub fn plain(field: &Field) -> Scalar {
    Scalar { sql: field.sql.clone(), ty: field.ty, image: field.image, join: field.join }
}

/// A field, or something computed from one.
pub fn scalar(rng: &mut Prng, scope: &[Field]) -> Scalar {
    let field = rng.pick(scope).clone();
    // Of a folded key that was grouped only the key itself is determined.
    let shown = field.ty.is_folded() && field.image != Image::Exact;
    if rng.chance(45) || field.ty.is_passenger() || shown {
        return plain(&field);
    }
    computed(rng, &field, scope)
}

/// An expression of exactly this type, for the branches of a union; made from a field of a matching type if there is
/// one.
pub fn of_type(rng: &mut Prng, scope: &[Field], ty: Ty) -> Scalar {
    let fits = |f: &&Field| match ty {
        Ty::Int8 => f.ty.is_int(),
        Ty::Numeric => f.ty.is_int() || f.ty.is_numeric(),
        Ty::Text => f.ty.is_text() || f.ty == Ty::Char,
        other => f.ty == other,
    };
    let matching: Vec<&Field> = scope.iter().filter(fits).collect();
    if matching.is_empty() || rng.chance(10) {
        return Scalar { sql: ty.literal(rng), ty, image: Image::Exact, join: false };
    }
    let field = (*rng.pick(&matching)).clone();
    let value = if rng.chance(50) { plain(&field) } else { computed(rng, &field, scope) };
    let value = if fits(&&Field { ty: value.ty, ..field.clone() }) { value } else { plain(&field) };
    Scalar { sql: format!("({})::{}", value.sql, ty.sql()), ty, ..value }
}

fn computed(rng: &mut Prng, field: &Field, scope: &[Field]) -> Scalar {
    let f = &field.sql;
    let same = |sql: String| Scalar { sql, ty: field.ty, image: field.image, join: false };
    let typed = |sql: String, ty| Scalar { sql, ty, image: field.image, join: false };
    if rng.chance(12) {
        return same(format!(
            "case when {} then {f} else {} end",
            condition(rng, scope),
            field.ty.literal(rng)
        ));
    }
    if rng.chance(12) {
        return same(format!("coalesce({f}, {})", field.ty.literal(rng)));
    }
    match field.ty {
        Ty::Int2 | Ty::Int4 | Ty::Int8 => match rng.below(6) {
            0 => typed(format!("{f} % 7"), if field.ty == Ty::Int8 { Ty::Int8 } else { Ty::Int4 }),
            1 => typed(format!("{f} + 1"), if field.ty == Ty::Int8 { Ty::Int8 } else { Ty::Int4 }),
            2 => typed(format!("{f}::int8 * 3"), Ty::Int8),
            3 => same(format!("nullif({f}, 3)")),
            4 => same(format!("abs({f})")),
            _ => typed(format!("({f}::text || '#')"), Ty::Text),
        },
        Ty::Numeric | Ty::Money => match rng.below(7) {
            0 => typed(format!("{f} * 2"), Ty::Numeric),
            1 => typed(format!("-{f}"), Ty::Numeric),
            2 => typed(format!("{f} + 0.125"), Ty::Numeric),
            3 => typed(format!("round({f}, 1)"), Ty::Numeric),
            4 => typed(format!("{f} / 3"), Ty::Numeric),
            5 if field.image == Image::Exact => typed(format!("{f}::text"), Ty::Text),
            _ => typed(format!("abs({f}) - 1"), Ty::Numeric),
        },
        Ty::Text | Ty::Varchar | Ty::Char => {
            let sql = match rng.below(9) {
                0 => format!("upper({f})"),
                1 => format!("lower({f}::text)"),
                2 => format!("({f} || '-x')"),
                3 => format!("substring({f} from 1 for 2)"),
                4 => format!("replace({f}, 'a', 'b')"),
                5 => format!("left({f}, 1)"),
                6 => format!("md5({f})"),
                7 => return typed(format!("length({f})"), Ty::Int4),
                _ => format!("{f}::text"),
            };
            typed(sql, Ty::Text)
        }
        Ty::Bool => same(match rng.below(3) {
            0 => format!("(not {f})"),
            1 => format!("({f} is true)"),
            _ => format!("({f} or {f} is null)"),
        }),
        Ty::Date if rng.chance(20) => typed(format!("to_char(({f})::timestamp, 'Dy DD Mon')"), Ty::Text),
        Ty::Date => match rng.below(3) {
            0 => same(format!("({f} + 1)")),
            1 => typed(format!("case when isfinite({f}) then extract(day from {f})::int4 end"), Ty::Int4),
            _ => typed(format!("({f})::timestamp"), Ty::Timestamp),
        },
        Ty::Timestamp => match rng.below(3) {
            0 => same(format!("date_trunc('hour', {f})")),
            1 => typed(format!("({f})::date"), Ty::Date),
            _ => same(format!("({f} + interval '90 min')")),
        },
        Ty::Float8 => typed(format!("({f} * 2)"), Ty::Float8),
        // Under the settings of the creation, which are not the sidecar's.
        Ty::Timestamptz => match rng.below(4) {
            0 => typed(format!("to_char({f}, 'YYYY-MM-DD HH24:MI Dy')"), Ty::Text),
            1 => same(format!("date_trunc('day', {f})")),
            2 => typed(format!("({f} at time zone 'Asia/Tokyo')"), Ty::Timestamp),
            _ => plain(field),
        },
        Ty::Jsonb => match rng.below(5) {
            0 => same(format!("({f} -> 'b')")),
            1 => typed(format!("({f} ->> 'a')"), Ty::Text),
            2 => typed(format!("jsonb_typeof({f})"), Ty::Text),
            3 => typed(format!("jsonb_contains({f}, '{{\"a\": 1}}')"), Ty::Bool),
            _ => same(format!("nullif({f}, '[]'::jsonb)")),
        },
        Ty::Ints => match rng.below(5) {
            0 => typed(format!("({f})[1]"), Ty::Int4),
            1 => typed(format!("cardinality({f})"), Ty::Int4),
            2 => same(format!("array_append({f}, 1)")),
            3 => typed(format!("(2 = any ({f}))"), Ty::Bool),
            _ => same(format!("array_remove({f}, null)")),
        },
        Ty::Range => match rng.below(4) {
            0 => typed(format!("upper({f})"), Ty::Int4),
            1 => typed(format!("isempty({f})"), Ty::Bool),
            2 => typed(format!("range_contains_elem({f}, 3)"), Ty::Bool),
            _ => same(format!("({f} * int4range(1, 5))")),
        },
        Ty::Citext | Ty::Nocase => match rng.below(2) {
            0 => typed(format!("length({f}::text)"), Ty::Int4),
            _ => typed(format!("({f}::text collate \"default\")"), Ty::Text),
        },
        Ty::Mood | Ty::Uuid | Ty::Json => plain(field),
    }
}

/// A condition: simple ones, now and then combined.
pub fn condition(rng: &mut Prng, scope: &[Field]) -> String {
    let first = simple(rng, scope);
    match rng.below(10) {
        0 => format!("({first} and {})", simple(rng, scope)),
        1 => format!("({first} or {})", simple(rng, scope)),
        2 => format!("not ({first} and {})", simple(rng, scope)),
        _ => first,
    }
}

fn simple(rng: &mut Prng, scope: &[Field]) -> String {
    let usable: Vec<&Field> = scope.iter().filter(|f| !f.ty.is_passenger()).collect();
    if usable.is_empty() {
        return format!("{} is not null", scope[0].sql);
    }
    let field = (*rng.pick(&usable)).clone();
    let f = &field.sql;
    let operator = *rng.pick(&["=", "<>", "<", "<=", ">", ">="]);
    // Sums of floats may differ in the last place: only NULL tests on them.
    if rng.chance(12) || field.image == Image::Approximate {
        return format!("{f} is {}null", if rng.chance(70) { "not " } else { "" });
    }
    match rng.below(8) {
        // An operator of an extension can't be named there: such a query is recomputed.
        0 if field.ty != Ty::Citext => {
            let literal = field.ty.literal(rng);
            return format!("{f} is {}distinct from {literal}", if rng.chance(50) { "not " } else { "" });
        }
        1 => return format!("{f} in ({}, {})", field.ty.literal(rng), field.ty.literal(rng)),
        2 => {
            let same: Vec<&&Field> =
                usable.iter().filter(|o| o.ty.compares_with(field.ty) && o.sql != *f).collect();
            if !same.is_empty() {
                return format!("{f} {operator} {}", rng.pick(&same).sql);
            }
        }
        3 => return format!("{f} between {} and {}", field.ty.literal(rng), field.ty.literal(rng)),
        _ => {}
    }
    match field.ty {
        Ty::Bool => format!("{f}{}", rng.pick(&["", " is not true", " is false", " is unknown"])),
        Ty::Text | Ty::Varchar => match rng.below(6) {
            0 => format!("{f} like '%a%'"),
            1 => format!("{f} ilike 'A%'"),
            2 => format!("upper({f}) = 'A'"),
            3 => format!("length({f}) > 1"),
            _ => format!("{f} {operator} {}", field.ty.literal(rng)),
        },
        Ty::Int2 | Ty::Int4 | Ty::Int8 if rng.chance(30) => format!("{f} % 3 = 1"),
        _ => format!("{f} {operator} {}", field.ty.literal(rng)),
    }
}

/// A condition over both sides of a join, of values that are compared without the server's help: an outer join keeps no
/// other.
pub fn residual(rng: &mut Prng, scope: &[Field]) -> String {
    let native = |f: &&Field| {
        (f.ty.is_int() || f.ty.is_numeric() || f.ty == Ty::Date) && f.image != Image::Approximate
    };
    let fields: Vec<&Field> = scope.iter().filter(native).collect();
    if fields.is_empty() {
        return format!("{} is not null", scope[0].sql);
    }
    let left = (*rng.pick(&fields)).clone();
    let operator = *rng.pick(&["<>", "<", "<=", ">", ">="]);
    let others: Vec<&&Field> = fields.iter().filter(|o| o.ty.compares_with(left.ty)).collect();
    let right = match rng.chance(70) {
        true => rng.pick(&others).sql.clone(),
        false => left.ty.literal(rng),
    };
    let first = format!("{} {operator} {right}", left.sql);
    match rng.below(5) {
        0 => format!("({first} or {} is null)", rng.pick(&fields).sql),
        1 => format!("({first}) is not true"),
        _ => first,
    }
}
