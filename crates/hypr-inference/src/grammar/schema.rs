//! From what a caller gives to what `llguidance` takes, and where a schema is wrong.

use hypr_common::{Error, Result};
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use serde_json::{Value, json};

use crate::api::Constraint;

/// The keyword by which a schema sets the compiler's options.
const OPTIONS: &str = "x-guidance";
/// Levels of a schema that are searched for the place of an error.
const MAX_DEPTH: usize = 32;

/// What `llguidance` takes.
///
/// # Errors
/// `InvalidInput` where a schema is not JSON.
pub(super) fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar> {
    Ok(match constraint {
        Constraint::JsonObject => TopLevelGrammar::from_json_schema(spaced(json!({ "type": "object" }))),
        Constraint::JsonSchema(text) => TopLevelGrammar::from_json_schema(spaced(parse(text)?)),
        Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Constraint::Lark(grammar) => TopLevelGrammar::from_lark(grammar.to_string()),
    })
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::invalid(format!("json_schema is not JSON: {error}")))
}

/// One way to put spaces, that of Python's `json.dumps`, which models have read most: structure is then forced, and
/// no model can go on with spaces for ever. A schema that sets `x-guidance` has it its way.
pub(crate) fn spaced(mut schema: Value) -> Value {
    if let Value::Object(keywords) = &mut schema {
        keywords.entry(OPTIONS).or_insert_with(options);
    }
    schema
}

/// The options of [`spaced`].
fn options() -> Value {
    json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " })
}

/// Compiles without a tokenizer; the error is the library's own.
pub(super) fn validate(grammar: TopLevelGrammar) -> std::result::Result<(), String> {
    let init = GrammarInit::Serialized(grammar);
    init.validate(None, ParserLimits::default()).into_error().map_or(Ok(()), Err)
}

/// The error for a constraint that does not compile, with the place.
pub(super) fn refusal(constraint: &Constraint, message: &str) -> Error {
    let message = message.trim().trim_end_matches("<non-verbose/>").trim_end();
    match constraint {
        Constraint::JsonObject => Error::internal(format!("the grammar of JSON: {message}")),
        Constraint::Regex(_) => Error::invalid(format!("the regular expression cannot be used: {message}")),
        Constraint::Lark(_) => Error::invalid(format!("the grammar cannot be used: {message}")),
        Constraint::JsonSchema(text) => {
            let schema = parse(text).unwrap_or(Value::Null);
            let (place, message) =
                locate(&schema, &schema, String::new(), 0).unwrap_or((String::new(), message.into()));
            let place = if place.is_empty() { "as a whole".to_owned() } else { format!("at {place}") };
            Error::invalid(format!("json_schema cannot be used, {place}: {message}"))
        }
    }
}

/// The innermost part of `schema` that fails by itself, as a JSON pointer, and why.
fn locate(root: &Value, schema: &Value, place: String, depth: usize) -> Option<(String, String)> {
    let message = validate(TopLevelGrammar::from_json_schema(with_definitions(root, schema))).err()?;
    if depth < MAX_DEPTH {
        for (step, part) in parts(schema) {
            if let Some(found) = locate(root, part, format!("{place}/{step}"), depth + 1) {
                return Some(found);
            }
        }
    }
    Some((place, message.lines().next().unwrap_or_default().to_owned()))
}

/// The schemas directly inside a schema, with the way to each.
fn parts(schema: &Value) -> Vec<(String, &Value)> {
    let Value::Object(keywords) = schema else { return Vec::new() };
    let mut parts = Vec::new();
    for (keyword, value) in keywords {
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => {
                parts.extend(named.iter().map(|(name, part)| (format!("{keyword}/{}", escaped(name)), part)));
            }
            ("anyOf" | "allOf" | "oneOf" | "prefixItems", Value::Array(items)) => {
                parts.extend(items.iter().enumerate().map(|(at, part)| (format!("{keyword}/{at}"), part)));
            }
            ("items" | "additionalProperties" | "not", Value::Object(_)) => parts.push((keyword.clone(), value)),
            _ => {}
        }
    }
    // What others refer to first, so that it is named and not what refers to it.
    parts.sort_by_key(|(step, _)| !(step.starts_with("$defs/") || step.starts_with("definitions/")));
    parts
}

/// A step of a JSON pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// A part of a schema with what its references refer to.
fn with_definitions(root: &Value, schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let (Value::Object(root), Value::Object(keywords)) = (root, &mut schema) {
        for name in ["$defs", "definitions", "$schema", OPTIONS] {
            if let Some(value) = root.get(name) {
                keywords.entry(name).or_insert_with(|| value.clone());
            }
        }
    }
    schema
}
