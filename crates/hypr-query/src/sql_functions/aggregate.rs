//! Aggregate functions written in SQL: an expression over aggregates of the parameters.
//!
//! `CREATE AGGREGATE FUNCTION wavg(x DOUBLE, w DOUBLE) .. AS $$ SELECT sum(x * w) / sum(w) $$` is called as any
//! aggregate is: with `GROUP BY`, `FILTER`, `HAVING` and `OVER`. A call in an aggregation becomes the aggregates of
//! the body there, and the expression over them in a projection above; likewise for windows. So the
//! optimizer sees built-in aggregates alone, and equal ones are computed once.
//!
//! Invariant: a parameter that the body uses outside of its aggregates gets a constant, since a group has no one value
//! of anything else. A NULL argument of a `STRICT` function leaves the row out, as in PostgreSQL.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_schema::{DataType, FieldRef};
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, DFSchema, DFSchemaRef, Result, TableReference, not_impl_err, plan_err};
use datafusion::logical_expr::expr::{
    AggregateFunction, AggregateFunctionParams, WindowFunction, WindowFunctionDefinition, WindowFunctionParams,
};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{
    Accumulator, Aggregate, AggregateUDF, AggregateUDFImpl, Expr, LogicalPlan, Projection, Signature, Volatility,
    Window, cast,
};

use super::Template;
use super::inline::{Arguments, check_volatile};

/// The relation of the columns that stand for the aggregates of a body.
const AGGREGATES: &str = "aggregates\u{1}";

/// The body of an aggregate function.
#[derive(Clone, Debug)]
pub(super) struct AggregateBody {
    /// Over the parameters.
    aggregates: Vec<Expr>,
    /// Over the parameters, and over the aggregates by number.
    value: Expr,
}

impl AggregateBody {
    /// Takes apart the plan of `SELECT body FROM parameters GROUP BY parameters`; `None` for any other shape.
    pub(super) fn of(plan: &LogicalPlan) -> Result<Option<Self>> {
        let LogicalPlan::Projection(Projection { expr, input, .. }) = plan else {
            return Ok(None);
        };
        let [value] = expr.as_slice() else { return Ok(None) };
        let (mut value, mut node) = (value.clone().unalias(), input.as_ref());
        while let LogicalPlan::Projection(Projection { expr, input, schema, .. }) = node {
            value = replaced(value, schema, &|at| expr.get(at).map(|expr| expr.clone().unalias()))?;
            node = input.as_ref();
        }
        let LogicalPlan::Aggregate(Aggregate { input, aggr_expr, schema, .. }) = node else {
            return Ok(None);
        };
        if aggr_expr.is_empty() || !matches!(input.as_ref(), LogicalPlan::SubqueryAlias(_)) {
            return Ok(None);
        }
        let groups = schema.fields().len() - aggr_expr.len();
        let value = replaced(value, schema, &|at| Some(numbered(at.checked_sub(groups)?)))?;
        let aggregates = aggr_expr.iter().map(|expr| expr.clone().unalias()).collect();
        Ok(Some(Self { aggregates, value }))
    }
}

fn numbered(at: usize) -> Expr {
    Expr::Column(Column::new(Some(TableReference::bare(AGGREGATES)), at.to_string()))
}

/// `expr` with what `of` says in place of the columns of `schema`.
fn replaced(expr: Expr, schema: &DFSchemaRef, of: &dyn Fn(usize) -> Option<Expr>) -> Result<Expr> {
    let replaced = expr.transform_up(|expr| {
        let value = match &expr {
            Expr::Column(column) => schema.maybe_index_of_column(column).and_then(of),
            _ => None,
        };
        Ok(value.map_or_else(|| Transformed::no(expr), Transformed::yes))
    });
    replaced.data()
}

/// Stands for a call from planning to [`expand`].
#[derive(Debug)]
pub(super) struct SqlAggregate {
    template: Arc<Template>,
    signature: Signature,
}

impl SqlAggregate {
    pub(super) fn new(template: Arc<Template>) -> Self {
        Self { template, signature: Signature::user_defined(Volatility::Volatile) }
    }
}

impl PartialEq for SqlAggregate {
    fn eq(&self, other: &Self) -> bool {
        self.template.function() == other.template.function()
    }
}

impl Eq for SqlAggregate {}

impl Hash for SqlAggregate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.template.function().name.hash(state);
    }
}

impl AggregateUDFImpl for SqlAggregate {
    fn name(&self) -> &str {
        &self.template.function().name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.template.result().data_type().clone())
    }

    fn return_field(&self, _: &[FieldRef]) -> Result<FieldRef> {
        Ok(Arc::clone(self.template.result()))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let takes = self.template.parameters().len();
        if arg_types.len() != takes {
            return plan_err!("{} takes {takes} arguments, not {}", self.name(), arg_types.len());
        }
        Ok(arg_types.to_vec())
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        plan_err!("{} cannot be called here", self.name())
    }
}

fn template_of(function: &AggregateUDF) -> Option<&Arc<Template>> {
    function.inner().downcast_ref::<SqlAggregate>().map(|call| &call.template)
}

/// Replaces calls in an aggregation or a window. The columns of the node keep their names and types.
pub(super) fn expand(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    match node {
        LogicalPlan::Aggregate(node) if node.aggr_expr.iter().any(|expr| called(expr).is_some()) => {
            expand_aggregate(node).map(Transformed::yes)
        }
        LogicalPlan::Window(node) if node.window_expr.iter().any(|expr| called(expr).is_some()) => {
            expand_window(node).map(Transformed::yes)
        }
        other => Ok(Transformed::no(other)),
    }
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// The function of ours that `expr` calls.
fn called(expr: &Expr) -> Option<&Arc<Template>> {
    match unaliased(expr) {
        Expr::AggregateFunction(call) => template_of(&call.func),
        Expr::WindowFunction(call) => match &call.fun {
            WindowFunctionDefinition::AggregateUDF(function) => template_of(function),
            WindowFunctionDefinition::WindowUDF(_) => None,
        },
        _ => None,
    }
}

fn expand_aggregate(node: Aggregate) -> Result<LogicalPlan> {
    let Aggregate { input, group_expr, aggr_expr, schema, .. } = node;
    let mut columns = Columns::new(schema.fields().len() - aggr_expr.len());
    for expr in &aggr_expr {
        match (called(expr), unaliased(expr)) {
            (Some(template), Expr::AggregateFunction(call)) => {
                let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment } = &call.params;
                check_plain(template, *distinct || !order_by.is_empty() || null_treatment.is_some())?;
                columns.add_call(template, args, filter.as_deref(), input.schema(), &Ok)?;
            }
            _ => columns.add(expr.clone()),
        }
    }
    let (computed, values) = (columns.computed, columns.values);
    let plan = LogicalPlan::Aggregate(Aggregate::try_new(input, group_expr, computed)?);
    shown(plan, columns.first, &values, &schema)
}

fn expand_window(node: Window) -> Result<LogicalPlan> {
    let Window { input, window_expr, schema } = node;
    let mut columns = Columns::new(input.schema().fields().len());
    for expr in &window_expr {
        match (called(expr), unaliased(expr)) {
            (Some(template), Expr::WindowFunction(call)) => {
                let params = &call.params;
                check_plain(template, params.distinct || params.null_treatment.is_some())?;
                let over = |inner| windowed(template, inner, params);
                columns.add_call(template, &params.args, params.filter.as_deref(), input.schema(), &over)?;
            }
            _ => columns.add(expr.clone()),
        }
    }
    let (computed, values) = (columns.computed, columns.values);
    let plan = LogicalPlan::Window(Window::try_new(computed, input)?);
    shown(plan, columns.first, &values, &schema)
}

fn check_plain(template: &Template, has_more: bool) -> Result<()> {
    let name = &template.function().name;
    match has_more {
        true => plan_err!("{name} is written in SQL: DISTINCT, ORDER BY and NULLS go into its body, not into the call"),
        false => Ok(()),
    }
}

/// An aggregate of a body, over the window of the call.
fn windowed(template: &Template, aggregate: Expr, over: &WindowFunctionParams) -> Result<Expr> {
    let name = &template.function().name;
    let Expr::AggregateFunction(AggregateFunction { func, params }) = aggregate else {
        return plan_err!("{name}: the body has an aggregate of an unexpected form");
    };
    if !params.order_by.is_empty() {
        return not_impl_err!("{name} over a window: {} of its body has an ORDER BY of its own", func.name());
    }
    Ok(Expr::WindowFunction(Box::new(WindowFunction {
        fun: WindowFunctionDefinition::AggregateUDF(func),
        params: WindowFunctionParams {
            args: params.args,
            partition_by: over.partition_by.clone(),
            order_by: over.order_by.clone(),
            window_frame: over.window_frame.clone(),
            filter: params.filter,
            null_treatment: params.null_treatment,
            distinct: params.distinct,
        },
    })))
}

/// What a node computes, and what is shown of it.
struct Columns {
    /// Columns of the node before the computed ones.
    first: usize,
    computed: Vec<Expr>,
    /// One for each expression of the node as it was, over computed ones by number.
    values: Vec<Expr>,
}

impl Columns {
    fn new(first: usize) -> Self {
        Self { first, computed: Vec::new(), values: Vec::new() }
    }

    /// The number of `expr`, which is computed once.
    fn number(&mut self, expr: Expr) -> usize {
        match self.computed.iter().position(|other| *other == expr) {
            Some(at) => at,
            None => {
                self.computed.push(expr);
                self.computed.len() - 1
            }
        }
    }

    fn add(&mut self, expr: Expr) {
        let at = self.number(expr);
        self.values.push(numbered(at));
    }

    /// The call of `template`; `place` makes of an aggregate what the node computes.
    fn add_call(
        &mut self,
        template: &Template,
        args: &[Expr],
        filter: Option<&Expr>,
        around: &DFSchema,
        place: &dyn Fn(Expr) -> Result<Expr>,
    ) -> Result<()> {
        check_volatile(template, args)?;
        let name = &template.function().name;
        let Some(body) = template.aggregate() else {
            return plan_err!("{name} is no aggregate");
        };
        let args = template.arguments(args)?;
        let strict =
            template.function().strict.then(|| args.iter().cloned().map(Expr::is_not_null)).into_iter().flatten();
        let wanted: Vec<Expr> = filter.cloned().into_iter().chain(strict).collect();
        let arguments = Arguments::new(name, template.parameters(), args, around)?;
        let mut numbers = Vec::with_capacity(body.aggregates.len());
        for aggregate in &body.aggregates {
            let mut aggregate = arguments.in_expr(aggregate.clone())?;
            if let Expr::AggregateFunction(call) = &mut aggregate {
                let own = call.params.filter.take().map(|filter| *filter);
                call.params.filter = conjunction(own.into_iter().chain(wanted.iter().cloned())).map(Box::new);
            }
            numbers.push(self.number(place(aggregate)?));
        }
        let value = arguments.in_constants(body.value.clone())?;
        let value = value.transform_up(|expr| match &expr {
            Expr::Column(column) if is_number(column) => {
                let at = column.name.parse().ok().and_then(|at: usize| numbers.get(at));
                Ok(at.map_or_else(|| Transformed::no(expr), |at| Transformed::yes(numbered(*at))))
            }
            _ => Ok(Transformed::no(expr)),
        });
        self.values.push(cast(value.data()?, template.result().data_type().clone()));
        Ok(())
    }
}

fn is_number(column: &Column) -> bool {
    column.relation.as_ref() == Some(&TableReference::bare(AGGREGATES))
}

/// The columns of `plan` as those of `schema`: the `first` as they are, then `values`.
fn shown(plan: LogicalPlan, first: usize, values: &[Expr], schema: &DFSchemaRef) -> Result<LogicalPlan> {
    let of = Arc::clone(plan.schema());
    let mut exprs: Vec<Expr> = (0..first).map(|at| Expr::Column(Column::from(of.qualified_field(at)))).collect();
    for (at, value) in values.iter().enumerate() {
        let value = value.clone().transform_up(|expr| match &expr {
            Expr::Column(column) if is_number(column) => {
                let at = column.name.parse::<usize>().unwrap_or_default();
                Ok(Transformed::yes(Expr::Column(Column::from(of.qualified_field(first + at)))))
            }
            _ => Ok(Transformed::no(expr)),
        });
        let (relation, field) = schema.qualified_field(first + at);
        let metadata = FieldMetadata::from(field.metadata().clone());
        exprs.push(value.data()?.alias_qualified_with_metadata(relation.cloned(), field.name(), Some(metadata)));
    }
    Projection::try_new(exprs, Arc::new(plan)).map(LogicalPlan::Projection)
}
