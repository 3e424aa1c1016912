//! Which statements run at all. DataFusion can read and write files and change its own settings by SQL; a
//! database server must not let its clients do that.

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{ObjectType, Statement as Sql};
use hypr_common::{Error, Result};

/// Refuses statements that are not served.
pub(crate) fn check(statement: &Statement) -> Result<()> {
    match statement {
        Statement::Statement(sql) => check_sql(sql),
        Statement::Explain(explain) => match explain.statement.as_ref() {
            Statement::Statement(sql) if explain.analyze && !matches!(**sql, Sql::Query(_)) => {
                Err(Error::unsupported("EXPLAIN ANALYZE runs queries only"))
            }
            inner => check(inner),
        },
        Statement::CreateExternalTable(_) => Err(Error::unsupported("CREATE EXTERNAL TABLE is not available")),
        Statement::CopyTo(_) => Err(Error::unsupported("COPY is not available yet")),
        Statement::Reset(_) => Err(Error::unsupported("RESET is not available")),
    }
}

fn check_sql(sql: &Sql) -> Result<()> {
    let refused = match sql {
        Sql::Query(_)
        | Sql::Insert(_)
        | Sql::Update(_)
        | Sql::Delete(_)
        | Sql::Merge(_)
        | Sql::CreateTable(_)
        | Sql::CreateFunction(_)
        | Sql::DropFunction(_)
        | Sql::Truncate(_)
        | Sql::AlterTable(_)
        | Sql::CreateView(_)
        | Sql::ShowTables { .. }
        | Sql::ShowColumns { .. }
        | Sql::ShowVariable { .. }
        | Sql::ShowFunctions { .. }
        | Sql::ExplainTable { .. }
        | Sql::Explain { .. } => return Ok(()),
        Sql::Drop { object_type: ObjectType::Table | ObjectType::View, .. } => return Ok(()),
        Sql::StartTransaction { .. } | Sql::Commit { .. } | Sql::Rollback { .. } | Sql::Savepoint { .. } => {
            "transactions are not available yet; every statement commits by itself"
        }
        Sql::CreateIndex(_) => "CREATE INDEX is not available yet",
        Sql::CreateSchema { .. } => {
            "CREATE SCHEMA is not available; CREATE TABLE schema.table makes the schema with its first table"
        }
        Sql::Copy { .. } => "COPY is not available yet",
        Sql::Set(_) => "SET is not available",
        Sql::Prepare { .. } | Sql::Execute { .. } | Sql::Deallocate { .. } => {
            "PREPARE is not available as SQL; use the prepared statements of Flight SQL"
        }
        other => {
            let text = other.to_string();
            let word = text.split_whitespace().next().unwrap_or("this statement");
            return Err(Error::unsupported(format!("{word} is not available")));
        }
    };
    Err(Error::unsupported(refused))
}
