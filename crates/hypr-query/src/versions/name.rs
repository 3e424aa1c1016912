//! A version inside the name of a table, on its way from the parser to the planner.

use datafusion::sql::sqlparser::ast::{Expr, Value};
use hypr_common::{Error, Result};

/// Parts the table's name from the version; no name of a table holds it.
const SEPARATOR: char = '\u{1f}';

/// How a statement names a version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum At {
    Number(u64),
    Tag(String),
    /// A constant expression, as SQL.
    Time(String),
}

impl At {
    /// A version by number or tag.
    pub(crate) fn version(expr: &Expr) -> Result<Self> {
        let Expr::Value(value) = expr else {
            return Err(Error::invalid(format!("a version is a number or a tag's name, not {expr}")));
        };
        match &value.value {
            Value::Number(number, _) => number
                .parse()
                .map(Self::Number)
                .map_err(|_| Error::invalid(format!("{number} is no version; table_versions('table') lists them"))),
            Value::SingleQuotedString(tag) => Ok(Self::Tag(tag.clone())),
            other => Err(Error::invalid(format!("a version is a number or a tag's name, not {other}"))),
        }
    }
}

/// The name of `table` at a version.
pub(crate) fn encode(table: &str, at: &At) -> String {
    match at {
        At::Number(number) => format!("{table}{SEPARATOR}n{number}"),
        At::Tag(tag) => format!("{table}{SEPARATOR}g{tag}"),
        At::Time(sql) => format!("{table}{SEPARATOR}t{sql}"),
    }
}

/// The table and the version in a name; `None` for the name of a table as it is now.
pub(crate) fn decode(name: &str) -> Option<(&str, At)> {
    let (table, at) = name.split_once(SEPARATOR)?;
    let rest = at.get(1..)?;
    let at = match at.as_bytes().first()? {
        b'n' => At::Number(rest.parse().ok()?),
        b'g' => At::Tag(rest.to_owned()),
        b't' => At::Time(rest.to_owned()),
        _ => return None,
    };
    Some((table, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for at in [At::Number(7), At::Tag("v1.0".to_owned()), At::Time("now() - INTERVAL '1 hour'".to_owned())] {
            assert_eq!(decode(&encode("docs", &at)), Some(("docs", at)));
        }
        assert_eq!(decode("docs"), None);
    }
}
