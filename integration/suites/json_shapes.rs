//! The JSON of the commands is what `docs/cli.md` says: keys are compared with the page, object by object.

use std::collections::BTreeMap;

use serde_json::Value;

/// Keys of an object, each with what is below it; empty where the page says nothing about that.
#[derive(Debug, Default, PartialEq)]
pub struct Shape(BTreeMap<String, Shape>);

/// Reads `{"a", "b": [{"c"}]}`: JSON whose scalars are left out.
fn read(text: &mut &str) -> Shape {
    let mut shape = Shape::default();
    let mut last = None;
    while let Some(c) = text.chars().next() {
        *text = &text[c.len_utf8()..];
        match c {
            '{' => {
                let below = read(text);
                let place = last.take().map(|key| shape.0.entry(key).or_default());
                match place {
                    Some(place) => *place = below,
                    None => shape = below,
                }
            }
            '}' => return shape,
            '"' => {
                let (key, rest) = text.split_once('"').expect("a key ends");
                *text = rest;
                shape.0.entry(key.to_owned()).or_default();
                last = Some(key.to_owned());
            }
            _ => {}
        }
    }
    shape
}

/// The shape on the page of `command`, for example `status`. A block may begin with several commands.
fn documented(command: &str) -> Shape {
    let page = include_str!("../../docs/cli.md");
    let said = format!("pgtrickle {command} --json");
    let block = page.split("```text\n").skip(1).find_map(|block| {
        let block = block.split("\n```").next()?;
        let commands = block.lines().take_while(|line| line.starts_with("pgtrickle "));
        let (mut length, mut found) = (0, false);
        for line in commands {
            (length, found) = (length + line.len() + 1, found || line == said);
        }
        found.then(|| &block[length..])
    });
    read(&mut block.unwrap_or_else(|| panic!("{command} --json is not on the page")))
}

/// Whether the page has the shape of `command`.
pub fn is_documented(command: &str) -> bool {
    let said = format!("\npgtrickle {command} --json\n");
    include_str!("../../docs/cli.md").contains(&said)
}

fn compare(place: &str, shape: &Shape, value: &Value) {
    match value {
        Value::Object(object) => {
            let mut there: Vec<&str> = object.keys().map(String::as_str).collect();
            there.sort_unstable();
            let told: Vec<&str> = shape.0.keys().map(String::as_str).collect();
            assert_eq!(there, told, "keys of {place}, left: the command's, right: the page's");
            for (key, inner) in object {
                compare(&format!("{place}.{key}"), &shape.0[key], inner);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| compare(&format!("{place}[]"), shape, inner)),
        _ => {}
    }
}

/// Fails unless every object in what the command said has exactly the documented keys.
#[track_caller]
pub fn assert_documented(command: &str, value: &Value) {
    compare(command, &documented(command), value);
}

#[test]
fn shapes_are_read_and_differences_found() {
    let shape = read(&mut "{\"a\", \"b\": [{\"c\",\n \"d\": {\"e\"}}], \"f\"}");
    let value =
        serde_json::json!({"a": 1, "b": [{"c": null, "d": {"e": [1]}}, {"c": 1, "d": null}], "f": []});
    compare("x", &shape, &value);
    assert_eq!(read(&mut "[{\"a\"}]"), read(&mut "{\"a\"}"));
    for wrong in [
        serde_json::json!({"a": 1, "b": []}),
        serde_json::json!({"a": 1, "b": [], "f": 1, "g": 1}),
        serde_json::json!({"a": 1, "b": [{"c": 1, "d": {}}], "f": 1}),
    ] {
        assert!(std::panic::catch_unwind(|| compare("x", &shape, &wrong)).is_err(), "{wrong}");
    }
}
