//! Rows by their ids: what an upsert reads of the rows that it meets.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{RecordBatch, UInt64Array};
use arrow_select::concat::concat_batches;
use arrow_select::take::take_record_batch;
use datafusion::prelude::{SessionContext, col, lit};
use futures::TryStreamExt;
use hypr_common::{Error, Result};

use crate::ROW_ID_COLUMN;
use crate::scan;
use crate::table::TableShared;
use crate::tail::Snapshot;

/// Row ids looked for one by one; beyond, Lance gets a range and the rest is filtered here.
const LISTED_IDS: usize = 256;

/// The rows `ids` of `table` in the order of `ids`, row id last, in the state after the last applied commit.
///
/// # Errors
/// `Internal` when a row is not there.
pub(crate) async fn rows_by_id(table: &TableShared, ids: &[u64]) -> Result<RecordBatch> {
    // Not the published snapshot: a commit is applied a moment before readers are shown it.
    let snapshot = table.tail.lock().snapshot(&table.dir);
    let mut wanted: Vec<u64> = ids.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let mut found = Vec::new();
    let mut missing = wanted.len();
    for batch in &snapshot.batches {
        if missing > 0
            && let Some(rows) = matching(&batch.rows, &wanted)?
        {
            missing -= rows.num_rows();
            found.push(rows);
        }
    }
    if missing > 0 {
        let left = without(&wanted, &found);
        found.extend(flushed_rows(table, snapshot, &left).await?);
    }
    let all = concat_batches(&table.row_schema, &found)?;
    let positions: HashMap<u64, u64> = id_column(&all).values().iter().copied().zip(0..).collect();
    let order = ids.iter().map(|id| positions.get(id).copied()).collect::<Option<Vec<u64>>>();
    let order = order.ok_or_else(|| {
        Error::internal(format!("a key of table {} names a row that is not there", table.definition.qualified_name()))
    })?;
    Ok(take_record_batch(&all, &UInt64Array::from(order))?)
}

fn id_column(rows: &RecordBatch) -> &UInt64Array {
    rows.column(rows.num_columns() - 1).as_primitive::<UInt64Type>()
}

/// The rows of a batch whose ids are in `wanted` (ascending).
fn matching(rows: &RecordBatch, wanted: &[u64]) -> Result<Option<RecordBatch>> {
    let (Some(&first), Some(&last)) = (wanted.first(), wanted.last()) else { return Ok(None) };
    let ids = id_column(rows).values();
    let is_wanted = |id: u64| first <= id && id <= last && wanted.binary_search(&id).is_ok();
    let at: Vec<u64> = ids.iter().zip(0..).filter(|(id, _)| is_wanted(**id)).map(|(_, at)| at).collect();
    if at.is_empty() {
        return Ok(None);
    }
    Ok(Some(take_record_batch(rows, &UInt64Array::from(at))?))
}

fn without(wanted: &[u64], found: &[RecordBatch]) -> Vec<u64> {
    let mut seen: Vec<u64> = found.iter().flat_map(|rows| id_column(rows).values().iter().copied()).collect();
    seen.sort_unstable();
    wanted.iter().copied().filter(|id| seen.binary_search(id).is_err()).collect()
}

async fn flushed_rows(table: &TableShared, snapshot: Snapshot, wanted: &[u64]) -> Result<Vec<RecordBatch>> {
    let (Some(&first), Some(&last)) = (wanted.first(), wanted.last()) else { return Ok(Vec::new()) };
    let only_flushed = Snapshot { batches: Vec::new(), ..snapshot };
    let filter = if wanted.len() <= LISTED_IDS {
        col(ROW_ID_COLUMN).in_list(wanted.iter().map(|id| lit(*id)).collect(), false)
    } else {
        col(ROW_ID_COLUMN).between(lit(first), lit(last))
    };
    let context = SessionContext::new();
    let plan = scan::plan_flushed(table, Arc::new(only_flushed), &context.state(), filter).await?;
    let failed = |error| Error::internal(format!("reading rows of {}: {error}", table.definition.qualified_name()));
    let mut stream = datafusion::physical_plan::execute_stream(plan, context.task_ctx()).map_err(failed)?;
    let mut found = Vec::new();
    while let Some(batch) = stream.try_next().await.map_err(failed)? {
        found.extend(matching(&batch, wanted)?);
    }
    Ok(found)
}
