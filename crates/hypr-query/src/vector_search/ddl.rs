//! Runs `CREATE INDEX` of vectors.

use hypr_common::Result;
use hypr_storage::ann::VectorIndexDefinition;

use crate::dialect::vector_index::CreateVectorIndex;
use crate::{Outcome, Session};

/// Declares an index; it is built in the background, and searches compare every row until it is there.
pub(crate) async fn create_index(session: &Session, create: &CreateVectorIndex) -> Result<Outcome> {
    session.catalog().stored(&create.table)?;
    let definition = VectorIndexDefinition {
        schema_name: create.table.schema_name().to_owned(),
        name: create.full_name(),
        table: create.table.name.clone(),
        column: create.column.clone(),
        metric: create.metric,
        method: create.method,
    };
    session.engine().database().create_vector_index(definition, create.if_not_exists).await?;
    Ok(Outcome::Affected(0))
}
