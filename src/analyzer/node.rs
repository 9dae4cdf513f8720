//! Parser of `pg_node_tree` text (`nodes/outfuncs.c`, `nodes/readfuncs.c`), without knowledge of any node type.
//!
//! Tags that PostgreSQL 14 still wrote in short form are renamed to the later ones; aggregates in the standard's JSON
//! constructors come out of them ([`json`]). Fields are read by name; readers
//! ignore fields they do not know and refuse tags they do not know.

use super::json;
use crate::error::{Error, Result};

/// A value in the tree.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `<>`: NULL, or an empty list.
    Null,
    Bool(bool),
    Int(i64),
    /// Any other bare token (names, enum-like words, floats).
    Token(String),
    /// A String node `"..."`.
    Str(String),
    List(Vec<Value>),
    /// `(b ...)`.
    Bitmapset(Vec<i64>),
    Node(Box<Node>),
    /// `LEN [ bytes ]`: the bytes of a constant as the server holds them.
    Datum {
        length: i64,
        bytes: Vec<u8>,
    },
}

/// A tagged node: `{TAG :field value ...}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub tag: String,
    pub fields: Vec<(String, Value)>,
}

/// Nesting past this is refused; the server's own parser stops long before (`max_stack_depth`).
const MAX_DEPTH: usize = 600;

/// Tags renamed in PostgreSQL 16 (the short forms are those of 14 and 15).
const RENAMED: &[(&str, &str)] = &[
    ("RTE", "RANGETBLENTRY"),
    ("CASE", "CASEEXPR"),
    ("WHEN", "CASEWHEN"),
    ("ARRAY", "ARRAYEXPR"),
    ("COALESCE", "COALESCEEXPR"),
    ("COLLATE", "COLLATEEXPR"),
    ("MINMAX", "MINMAXEXPR"),
    ("ROW", "ROWEXPR"),
    ("ROWCOMPARE", "ROWCOMPAREEXPR"),
];

/// Parses the text of one node tree: usually a list with one QUERY node.
pub fn parse(text: &str) -> Result<Value> {
    let tokens = tokenize(text);
    let mut parser = Parser { tokens: &tokens, position: 0 };
    let value = parser.value(0)?;
    match parser.position == tokens.len() {
        true => Ok(value),
        false => Err(malformed("text after the end of the tree")),
    }
}

fn malformed(what: &str) -> Error {
    Error::unsupported(format!("the server's query tree has an unknown form: {what}"))
}

/// Splits as `pg_strtok` does: white space and `(){}` separate, a backslash protects the next character.
fn tokenize(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let (mut tokens, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        match bytes[i] {
            b' ' | b'\n' | b'\t' => i += 1,
            b'(' | b')' | b'{' | b'}' => {
                tokens.push(&text[i..i + 1]);
                i += 1;
            }
            _ => {
                let start = i;
                while i < bytes.len() && !matches!(bytes[i], b' ' | b'\n' | b'\t' | b'(' | b')' | b'{' | b'}')
                {
                    i += if bytes[i] == b'\\' && i + 1 < bytes.len() { 2 } else { 1 };
                }
                // A backslash before a multi-byte character skips only its first byte: end on a boundary.
                while !text.is_char_boundary(i.min(text.len())) {
                    i += 1;
                }
                i = i.min(text.len());
                tokens.push(&text[start..i]);
            }
        }
    }
    tokens
}

fn unescape(token: &str) -> String {
    let mut out = String::with_capacity(token.len());
    let mut chars = token.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

struct Parser<'a> {
    tokens: &'a [&'a str],
    position: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Result<&'a str> {
        let token = self.tokens.get(self.position).ok_or_else(|| malformed("it ends early"))?;
        self.position += 1;
        Ok(token)
    }

    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.position).copied()
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(Error::unsupported("the query is nested too deeply"));
        }
        match self.next()? {
            "{" => self.node(depth),
            "(" => self.list(depth),
            token => Ok(atom(token)),
        }
    }

    fn node(&mut self, depth: usize) -> Result<Value> {
        let tag = self.next()?;
        let tag = RENAMED.iter().find(|(old, _)| *old == tag).map_or(tag, |(_, new)| new);
        let mut node = Node { tag: tag.to_owned(), fields: Vec::new() };
        loop {
            let field = self.next()?;
            if field == "}" {
                return Ok(Value::Node(Box::new(json::plain_call(node))));
            }
            let name =
                field.strip_prefix(':').ok_or_else(|| malformed(&format!("no field name in {tag}")))?;
            let mut value = self.value(depth + 1)?;
            if self.peek() == Some("[") {
                value = self.datum(value)?;
            }
            node.fields.push((name.to_owned(), value));
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value> {
        let kind = self.peek().filter(|k| matches!(*k, "i" | "o" | "b" | "x"));
        if kind.is_some() {
            self.position += 1;
        }
        let mut items = Vec::new();
        while self.peek() != Some(")") {
            items.push(self.value(depth + 1)?);
        }
        self.position += 1;
        if kind == Some("b") {
            return Ok(Value::Bitmapset(items.iter().filter_map(Value::as_int).collect()));
        }
        Ok(Value::List(items))
    }

    fn datum(&mut self, length: Value) -> Result<Value> {
        self.position += 1;
        let length = length.as_int().ok_or_else(|| malformed("constant without length"))?;
        let mut bytes = Vec::new();
        loop {
            match self.next()? {
                "]" => return Ok(Value::Datum { length, bytes }),
                token => {
                    let byte: i16 = token.parse().map_err(|_| malformed("constant byte"))?;
                    bytes.push(byte as u8);
                }
            }
        }
    }
}

fn atom(token: &str) -> Value {
    match token {
        "<>" => return Value::Null,
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    if let Some(quoted) = token.strip_prefix('"') {
        return Value::Str(unescape(quoted.strip_suffix('"').unwrap_or(quoted)));
    }
    match token.parse::<i64>() {
        Ok(i) => Value::Int(i),
        Err(_) => Value::Token(unescape(token)),
    }
}

impl Value {
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(i) => Some(*i),
            _ => None,
        }
    }

    pub fn as_node(&self) -> Option<&Node> {
        match self {
            Value::Node(n) => Some(n),
            _ => None,
        }
    }

    /// The text of a String node or bare token (a name that looks like a number comes as its digits).
    pub fn as_text(&self) -> Option<String> {
        match self {
            Value::Str(s) | Value::Token(s) => Some(s.clone()),
            Value::Int(i) => Some(i.to_string()),
            Value::Bool(b) => Some(b.to_string()),
            _ => None,
        }
    }

    /// The items of a list; NULL is the empty list.
    pub fn items(&self) -> &[Value] {
        match self {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// Calls `visit` for every node below (and including) this value.
    pub fn walk<'a>(&'a self, visit: &mut impl FnMut(&'a Node)) {
        match self {
            Value::Node(n) => n.walk(visit),
            Value::List(items) => items.iter().for_each(|i| i.walk(visit)),
            _ => {}
        }
    }
}

impl Node {
    pub fn field(&self, name: &str) -> &Value {
        self.fields.iter().find(|(n, _)| n == name).map_or(&Value::Null, |(_, v)| v)
    }

    /// The first of several names: fields were renamed between majors.
    pub fn field_any(&self, names: &[&str]) -> &Value {
        names.iter().map(|n| self.field(n)).find(|v| **v != Value::Null).unwrap_or(&Value::Null)
    }

    pub fn int(&self, name: &str) -> Result<i64> {
        self.field(name).as_int().ok_or_else(|| malformed(&format!("{}.{name} is no number", self.tag)))
    }

    /// An OID field; 0 is "none".
    pub fn oid(&self, name: &str) -> Result<u32> {
        u32::try_from(self.int(name)?).map_err(|_| malformed(&format!("{}.{name} is no OID", self.tag)))
    }

    pub fn bool(&self, name: &str) -> bool {
        matches!(self.field(name), Value::Bool(true))
    }

    pub fn node(&self, name: &str) -> Result<&Node> {
        self.field(name).as_node().ok_or_else(|| malformed(&format!("{}.{name} is no node", self.tag)))
    }

    pub fn optional_node(&self, name: &str) -> Option<&Node> {
        self.field(name).as_node()
    }

    pub fn list(&self, name: &str) -> &[Value] {
        self.field(name).items()
    }

    /// The nodes of a list field; other items are an error.
    pub fn nodes(&self, name: &str) -> Result<Vec<&Node>> {
        let items = self.list(name).iter();
        items
            .map(|v| v.as_node().ok_or_else(|| malformed(&format!("{}.{name} holds no node", self.tag))))
            .collect()
    }

    pub fn text(&self, name: &str) -> Option<String> {
        self.field(name).as_text()
    }

    pub fn walk<'a>(&'a self, visit: &mut impl FnMut(&'a Node)) {
        visit(self);
        self.fields.iter().for_each(|(_, v)| v.walk(visit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_lists_and_constants_are_read() {
        let tree = parse(r#"({RTE :relid 16385 :alias <> :names ("a\ b" "" ":x") :cols (b 1 3) :l (i 1 2) :constvalue 4 [ -1 0 0 0 0 0 0 0 ] :inh true})"#)
            .expect("parses");
        let node = tree.items()[0].as_node().expect("a node");
        assert_eq!(node.tag, "RANGETBLENTRY");
        assert_eq!(node.oid("relid").ok(), Some(16385));
        let names: Vec<_> = node.list("names").iter().filter_map(Value::as_text).collect();
        assert_eq!(names, ["a b", "", ":x"]);
        assert_eq!(node.field("cols"), &Value::Bitmapset(vec![1, 3]));
        assert_eq!(
            node.field("constvalue"),
            &Value::Datum { length: 4, bytes: vec![255, 0, 0, 0, 0, 0, 0, 0] }
        );
        assert!(node.bool("inh"));
        assert_eq!(node.field("missing"), &Value::Null);
    }

    #[test]
    fn a_field_value_may_begin_with_a_colon() {
        let tree = parse("{ALIAS :aliasname :x :colnames <>}").expect("parses");
        assert_eq!(tree.as_node().and_then(|n| n.text("aliasname")).as_deref(), Some(":x"));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in r#"[{}()\[\]:a-zA-Z0-9\\"<> é-]{0,200}"#) {
            let _ = parse(&text);
        }
    }
}
