//! Which statements run at all. DataFusion can read and write files and change its own settings by SQL; a
//! database server must not let its clients do that.

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{ObjectType, Statement as Sql};
use hypr_common::{Error, Result};

use super::procedure::Procedure;
use crate::lifecycle::ModelStatement;
use crate::prefixes::PrefixStatement;
use crate::series::statement::SeriesStatement;
use crate::vector_search::settings::SetSearch;

/// Refuses statements that are not served.
pub(crate) fn check(statement: &Statement) -> Result<()> {
    match statement {
        Statement::Statement(sql) => check_sql(sql),
        Statement::Explain(explain) => match explain.statement.as_ref() {
            Statement::Statement(sql) if explain.analyze && !matches!(**sql, Sql::Query(_)) => {
                Err(Error::unsupported("EXPLAIN ANALYZE runs queries only"))
            }
            Statement::Statement(sql) if Procedure::of(sql).is_some() => {
                Err(Error::unsupported("this statement has no plan to explain"))
            }
            inner => check(inner),
        },
        Statement::CreateExternalTable(_) => Err(Error::unsupported("CREATE EXTERNAL TABLE is not available")),
        Statement::CopyTo(_) => Err(Error::unsupported("COPY cannot be explained; explain its query")),
        Statement::Reset(_) => SetSearch::of(statement).map(drop),
    }
}

fn check_sql(sql: &Sql) -> Result<()> {
    if SeriesStatement::of(sql)?.is_some() {
        return Ok(());
    }
    let refused = match sql {
        Sql::Query(_)
        | Sql::Insert(_)
        | Sql::Update(_)
        | Sql::Delete(_)
        | Sql::Merge(_)
        | Sql::CreateTable(_)
        | Sql::CreateFunction(_)
        | Sql::DropFunction(_)
        | Sql::CreateIndex(_)
        | Sql::Truncate(_)
        | Sql::AlterTable(_)
        | Sql::CreateView(_)
        | Sql::StartTransaction { .. }
        | Sql::Commit { .. }
        | Sql::Rollback { .. }
        | Sql::Savepoint { .. }
        | Sql::ReleaseSavepoint { .. }
        // Which settings there are is said where they are set.
        | Sql::Set(_)
        | Sql::ShowTables { .. }
        | Sql::ShowColumns { .. }
        | Sql::ShowVariable { .. }
        | Sql::ShowFunctions { .. }
        | Sql::ExplainTable { .. }
        | Sql::Explain { .. } => return Ok(()),
        Sql::Drop { object_type: ObjectType::Table | ObjectType::View | ObjectType::Index, .. } => return Ok(()),
        Sql::Call(_)
            if Procedure::of(sql).is_some()
                || PrefixStatement::of(sql)?.is_some()
                || ModelStatement::of(sql)?.is_some() =>
        {
            return Ok(());
        }
        Sql::CreateSchema { .. } => {
            "CREATE SCHEMA is not available; CREATE TABLE schema.table makes the schema with its first table"
        }
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
