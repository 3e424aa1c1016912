//! Rows by their ids: what an upsert reads of the rows that it meets.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, UInt64Array};
use hypr_common::{Error, ErrorKind, Result};

use crate::table::Table;

/// The rows `ids` of `table` in the order of `ids`, row id last, in the state after the last applied commit.
///
/// # Errors
/// `Internal` when a row is not there.
pub(crate) async fn rows_by_id(table: &Table, ids: &[u64]) -> Result<RecordBatch> {
    // Not the published snapshot: a commit is applied a moment before readers are shown it.
    let shared = &table.shared;
    let snapshot = Arc::new(shared.tail.lock().snapshot(&shared.dir));
    let projection: Vec<usize> = (0..shared.definition.columns.fields().len()).collect();
    let rows = table.pin_at(snapshot).take_rows(ids, &projection).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let name = shared.definition.qualified_name();
            Error::internal(format!("a key of table {name} names a row that is not there: {error}"))
        }
        _ => error,
    })?;
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(UInt64Array::from(ids.to_vec())) as ArrayRef);
    Ok(RecordBatch::try_new(Arc::clone(&shared.row_schema), columns)?)
}
