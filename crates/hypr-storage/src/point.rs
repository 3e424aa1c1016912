//! Reading by key: a scan whose filters give a key its values reads the row that the key index names.
//!
//! The index is of the latest commit, the scan of a snapshot, so the index is only believed where both must agree:
//!
//! - A row that it names and that the snapshot has is the only one with the key, since keys are unique in a snapshot.
//! - When it knows no such key, and none was forgotten since before the snapshot was taken, the snapshot has none: a key
//!   is entered before its row is shown, and forgotten after readers are shown that the row is gone.
//!
//! Otherwise the table is scanned, as it is before the first writer has built the index.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array};
use arrow_schema::{Schema, SchemaRef};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, Operator};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::{FutureExt, TryStreamExt};
use hypr_common::Result;

use crate::ann::PinnedTable;
use crate::key_index::{Holder, KeyIndex};
use crate::scan::ScanRequest;
use crate::schema::row_id_field;
use crate::table::{KeyIndexes, Table};
use crate::tail::Snapshot;

/// The key indexes of a table, and how many keys each had forgotten, before a snapshot is taken.
pub(crate) struct Before {
    indexes: KeyIndexes,
    forgotten: Vec<u64>,
}

/// What the index says of a scan.
enum Found {
    Row(u64),
    Nothing,
}

impl Before {
    /// None for a table without usable indexes.
    pub(crate) fn of(table: &Table) -> Option<Self> {
        if table.is_inside_transaction() {
            return None;
        }
        // Somebody may be building or replacing the indexes.
        let indexes = table.keys.try_read().ok()?.as_ref().map(Arc::clone)?;
        let forgotten = indexes.iter().map(|index| index.lock().forgotten()).collect();
        Some(Self { indexes, forgotten })
    }

    /// The plan that reads the row of `snapshot` which the filters ask for; none when that takes a scan.
    ///
    /// # Errors
    /// `InvalidInput` for a projection outside of the schema.
    pub(crate) async fn plan(
        self,
        table: &Table,
        snapshot: &Arc<Snapshot>,
        request: &ScanRequest,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let schema = table.schema();
        let wanted = wanted_values(&schema, &request.filters);
        if wanted.is_empty() || table.refuse_retired().is_err() {
            return Ok(None);
        }
        let asked = self.indexes.iter().zip(&self.forgotten).find_map(|(index, forgotten)| {
            let found = look_up(index, *forgotten, &wanted)?;
            Some((index, found))
        });
        let Some((index, found)) = asked else { return Ok(None) };
        let pinned = table.pin_at(Arc::clone(snapshot));
        let row = match found {
            Found::Row(id) if pinned.places().await?.find(id).is_some() => Some(id),
            Found::Row(_) => return Ok(None),
            Found::Nothing => None,
        };
        let projection = request.projection.clone().unwrap_or_else(|| (0..schema.fields().len()).collect());
        let mut fields = schema.project(&projection)?.fields().to_vec();
        if request.with_row_id {
            fields.push(Arc::new(row_id_field()));
        }
        let key = index.positions().iter().map(|at| schema.field(*at).name().clone()).collect();
        let lookup = Lookup {
            pinned,
            row,
            key,
            projection,
            with_row_id: request.with_row_id,
            output: Arc::new(Schema::new(fields)),
        };
        Ok(Some(Arc::new(KeyLookupExec::new(lookup))))
    }
}

/// The columns that the filters make equal to a value of their type, other than NULL.
fn wanted_values<'a>(schema: &Schema, filters: &'a [Expr]) -> HashMap<usize, &'a ScalarValue> {
    let mut wanted = HashMap::new();
    for conjunct in filters.iter().flat_map(split_conjunction) {
        if let Expr::BinaryExpr(binary) = conjunct
            && binary.op == Operator::Eq
            && let (Expr::Column(column), Expr::Literal(value, _)) | (Expr::Literal(value, _), Expr::Column(column)) =
                (binary.left.as_ref(), binary.right.as_ref())
            && let Ok(at) = schema.index_of(&column.name)
            && *schema.field(at).data_type() == value.data_type()
            && !value.is_null()
        {
            wanted.insert(at, value);
        }
    }
    wanted
}

/// What the index says of the key with these values; none when they are not all of its columns, or it cannot say.
fn look_up(index: &KeyIndex, forgotten: u64, wanted: &HashMap<usize, &ScalarValue>) -> Option<Found> {
    let values = index.positions().iter().map(|at| wanted.get(at)?.to_array().ok()).collect::<Option<Vec<_>>>()?;
    let hash = index.hash_of(&values)?;
    let keys = index.lock();
    match keys.holder(&hash) {
        Holder::Row(id) => Some(Found::Row(id)),
        Holder::Nobody if keys.forgotten() == forgotten => Some(Found::Nothing),
        Holder::Nobody | Holder::Pending => None,
    }
}

#[derive(Clone, Debug)]
struct Lookup {
    pinned: PinnedTable,
    /// The row with the key, if there is one.
    row: Option<u64>,
    key: Vec<String>,
    projection: Vec<usize>,
    with_row_id: bool,
    output: SchemaRef,
}

impl Lookup {
    async fn read(self) -> Result<RecordBatch> {
        let ids: Vec<u64> = self.row.into_iter().collect();
        let rows = self.pinned.take_rows(&ids, &self.projection).await?;
        let mut columns = rows.columns().to_vec();
        if self.with_row_id {
            columns.push(Arc::new(UInt64Array::from(ids)) as ArrayRef);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok(RecordBatch::try_new_with_options(self.output, columns, &options)?)
    }
}

/// Gives the row with a key, or none.
#[derive(Debug)]
struct KeyLookupExec {
    lookup: Lookup,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl KeyLookupExec {
    fn new(lookup: Lookup) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&lookup.output)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { lookup, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl DisplayAs for KeyLookupExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.lookup.output.fields().iter().map(|field| field.name().as_str()).collect();
        let table = self.lookup.pinned.name();
        write!(f, "KeyLookupExec: table={table}, key=({})", self.lookup.key.join(", "))?;
        write!(f, ", projection=[{}], rows={}", names.join(", "), self.lookup.row.iter().len())
    }
}

impl ExecutionPlan for KeyLookupExec {
    fn name(&self) -> &'static str {
        "KeyLookupExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream, DataFusionError> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let lookup = self.lookup.clone();
        let rows = async move { lookup.read().await.map_err(|error| DataFusionError::External(Box::new(error))) };
        let rows = rows.into_stream().inspect_ok(move |batch| metrics.record_output(batch.num_rows()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.lookup.output), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
