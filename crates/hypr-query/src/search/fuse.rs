//! `rrf`: reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009).
//!
//! A row's `fused_score` is the sum, over the searches that found it, of weight / (k + rank), with ranks from 1 in the
//! order in which a search gives its rows. Rows are the same when their keys are equal.

use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::row::{OwnedRow, RowConverter, SortField};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, Field, FieldRef, SchemaRef, SortOptions};
use arrow_select::interleave::interleave;
use datafusion::common::{DFSchema, DFSchemaRef, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, Partitioning, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, execute_stream};
use futures::{StreamExt, TryStreamExt, future, stream};

/// How searches are fused.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fusion {
    pub k: f64,
    /// One a search.
    pub weights: Vec<f64>,
    /// Columns whose values tell rows apart.
    pub key: Vec<String>,
    /// The name of the column of scores.
    pub score: String,
    /// Columns of the inputs that are not given on.
    pub hidden: Vec<String>,
    /// The most rows to give.
    pub limit: Option<usize>,
}

/// The rows that any of its inputs found, without qualifiers, and their scores.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FuseNode {
    pub inputs: Vec<LogicalPlan>,
    pub fusion: Arc<Fusion>,
    schema: DFSchemaRef,
}

impl Eq for FuseNode {}

impl FuseNode {
    pub fn try_new(inputs: Vec<LogicalPlan>, fusion: Arc<Fusion>) -> Result<Self> {
        let Some((first, others)) = inputs.split_first() else {
            return internal_err!("rrf has no inputs");
        };
        let shared = |field: &FieldRef| {
            !fusion.hidden.contains(field.name())
                && others.iter().all(|other| {
                    let found = other.schema().field_with_unqualified_name(field.name());
                    found.is_ok_and(|found| found.data_type() == field.data_type())
                })
        };
        let mut fields: Vec<FieldRef> = first.schema().fields().iter().filter(|field| shared(field)).cloned().collect();
        // A row of another input may have NULL where the first one has none.
        for field in &mut fields {
            let nullable = inputs.iter().any(|input| {
                input.schema().field_with_unqualified_name(field.name()).is_ok_and(|field| field.is_nullable())
            });
            *field = Arc::new(field.as_ref().clone().with_nullable(nullable));
        }
        fields.push(Arc::new(Field::new(&fusion.score, DataType::Float64, false)));
        let fields = fields.into_iter().map(|field| (None, field)).collect();
        let schema = Arc::new(DFSchema::new_with_metadata(fields, first.schema().metadata().clone())?);
        Ok(Self { inputs, fusion, schema })
    }

    /// The node as a plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }
}

impl Hash for FuseNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.inputs, &self.fusion.key).hash(state);
    }
}

impl PartialOrd for FuseNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.inputs.partial_cmp(&other.inputs).filter(|order| order.is_ne() || self == other)
    }
}

impl UserDefinedLogicalNodeCore for FuseNode {
    fn name(&self) -> &str {
        "Fuse"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        self.inputs.iter().collect()
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        let fused = self.fusion.score.clone();
        // A limit on the fused rows comes after every condition.
        if self.fusion.limit.is_none() {
            return HashSet::from([fused]);
        }
        self.schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fuse: rrf k={}, key=[{}]", self.fusion.k, self.fusion.key.join(", "))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        if !exprs.is_empty() || inputs.len() != self.inputs.len() {
            return internal_err!("rrf takes {} inputs and no expressions", self.inputs.len());
        }
        Self::try_new(inputs, Arc::clone(&self.fusion))
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let mut names: Vec<&str> = output_columns.iter().map(|at| self.schema.field(*at).name().as_str()).collect();
        names.extend(self.fusion.key.iter().map(String::as_str));
        let of_input = |input: &LogicalPlan| {
            let mut needed: Vec<usize> =
                names.iter().filter_map(|name| input.schema().index_of_column_by_name(None, name)).collect();
            needed.sort_unstable();
            needed.dedup();
            needed
        };
        Some(self.inputs.iter().map(of_input).collect())
    }
}

/// The plan node. Its inputs are optimised as statements of their own and are no children for the rules that
/// optimise the plan around it, which would drop a sort that no operator above declares to need.
#[derive(Debug)]
pub(super) struct FuseExec {
    inputs: Vec<Arc<dyn ExecutionPlan>>,
    fusion: Arc<Fusion>,
    fetch: Option<usize>,
    properties: Arc<PlanProperties>,
}

impl FuseExec {
    pub fn try_new(node: &FuseNode, inputs: Vec<Arc<dyn ExecutionPlan>>) -> Result<Self> {
        let schema: SchemaRef = Arc::new(node.schema.as_arrow().clone());
        let score = Column::new_with_schema(&node.fusion.score, &schema)?;
        let options = SortOptions { descending: true, nulls_first: true };
        let mut equivalences = EquivalenceProperties::new(schema);
        equivalences.add_orderings(LexOrdering::new([PhysicalSortExpr::new(Arc::new(score), options)]));
        let properties = PlanProperties::new(
            equivalences,
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        let fusion = Arc::clone(&node.fusion);
        Ok(Self { inputs, fetch: fusion.limit, fusion, properties: Arc::new(properties) })
    }
}

/// The rows of all inputs under one numbering, and the scores of those that differ.
struct Fused {
    batches: Vec<RecordBatch>,
    /// Score and first place of each row, by key.
    rows: HashMap<OwnedRow, (f64, usize, (usize, usize))>,
}

impl Fusion {
    async fn run(
        self: Arc<Self>,
        inputs: Vec<Arc<dyn ExecutionPlan>>,
        schema: SchemaRef,
        fetch: Option<usize>,
        context: Arc<TaskContext>,
    ) -> Result<RecordBatch> {
        let runs = inputs.into_iter().map(|input| {
            let context = Arc::clone(&context);
            async move { execute_stream(input, context)?.try_collect::<Vec<RecordBatch>>().await }
        });
        let results = future::try_join_all(runs).await?;
        let mut fused = Fused { batches: Vec::new(), rows: HashMap::new() };
        for (batches, weight) in results.into_iter().zip(&self.weights) {
            self.add(&mut fused, batches, *weight)?;
        }
        let mut order: Vec<(f64, usize, (usize, usize))> = fused.rows.into_values().collect();
        order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        order.truncate(fetch.unwrap_or(usize::MAX));
        gather(&fused.batches, &order, &schema)
    }

    fn add(&self, fused: &mut Fused, batches: Vec<RecordBatch>, weight: f64) -> Result<()> {
        let mut rank = 0;
        let mut seen = HashSet::new();
        for batch in batches {
            let columns = self
                .key
                .iter()
                .map(|name| batch.schema().index_of(name).map(|at| Arc::clone(batch.column(at))))
                .collect::<Result<Vec<ArrayRef>, _>>()?;
            let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
            let keys = RowConverter::new(fields)?.convert_columns(&columns)?;
            for row in 0..batch.num_rows() {
                rank += 1;
                let key = keys.row(row).owned();
                // A search that gives a row twice has it at the better place.
                if !seen.insert(key.clone()) {
                    continue;
                }
                let share = weight / (self.k + rank as f64);
                let place = fused.rows.len();
                match fused.rows.entry(key) {
                    Entry::Occupied(mut known) => known.get_mut().0 += share,
                    Entry::Vacant(new) => drop(new.insert((share, place, (fused.batches.len(), row)))),
                }
            }
            fused.batches.push(batch);
        }
        Ok(())
    }
}

/// The rows at `order` with the columns of `schema`, of which the last is the score.
fn gather(batches: &[RecordBatch], order: &[(f64, usize, (usize, usize))], schema: &SchemaRef) -> Result<RecordBatch> {
    let places: Vec<(usize, usize)> = order.iter().map(|(_, _, place)| *place).collect();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in &schema.fields()[..schema.fields().len() - 1] {
        if batches.is_empty() {
            columns.push(arrow_array::new_empty_array(field.data_type()));
            continue;
        }
        let arrays = arrays_of(batches, field.name())?;
        columns.push(interleave(&arrays.iter().map(AsRef::as_ref).collect::<Vec<_>>(), &places)?);
    }
    columns.push(Arc::new(Float64Array::from_iter_values(order.iter().map(|(score, ..)| *score))));
    let options = RecordBatchOptions::new().with_row_count(Some(order.len()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// The column `name` of each batch.
fn arrays_of(batches: &[RecordBatch], name: &str) -> Result<Vec<ArrayRef>> {
    batches.iter().map(|batch| Ok(batch.schema().index_of(name).map(|at| Arc::clone(batch.column(at)))?)).collect()
}

/// The operators of `plan` from the top, for `EXPLAIN`.
fn operators(plan: &Arc<dyn ExecutionPlan>) -> String {
    let inputs: Vec<String> = plan.children().into_iter().map(operators).collect();
    match inputs.as_slice() {
        [] => plan.name().to_owned(),
        [one] => format!("{} <- {one}", plan.name()),
        many => format!("{} <- ({})", plan.name(), many.join(", ")),
    }
}

impl DisplayAs for FuseExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs: Vec<String> = self.inputs.iter().map(operators).collect();
        write!(f, "FuseExec: k={}, key=[{}]", self.fusion.k, self.fusion.key.join(", "))?;
        if let Some(fetch) = self.fetch {
            write!(f, ", fetch={fetch}")?;
        }
        write!(f, ", searches=[{}]", inputs.join("; "))
    }
}

impl ExecutionPlan for FuseExec {
    fn name(&self) -> &str {
        "FuseExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("FuseExec takes no children") }
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (fusion, inputs, schema) = (Arc::clone(&self.fusion), self.inputs.clone(), self.schema());
        let fused = stream::once(fusion.run(inputs, Arc::clone(&schema), self.fetch, context)).boxed();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, fused)))
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        let fetch = match (limit, self.fusion.limit) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (limit, own) => limit.or(own),
        };
        Some(Arc::new(Self {
            inputs: self.inputs.clone(),
            fusion: Arc::clone(&self.fusion),
            fetch,
            properties: Arc::clone(&self.properties),
        }))
    }

    fn fetch(&self) -> Option<usize> {
        self.fetch
    }
}
