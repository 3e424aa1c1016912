//! The scan of `model_weights`.

use std::fmt;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow_schema::SchemaRef;
use arrow_select::concat::concat_batches;
use datafusion::catalog::Session;
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, Result, exec_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Operator};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::stream;
use hypr_common::model::{ModelSource, ModelTables};

use super::weights_schema;
use crate::error;

/// Columns that say which piece a row is: all but `shape` and `weight_data`.
const SMALL_COLUMNS: [&str; 6] =
    ["model_id", "layer_id", "parameter_type", "parameter_name", "weight_shard_id", "encoding"];
/// Where `shape` is, the first column that is not small.
const SHAPE_COLUMN: usize = 6;

/// True for filters that [`plan`] evaluates exactly.
pub(super) fn is_on_small_columns(filter: &Expr) -> bool {
    is_on(filter, &SMALL_COLUMNS)
}

/// True for a filter that reads no column but `columns`, and can be evaluated beside the plan.
pub(super) fn is_on(filter: &Expr, columns: &[&str]) -> bool {
    !filter.is_volatile()
        && filter.column_refs().iter().all(|column| columns.contains(&column.name.as_str()))
        && !filter
            .exists(|expr| {
                Ok(matches!(
                    expr,
                    Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::OuterReferenceColumn(..)
                ))
            })
            .unwrap_or(true)
}

/// Chooses the pieces that `filters` want.
pub(super) fn plan(
    state: &dyn Session,
    source: &Arc<dyn ModelSource>,
    projection: Option<&Vec<usize>>,
    filters: &[Expr],
    limit: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let filter = match conjunction(filters.to_vec()) {
        Some(filter) => {
            let small = weights_schema().project(&(0..SHAPE_COLUMN).collect::<Vec<_>>())?;
            Some(state.create_physical_expr(unqualified(filter)?, &DFSchema::try_from(small)?)?)
        }
        None => None,
    };
    let ids = wanted_ids(filters, "model_id");
    let mut pieces = Vec::new();
    for model in source.models().map_err(error::to_datafusion)? {
        if ids.as_ref().is_some_and(|ids| !ids.contains(&model.model_id)) {
            continue;
        }
        let tables = source.open(&model.model_id).map_err(error::to_datafusion)?;
        choose(&model.model_id, &tables, filter.as_ref(), &mut pieces)?;
    }
    pieces.truncate(limit.unwrap_or(usize::MAX));
    Ok(Arc::new(WeightsScan::new(pieces, projection)?))
}

/// Columns without the table's name before them.
pub(super) fn unqualified(filter: Expr) -> Result<Expr> {
    use datafusion::common::tree_node::Transformed;
    let transformed = filter.transform(|expr| match expr {
        Expr::Column(column) => {
            Ok(Transformed::yes(Expr::Column(datafusion::common::Column::new_unqualified(column.name))))
        }
        other => Ok(Transformed::no(other)),
    });
    transformed.map(|transformed| transformed.data)
}

/// The ids that `id = 'x'` or `id IN (..)` of the column `id` allow, so that other models need not be opened.
pub(super) fn wanted_ids(filters: &[Expr], id: &str) -> Option<Vec<String>> {
    let is_id = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == id);
    let text = |expr: &Expr| match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten().map(str::to_owned),
        _ => None,
    };
    filters.iter().find_map(|filter| match filter {
        Expr::BinaryExpr(binary) if binary.op == Operator::Eq && is_id(&binary.left) => {
            text(&binary.right).map(|id| vec![id])
        }
        Expr::BinaryExpr(binary) if binary.op == Operator::Eq && is_id(&binary.right) => {
            text(&binary.left).map(|id| vec![id])
        }
        Expr::InList(list) if !list.negated && is_id(&list.expr) => list.list.iter().map(text).collect(),
        _ => None,
    })
}

/// One row of `model_weights`.
#[derive(Clone)]
struct Piece {
    model_id: ArrayRef,
    /// A row of `layer_schema`.
    row: RecordBatch,
}

fn choose(
    model_id: &str,
    tables: &ModelTables,
    filter: Option<&Arc<dyn PhysicalExpr>>,
    pieces: &mut Vec<Piece>,
) -> Result<()> {
    let id: ArrayRef = Arc::new(StringArray::from(vec![model_id]));
    for layer in &tables.layers {
        let wanted = match filter {
            Some(filter) => Some(evaluate(model_id, &layer.pieces, filter)?),
            None => None,
        };
        for (at, row) in layer.pieces.iter().enumerate() {
            if wanted.as_ref().is_none_or(|wanted| wanted.is_valid(at) && wanted.value(at)) {
                pieces.push(Piece { model_id: Arc::clone(&id), row: row.clone() });
            }
        }
    }
    Ok(())
}

/// The filter's value for each piece, from copies of the small columns.
fn evaluate(model_id: &str, pieces: &[RecordBatch], filter: &Arc<dyn PhysicalExpr>) -> Result<BooleanArray> {
    let Some(first) = pieces.first() else {
        return Ok(BooleanArray::from(Vec::<bool>::new()));
    };
    let small: Vec<usize> = (0..SHAPE_COLUMN - 1).collect();
    let layer_columns = Arc::new(first.schema().project(&small)?);
    let rows = pieces.iter().map(|piece| piece.project(&small)).collect::<Result<Vec<_>, _>>()?;
    let rows = concat_batches(&layer_columns, &rows)?;
    let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(vec![model_id; rows.num_rows()]))];
    columns.extend(rows.columns().iter().cloned());
    let schema = Arc::new(weights_schema().project(&(0..SHAPE_COLUMN).collect::<Vec<_>>())?);
    let batch = RecordBatch::try_new(schema, columns)?;
    let values = filter.evaluate(&batch)?.into_array(batch.num_rows())?;
    match values.as_boolean_opt() {
        Some(values) => Ok(values.clone()),
        None => exec_err!("a filter on model_weights is not a condition"),
    }
}

/// Hands out the chosen pieces, a batch each.
struct WeightsScan {
    pieces: Vec<Piece>,
    projection: Vec<usize>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl WeightsScan {
    fn new(pieces: Vec<Piece>, projection: Option<&Vec<usize>>) -> Result<Self> {
        let full = weights_schema();
        let projection = projection.cloned().unwrap_or_else(|| (0..full.fields().len()).collect());
        let schema = Arc::new(full.project(&projection)?);
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Ok(Self { pieces, projection, schema, properties })
    }
}

/// The projected batch of a piece; columns are shared, not copied.
fn batch_of(piece: &Piece, projection: &[usize], schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = projection
        .iter()
        .map(|column| match column.checked_sub(1) {
            None => Arc::clone(&piece.model_id),
            Some(column) => Arc::clone(piece.row.column(column)),
        })
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(piece.row.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

impl fmt::Debug for WeightsScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightsScan").field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

impl DisplayAs for WeightsScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "WeightsScan: pieces={}, columns=[{}]", self.pieces.len(), names.join(", "))
    }
}

impl ExecutionPlan for WeightsScan {
    fn name(&self) -> &str {
        "WeightsScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (schema, projection) = (Arc::clone(&self.schema), self.projection.clone());
        let batches = self.pieces.clone().into_iter().map(move |piece| batch_of(&piece, &projection, &schema));
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream::iter(batches))))
    }

    fn partition_statistics(&self, _partition: Option<usize>) -> Result<Arc<datafusion::common::Statistics>> {
        let mut statistics = datafusion::common::Statistics::new_unknown(&self.schema);
        statistics.num_rows = datafusion::common::stats::Precision::Exact(self.pieces.len());
        Ok(Arc::new(statistics))
    }
}
