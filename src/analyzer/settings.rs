//! Functions that the server calls stable although only settings decide their result: TimeZone, DateStyle, the locales,
//! the text search configuration. Pinned to what they were at the stream table's creation, they are functions of the row.
//!
//! Invariant: in doubt a function depends on more than settings. Nothing here knows the current time (`now()`, and the
//! input of dates and times, which takes `'today'`), the session's user, the catalog or another table. What is found
//! here must run under the pinned settings: inside the owner's function (see `evaluate_<pgt_id>_<n>` in the schema).
//! Sources: `pg_proc.dat`, and the C functions named, of versions 14 to 18.

use super::deparse::type_of;
use super::facts::{Facts, Function, Type};
use super::node::Node;

/// C functions (`prosrc`) of dates, numbers and texts that read settings and their arguments alone.
const BY_SETTINGS: &[&str] = &[
    "cash_numeric",
    "date_cmp_timestamptz",
    "date_eq_timestamptz",
    "date_ge_timestamptz",
    "date_gt_timestamptz",
    "date_le_timestamptz",
    "date_lt_timestamptz",
    "date_ne_timestamptz",
    "date_timestamptz",
    "extract_timestamptz",
    "float4_to_char",
    "float8_to_char",
    "generate_series_timestamptz",
    "generate_series_timestamptz_at_zone",
    "in_range_timestamptz_interval",
    "int4_cash",
    "int4_to_char",
    "int8_cash",
    "int8_to_char",
    "interval_to_char",
    "jsonb_path_exists_tz",
    "jsonb_path_match_tz",
    "jsonb_path_query_array_tz",
    "jsonb_path_query_first_tz",
    "make_timestamptz",
    "make_timestamptz_at_timezone",
    "numeric_cash",
    "numeric_to_char",
    "numeric_to_number",
    "phraseto_tsquery",
    "plainto_tsquery",
    "timestamp_at_local",
    "timestamp_cmp_timestamptz",
    "timestamp_eq_timestamptz",
    "timestamp_ge_timestamptz",
    "timestamp_gt_timestamptz",
    "timestamp_le_timestamptz",
    "timestamp_lt_timestamptz",
    "timestamp_ne_timestamptz",
    "timestamp_timestamptz",
    "timestamp_to_char",
    "timestamptz_at_local",
    "timestamptz_cmp_date",
    "timestamptz_cmp_timestamp",
    "timestamptz_date",
    "timestamptz_eq_date",
    "timestamptz_eq_timestamp",
    "timestamptz_ge_date",
    "timestamptz_ge_timestamp",
    "timestamptz_gt_date",
    "timestamptz_gt_timestamp",
    "timestamptz_le_date",
    "timestamptz_le_timestamp",
    "timestamptz_lt_date",
    "timestamptz_lt_timestamp",
    "timestamptz_mi_interval",
    "timestamptz_mi_interval_at_zone",
    "timestamptz_ne_date",
    "timestamptz_ne_timestamp",
    "timestamptz_part",
    "timestamptz_pl_interval",
    "timestamptz_pl_interval_at_zone",
    "timestamptz_time",
    "timestamptz_timestamp",
    "timestamptz_timetz",
    "timestamptz_to_char",
    "timestamptz_trunc",
    "timestamptz_trunc_zone",
    "to_date",
    "to_timestamp",
    "to_tsquery",
    "to_tsvector",
    "websearch_to_tsquery",
];

/// C functions that are stable because of the text of values of any type.
const BY_TEXT: &[&str] = &[
    "array_to_json",
    "array_to_json_pretty",
    "array_to_text",
    "array_to_text_null",
    "json_build_array",
    "json_build_array_noargs",
    "json_build_object",
    "json_build_object_noargs",
    "jsonb_build_array",
    "jsonb_build_array_noargs",
    "jsonb_build_object",
    "jsonb_build_object_noargs",
    "row_to_json",
    "row_to_json_pretty",
    "text_concat",
    "text_concat_ws",
    "text_format",
    "text_format_nv",
    "to_json",
    "to_jsonb",
];

/// Aggregates of the same kind.
const BY_TEXT_AGGREGATES: &[&str] = &[
    "json_agg",
    "json_agg_strict",
    "json_object_agg",
    "json_object_agg_strict",
    "json_object_agg_unique",
    "json_object_agg_unique_strict",
    "jsonb_agg",
    "jsonb_agg_strict",
    "jsonb_object_agg",
    "jsonb_object_agg_strict",
    "jsonb_object_agg_unique",
    "jsonb_object_agg_unique_strict",
];

/// Functions that read values of the types of their result's columns, which are looked at where those are defined.
const BY_RESULT: &[&str] = &[
    "json_populate_record",
    "json_populate_recordset",
    "json_to_record",
    "json_to_recordset",
    "jsonb_populate_record",
    "jsonb_populate_recordset",
    "jsonb_to_record",
    "jsonb_to_recordset",
];

/// SQL functions whose body is the concatenation or quoting of a value's text; the name alone decides.
const BY_TEXT_SQL: &[&str] = &["textanycat", "anytextcat", "quote_literal", "quote_nullable"];

/// Stable SQL functions (system_functions.sql) over functions of this page.
const SQL: &[&str] = &["interval_pl_timestamptz", "overlaps"];

/// Immutable by `pg_proc`, but the difference in months and days is counted in local time.
const NOT_IMMUTABLE: &[&str] = &["timestamptz_age"];

/// Output functions that read settings alone. Those of `regclass` and its like are not here.
const OUTPUT: &[&str] =
    &["cash_out", "date_out", "time_out", "timetz_out", "timestamp_out", "timestamptz_out", "interval_out"];

/// What the text of a value, or the result of a function, depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    /// The arguments alone.
    Nothing,
    /// Settings that are pinned.
    Settings,
    /// More than that, or not known.
    More,
}

use Dependence::{More, Nothing, Settings};

/// What a stable function with these arguments depends on.
pub fn of_function(facts: &Facts, function: &Function, args: &[&Node]) -> Dependence {
    let source = function.source.as_str();
    if !function.is_builtin() {
        return More;
    }
    let internal = function.language == "internal";
    if BY_TEXT_SQL.contains(&function.name.as_str()) || (internal && BY_TEXT.contains(&source)) {
        let worst = args.iter().map(|a| of_text(facts, a)).max().unwrap_or(Nothing);
        // JSON asks for a cast of the value's type, which can be a user's function.
        return if source.contains("json") && worst < More { Settings } else { worst };
    }
    if function.kind == 'a' && BY_TEXT_AGGREGATES.contains(&function.name.as_str()) {
        // A cast of the value's type can be a user's function.
        return args.iter().map(|a| of_text(facts, a)).max().unwrap_or(Nothing).max(Settings);
    }
    if internal && BY_SETTINGS.contains(&source) {
        return Settings;
    }
    if function.language == "sql" && SQL.contains(&function.name.as_str()) { Settings } else { More }
}

/// What a set-returning function depends on that reads values of the types `columns`.
pub fn of_definition(facts: &Facts, function: &Function, columns: &[u32]) -> Dependence {
    let known = function.is_builtin()
        && function.language == "internal"
        && BY_RESULT.contains(&function.source.as_str())
        && !columns.is_empty();
    // Text comes from JSON as it is; what a type's input function reads is its own affair.
    const TEXT: u32 = 25;
    match known {
        true => columns.iter().map(|ty| of_conversion(facts, TEXT, *ty)).max().unwrap_or(More),
        false => More,
    }
}

/// What the text of an expression's value depends on.
fn of_text(facts: &Facts, node: &Node) -> Dependence {
    match (node.tag.as_str(), node.nodes("args"), node.nodes("elements")) {
        ("ROWEXPR" | "NAMEDROW", Ok(parts), _) | ("ARRAYEXPR", _, Ok(parts)) => {
            parts.iter().map(|p| of_text(facts, p)).max().unwrap_or(Nothing)
        }
        _ => type_of(node).map_or(More, |ty| of_type(facts, ty, 0)),
    }
}

/// What the text of a type's values depends on.
pub fn of_type(facts: &Facts, oid: u32, depth: usize) -> Dependence {
    let Some(ty) = facts.types.get(&oid).filter(|_| depth < 32) else { return More };
    match ty.typtype {
        // Its label; a renamed label makes the pipeline look at the source again.
        'e' => Nothing,
        'd' => of_type(facts, ty.base, depth + 1),
        'b' if ty.category == 'A' && ty.length == -1 => of_type(facts, ty.element, depth + 1),
        'c' => facts.relations.get(&ty.relation).map_or(More, |r| {
            r.columns.iter().map(|c| of_type(facts, c.ty.oid, depth + 1)).max().unwrap_or(Nothing)
        }),
        'r' | 'm' => of_range(ty),
        _ => of_output(facts, ty),
    }
}

fn of_range(ty: &Type) -> Dependence {
    match ty.name.as_str() {
        _ if ty.schema != "pg_catalog" => More,
        "int4range" | "int8range" | "numrange" | "int4multirange" | "int8multirange" | "nummultirange" => {
            Nothing
        }
        _ => Settings,
    }
}

fn of_output(facts: &Facts, ty: &Type) -> Dependence {
    match facts.functions.get(&ty.output) {
        Some(f) if f.volatility == 'i' => Nothing,
        Some(f) if f.is_builtin() && OUTPUT.contains(&f.source.as_str()) => Settings,
        _ => More,
    }
}

/// What the conversion through text depends on. Reading dates and times knows `'now'`; reading intervals and money does not.
pub fn of_conversion(facts: &Facts, from: u32, to: u32) -> Dependence {
    let input = facts.types.get(&to).and_then(|t| facts.functions.get(&t.input));
    let input = match input {
        Some(f) if f.volatility == 'i' => Nothing,
        Some(f) if f.is_builtin() && matches!(f.source.as_str(), "interval_in" | "cash_in") => Settings,
        _ => More,
    };
    input.max(of_type(facts, from, 0))
}

/// Whether something in the expression must run under the pinned settings.
pub fn reads_settings(facts: &Facts, node: &Node) -> bool {
    let mut found = false;
    node.walk(&mut |n| found = found || own(facts, n));
    found
}

fn own(facts: &Facts, node: &Node) -> bool {
    let args = node.nodes("args").unwrap_or_default();
    let stable = |function: Option<&Function>| {
        function.is_some_and(|f| match f.volatility {
            's' => of_function(facts, f, &args) != Nothing,
            _ => f.is_builtin() && NOT_IMMUTABLE.contains(&f.source.as_str()),
        })
    };
    match node.tag.as_str() {
        "AGGREF" | "WINDOWFUNC" => {
            let oid = node.oid("aggfnoid").or_else(|_| node.oid("winfnoid")).ok();
            oid.and_then(|f| facts.functions.get(&f)).is_some_and(|f| f.volatility == 's')
        }
        "FUNCEXPR" => stable(node.oid("funcid").ok().and_then(|f| facts.functions.get(&f))),
        "OPEXPR" | "DISTINCTEXPR" | "NULLIFEXPR" | "SCALARARRAYOPEXPR" => {
            let operator = node.oid("opno").ok().and_then(|o| facts.operators.get(&o));
            stable(operator.and_then(|o| facts.functions.get(&o.function)))
        }
        "ROWCOMPAREEXPR" => node.list("opnos").iter().any(|o| {
            let oid = o.as_int().and_then(|o| u32::try_from(o).ok()).unwrap_or(0);
            let operator = facts.operators.get(&oid);
            stable(operator.and_then(|o| facts.functions.get(&o.function)))
        }),
        // RANGE BETWEEN interval '1 day' PRECEDING is a day of the time zone.
        "OVER" => ["startInRangeFunc", "endInRangeFunc"].iter().any(|field| {
            let function = node.oid(field).ok().and_then(|f| facts.functions.get(&f));
            function.is_some_and(|f| f.volatility == 's')
        }),
        "COERCEVIAIO" => {
            let from = node.node("arg").ok().and_then(|a| type_of(a).ok());
            let to = type_of(node).ok();
            from.zip(to).is_none_or(|(from, to)| of_conversion(facts, from, to) != Nothing)
        }
        _ => false,
    }
}
