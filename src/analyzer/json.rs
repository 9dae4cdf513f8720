//! The standard's spelling of the JSON aggregates (`JSON_ARRAYAGG`, `JSON_OBJECTAGG`; 16 and newer): read as the calls they are.
//!
//! The server keeps the call of an aggregate or window function inside of the constructor, and what RETURNING casts it to
//! beside it, with a placeholder for the call (`ExecInitExprRec`, `T_JsonConstructorExpr`). Nothing else of the constructor
//! takes part in its value. Invariant: what has another form is left as it is, for its reader to refuse.

use super::node::{Node, Value};

/// The call of a constructor that has one, cast as it says; any other node unchanged.
pub fn plain_call(node: Node) -> Node {
    if node.tag != "JSONCONSTRUCTOREXPR" {
        return node;
    }
    let call = match node.optional_node("func") {
        Some(call) if matches!(call.tag.as_str(), "AGGREF" | "WINDOWFUNC") => call.clone(),
        _ => return node,
    };
    match node.optional_node("coercion") {
        None => call,
        Some(cast) => with_call(cast, &call).unwrap_or(node),
    }
}

/// The cast over the call in place of the placeholder, if the cast has one of the plain forms.
fn with_call(cast: &Node, call: &Node) -> Option<Node> {
    let operand = match cast.tag.as_str() {
        "CASETESTEXPR" => return Some(call.clone()),
        "RELABELTYPE" | "COERCEVIAIO" => "arg",
        "FUNCEXPR" => "args",
        _ => return None,
    };
    let mut fields = Vec::with_capacity(cast.fields.len());
    for (name, value) in &cast.fields {
        let value = match value {
            _ if name != operand => value.clone(),
            Value::Node(inner) => Value::Node(Box::new(with_call(inner, call)?)),
            Value::List(items) => {
                let (first, rest) = items.split_first()?;
                let first = Value::Node(Box::new(with_call(first.as_node()?, call)?));
                Value::List(std::iter::once(first).chain(rest.iter().cloned()).collect())
            }
            // Without an operand there is no place for the call.
            _ => return None,
        };
        fields.push((name.clone(), value));
    }
    let placed = fields.iter().any(|(name, _)| name == operand);
    placed.then(|| Node { tag: cast.tag.clone(), fields })
}

#[cfg(test)]
mod tests {
    use crate::analyzer::node::{Node, parse};

    fn read(text: &str) -> Node {
        parse(text).expect("parses").as_node().cloned().expect("a node")
    }

    #[test]
    fn a_constructor_is_the_call_it_holds() {
        let node = read("{JSONCONSTRUCTOREXPR :type 4 :args <> :func {AGGREF :aggfnoid 6276} :coercion <>}");
        assert_eq!(node, read("{AGGREF :aggfnoid 6276}"));
        let cast = read(
            "{JSONCONSTRUCTOREXPR :func {AGGREF :aggfnoid 6276} :coercion {FUNCEXPR :funcid 669 :args \
             ({COERCEVIAIO :arg {CASETESTEXPR :typeId 114} :resulttype 25} {CONST :v 1})}}",
        );
        let wanted = "{FUNCEXPR :funcid 669 :args ({COERCEVIAIO :arg {AGGREF :aggfnoid 6276} :resulttype 25} {CONST :v 1})}";
        assert_eq!(cast, read(wanted));
    }

    #[test]
    fn other_constructors_stay_what_they_are() {
        for text in [
            "{JSONCONSTRUCTOREXPR :type 1 :args <> :func <> :coercion <>}",
            "{JSONCONSTRUCTOREXPR :func {AGGREF :aggfnoid 1} :coercion {COERCETODOMAIN :arg {CASETESTEXPR :typeId 1}}}",
            "{JSONCONSTRUCTOREXPR :func {AGGREF :aggfnoid 1} :coercion {FUNCEXPR :args <>}}",
        ] {
            assert_eq!(read(text).tag, "JSONCONSTRUCTOREXPR", "{text}");
        }
    }
}
