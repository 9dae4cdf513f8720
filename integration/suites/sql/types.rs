//! Every kind of type: carried with and without a key, through joins, compared in conditions, and, where it has an
//! equality, grouped and made distinct by it.

use super::{Case, Expect, Schema, conformance};
use crate::harness::{Server, TestDatabase, for_each_major};

/// A type, whether it has an equality, and some values, the first two equal if that is possible.
struct Kind {
    name: &'static str,
    ty: &'static str,
    equality: bool,
    values: &'static [&'static str],
}

const fn kind(name: &'static str, ty: &'static str, equality: bool, values: &'static [&'static str]) -> Kind {
    Kind { name, ty, equality, values }
}

/// What a build of PostgreSQL may lack, and how that shows.
const OPTIONAL: &[(&str, &str)] = &[
    ("citext", "create extension if not exists citext"),
    ("hstore", "create extension if not exists hstore"),
    ("vector", "create extension if not exists vector"),
    ("xml", "select '<a/>'::xml"),
    (
        "nocase",
        "create collation app.probe (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    ),
];

const TYPES: &str = "
    create type mood as enum ('sad', 'ok', 'happy');
    create type pair as (a int, b text);
    create type nested as (p pair, tags text[]);
    create domain posint as int check (value > 0);
    create domain short as varchar(4);
    create type floatrange as range (subtype = float8);
    create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);";

const KINDS: &[Kind] = &[
    kind("int2", "smallint", true, &["1", "1", "-32768", "7"]),
    kind("numeric", "numeric", true, &["1.0", "1.00", "NaN", "-0.000", "12345678901234567890.5"]),
    kind("numeric83", "numeric(8,3)", true, &["1.5", "1.500", "99999.999", "-3"]),
    kind("float4", "real", true, &["0", "-0", "NaN", "Infinity", "1.1"]),
    kind("float8", "double precision", true, &["0", "-0", "NaN", "-Infinity", "0.1"]),
    kind("money", "money", true, &["1", "1.00", "-2.5"]),
    kind("bool", "boolean", true, &["t", "true", "f"]),
    kind("text", "text", true, &["a", "a", "", "Straße", "a\\b\"c,{}"]),
    kind("textc", "text collate \"C\"", true, &["a", "a", "B"]),
    kind("varchar3", "varchar(3)", true, &["abc", "abc", "x "]),
    kind("char5", "char(5)", true, &["ab", "ab   ", "abcde", ""]),
    kind("onechar", "\"char\"", true, &["a", "a", "b"]),
    kind("name", "name", true, &["pg_class", "pg_class", "x"]),
    kind("oid", "oid", true, &["1", "1", "4294967295"]),
    kind("bytea", "bytea", true, &["\\x00ff", "\\x00FF", ""]),
    kind("date", "date", true, &["2024-02-29", "2024-02-29", "infinity", "0044-03-15 BC"]),
    kind("time", "time", true, &["12:00", "12:00:00", "24:00:00", "23:59:59.999999"]),
    kind("timetz", "timetz", true, &["12:00+00", "12:00+00", "13:00+01"]),
    kind("timestamp", "timestamp", true, &["2024-01-01 00:00", "2024-01-01 00:00:00", "-infinity"]),
    kind("timestamptz", "timestamptz", true, &["2024-01-01 00:00+00", "2024-01-01 01:00+01", "infinity"]),
    kind("interval", "interval", true, &["1 day", "24:00:00", "1 mon", "30 days", "-1 year 2 days"]),
    kind(
        "uuid",
        "uuid",
        true,
        &[
            "00000000-0000-0000-0000-000000000001",
            "{00000000000000000000000000000001}",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
    ),
    kind("json", "json", false, &["{\"a\": 1}", "{\"a\":1}", "null"]),
    kind(
        "jsonb",
        "jsonb",
        true,
        &["{\"a\": 1.0, \"b\": []}", "{\"b\": [], \"a\": 1.00}", "null", "[1, \"x\"]"],
    ),
    kind("jsonpath", "jsonpath", false, &["$.a", "$.b[*]"]),
    kind("ints", "int[]", true, &["{1,2}", "{1,2}", "{}", "{{1,2},{3,NULL}}", "[0:1]={1,2}"]),
    kind("texts", "text[]", true, &["{a,b}", "{\"a\",b}", "{NULL,\"\",\"x y\"}"]),
    kind("numerics", "numeric(6,2)[]", true, &["{1.0,2}", "{1.00,2.00}", "{}"]),
    kind("points", "point[]", false, &["{\"(1,2)\"}", "{}"]),
    kind("int4range", "int4range", true, &["[1,5)", "[1,4]", "empty", "(,)"]),
    kind("numrange", "numrange", true, &["[1.0,2)", "[1.00,2.0)", "empty"]),
    kind(
        "tstzrange",
        "tstzrange",
        true,
        &["[2024-01-01 00:00+00,2024-01-02 00:00+00)", "[2024-01-01 01:00+01,2024-01-02 00:00+00)", "empty"],
    ),
    kind("ownrange", "floatrange", true, &["[0,1)", "[-0,1)", "empty"]),
    kind("multirange", "int4multirange", true, &["{[1,5)}", "{[1,3),[3,5)}", "{}"]),
    kind("composite", "pair", true, &["(1,x)", "(1,\"x\")", "(,)", "(2,\"a,b\")"]),
    kind("nested", "nested", true, &["(\"(1,x)\",\"{a}\")", "(,{})"]),
    kind("composites", "pair[]", true, &["{\"(1,x)\"}", "{}"]),
    kind("enum", "mood", true, &["sad", "sad", "happy", "ok"]),
    kind("enums", "mood[]", true, &["{sad,ok}", "{sad,ok}", "{}"]),
    kind("domain", "posint", true, &["1", "1", "7"]),
    kind("domaintext", "short", true, &["ab", "ab", "abcd"]),
    kind("inet", "inet", true, &["10.0.0.1", "10.0.0.1/32", "10.0.0.1/8", "::1"]),
    kind("cidr", "cidr", true, &["10.0.0.0/8", "10.0.0.0/8", "::/0"]),
    kind("macaddr", "macaddr", true, &["08:00:2b:01:02:03", "08002b:010203", "ff:ff:ff:ff:ff:ff"]),
    kind("macaddr8", "macaddr8", true, &["08:00:2b:01:02:03:04:05", "08002b01:02030405"]),
    kind("bit", "bit(4)", true, &["1010", "1010", "0000"]),
    kind("varbit", "varbit(8)", true, &["1010", "1010", ""]),
    kind("tsvector", "tsvector", true, &["a b:2", "b:2 a", "'it''s':1A"]),
    kind("tsquery", "tsquery", true, &["a & b", "a&b", "!c"]),
    kind("pglsn", "pg_lsn", true, &["0/16", "0/16", "FF/0"]),
    kind("point", "point", false, &["(1,2)", "(1,2)", "(0,-0)"]),
    kind("box", "box", false, &["(2,2),(0,0)", "(0,0),(2,2)", "(3,3),(1,1)"]),
    kind("circle", "circle", false, &["<(1,2),3>", "<(0,0),1>"]),
    kind("line", "line", false, &["{1,-1,0}", "{2,1,1}"]),
    kind("path", "path", false, &["((0,0),(1,1))", "[(0,0),(1,1)]"]),
    kind("polygon", "polygon", false, &["((0,0),(1,1),(1,0))", "((0,0))"]),
    kind("lseg", "lseg", false, &["[(0,0),(1,1)]", "[(0,0),(2,1)]"]),
    kind("xml", "xml", false, &["<a/>", "<b>x</b>"]),
    kind("citext", "citext", true, &["Abc", "aBC", "x"]),
    kind("hstore", "hstore", true, &["a=>1, b=>NULL", "b=>NULL,a=>1", ""]),
    kind("vector", "vector(3)", true, &["[1,2,3]", "[1.0,2,3]", "[-0,0.5,1e20]", "[0,0.5,1e20]"]),
    kind("nocase", "text collate nocase", true, &["Abc", "aBC", "x"]),
];

/// A table for the type: unique ids, values that repeat and NULLs.
fn table(kind: &Kind) -> String {
    let Kind { name, ty, values, .. } = kind;
    let rows: Vec<String> = (0..24)
        .map(|i| {
            let value = match i % (values.len() + 1) {
                n if n == values.len() => "null".to_owned(),
                n => format!("'{}'", values[n].replace('\'', "''")),
            };
            format!("({i}, {value}, {})", i % 5)
        })
        .collect();
    format!(
        "create table {name}_t (id int primary key, v {ty}, n int);\ninsert into {name}_t values {};\n",
        rows.join(", ")
    )
}

fn cases(kind: &Kind) -> Vec<Case> {
    let Kind { name, equality, .. } = kind;
    let table = format!("{name}_t");
    let case = |what: &str, query: String| {
        let text = format!("{name}_{what}");
        Case { name: text.leak(), query: query.leak(), expect: Expect::Incremental }
    };
    let mut cases = vec![
        case("keyed", format!("select id, v from {table}")),
        case("bag", format!("select v, n from {table}")),
        case("nulls", format!("select id, v is null as e, n from {table} where v is not null or n > 2")),
        case(
            "joined",
            format!(
                "select a.id, b.id as other, a.v as av, b.v as bv from {table} a left join {table} b on b.id = a.n"
            ),
        ),
        case(
            "union",
            format!("select v from {table} where n < 2 union all select v from {table} where n > 3"),
        ),
    ];
    if *equality {
        cases.extend([
            case(
                "equal",
                format!(
                    "select a.id, b.id as other from {table} a join {table} b on a.v = b.v and a.id < b.id"
                ),
            ),
            case("grouped", format!("select count(*) as rows, sum(n) as s from {table} group by v")),
            case("counted", format!("select n, count(distinct v) as d from {table} group by n")),
            case(
                "compared",
                format!("select id from {table} where v = (case when n > 1 then v end) or n = 0"),
            ),
        ]);
        // Which of several equal values stands for them is PostgreSQL's choice, and it is not the same each time.
        let query = format!("select n, count(*) as d from (select distinct v, n from {table}) q group by n");
        cases.push(case("distinct", query));
    }
    cases
}

async fn play(server: &Server, part: usize) {
    let (mut missing, mut extensions) = (Vec::new(), String::new());
    {
        let database = TestDatabase::create(server).await;
        let dba = database.as_dba().await;
        for (name, probe) in OPTIONAL {
            if dba.batch_execute(probe).await.is_err() {
                missing.push(*name);
            } else if probe.contains("extension") {
                extensions += &format!("{probe};");
            }
        }
    }
    missing
        .iter()
        .for_each(|name| println!("LEFT OUT on PostgreSQL {}, which lacks it: {name}", server.major));
    let lines = TYPES.lines().filter(|l| !missing.iter().any(|name| l.contains(name)));
    let mut sql = lines.collect::<Vec<_>>().join("\n");
    let kinds: Vec<&Kind> =
        KINDS.iter().skip(part).step_by(3).filter(|k| !missing.contains(&k.name)).collect();
    sql.extend(kinds.iter().map(|k| table(k)));
    let schema = Schema {
        extensions: extensions.leak(),
        transactions: 60,
        bursts: 2,
        ..Schema::new("types", sql.leak())
    };
    let cases: Vec<Case> = kinds.iter().flat_map(|k| cases(k)).collect();
    conformance(server, &schema, &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_every_kind_are_carried_and_compared_1() {
    for_each_major(async |server| play(server, 0).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_every_kind_are_carried_and_compared_2() {
    for_each_major(async |server| play(server, 1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_every_kind_are_carried_and_compared_3() {
    for_each_major(async |server| play(server, 2).await).await;
}
