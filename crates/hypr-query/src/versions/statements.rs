//! `RESTORE TABLE`, `CREATE TAG` and `DROP TAG`.

use hypr_common::Result;
use hypr_storage::TagExists;

use super::At;
use super::grammar::{CREATE_TAG, DROP_TAG, RESTORE, at_of};
use super::time::version_name;
use crate::dialect::ddl;
use crate::dialect::procedure::Procedure;
use crate::{DEFAULT_SCHEMA, Outcome, Session, StatementKind, TableRef};

/// A statement about versions. Names have their schema.
#[derive(Clone, Debug)]
pub(crate) enum VersionStatement {
    Restore { table: TableRef, at: At },
    CreateTag { table: TableRef, tag: String, at: Option<At>, exists: TagExists },
    DropTag { table: TableRef, tag: String, if_exists: bool },
}

impl VersionStatement {
    /// The statement that `procedure` stands for; `None` when it is none of these.
    pub(crate) fn of(procedure: &Procedure) -> Result<Option<Self>> {
        let table = || -> Result<TableRef> {
            let mut table = ddl::table_ref(&procedure.name_at(0)?)?;
            table.schema.get_or_insert_with(|| DEFAULT_SCHEMA.to_owned());
            Ok(table)
        };
        let at = match procedure.option("version") {
            Some(version) => Some(At::version(version)?),
            None => procedure.option("at").cloned().map(at_of).transpose()?,
        };
        Ok(match (procedure.name.as_str(), at) {
            (RESTORE, Some(at)) => Some(Self::Restore { table: table()?, at }),
            (CREATE_TAG, at) => {
                let exists = match (procedure.flag("if_not_exists"), procedure.flag("replace")) {
                    (true, _) => TagExists::Keep,
                    (false, true) => TagExists::Move,
                    (false, false) => TagExists::Fail,
                };
                Some(Self::CreateTag { table: table()?, tag: procedure.text_at(1)?, at, exists })
            }
            (DROP_TAG, _) => {
                let if_exists = procedure.flag("if_exists");
                Some(Self::DropTag { table: table()?, tag: procedure.text_at(1)?, if_exists })
            }
            _ => None,
        })
    }

    pub(crate) fn kind(&self) -> StatementKind {
        match self {
            Self::Restore { .. } => StatementKind::Update,
            Self::CreateTag { .. } | Self::DropTag { .. } => StatementKind::Ddl,
        }
    }
}

/// Runs the statement. A restore affects the rows that it removes and adds.
pub(crate) async fn run(session: &Session, statement: &VersionStatement) -> Result<Outcome> {
    let state = session.statement_state();
    let database = session.engine().database();
    match statement {
        VersionStatement::Restore { table, at } => {
            let stored = session.catalog().stored(table)?;
            let restored = database.restore(&stored, &version_name(&state, at)?).await?;
            Ok(Outcome::Affected(restored.removed + restored.added))
        }
        VersionStatement::CreateTag { table, tag, at, exists } => {
            let stored = session.catalog().stored(table)?;
            let at = at.as_ref().map(|at| version_name(&state, at)).transpose()?;
            database.create_tag(&stored, tag, at.as_ref(), *exists).await?;
            Ok(Outcome::Affected(0))
        }
        VersionStatement::DropTag { table, tag, if_exists } => {
            let stored = session.catalog().stored(table)?;
            database.drop_tag(&stored, tag, *if_exists).await?;
            Ok(Outcome::Affected(0))
        }
    }
}
