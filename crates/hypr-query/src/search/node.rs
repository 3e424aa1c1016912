//! The logical node of `text_search` and `vector_search`: the columns of the rows it finds, and their score.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef};
use datafusion::common::{DFSchema, DFSchemaRef, Result, internal_err};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use hypr_storage::ann::{Effort, Metric};
use hypr_storage::{ROW_ID_COLUMN, Table, TextOptions};

/// What to search by.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum SearchKind {
    /// BM25 over a text column; the score is highest for the best.
    Text { column: String, options: TextOptions },
    /// The distance of a vector column; it is lowest for the best. Text is embedded by `model`, or the default one.
    /// `effort` is what the call says of it.
    Vector { column: usize, metric: Metric, model: Option<String>, effort: Effort },
}

impl SearchKind {
    pub fn function(&self) -> &'static str {
        match self {
            SearchKind::Text { .. } => "text_search",
            SearchKind::Vector { .. } => "vector_search",
        }
    }

    /// The type of the score; a distance has that of the distance functions.
    pub fn score_type(&self) -> DataType {
        match self {
            SearchKind::Text { .. } => DataType::Float32,
            SearchKind::Vector { .. } => DataType::Float64,
        }
    }

    /// Whether the best score is the highest.
    pub fn descending(&self) -> bool {
        matches!(self, SearchKind::Text { .. })
    }
}

/// One search.
#[derive(Clone, Debug)]
pub(super) struct Search {
    pub table: Arc<Table>,
    pub kind: SearchKind,
    /// The name of the column that the score is in.
    pub score: String,
}

impl PartialEq for Search {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.table, &other.table) && self.kind == other.kind && self.score == other.score
    }
}

impl Eq for Search {}

/// Finds rows among those of its input, which are candidates with their row id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SearchNode {
    pub input: Arc<LogicalPlan>,
    pub search: Arc<Search>,
    pub query: Expr,
    pub limit: Expr,
    /// Whether the row id is among the output columns.
    pub with_row_id: bool,
    schema: DFSchemaRef,
}

impl SearchNode {
    pub fn try_new(
        input: Arc<LogicalPlan>,
        search: Arc<Search>,
        query: Expr,
        limit: Expr,
        with_row_id: bool,
    ) -> Result<Self> {
        let shown = |field: &&FieldRef| with_row_id || field.name() != ROW_ID_COLUMN;
        let mut fields: Vec<FieldRef> = input.schema().fields().iter().filter(shown).cloned().collect();
        fields.push(Arc::new(Field::new(&search.score, search.kind.score_type(), false)));
        let fields = fields.into_iter().map(|field| (None, field)).collect();
        let schema = DFSchema::new_with_metadata(fields, input.schema().metadata().clone())?;
        Ok(Self { input, search, query, limit, with_row_id, schema: Arc::new(schema) })
    }

    /// The node as a plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }
}

impl Hash for SearchNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.input, self.search.kind.function(), &self.query, &self.limit, self.with_row_id).hash(state);
    }
}

impl PartialOrd for SearchNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.input.partial_cmp(&other.input).filter(|order| order.is_ne() || self == other)
    }
}

impl UserDefinedLogicalNodeCore for SearchNode {
    fn name(&self) -> &str {
        "Search"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![self.query.clone(), self.limit.clone()]
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        HashSet::from([self.search.score.clone(), ROW_ID_COLUMN.to_owned()])
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = &self.search.kind;
        write!(f, "Search: {}({}, {}", kind.function(), self.search.table.definition().name, self.query)?;
        write!(f, ") limit={}", self.limit)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let ([query, limit], Some(input), true) = (exprs.as_slice(), inputs.pop(), inputs.is_empty()) else {
            return internal_err!("Search takes one input and two expressions");
        };
        let search = Arc::clone(&self.search);
        Self::try_new(Arc::new(input), search, query.clone(), limit.clone(), self.with_row_id)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let candidates = self.input.schema();
        let mut needed: Vec<usize> = output_columns
            .iter()
            .filter_map(|at| candidates.index_of_column_by_name(None, self.schema.field(*at).name()))
            .collect();
        needed.push(candidates.index_of_column_by_name(None, ROW_ID_COLUMN)?);
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}
