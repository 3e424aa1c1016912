//! What of a view is right, and making the rest so.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, new_null_array};
use datafusion::execution::SessionState;
use datafusion::physical_plan::collect;
use hypr_common::{Error, Result};
use hypr_storage::{PinnedTable, ScanRequest};

use super::catalog::{Cache, KIND_BUCKET, KIND_HORIZON, KIND_ROW, View, from_df};
use super::fingerprint::{Buckets, Fingerprint};
use super::shape::{Bucket, Shape};
use crate::series::times::{from_steps, steps, to_steps};
use crate::{convert, error};

/// What a view's table holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Stored {
    pub buckets: HashMap<i64, Fingerprint>,
    /// Buckets before it are final.
    pub horizon: Option<i64>,
}

impl Stored {
    pub fn is_final(&self, bucket: Bucket) -> bool {
        matches!((bucket, self.horizon), (Some(bucket), Some(horizon)) if bucket < horizon)
    }

    /// The buckets to compute, and those of the view's table that are wrong.
    pub fn compare(&self, buckets: &Buckets) -> (Vec<Bucket>, Vec<i64>) {
        let right = |bucket: i64, print: Option<&Fingerprint>| print.is_some() && self.buckets.get(&bucket) == print;
        let computed = buckets.iter().filter(|(bucket, print)| match bucket {
            Some(start) => !self.is_final(**bucket) && !right(*start, Some(*print)),
            None => true,
        });
        let kept = self.buckets.keys().copied().filter(|bucket| !self.is_final(Some(*bucket)));
        let wrong = kept.filter(|bucket| !right(*bucket, buckets.get(&Some(*bucket))));
        (computed.map(|(bucket, _)| *bucket).collect(), wrong.collect())
    }
}

impl Cache {
    /// What `store`, a state of the view's table, holds.
    pub(super) async fn stored(
        &mut self,
        view: &View,
        store: &PinnedTable,
        state: &SessionState,
    ) -> Result<Arc<Stored>> {
        if let Some((last, stored)) = &self.stored
            && last.is_same(store)
        {
            return Ok(Arc::clone(stored));
        }
        let mut stored = Stored::default();
        for batch in read(view, store, state).await? {
            for row in 0..batch.kinds.len() {
                let start = batch.starts.is_valid(row).then(|| batch.starts.value(row));
                match (batch.kinds.value(row), start) {
                    (KIND_BUCKET, Some(start)) => {
                        let checksum = batch.checksums.value(row).cast_unsigned();
                        let rows = batch.rows.value(row).cast_unsigned();
                        stored.buckets.insert(start, Fingerprint { rows, checksum });
                    }
                    (KIND_HORIZON, Some(start)) => stored.horizon = stored.horizon.max(Some(start)),
                    _ => {}
                }
            }
        }
        let stored = Arc::new(stored);
        self.stored = Some((store.clone(), Arc::clone(&stored)));
        Ok(stored)
    }
}

/// Rows of a view's table, without what they say.
struct StoredRows {
    starts: Int64Array,
    kinds: Int64Array,
    rows: Int64Array,
    checksums: Int64Array,
    ids: Vec<u64>,
}

async fn read(view: &View, store: &PinnedTable, state: &SessionState) -> Result<Vec<StoredRows>> {
    let width = view.store.schema().fields().len();
    let projection = Some(vec![view.shape.bucket_at, width - 3, width - 2, width - 1]);
    let request = ScanRequest { projection, with_row_id: true, ..ScanRequest::default() };
    let plan = store.scan(state.config().target_partitions(), request).await?;
    let batches = from_df(collect(plan, state.task_ctx()).await)?;
    let number = |batch: &RecordBatch, at: usize| match batch.column(at).as_primitive_opt::<Int64Type>() {
        Some(numbers) => Ok(numbers.clone()),
        None => Err(Error::internal("a view's table has another form than its view")),
    };
    let rows = batches.iter().map(|batch| {
        let ids = batch.column(4).as_primitive_opt::<UInt64Type>().map(|ids| ids.values().to_vec());
        Ok(StoredRows {
            starts: from_df(steps(batch.column(0)))?,
            kinds: number(batch, 1)?,
            rows: number(batch, 2)?,
            checksums: number(batch, 3)?,
            ids: ids.unwrap_or_default(),
        })
    });
    rows.collect()
}

/// Which buckets a refresh makes right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::series) enum Scope {
    /// All.
    All,
    /// All but the newest, which is still filling.
    Settled,
    /// Those before an instant of the grid; they are final from then on.
    Final(i128),
}

/// Materialises what is not right in `scope`, in one commit, and returns the number of buckets computed.
///
/// # Errors
/// Those of reading and writing; the view is as it was then.
pub(in crate::series) async fn refresh(view: &View, state: &SessionState, scope: Scope) -> Result<u64> {
    let mutation = view.store.begin_mutation().await;
    let (store, base) = (view.store.pin(), view.base.pin());
    let (stored, prints) = {
        let mut cache = view.cache.lock().await;
        let stored = cache.stored(view, &store, state).await?;
        (stored, cache.prints.buckets(&base, view.base.identity(), &view.shape).await?)
    };
    let horizon = match scope {
        Scope::Final(instant) => {
            Some(from_df(to_steps(instant, view.shape.unit))?).filter(|h| Some(*h) > stored.horizon)
        }
        _ => None,
    };
    if matches!(scope, Scope::Final(_)) && horizon.is_none() {
        return Ok(0);
    }
    let newest = prints.keys().next_back().copied().flatten();
    let in_scope = |bucket: i64| match scope {
        Scope::All => true,
        Scope::Settled => Some(bucket) != newest,
        Scope::Final(_) => horizon.is_some_and(|horizon| bucket < horizon),
    };
    let (computed, wrong) = stored.compare(&prints);
    let computed: Vec<i64> = computed.into_iter().flatten().filter(|bucket| in_scope(*bucket)).collect();
    let mut removed: HashSet<i64> = wrong.into_iter().filter(|bucket| in_scope(*bucket)).collect();
    removed.extend(&computed);
    if removed.is_empty() && horizon.is_none() {
        return Ok(0);
    }
    let ids = ids_of(&read(view, &store, state).await?, &removed, horizon.is_some());
    let mut batches = compute(view, &base, &computed, state).await?;
    batches.push(markers(view, &computed, &prints, horizon)?);
    mutation.replace(ids, batches).await?;
    Ok(computed.len() as u64)
}

/// The rows of the view's table that a refresh takes out.
fn ids_of(rows: &[StoredRows], removed: &HashSet<i64>, horizon: bool) -> Vec<u64> {
    let mut ids = Vec::new();
    for batch in rows {
        for (row, id) in batch.ids.iter().enumerate() {
            let goes = match batch.kinds.value(row) {
                KIND_HORIZON => horizon,
                _ => batch.starts.is_valid(row) && removed.contains(&batch.starts.value(row)),
            };
            if goes {
                ids.push(*id);
            }
        }
    }
    ids
}

/// The view's rows of `buckets`, in the form of its table.
async fn compute(view: &View, base: &PinnedTable, buckets: &[i64], state: &SessionState) -> Result<Vec<RecordBatch>> {
    if buckets.is_empty() {
        return Ok(Vec::new());
    }
    let buckets: Vec<Bucket> = buckets.iter().copied().map(Some).collect();
    let plan = view.shape.over(&view.base, base, &buckets)?;
    let physical = state.create_physical_plan(&plan).await.map_err(error::from_datafusion)?;
    let batches = from_df(collect(physical, state.task_ctx()).await)?;
    let schema = view.store.schema();
    batches
        .iter()
        .map(|batch| {
            let zeros: ArrayRef = Arc::new(Int64Array::from(vec![0; batch.num_rows()]));
            let mut columns = Vec::with_capacity(schema.fields().len());
            for (column, field) in batch.columns().iter().zip(schema.fields()) {
                columns.push(convert::column(column, field)?);
            }
            let kinds: ArrayRef = Arc::new(Int64Array::from(vec![KIND_ROW; batch.num_rows()]));
            columns.extend([kinds, Arc::clone(&zeros), zeros]);
            convert::build(&schema, columns, batch.num_rows())
        })
        .collect()
}

/// What a view's table says of its buckets and its horizon.
fn markers(view: &View, computed: &[i64], prints: &Buckets, horizon: Option<i64>) -> Result<RecordBatch> {
    let schema = view.store.schema();
    let count = computed.len() + usize::from(horizon.is_some());
    let starts: Int64Array = computed.iter().copied().chain(horizon).collect();
    let print = |bucket: &i64| prints.get(&Some(*bucket)).copied().unwrap_or_default();
    let numbers = |of: fn(Fingerprint) -> u64, last: i64| -> ArrayRef {
        let values = computed.iter().map(|bucket| of(print(bucket)).cast_signed());
        Arc::new(values.chain(horizon.map(|_| last)).collect::<Int64Array>())
    };
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for (at, field) in schema.fields().iter().take(schema.fields().len() - 3).enumerate() {
        columns.push(match at == view.shape.bucket_at {
            true => from_df(from_steps(starts.clone(), field.data_type()))?,
            false => new_null_array(field.data_type(), count),
        });
    }
    columns.push(numbers(|_| KIND_BUCKET as u64, KIND_HORIZON));
    columns.push(numbers(|print| print.rows, 0));
    columns.push(numbers(|print| print.checksum, 0));
    convert::build(&schema, columns, count)
}

/// Which buckets of a view come from where, over the states given.
pub(super) struct Sources {
    /// Computed from the base table.
    pub computed: Vec<Bucket>,
    /// Of the view's table, not to be shown.
    pub wrong: Vec<i64>,
}

/// Compares a view's table with its base table.
///
/// # Errors
/// Those of reading.
pub(super) async fn sources(
    view: &View,
    store: &PinnedTable,
    base: &PinnedTable,
    state: &SessionState,
) -> Result<Sources> {
    let mut cache = view.cache.lock().await;
    let stored = cache.stored(view, store, state).await?;
    let prints = cache.prints.buckets(base, view.base.identity(), &view.shape).await?;
    let (computed, wrong) = stored.compare(&prints);
    Ok(Sources { computed, wrong })
}

/// The last instant of the view's grid at or before `instant`.
pub(in crate::series) fn floor(shape: &Shape, instant: i128) -> i128 {
    shape.grid.floor(instant)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(rows: u64) -> Fingerprint {
        Fingerprint { rows, checksum: rows * 31 }
    }

    #[test]
    fn only_buckets_with_the_same_rows_are_taken_from_the_view() {
        let stored = Stored {
            buckets: HashMap::from([(10, print(1)), (20, print(2)), (30, print(3)), (40, print(4))]),
            horizon: Some(20),
        };
        let buckets = Buckets::from([
            (None, print(9)),
            (Some(5), print(5)),
            (Some(20), print(2)),
            (Some(30), print(7)),
            (Some(50), print(5)),
        ]);
        let (computed, mut wrong) = stored.compare(&buckets);
        wrong.sort_unstable();
        assert_eq!(
            computed,
            [None, Some(30), Some(50)],
            "without a time, changed, new; not the late row of a final one"
        );
        assert_eq!(wrong, [30, 40], "changed, and emptied; 10 is final");
    }
}
