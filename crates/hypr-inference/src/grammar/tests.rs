use super::*;

fn refused(constraint: Constraint) -> String {
    let error = check(&constraint).unwrap_err();
    assert_eq!(error.kind(), hypr_common::ErrorKind::InvalidInput);
    error.message().to_owned()
}

#[test]
fn a_schema_that_is_wrong_is_refused_with_the_place() {
    let schema = |text: &str| refused(Constraint::JsonSchema(text.into()));
    assert!(schema("{\"type\": }").contains("json_schema is not JSON: expected value at line 1 column 10"));
    let nested = r#"{"type": "object", "properties": {"a/b": {"type": "array", "items": {"type": "integre"}}}}"#;
    assert!(schema(nested).contains("at /properties/a~1b/items: "), "{}", schema(nested));
    let empty = r#"{"type": "object", "properties": {"n": {"type": "integer", "minimum": 5, "maximum": 3}}, "required": ["n"]}"#;
    assert!(schema(empty).contains("at /properties/n: "), "{}", schema(empty));
    let referred = r##"{"type": "object", "properties": {"n": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "integer", "minimum": 5, "maximum": 3}}, "required": ["n"]}"##;
    assert!(schema(referred).contains("at /$defs/x: "), "{}", schema(referred));
    let dangling = schema(r##"{"type": "object", "properties": {"n": {"$ref": "#/$defs/none"}}}"##);
    assert!(dangling.contains("at /properties/n: ") && dangling.contains("none"), "{dangling}");
    assert!(schema(r#"{"type": "string", "pattern": "("}"#).contains("as a whole"));
}

#[test]
fn a_grammar_that_is_wrong_is_refused() {
    assert!(refused(Constraint::Regex("a(".into())).contains("the regular expression cannot be used"));
    let lark = refused(Constraint::Lark("start: \"a\" b\n".into()));
    assert!(lark.contains("the grammar cannot be used") && lark.contains('b'), "{lark}");
    assert!(refused(Constraint::Lark("start = 1".into())).contains("1"));
}

#[test]
fn what_is_right_passes() {
    let schema = r##"{"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "next": {"$ref": "#/$defs/node"}},
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}, "required": ["kind"]}"##;
    check(&Constraint::JsonSchema(schema.into())).unwrap();
    check(&Constraint::JsonObject).unwrap();
    check(&Constraint::Regex(r"\d{4}-\d\d".into())).unwrap();
    check(&Constraint::Lark("start: greeting \" \" NAME\ngreeting: \"hi\" | \"ho\"\nNAME: /[A-Z][a-z]+/\n".into()))
        .unwrap();
}
