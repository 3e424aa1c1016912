//! `UPDATE t SET Name = ..`: DataFusion folds unquoted names to lower case everywhere but here.

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{AssignmentTarget, ObjectNamePart, Statement as Sql};
use hypr_common::Result;

use super::ddl::normalize;

/// Folds the names that are assigned to.
pub(super) fn fold_case(statement: &mut Statement) -> Result<()> {
    let Statement::Statement(sql) = statement else {
        return Ok(());
    };
    let Sql::Update(update) = sql.as_mut() else {
        return Ok(());
    };
    for assignment in &mut update.assignments {
        if let AssignmentTarget::ColumnName(name) = &mut assignment.target {
            for part in &mut name.0 {
                if let ObjectNamePart::Identifier(ident) = part {
                    ident.value = normalize(ident);
                }
            }
        }
    }
    Ok(())
}
