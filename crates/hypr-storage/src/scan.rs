//! Reading a snapshot: one plan node with a partition for each group of Lance fragments and for the tail.
//!
//! A group is read by Lance, or, when all that is wanted of it are narrow columns, from the columns that are kept in
//! memory ([`crate::column_cache`]). Lance then looks at no filter: the caller checks each again anyway.

use std::fmt;
use std::sync::Arc;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_buffer::BooleanBufferBuilder;
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Statistics, stats::Precision};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use hypr_common::Result;
use lance::Dataset;
use lance::dataset::fragment::FileFragment;
use lance_table::format::Fragment;

use crate::ROW_ID_COLUMN;
use crate::checksums::DamagedFile;
use crate::column_cache::{self, PIECE_ROWS};
use crate::evolution::{Layout, Physical, assemble, physical_columns, stored_fields};
use crate::lance_store::{lance_error, scan_error};
use crate::schema::{bare, row_id_field};
use crate::table::TableShared;
use crate::tail::{Snapshot, TailBatch, live_rows};

/// The most rows of a batch.
const BATCH_ROWS: usize = 8192;
/// Target size of a batch from Lance: a thousand rows may hold a thousand images.
const BATCH_BYTES: u64 = 8 << 20;

/// What a reader wants of a table.
#[derive(Clone, Debug, Default)]
pub struct ScanRequest {
    /// Positions in [`Table::schema`](crate::Table::schema); `None` for all columns.
    pub projection: Option<Vec<usize>>,
    /// Conjuncts that the caller checks again; those that [`Table::supports_filter`](crate::Table::supports_filter)
    /// declines are ignored.
    pub filters: Vec<Expr>,
    /// Rows that are enough. Ignored when there are filters.
    pub limit: Option<usize>,
    /// Adds [`ROW_ID_COLUMN`] as the last column.
    pub with_row_id: bool,
}

/// Plans a scan of the table's current snapshot.
pub(crate) async fn plan(
    table: &TableShared,
    state: &dyn datafusion::catalog::Session,
    request: ScanRequest,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan_snapshot(table, table.snapshot(), state.config().target_partitions(), request).await
}

/// Plans a scan of one snapshot of the table, in up to `partitions` partitions and one for the tail.
pub(crate) async fn plan_snapshot(
    table: &TableShared,
    snapshot: Arc<Snapshot>,
    partitions: usize,
    request: ScanRequest,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan_snapshot_with(table, &table.layout, snapshot, partitions, request).await
}

/// As [`plan_snapshot`], for a reader to whom the table has the columns of `layout`. Unless these are those of today,
/// the snapshot has no tail.
pub(crate) async fn plan_snapshot_with(
    table: &TableShared,
    layout: &Layout,
    snapshot: Arc<Snapshot>,
    partitions: usize,
    request: ScanRequest,
) -> Result<Arc<dyn ExecutionPlan>> {
    table.refuse_unreadable()?;
    let schema = &layout.columns;
    let is_today = (schema, &layout.ids) == (&table.layout.columns, &table.layout.ids);
    let projection = request.projection.unwrap_or_else(|| (0..schema.fields().len()).collect());
    let mut fields = schema.project(&projection)?.fields().to_vec();
    if request.with_row_id {
        fields.push(Arc::new(row_id_field()));
    }
    let output = Arc::new(Schema::new(fields));
    let pushed: Vec<Expr> = request
        .filters
        .into_iter()
        .filter(|filter| supports_filter(schema, filter) != TableProviderFilterPushDown::Unsupported)
        .collect();
    let limit = if pushed.is_empty() { request.limit } else { None };
    let reads = match &snapshot.dir.clustering {
        Some(clustering) if !pushed.is_empty() && is_today => {
            let (dataset, batches) = (snapshot.dataset.as_ref(), &snapshot.batches);
            let (fragments, batches) = clustering.prune(schema, &pushed, dataset, batches).await;
            Reads { fragments, batches }
        }
        _ => Reads::all(&snapshot),
    };
    let parts = Parts { projection, with_row_id: request.with_row_id, filters: pushed, limit, output, reads };
    plan_parts(table, layout, snapshot, partitions, parts).await
}

/// Plans a scan in which every column may be NULL, for columns whose NULLs are looked for.
pub(crate) async fn plan_nullable(
    table: &TableShared,
    state: &dyn datafusion::catalog::Session,
    projection: Vec<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let fields = table.definition.columns.project(&projection)?.fields().to_vec();
    let fields: Vec<Field> = fields.iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let output = Arc::new(Schema::new(fields));
    let snapshot = table.snapshot();
    let reads = Reads::all(&snapshot);
    let parts = Parts { projection, with_row_id: false, filters: Vec::new(), limit: None, output, reads };
    plan_parts(table, &table.layout, snapshot, state.config().target_partitions(), parts).await
}

/// Plans a scan, with row ids, of the rows that lie in `fragments` or in the tail.
pub(crate) async fn plan_fragments(
    table: &TableShared,
    snapshot: Arc<Snapshot>,
    fragments: Vec<Fragment>,
    projection: Vec<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let mut fields = table.definition.columns.project(&projection)?.fields().to_vec();
    fields.push(Arc::new(row_id_field()));
    let output = Arc::new(Schema::new(fields));
    let reads = Reads { fragments, batches: snapshot.batches.clone() };
    let parts = Parts { projection, with_row_id: true, filters: Vec::new(), limit: None, output, reads };
    plan_parts(table, &table.layout, snapshot, 1, parts).await
}

struct Parts {
    projection: Vec<usize>,
    with_row_id: bool,
    filters: Vec<Expr>,
    limit: Option<usize>,
    output: SchemaRef,
    reads: Reads,
}

async fn plan_parts(
    table: &TableShared,
    layout: &Layout,
    snapshot: Arc<Snapshot>,
    partitions: usize,
    parts: Parts,
) -> Result<Arc<dyn ExecutionPlan>> {
    let physical = match &snapshot.dataset {
        Some(dataset) => physical_columns(dataset, layout),
        None => Vec::new(),
    };
    let mut scan = Scan {
        layout: layout.clone(),
        physical,
        kept: None,
        table: table.definition.qualified_name(),
        row_id_at: layout.columns.fields().len(),
        projection: parts.projection,
        with_row_id: parts.with_row_id,
        output: parts.output,
        filters: parts.filters,
        limit: parts.limit,
        snapshot,
        reads: parts.reads,
    };
    scan.kept = scan.kept_fields();
    let groups = scan.groups(partitions.max(1)).await?;
    Ok(Arc::new(TableScanExec::new(scan, groups)))
}

/// Filters that Lance evaluates for us: comparisons of columns of this table and literals. A parameter becomes a
/// literal, and what is cast for it may need no cast then: what comes of it is asked about again.
pub(crate) fn supports_filter(schema: &Schema, filter: &Expr) -> TableProviderFilterPushDown {
    let has_parameter = filter.exists(|expr| Ok(matches!(expr, Expr::Placeholder(_)))).unwrap_or(false);
    let simple = |expr: &Expr| match expr {
        Expr::Column(column) => schema.field_with_name(&column.name).is_ok_and(|field| !field.data_type().is_nested()),
        Expr::BinaryExpr(binary) => matches!(
            binary.op,
            Operator::Eq
                | Operator::NotEq
                | Operator::Lt
                | Operator::LtEq
                | Operator::Gt
                | Operator::GtEq
                | Operator::And
                | Operator::Or
        ),
        Expr::Cast(_) | Expr::TryCast(_) => has_parameter,
        Expr::Literal(..)
        | Expr::Placeholder(_)
        | Expr::Not(_)
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::Between(_)
        | Expr::InList(_)
        | Expr::Like(_) => true,
        _ => false,
    };
    let mut supported = true;
    let walked = filter.apply(|expr| {
        supported &= simple(expr);
        Ok(if supported { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    if walked.is_ok() && supported {
        TableProviderFilterPushDown::Inexact
    } else {
        TableProviderFilterPushDown::Unsupported
    }
}

#[derive(Clone, Debug)]
struct Scan {
    table: String,
    layout: Layout,
    /// What the Lance version has of each column of the table.
    physical: Vec<Option<Physical>>,
    /// The numbers in Lance of what is read, when that is kept in memory.
    kept: Option<Arc<[i32]>>,
    /// Position of the row id in the stored columns.
    row_id_at: usize,
    projection: Vec<usize>,
    with_row_id: bool,
    output: SchemaRef,
    filters: Vec<Expr>,
    limit: Option<usize>,
    snapshot: Arc<Snapshot>,
    reads: Reads,
}

/// The parts of a snapshot that can hold rows which pass the filters.
#[derive(Clone, Debug)]
struct Reads {
    fragments: Vec<Fragment>,
    batches: Vec<Arc<TailBatch>>,
}

impl Reads {
    fn all(snapshot: &Snapshot) -> Self {
        let fragments = snapshot.dataset.as_ref().map(|dataset| dataset.fragments().to_vec());
        Self { fragments: fragments.unwrap_or_default(), batches: snapshot.batches.clone() }
    }
}

impl Scan {
    /// The fields to read, when reading them by columns is the better way.
    fn kept_fields(&self) -> Option<Arc<[i32]>> {
        let dataset = self.snapshot.dataset.as_ref()?;
        let names = self.stored_fields();
        let fields = column_cache::kept_fields(dataset, names.iter().map(|field| field.name().as_str()))?;
        // A few rows are no reason to read whole columns.
        let may_read = self.limit.is_none();
        let columns = &self.snapshot.dir.columns;
        columns.admits(dataset, &self.reads.fragments, &fields, may_read).then(|| fields.into())
    }

    /// The fields that are read of Lance's files, the row id last.
    fn stored_fields(&self) -> Vec<Field> {
        let mut fields = stored_fields(&self.physical, &self.projection);
        if self.needs_row_id() {
            fields.push(row_id_field());
        }
        fields
    }

    /// The fragments in groups, each with how it is read.
    async fn groups(&self, partitions: usize) -> Result<Vec<Group>> {
        let Some(dataset) = &self.snapshot.dataset else {
            return Ok(Vec::new());
        };
        let mut groups = Vec::new();
        for fragments in split_fragments(&self.reads.fragments, partitions) {
            groups.push(match &self.kept {
                Some(fields) => Group::Kept { fragments, fields: Arc::clone(fields) },
                None => Group::Lance(self.lance_plan(dataset, fragments).await?),
            });
        }
        Ok(groups)
    }

    async fn lance_plan(&self, dataset: &Arc<Dataset>, fragments: Vec<Fragment>) -> Result<Arc<dyn ExecutionPlan>> {
        let failed = |e| lance_error(&format!("scanning {}", self.table), e);
        let mut scanner = dataset.scan();
        // By schema and not by name: Lance reads names as expressions.
        let fields = Schema::new(self.stored_fields());
        let columns = lance_core::datatypes::Schema::try_from(&bare(&fields)).map_err(failed)?;
        scanner
            .project_with_schema(&columns)
            .map_err(failed)?
            .batch_size(self.batch_rows(&fragments))
            .with_fragments(fragments);
        if let Some(filter) = datafusion::logical_expr::utils::conjunction(
            self.filters.iter().filter_map(|filter| self.stored_filter(filter)),
        ) {
            scanner.filter_expr(filter);
        }
        if self.snapshot.dead.is_empty() && self.filters.is_empty() {
            scanner.limit(self.limit.and_then(|limit| i64::try_from(limit).ok()), None).map_err(failed)?;
        }
        scanner.create_plan().boxed().await.map_err(failed)
    }

    /// Rows of a batch of about [`BATCH_BYTES`]. Lance's own byte limit acts only after the first batch.
    fn batch_rows(&self, fragments: &[Fragment]) -> usize {
        if self.output.fields().iter().all(|field| field.data_type().is_primitive()) {
            return BATCH_ROWS;
        }
        batch_rows(fragments)
    }

    /// Lance cannot project zero columns; the row id is the cheapest one.
    fn needs_row_id(&self) -> bool {
        self.with_row_id
            || !self.snapshot.dead.is_empty()
            || self.projection.iter().all(|at| self.physical.get(*at).is_none_or(Option::is_none))
    }

    /// A filter by the names that Lance knows; none where it lacks a column or has it with another type.
    fn stored_filter(&self, filter: &Expr) -> Option<Expr> {
        let mut known = true;
        let renamed = filter.clone().transform(|expr| {
            let Expr::Column(column) = &expr else { return Ok(Transformed::no(expr)) };
            let stored = match self.layout.columns.index_of(&column.name) {
                Ok(at) => self.physical[at]
                    .as_ref()
                    .filter(|stored| stored.data_type == *self.layout.columns.field(at).data_type())
                    .map(|stored| stored.name.as_str()),
                Err(_) => Some(column.name.as_str()).filter(|name| *name == ROW_ID_COLUMN),
            };
            known &= stored.is_some();
            let name = stored.unwrap_or_default().to_owned();
            Ok(Transformed::yes(Expr::Column(datafusion::common::Column::new_unqualified(name))))
        });
        renamed.ok().filter(|_| known).map(|renamed| renamed.data)
    }

    /// The rows of a fragment from the columns that are kept, in the form of [`Self::lance_plan`]; none where one of
    /// them cannot be kept.
    async fn kept_rows(&self, fragment: Fragment, fields: &[i32]) -> Result<Option<Vec<RecordBatch>>> {
        let Some(dataset) = &self.snapshot.dataset else { return Ok(None) };
        let Some(columns) = self.snapshot.dir.columns.read(dataset, &fragment, fields).await? else {
            return Ok(None);
        };
        let fields: Vec<Field> = self.stored_fields().into_iter().map(|field| field.with_nullable(true)).collect();
        let schema = Arc::new(bare(&Schema::new(fields)));
        let failed = |e| lance_error(&format!("scanning {}", self.table), e);
        let deleted = FileFragment::new(Arc::clone(dataset), fragment).get_deletion_vector().await.map_err(failed)?;
        let deleted: Vec<u32> = deleted.iter().flat_map(|deleted| deleted.to_sorted_iter()).collect();
        let piece = |at: usize| -> Result<RecordBatch> {
            let piece = columns.iter().map(|column| Arc::clone(&column[at])).collect();
            let piece = RecordBatch::try_new(Arc::clone(&schema), piece)?;
            let (first, rows) = (at * PIECE_ROWS, piece.num_rows());
            let place = |offset: usize| deleted.partition_point(|row| (*row as usize) < offset);
            let gone = &deleted[place(first)..place(first + rows)];
            if gone.is_empty() {
                return Ok(piece);
            }
            let mut lives = BooleanBufferBuilder::new(rows);
            lives.append_n(rows, true);
            gone.iter().for_each(|row| lives.set_bit(*row as usize - first, false));
            Ok(arrow_select::filter::filter_record_batch(&piece, &BooleanArray::new(lives.finish(), None))?)
        };
        let pieces = columns.iter().map(|column| column.len()).min().unwrap_or(0);
        (0..pieces).map(piece).collect::<Result<_>>().map(Some)
    }

    /// A batch of [`Self::lance_plan`] without dead rows, in the output's form.
    fn finish_lance(&self, batch: &RecordBatch) -> Result<RecordBatch, DataFusionError> {
        let batch = if self.needs_row_id() { live_rows(batch, &self.snapshot.dead)? } else { batch.clone() };
        let assembled = assemble(&self.layout, &self.physical, &self.projection, batch.columns(), batch.num_rows());
        let mut columns = assembled.map_err(|error| DataFusionError::External(Box::new(error)))?;
        if self.with_row_id {
            columns.extend(batch.columns().last().cloned());
        }
        self.output_batch(columns, batch.num_rows())
    }

    /// Damage as our error, so that whoever asked learns the file.
    fn name_damage(&self, error: DataFusionError) -> DataFusionError {
        match DamagedFile::behind(&error) {
            Some(_) => DataFusionError::External(Box::new(scan_error(&format!("reading {}", self.table), error))),
            None => error,
        }
    }

    fn finish_tail(&self, piece: &RecordBatch) -> Result<RecordBatch, DataFusionError> {
        let rows = live_rows(piece, &self.snapshot.dead)?;
        let mut columns: Vec<_> = self.projection.iter().map(|at| Arc::clone(rows.column(*at))).collect();
        if self.with_row_id {
            columns.push(Arc::clone(rows.column(self.row_id_at)));
        }
        self.output_batch(columns, rows.num_rows())
    }

    fn output_batch(&self, columns: Vec<arrow_array::ArrayRef>, rows: usize) -> Result<RecordBatch, DataFusionError> {
        let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.output), columns, &options)?)
    }
}

/// Rows of whole width that make a batch of about [`BATCH_BYTES`].
pub(crate) fn batch_rows(fragments: &[Fragment]) -> usize {
    let files = fragments.iter().flat_map(|fragment| &fragment.files);
    let bytes: u64 = files.filter_map(|file| file.file_size_bytes.get()).map(u64::from).sum();
    let rows: u64 = fragments.iter().filter_map(|fragment| fragment.physical_rows).map(|rows| rows as u64).sum();
    let row_bytes = (bytes / rows.max(1)).max(1);
    usize::try_from(BATCH_BYTES / row_bytes).unwrap_or(BATCH_ROWS).clamp(1, BATCH_ROWS)
}

/// `rows`, which take `bytes`, in pieces of about [`BATCH_BYTES`]; none of them copies a row.
fn pieces(rows: &RecordBatch, bytes: usize) -> Vec<RecordBatch> {
    let count = rows.num_rows();
    let row_bytes = (bytes / count.max(1)).max(1) as u64;
    let step = usize::try_from(BATCH_BYTES / row_bytes).unwrap_or(BATCH_ROWS).clamp(1, BATCH_ROWS);
    (0..count).step_by(step).map(|start| rows.slice(start, step.min(count - start))).collect()
}

/// Lance knows columns by their bare names.
pub(crate) fn unqualified(filter: Expr) -> Expr {
    let rewritten = filter.clone().transform(|expr| {
        Ok(match expr {
            Expr::Column(column) => datafusion::common::tree_node::Transformed::yes(Expr::Column(
                datafusion::common::Column::new_unqualified(column.name),
            )),
            other => datafusion::common::tree_node::Transformed::no(other),
        })
    });
    rewritten.map_or(filter, |rewritten| rewritten.data)
}

/// At most `partitions` groups of consecutive fragments with about the same number of rows.
fn split_fragments(fragments: &[Fragment], partitions: usize) -> Vec<Vec<Fragment>> {
    let rows = |fragment: &Fragment| fragment.num_rows().or(fragment.physical_rows).unwrap_or(1);
    let total: usize = fragments.iter().map(rows).sum();
    let share = total.div_ceil(partitions).max(1);
    let mut groups: Vec<Vec<Fragment>> = Vec::new();
    let mut filled = share;
    for fragment in fragments {
        if filled >= share {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += rows(fragment);
        if let Some(group) = groups.last_mut() {
            group.push(fragment.clone());
        }
    }
    groups
}

/// Fragments that are one partition.
#[derive(Debug)]
enum Group {
    Lance(Arc<dyn ExecutionPlan>),
    /// From the columns that are kept in memory, or come there.
    Kept {
        fragments: Vec<Fragment>,
        fields: Arc<[i32]>,
    },
}

type Rows = BoxStream<'static, Result<RecordBatch, DataFusionError>>;

/// The plan node of a table scan.
#[derive(Debug)]
pub struct TableScanExec {
    scan: Arc<Scan>,
    groups: Vec<Group>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl TableScanExec {
    fn new(scan: Scan, groups: Vec<Group>) -> Self {
        let tail = usize::from(!scan.reads.batches.is_empty());
        let partitions = (groups.len() + tail).max(1);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&scan.output)),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { scan: Arc::new(scan), groups, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }

    fn lance_stream(
        scan: Arc<Scan>,
        plan: &Arc<dyn ExecutionPlan>,
        context: &Arc<TaskContext>,
    ) -> Result<Rows, DataFusionError> {
        let parts = plan.properties().output_partitioning().partition_count();
        let streams = (0..parts).map(|part| plan.execute(part, Arc::clone(context))).collect::<Result<Vec<_>, _>>()?;
        let finished = futures::stream::iter(streams)
            .flatten()
            .map(move |batch| scan.finish_lance(&batch.map_err(|error| scan.name_damage(error))?));
        // Compressed files say little about the size of their rows.
        let cut = finished.flat_map(|batch| {
            futures::stream::iter(match batch {
                Ok(batch) => pieces(&batch, batch.get_array_memory_size()).into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            })
        });
        Ok(cut.boxed())
    }

    fn kept_stream(scan: Arc<Scan>, fragments: Vec<Fragment>, fields: Arc<[i32]>, context: Arc<TaskContext>) -> Rows {
        let rows_of = move |fragment: Fragment| {
            let (scan, fields, context) = (Arc::clone(&scan), Arc::clone(&fields), Arc::clone(&context));
            async move {
                let external = |error| DataFusionError::External(Box::new(error));
                if let Some(rows) = scan.kept_rows(fragment.clone(), &fields).await.map_err(external)? {
                    return Ok(futures::stream::iter(rows).map(move |rows| scan.finish_lance(&rows)).boxed());
                }
                let dataset = scan.snapshot.dataset.as_ref();
                let dataset = dataset.ok_or_else(|| DataFusionError::Internal("fragments of no files".to_owned()))?;
                let plan = scan.lance_plan(dataset, vec![fragment]).await.map_err(external)?;
                Self::lance_stream(scan, &plan, &context)
            }
        };
        futures::stream::iter(fragments).then(rows_of).try_flatten().boxed()
    }

    fn tail_stream(&self) -> impl Stream<Item = Result<RecordBatch, DataFusionError>> + Send + use<> {
        let scan = Arc::clone(&self.scan);
        let pieces: Vec<RecordBatch> =
            scan.reads.batches.iter().flat_map(|batch| pieces(&batch.rows, batch.bytes)).collect();
        futures::stream::iter(pieces).map(move |piece| scan.finish_tail(&piece))
    }
}

impl DisplayAs for TableScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = &self.scan.snapshot;
        let names: Vec<&str> = self.scan.output.fields().iter().map(|field| field.name().as_str()).collect();
        let tail: usize = snapshot.batches.iter().map(|batch| batch.rows.num_rows()).sum();
        write!(f, "TableScanExec: table={}, projection=[{}]", self.scan.table, names.join(", "))?;
        if !self.scan.filters.is_empty() {
            let filters: Vec<String> = self.scan.filters.iter().map(ToString::to_string).collect();
            write!(f, ", filters=[{}]", filters.join(", "))?;
        }
        if let Some(limit) = self.scan.limit {
            write!(f, ", limit={limit}")?;
        }
        if let Some(dataset) = &snapshot.dataset {
            write!(f, ", version={}, fragments={}", dataset.manifest().version, dataset.fragments().len())?;
        }
        write!(f, ", tail_rows={tail}")?;
        if snapshot.dir.clustering.is_none() {
            return Ok(());
        }
        let (reads, total) = (&self.scan.reads, Reads::all(snapshot));
        let (fragments, batches) = (total.fragments.len(), total.batches.len());
        write!(f, ", fragments_total={fragments}, fragments_read={}", reads.fragments.len())?;
        write!(f, ", tail_batches_total={batches}, tail_batches_read={}", reads.batches.len())
    }
}

impl ExecutionPlan for TableScanExec {
    fn name(&self) -> &'static str {
        "TableScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        // The Lance plans are an inner matter: optimizer rules must not change them.
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        Ok(self)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream, DataFusionError> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let scan = Arc::clone(&self.scan);
        let stream = match self.groups.get(partition) {
            Some(Group::Lance(plan)) => Self::lance_stream(scan, plan, &context)?,
            Some(Group::Kept { fragments, fields }) => {
                Self::kept_stream(scan, fragments.clone(), Arc::clone(fields), context)
            }
            None => self.tail_stream().boxed(),
        };
        let counted = stream.inspect_ok(move |batch| metrics.record_output(batch.num_rows()));
        let left = self.scan.limit.unwrap_or(usize::MAX);
        let limited = counted.scan(left, |left, batch| {
            let batch = match batch {
                _ if *left == 0 => return futures::future::ready(None),
                Ok(batch) if batch.num_rows() > *left => Ok(batch.slice(0, *left)),
                other => other,
            };
            *left -= batch.as_ref().map_or(0, RecordBatch::num_rows);
            futures::future::ready(Some(batch))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.scan.output), limited)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>, DataFusionError> {
        let mut statistics = Statistics::new_unknown(&self.scan.output);
        if partition.is_none() && self.scan.filters.is_empty() {
            let (rows, exact) = self.scan.snapshot.rows();
            statistics.num_rows = match self.scan.limit {
                None if exact => Precision::Exact(rows),
                None => Precision::Inexact(rows),
                Some(limit) => Precision::Inexact(rows.min(limit)),
            };
        }
        Ok(Arc::new(statistics))
    }
}
