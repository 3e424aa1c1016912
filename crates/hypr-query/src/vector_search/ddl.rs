//! Runs `CREATE INDEX` and `DROP INDEX`.

use hypr_common::Result;
use hypr_storage::ann::VectorIndexDefinition;

use crate::dialect::vector_index::CreateVectorIndex;
use crate::{Outcome, Session, TableRef};

/// Declares an index; it is built in the background, and searches compare every row until it is there.
pub(crate) async fn create_index(session: &Session, create: &CreateVectorIndex) -> Result<Outcome> {
    session.catalog().stored(&create.table)?;
    let definition = VectorIndexDefinition {
        schema_name: create.table.schema_name().to_owned(),
        name: create.full_name(),
        table: create.table.name.clone(),
        column: create.column.clone(),
        metric: create.metric,
        params: create.params,
    };
    session.engine().database().create_vector_index(definition, create.if_not_exists).await?;
    Ok(Outcome::Affected(0))
}

/// Drops indexes, in order.
pub(crate) async fn drop_indexes(session: &Session, indexes: &[TableRef], if_exists: bool) -> Result<Outcome> {
    for index in indexes {
        session.engine().database().drop_vector_index(index.schema_name(), &index.name, if_exists).await?;
    }
    Ok(Outcome::Affected(0))
}
