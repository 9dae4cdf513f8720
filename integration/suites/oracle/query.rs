//! Random queries of the supported kind.
//!
//! Stream tables are written as `@name@`: [`Query::stored`] reads what they store, [`Query::inlined`] reads the views
//! that define them, so that the answer at a commit can be asked for without the sidecar.

use super::prng::Prng;
use super::scalar::{Field, Image, Scalar, condition, plain, scalar};
use super::types::Ty;

/// Something that FROM can name.
#[derive(Debug, Clone)]
pub struct Relation {
    pub reference: String,
    pub fields: Vec<Field>,
}

/// A query and its columns (`o0`, `o1`, ...).
#[derive(Debug, Clone)]
pub struct Query {
    pub text: String,
    pub columns: Vec<(Ty, Image)>,
    pub(super) joins: Vec<bool>,
}

impl Query {
    /// A hand-written query; its columns are named by the text, their comparison is given.
    pub fn written(text: &str, columns: &[(Ty, Image)]) -> Query {
        Query { text: text.to_owned(), columns: columns.to_vec(), joins: vec![false; columns.len()] }
    }

    /// Over what stream tables store.
    pub fn stored(&self) -> String {
        self.text.replace('@', "")
    }

    /// Over the views `ref_...` in place of stream tables.
    pub fn inlined(&self) -> String {
        let pieces: Vec<&str> = self.text.split('@').collect();
        let mut text = String::new();
        for (number, piece) in pieces.iter().enumerate() {
            if number % 2 == 1 {
                text += "ref_";
            }
            text += piece;
        }
        text
    }

    /// As a relation of later queries.
    pub fn relation(&self, reference: &str) -> Relation {
        let columns = self.columns.iter().zip(&self.joins).enumerate();
        let fields = columns.map(|(number, ((ty, image), join))| {
            let name = format!("o{number}");
            Field { sql: name.clone(), name, ty: *ty, image: *image, join: *join }
        });
        Relation { reference: reference.to_owned(), fields: fields.collect() }
    }
}

/// FROM and WHERE, and what can be selected.
pub(super) struct Source {
    pub(super) from: String,
    pub(super) conditions: Vec<String>,
    pub(super) scope: Vec<Field>,
    /// Items that may be mentioned as whole rows.
    pub(super) whole: Vec<String>,
    /// A comma join was made: later ON clauses could not see all of the scope.
    pub(super) comma: bool,
}

/// Makes queries over the given relations.
pub struct Grammar<'a> {
    pub rng: &'a mut Prng,
    pub relations: &'a [Relation],
    alias: usize,
}

impl Grammar<'_> {
    pub fn new<'a>(rng: &'a mut Prng, relations: &'a [Relation]) -> Grammar<'a> {
        Grammar { rng, relations, alias: 0 }
    }

    /// A query that nests at most `depth` others.
    pub fn query(&mut self, depth: usize) -> Query {
        if depth > 0 && self.rng.chance(15) {
            return self.common_table(depth);
        }
        if self.rng.chance(30) {
            return self.form(depth);
        }
        match self.rng.below(if depth > 0 { 10 } else { 7 }) {
            0..=2 => self.projection(depth),
            3..=5 => self.aggregation(depth),
            6 => self.distinct(depth),
            7 | 8 => self.union(depth),
            _ => self.projection(depth),
        }
    }

    pub(super) fn alias(&mut self) -> String {
        self.alias += 1;
        format!("r{}", self.alias)
    }

    /// A relation, or a subquery in brackets, with its alias.
    pub(super) fn item(&mut self, depth: usize) -> (String, Vec<Field>) {
        let relation = if depth > 0 && self.rng.chance(25) {
            let query = self.query(depth - 1);
            query.relation(&format!("({})", query.text))
        } else if self.rng.chance(5) {
            self.values()
        } else {
            self.rng.pick(self.relations).clone()
        };
        let alias = self.alias();
        let fields = relation.fields.into_iter().map(|f| Field { sql: format!("{alias}.{}", f.name), ..f });
        (format!("{} as {alias}", relation.reference), fields.collect())
    }

    pub(super) fn source(&mut self, depth: usize) -> Source {
        let (from, scope) = self.item(depth);
        let whole = whole(&from).into_iter().collect();
        let mut source = Source { from, conditions: Vec::new(), scope, whole, comma: false };
        let joins = *self.rng.pick(&[0, 0, 0, 1, 1, 1, 2, 2, 3]);
        for _ in 0..joins {
            self.join(&mut source, depth);
        }
        for _ in 0..*self.rng.pick(&[0, 0, 1, 1, 2]) {
            source.conditions.push(condition(self.rng, &source.scope));
        }
        if !source.comma && self.rng.chance(8) {
            let scope = source.scope.clone();
            if let Some((item, fields)) = self.lateral(&scope) {
                let (kind, on) = *self.rng.pick(&[("cross join", ""), ("left join", " on true")]);
                source.from = format!("{} {kind} {item}{on}", source.from);
                source.scope.extend(fields);
            }
        }
        if !source.comma && self.rng.chance(8) {
            let scope = source.scope.clone();
            if let Some((item, fields)) = self.set_of_rows(&scope) {
                source.from = format!("{} {item}", source.from);
                source.scope.extend(fields);
            }
        }
        if self.rng.chance(20) {
            source.conditions.extend(self.nested_condition(&source.scope.clone()));
        }
        source
    }

    pub(super) fn projection(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let mut list = Vec::new();
        for _ in 0..1 + self.rng.below(5) {
            list.push(scalar(self.rng, &source.scope));
        }
        if self.rng.chance(20) {
            list.extend(self.nested_scalar(&source.scope));
        }
        if self.rng.chance(12) {
            list.extend(self.composed(&source));
        }
        if self.rng.chance(8) {
            list.extend(self.sets_of_values(&source.scope));
        }
        // Often with what later queries can join by, and sometimes with every column, keys included.
        if self.rng.chance(50) {
            list.extend(source.scope.iter().find(|f| f.join).map(plain));
        }
        if self.rng.chance(25) {
            list.extend(source.scope.iter().take(9).map(plain));
        }
        build("select ", list, &source, "")
    }

    fn distinct(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let mut list = vec![self.groupable(&source.scope)];
        for _ in 0..self.rng.below(3) {
            list.push(self.groupable(&source.scope));
        }
        build("select distinct ", list.into_iter().map(grouped).collect(), &source, "")
    }

    /// An expression whose type has equality.
    pub(super) fn groupable(&mut self, scope: &[Field]) -> Scalar {
        for _ in 0..20 {
            let value = scalar(self.rng, scope);
            // A float that was summed is equal to its twin only nearly.
            if !value.ty.is_passenger() && value.image != Image::Approximate {
                return value;
            }
        }
        Scalar { sql: Ty::Int4.literal(self.rng), ty: Ty::Int4, image: Image::Exact, join: false }
    }

    pub(super) fn aggregation(&mut self, depth: usize) -> Query {
        let source = self.source(depth);
        let mut list = Vec::new();
        let mut groups: Vec<String> = Vec::new();
        for _ in 0..*self.rng.pick(&[0, 1, 1, 1, 2, 2]) {
            let join: Vec<Field> = source.scope.iter().filter(|f| f.join).cloned().collect();
            let key = match join.is_empty() || self.rng.chance(60) {
                true => self.groupable(&source.scope),
                false => plain(self.rng.pick(&join)),
            };
            if !groups.contains(&key.sql) {
                groups.push(key.sql.clone());
                list.push(grouped(key));
            }
        }
        for _ in 0..1 + self.rng.below(4) {
            list.push(self.aggregate(&source.scope));
        }
        // A group column need not be shown.
        if groups.len() == 2 && self.rng.chance(15) {
            list.remove(0);
        }
        let mut tail = match groups.is_empty() {
            true => String::new(),
            // A bare constant would be a position.
            false => format!(
                " group by {}",
                groups.iter().map(|g| format!("({g})")).collect::<Vec<_>>().join(", ")
            ),
        };
        if self.rng.chance(25) {
            let condition = match self.rng.below(4) {
                0 => "count(*) > 1".to_owned(),
                1 => "count(*) between 1 and 3".to_owned(),
                2 => format!("count(distinct {}) > 1", self.groupable(&source.scope).sql),
                _ => format!("min({}) < 5", self.number(&source.scope)),
            };
            tail += &format!(" having {condition}");
        }
        build("select ", list, &source, &tail)
    }

    /// An integer column, or a number.
    fn number(&mut self, scope: &[Field]) -> String {
        scope.iter().find(|f| f.ty.is_int()).map_or("3".to_owned(), |f| f.sql.clone())
    }

    fn extreme(&mut self, scope: &[Field]) -> Scalar {
        for _ in 0..20 {
            let value = self.groupable(scope);
            if value.ty.has_extremes() {
                return value;
            }
        }
        Scalar { sql: "1".to_owned(), ty: Ty::Int4, image: Image::Exact, join: false }
    }

    pub(super) fn aggregate(&mut self, scope: &[Field]) -> Scalar {
        let numbers: Vec<&Field> =
            scope.iter().filter(|f| f.ty.is_int() || f.ty.is_numeric() || f.ty == Ty::Float8).collect();
        let exact = |sql: String, ty| Scalar { sql, ty, image: Image::Exact, join: false };
        let mut suffix = "";
        if self.rng.chance(8)
            && let Some(list) = self.ordered_list(scope)
        {
            return list;
        }
        if self.rng.chance(14)
            && let Some(measure) = self.measure(scope)
        {
            return measure;
        }
        let mut value = match self.rng.below(10) {
            0 => exact("count(*)".to_owned(), Ty::Int8),
            1 => exact(format!("count({})", scalar(self.rng, scope).sql), Ty::Int8),
            2 => exact(format!("count(distinct {})", self.groupable(scope).sql), Ty::Int8),
            3 | 4 => {
                let argument = self.extreme(scope);
                let function = *self.rng.pick(&["min", "max"]);
                let ty = if argument.ty == Ty::Varchar { Ty::Text } else { argument.ty };
                let ty = if ty == Ty::Money { Ty::Numeric } else { ty };
                let mut text = argument.sql.clone();
                // Extremes of text are maintained bytewise; the result compares as all other text does.
                if argument.ty.is_text() || argument.ty == Ty::Char {
                    text = format!("({text}) collate \"C\"");
                    suffix = " collate \"default\"";
                }
                let image = grouped(argument).image;
                Scalar { image, ..exact(format!("{function}({text})"), ty) }
            }
            5 => {
                let function = *self.rng.pick(&["bool_and", "bool_or"]);
                exact(format!("{function}({})", condition(self.rng, scope)), Ty::Bool)
            }
            _ if numbers.is_empty() => exact("count(*)".to_owned(), Ty::Int8),
            _ => {
                let field = (*self.rng.pick(&numbers)).clone();
                let distinct = if self.rng.chance(12) && field.ty != Ty::Float8 { "distinct " } else { "" };
                let average = self.rng.chance(40);
                let ty = match field.ty {
                    Ty::Float8 => Ty::Float8,
                    Ty::Int2 | Ty::Int4 if !average => Ty::Int8,
                    _ => Ty::Numeric,
                };
                let image = match field.ty {
                    Ty::Float8 => Image::Approximate,
                    Ty::Numeric if !distinct.is_empty() => Image::Value,
                    _ => field.image,
                };
                let function = if average { "avg" } else { "sum" };
                Scalar { sql: format!("{function}({distinct}{})", field.sql), ty, image, join: false }
            }
        };
        if self.rng.chance(20) {
            value.sql += &format!(" filter (where {})", condition(self.rng, scope));
        }
        value.sql += suffix;
        value
    }

    fn common_table(&mut self, depth: usize) -> Query {
        let inner = self.query(depth - 1);
        let name = format!("w{}", self.alias());
        let relation = inner.relation(&name);
        let mut relations = self.relations.to_vec();
        relations.push(relation.clone());
        // Twice as likely as the others.
        relations.push(relation);
        let mut outer = Grammar { rng: self.rng, relations: &relations, alias: self.alias };
        let query = outer.projection_or_aggregation();
        self.alias = outer.alias;
        Query { text: format!("with {name} as ({}) {}", inner.text, query.text), ..query }
    }

    fn projection_or_aggregation(&mut self) -> Query {
        if self.rng.chance(50) { self.projection(0) } else { self.aggregation(0) }
    }
}

/// As a group key or an extreme: of numerics and folded text only the value is determined.
pub(super) fn grouped(value: Scalar) -> Scalar {
    let several = value.ty == Ty::Numeric || value.ty.is_folded();
    let ambiguous = several && value.image == Image::Exact;
    Scalar { image: if ambiguous { Image::Value } else { value.image }, ..value }
}

/// The alias of an item whose whole row can be mentioned: a stream table's has a number besides.
pub(super) fn whole(item: &str) -> Option<String> {
    let (reference, alias) = item.rsplit_once(" as ")?;
    (!reference.starts_with('@') && !item.starts_with("lateral")).then(|| alias.to_owned())
}

pub(super) fn build(verb: &str, list: Vec<Scalar>, source: &Source, tail: &str) -> Query {
    let columns = list.iter().map(|s| (s.ty, s.image)).collect();
    let joins = list.iter().map(|s| s.join).collect();
    let items: Vec<String> = list.iter().enumerate().map(|(i, s)| format!("{} as o{i}", s.sql)).collect();
    let filter = match source.conditions.is_empty() {
        true => String::new(),
        false => format!(" where {}", source.conditions.join(" and ")),
    };
    Query { text: format!("{verb}{} from {}{filter}{tail}", items.join(", "), source.from), columns, joins }
}
