use super::*;

/// No table and no model has a name.
struct NoNames;

impl Names for NoNames {
    fn is_table(&self, _: &str) -> bool {
        false
    }

    fn is_model(&self, _: &str) -> bool {
        false
    }
}

fn parsed(sql: &str) -> String {
    parse(sql, &NoNames).unwrap().to_string()
}

fn refused(sql: &str) -> String {
    parse(sql, &NoNames).unwrap_err().message().to_owned()
}

#[test]
fn question_marks_are_numbered_and_operators_are_left() {
    assert_eq!(parsed("SELECT ? + ?"), "SELECT $1 + $2");
    assert_eq!(
        parsed("SELECT m ? 'k', \"m\" ? 'k', (m) ? 'k' FROM t"),
        "SELECT m ? 'k', \"m\" ? 'k', (m) ? 'k' FROM t"
    );
    assert_eq!(
        parsed("SELECT 'a' WHERE ? = 'b' AND m ? 'c' AND ? = x"),
        "SELECT 'a' WHERE $1 = 'b' AND m ? 'c' AND $2 = x"
    );
    assert_eq!(parsed("INSERT INTO t VALUES (?, ?)"), "INSERT INTO t VALUES ($1, $2)");
    assert_eq!(parsed("SELECT '?' -- ?"), "SELECT '?'");
    assert_eq!(parsed("SELECT ?2, ?1"), "SELECT $2, $1");
}

#[test]
fn json_operators_bind_tighter_than_comparison_and_concatenation() {
    assert_eq!(parsed("SELECT m->>'a' = 'b'").replace(['(', ')'], ""), "SELECT m ->> 'a' = 'b'");
    let Statement::Statement(sql) = parse("SELECT m->'a'->>'b' || 'c' = 'd'", &NoNames).unwrap() else { panic!() };
    let text = format!("{sql:?}");
    let (equals, concat, arrow) = (text.find("op: Eq"), text.find("op: StringConcat"), text.find("op: LongArrow"));
    assert!(equals.is_some() && concat.is_some() && arrow.is_some());
}

#[test]
fn syntax_errors_have_line_and_column() {
    assert!(
        refused("SELECT 1\nFROM t WHERE )").starts_with("syntax error at line 2, column "),
        "{}",
        refused("SELECT 1\nFROM t WHERE )")
    );
    assert!(refused("SELECT 'open").starts_with("syntax error at line 1, column 8"), "{}", refused("SELECT 'open"));
}

#[test]
fn huge_and_deep_statements_are_refused() {
    assert!(refused(&format!("SELECT '{}'", "x".repeat(16 << 20))).contains("query.max_statement_kb = 16384"));
    assert!(refused(&format!("SELECT {}1{}", "(".repeat(500), ")".repeat(500))).contains("nested too deeply"));
}
