//! What planning a prepared statement gave, kept for its next executions.
//!
//! Invariant: a kept plan is used only while planning anew would give the same: for parameters of the same types,
//! under the same options, and with the catalog at the same position. A plan that reads anything but stored tables is
//! not kept: what it names may change without the catalog.
//!
//! The plan is optimized with its parameters in it, and their values are put into what comes of that. Where values or
//! the time decide on the plan, it is optimized with them, each time.

use std::sync::{Arc, OnceLock};

use arrow_array::RecordBatch;
use arrow_schema::{FieldRef, SchemaRef};
use datafusion::catalog::default_table_source::source_as_provider;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DFSchemaRef, Result as DfResult, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::physical_planner::DefaultPhysicalPlanner;
use futures::FutureExt;
use hypr_common::Result;
use hypr_storage::TableScanExec;
use parking_lot::Mutex;

use crate::catalog::StoredTable;
use crate::prepared::{self, PreparedPlan};
use crate::{Session, ai, error, search, shape};

/// A planned statement, its parameters not bound.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) logical: LogicalPlan,
    /// The columns of its result.
    pub(crate) schema: SchemaRef,
    /// Of its parameters.
    pub(crate) types: Vec<FieldRef>,
    options: Arc<ConfigOptions>,
    catalog_position: u64,
    /// `logical` optimized; none where that needs values.
    optimized: OnceLock<Option<Optimized>>,
}

#[derive(Debug)]
struct Optimized {
    plan: LogicalPlan,
    /// The state without rules for physical plans, where the plan may not need them: they spread work over partitions,
    /// and when all that is read is a few rows they take longer than the rest.
    without_rules: Option<SessionState>,
}

impl Planned {
    /// The plan to run with row `row` of `params` for parameters.
    ///
    /// # Errors
    /// Those of planning, and of values that do not fit.
    pub(crate) async fn physical(
        &self,
        state: &SessionState,
        params: &RecordBatch,
        row: usize,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(optimized) = self.optimized.get_or_init(|| optimized(state, &self.logical)) else {
            let logical = prepared::bind(self.logical.clone(), &self.types, params, row)?;
            return state.create_physical_plan(&logical).boxed().await.map_err(error::from_datafusion);
        };
        let values = prepared::values(&self.types, params, row)?;
        optimized.physical(state, &values).boxed().await.map_err(error::from_datafusion)
    }
}

impl Optimized {
    fn of(state: &SessionState, plan: LogicalPlan) -> Self {
        let without_rules = holds_for_all(&plan, is_row_by_row).then(|| {
            SessionStateBuilder::new_from_existing(state.clone()).with_physical_optimizer_rules(Vec::new()).build()
        });
        Self { plan, without_rules }
    }

    async fn physical(&self, state: &SessionState, values: &[ScalarValue]) -> DfResult<Arc<dyn ExecutionPlan>> {
        let bound = bind_optimized(state, self.plan.clone(), values)?;
        let Some(without_rules) = &self.without_rules else {
            return state.query_planner().create_physical_plan(&bound, state).await;
        };
        let plan = without_rules.query_planner().create_physical_plan(&bound, without_rules).await?;
        if finds_rows(&plan) {
            return Ok(plan);
        }
        DefaultPhysicalPlanner::default().optimize_physical_plan(plan, state, |_, _| {})
    }
}

/// Nodes that need nothing of their input but that it is one partition.
fn is_row_by_row(node: &LogicalPlan) -> bool {
    match node {
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::EmptyRelation(_)
        | LogicalPlan::TableScan(_) => true,
        LogicalPlan::Extension(Extension { node }) => {
            ai::is_row_by_row(node.as_ref()) || search::is_row_by_row(node.as_ref())
        }
        _ => false,
    }
}

/// True when what is read are rows that an index names, in one partition.
fn finds_rows(plan: &Arc<dyn ExecutionPlan>) -> bool {
    match plan.children().as_slice() {
        [] => !plan.is::<TableScanExec>() && plan.output_partitioning().partition_count() == 1,
        inputs => inputs.iter().all(|input| finds_rows(input)),
    }
}

/// The plan of the latest execution, shared by the clones of a prepared statement.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlanCache(Arc<Mutex<Option<Arc<Planned>>>>);

impl PlanCache {
    /// The columns of the result that it is for, where they are for parameters of `types`.
    pub(crate) fn schema(&self, types: &[FieldRef]) -> Option<SchemaRef> {
        self.0.lock().as_ref().filter(|known| known.types == types).map(|known| Arc::clone(&known.schema))
    }
}

impl Session {
    /// The plan of a query for parameters of `types`; none while they are not known.
    ///
    /// # Errors
    /// Those of planning.
    pub(crate) async fn planned(
        &self,
        state: &SessionState,
        plan: &PreparedPlan,
        types: Vec<FieldRef>,
    ) -> Result<Arc<Planned>> {
        let parameters = types.clone();
        let logical =
            async move { self.planner(state).plan((*plan.statement).clone(), None, &parameters).await.map(readable) };
        self.planned_by(state, &plan.cache, types, logical).await
    }

    /// The plan that `logical` gives for parameters of `types`, or that it gave before.
    ///
    /// # Errors
    /// Those of `logical`.
    pub(crate) async fn planned_by(
        &self,
        state: &SessionState,
        cache: &PlanCache,
        types: Vec<FieldRef>,
        logical: impl Future<Output = Result<LogicalPlan>>,
    ) -> Result<Arc<Planned>> {
        let catalog_position = self.engine().database().catalog_position();
        let options = state.config_options();
        let outside = self.catalog().transaction().is_none();
        if outside && let Some(known) = cache.0.lock().as_ref() {
            let same = known.catalog_position == catalog_position
                && known.types == types
                && Arc::ptr_eq(&known.options, options);
            if same {
                return Ok(Arc::clone(known));
            }
        }
        let logical = logical.await?;
        let schema = shape::result_schema(state, &logical)?;
        let keep = outside && reads_stored_tables_alone(&logical);
        let optimized = OnceLock::new();
        let options = Arc::clone(options);
        let planned = Arc::new(Planned { logical, schema, types, options, catalog_position, optimized });
        if keep {
            *cache.0.lock() = Some(Arc::clone(&planned));
        } else {
            // Optimized once, with its values.
            let _ = planned.optimized.set(None);
        }
        Ok(planned)
    }
}

/// `EXPLAIN` of a change of rows explains the query that finds them; the change itself is no plan.
fn readable(plan: LogicalPlan) -> LogicalPlan {
    match plan {
        LogicalPlan::Explain(mut explain) => {
            if let LogicalPlan::Dml(change) = explain.plan.as_ref() {
                explain.plan = Arc::clone(&change.input);
            }
            LogicalPlan::Explain(explain)
        }
        plan => plan,
    }
}

fn reads_stored_tables_alone(plan: &LogicalPlan) -> bool {
    holds_for_all(plan, |node| match node {
        LogicalPlan::TableScan(scan) => source_as_provider(&scan.source).is_ok_and(|provider| {
            let stored = provider.downcast_ref::<StoredTable>().map(StoredTable::table);
            let table = stored.or_else(|| search::searched_table(provider.as_ref()));
            table.is_some_and(|table| !table.is_inside_transaction())
        }),
        LogicalPlan::Extension(Extension { node }) => search::is_search(node.as_ref()),
        LogicalPlan::Statement(_) | LogicalPlan::Dml(_) | LogicalPlan::Ddl(_) => false,
        _ => true,
    })
}

fn holds_for_all(plan: &LogicalPlan, holds: impl Fn(&LogicalPlan) -> bool) -> bool {
    let mut all = true;
    let walked = plan.apply_with_subqueries(|node| {
        all &= holds(node);
        Ok(if all { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    walked.is_ok() && all
}

/// `plan` optimized for all values; none where they, or the time, decide.
fn optimized(state: &SessionState, plan: &LogicalPlan) -> Option<Optimized> {
    if !holds_for_all(plan, |node| !needs_values(node)) {
        return None;
    }
    let optimized = state.optimize(plan).ok()?;
    let is_bindable = holds_for_all(&optimized, |node| match node {
        LogicalPlan::Extension(Extension { node }) => {
            ai::takes_values(node.as_ref()) || search::is_search(node.as_ref())
        }
        _ => true,
    });
    is_bindable.then(|| Optimized::of(state, optimized))
}

/// True for a node whose optimization depends on what a parameter is, or on the time.
fn needs_values(node: &LogicalPlan) -> bool {
    let is_of_now = |expr: &Expr| {
        Ok(matches!(expr, Expr::ScalarFunction(call) if call.func.signature().volatility == Volatility::Stable))
    };
    let mut needs = match node {
        LogicalPlan::Limit(limit) => {
            limit.skip.iter().chain(&limit.fetch).any(|expr| expr.exists(|expr| Ok(is_parameter(expr))).unwrap_or(true))
        }
        LogicalPlan::Explain(_) | LogicalPlan::Analyze(_) | LogicalPlan::DescribeTable(_) => true,
        _ => false,
    };
    let walked = node.apply_expressions(|expr| {
        needs |= expr.exists(|expr| is_of_now(expr))?;
        Ok(TreeNodeRecursion::Continue)
    });
    needs || walked.is_err()
}

/// Puts the values of parameters into a plan that is optimized.
fn bind_optimized(state: &SessionState, plan: LogicalPlan, values: &[ScalarValue]) -> DfResult<LogicalPlan> {
    if values.is_empty() {
        return Ok(plan);
    }
    let bound = plan.transform_up_with_subqueries(|node| {
        let mut has_parameters = false;
        node.apply_expressions(|expr| {
            has_parameters |= expr.exists(|expr| Ok(is_parameter(expr)))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        if !has_parameters {
            return Ok(Transformed::no(node));
        }
        let (names, input) = (NamePreserver::new(&node), input_schema(&node)?);
        node.map_expressions(|expr| {
            let name = names.save(&expr);
            let bound = expr.transform_up(|expr| with_value(expr, values))?.data;
            Ok(Transformed::yes(name.restore(simplified(state, bound, &input)?)))
        })
    });
    bound.map(|bound| bound.data)
}

fn is_parameter(expr: &Expr) -> bool {
    matches!(expr, Expr::Placeholder(_))
}

/// What the expressions of a node are over.
fn input_schema(node: &LogicalPlan) -> DfResult<DFSchemaRef> {
    Ok(match (node, node.inputs().as_slice()) {
        (LogicalPlan::TableScan(scan), _) => {
            Arc::new(DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?)
        }
        (_, inputs) => {
            let mut schema = DFSchema::empty();
            inputs.iter().for_each(|input| schema.merge(input.schema()));
            Arc::new(schema)
        }
    })
}

/// A parameter as its value, and a value in the type that it is cast to.
fn with_value(expr: Expr, values: &[ScalarValue]) -> DfResult<Transformed<Expr>> {
    Ok(match expr {
        Expr::Placeholder(parameter) => {
            let at = parameter.id.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok());
            match at.and_then(|at| values.get(at.checked_sub(1)?)) {
                Some(value) => Transformed::yes(Expr::Literal(value.clone(), None)),
                None => Transformed::no(Expr::Placeholder(parameter)),
            }
        }
        Expr::Cast(cast) => match cast.expr.as_ref() {
            Expr::Literal(value, None) => Transformed::yes(Expr::Literal(value.cast_to(cast.field.data_type())?, None)),
            _ => Transformed::no(Expr::Cast(cast)),
        },
        expr => Transformed::no(expr),
    })
}

/// What is left to compute of `expr`, over the columns of `input`, now that its values are known. Vectors are not worth
/// the look.
fn simplified(state: &SessionState, expr: Expr, input: &DFSchemaRef) -> DfResult<Expr> {
    let is_nested = |expr: &Expr| Ok(matches!(expr, Expr::Literal(value, _) if value.data_type().is_nested()));
    if matches!(expr, Expr::Literal(..)) || expr.exists(is_nested)? {
        return Ok(expr);
    }
    let context = SimplifyContext::builder()
        .with_schema(Arc::clone(input))
        .with_config_options(Arc::clone(state.config_options()))
        .with_query_execution_start_time(state.execution_props().query_execution_start_time)
        .build();
    // What cannot be computed yet fails when it runs, if it does.
    Ok(ExprSimplifier::new(context).simplify(expr.clone()).unwrap_or(expr))
}
