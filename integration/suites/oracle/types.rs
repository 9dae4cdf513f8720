//! Column types of the generated tables, and values of them.
//!
//! Value domains are small so that rows meet in joins and groups, and hold what usually goes wrong: NULL, empty text,
//! display scales, NaN, infinities, characters that COPY escapes.

use super::prng::Prng;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ty {
    Int2,
    Int4,
    Int8,
    /// Without a scale: 1.0 and 1.00 are different images of one value.
    Numeric,
    /// `numeric(10,2)`.
    Money,
    Text,
    Varchar,
    Char,
    Bool,
    Date,
    Timestamp,
    Timestamptz,
    Float8,
    Mood,
    Uuid,
    Jsonb,
    Ints,
    /// `int4range`.
    Range,
    /// Without equality: carried, never compared.
    Json,
    /// Of the extension: equal without regard to case.
    Citext,
    /// Text under a nondeterministic collation of ICU, to which case is no difference.
    Nocase,
}

/// The collation of [`Ty::Nocase`].
pub const NOCASE: &str =
    "create collation app.app_nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";

/// What every server has.
pub const VALUE_TYPES: [Ty; 19] = [
    Ty::Int2,
    Ty::Int4,
    Ty::Int8,
    Ty::Numeric,
    Ty::Money,
    Ty::Text,
    Ty::Varchar,
    Ty::Char,
    Ty::Bool,
    Ty::Date,
    Ty::Timestamp,
    Ty::Timestamptz,
    Ty::Float8,
    Ty::Mood,
    Ty::Jsonb,
    Ty::Jsonb,
    Ty::Ints,
    Ty::Range,
    Ty::Json,
];

impl Ty {
    /// As in DDL.
    pub fn sql(self) -> &'static str {
        match self {
            Ty::Int2 => "int2",
            Ty::Int4 => "int4",
            Ty::Int8 => "int8",
            Ty::Numeric => "numeric",
            Ty::Money => "numeric(10,2)",
            Ty::Text => "text",
            Ty::Varchar => "varchar(12)",
            Ty::Char => "char(12)",
            Ty::Bool => "bool",
            Ty::Date => "date",
            Ty::Timestamp => "timestamp",
            Ty::Timestamptz => "timestamptz",
            Ty::Float8 => "float8",
            Ty::Mood => "mood",
            Ty::Uuid => "uuid",
            Ty::Jsonb => "jsonb",
            Ty::Ints => "int[]",
            Ty::Range => "int4range",
            Ty::Json => "json",
            Ty::Citext => "citext",
            Ty::Nocase => "text",
        }
    }

    /// As the type of a column.
    pub fn column(self) -> &'static str {
        if self == Ty::Nocase { "text collate app_nocase" } else { self.sql() }
    }

    /// Equal values differ in the case of their letters: as a key, only that much is determined.
    pub fn is_folded(self) -> bool {
        matches!(self, Ty::Citext | Ty::Nocase)
    }

    pub fn is_int(self) -> bool {
        matches!(self, Ty::Int2 | Ty::Int4 | Ty::Int8)
    }

    pub fn is_numeric(self) -> bool {
        matches!(self, Ty::Numeric | Ty::Money)
    }

    /// Text that compares as `text` without a cast that the grammar must write.
    pub fn is_text(self) -> bool {
        matches!(self, Ty::Text | Ty::Varchar)
    }

    /// Has no equality.
    pub fn is_passenger(self) -> bool {
        self == Ty::Json
    }

    /// `min` and `max` exist on all majors.
    pub fn has_extremes(self) -> bool {
        !matches!(
            self,
            Ty::Bool
                | Ty::Uuid
                | Ty::Mood
                | Ty::Jsonb
                | Ty::Ints
                | Ty::Range
                | Ty::Json
                | Ty::Citext
                | Ty::Nocase
        )
    }

    /// Equality without a cast.
    pub fn compares_with(self, other: Ty) -> bool {
        self == other
            || (self.is_int() || self.is_numeric()) && (other.is_int() || other.is_numeric())
            || self.is_text() && other.is_text()
    }

    /// A value's text as the server reads it; `None` is NULL.
    pub fn value(self, rng: &mut Prng) -> Option<String> {
        if rng.chance(12) { None } else { Some(self.some_value(rng)) }
    }

    /// A value that is not NULL.
    pub fn some_value(self, rng: &mut Prng) -> String {
        match self {
            Ty::Int2 | Ty::Int4 => rng.between(-3, 9).to_string(),
            Ty::Int8 if rng.chance(20) => (10_000_000_000_000 + rng.between(-2, 2)).to_string(),
            Ty::Int8 => rng.between(-3, 9).to_string(),
            Ty::Numeric => {
                let list =
                    ["0", "0.0", "1", "1.0", "1.00", "-2.5", "-2.50", "3.141", "12345678901234567890.123"];
                match rng.chance(3) {
                    true => "NaN".to_owned(),
                    false => (*rng.pick(&list)).to_owned(),
                }
            }
            Ty::Money => format!("{}.{:02}", rng.between(0, 20), rng.between(0, 3) * 25),
            Ty::Text | Ty::Varchar => {
                let list = [
                    "",
                    "a",
                    "A",
                    "b",
                    "ab",
                    "x y",
                    "ä",
                    "漢字",
                    "q'uote",
                    "tab\there",
                    "back\\slash",
                    "n\\N",
                    "%_",
                ];
                (*rng.pick(&list)).to_owned()
            }
            Ty::Char => (*rng.pick(&["", "a", "A", "bc", "x y"])).to_owned(),
            Ty::Bool => (*rng.pick(&["t", "f"])).to_owned(),
            Ty::Date if rng.chance(3) => "infinity".to_owned(),
            Ty::Date => format!("2024-02-{:02}", rng.between(20, 29)),
            Ty::Timestamp | Ty::Timestamptz if rng.chance(3) => "-infinity".to_owned(),
            Ty::Timestamp => {
                format!(
                    "2024-02-28 {:02}:{:02}:00.{:03}",
                    rng.between(0, 23),
                    rng.between(0, 3) * 15,
                    rng.below(1000)
                )
            }
            Ty::Timestamptz => {
                format!("2024-02-{:02} {:02}:00:00+02", rng.between(20, 29), rng.between(0, 23))
            }
            // Eighths: sums of them are exact in any order. The rest is compared with a tolerance.
            Ty::Float8 if rng.chance(70) => format!("{}", rng.between(-40, 40) as f64 / 8.0),
            Ty::Float8 => format!("{}", rng.between(-400, 400) as f64 / 7.0),
            Ty::Mood => (*rng.pick(&["sad", "ok", "happy"])).to_owned(),
            Ty::Uuid => uuid(rng.below(20)),
            // Equal ones have one text: no number with a scale.
            Ty::Jsonb | Ty::Json => match rng.below(6) {
                0 => (*rng.pick(&["[1, 2, \"x\"]", "[]", "[[1], null]"])).to_owned(),
                1 => (*rng.pick(&["1", "\"x\"", "null", "{}"])).to_owned(),
                _ => format!("{{\"a\": {}, \"b\": [null, \"x\"]}}", rng.below(5)),
            },
            Ty::Ints if rng.chance(10) => "{}".to_owned(),
            Ty::Ints => format!("{{{},NULL,{}}}", rng.below(5), rng.below(5)),
            Ty::Range if rng.chance(15) => (*rng.pick(&["empty", "(,3)", "[2,)"])).to_owned(),
            Ty::Range => {
                let low = rng.between(0, 4);
                format!("[{low},{})", low + rng.between(1, 4))
            }
            Ty::Citext | Ty::Nocase => (*rng.pick(&["a", "A", "b", "aB", "Ab", "", "ä", "Ä"])).to_owned(),
        }
    }

    /// A literal that carries its type.
    pub fn literal(self, rng: &mut Prng) -> String {
        typed(&Some(self.some_value(rng)), self)
    }
}

/// The text of key number `n` of a uuid column.
pub fn uuid(n: usize) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// A literal whose type its place decides.
pub fn quoted(value: &Option<String>) -> String {
    match value {
        None => "null".to_owned(),
        Some(text) => format!("'{}'", text.replace('\'', "''")),
    }
}

/// A literal with its type.
pub fn typed(value: &Option<String>, ty: Ty) -> String {
    format!("{}::{}", quoted(value), ty.sql())
}

/// A field of COPY's text format.
pub fn copied(value: &Option<String>) -> String {
    match value {
        None => "\\N".to_owned(),
        Some(text) => text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n"),
    }
}

/// More than a page line: about 2.6 kB that differ by `n`, kept out of line.
pub fn big_text(n: usize) -> String {
    format!("big-{n}-").repeat(320)
}
