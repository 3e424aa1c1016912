//! The optimizer rule: a sort with a limit over a table becomes the same sort over the nearest rows of it.

use std::sync::Arc;

use datafusion::catalog::default_table_source::{provider_as_source, source_as_provider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, ExprSchema, Result};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    Expr, Filter, LogicalPlan, Projection, Sort, SortExpr, SubqueryAlias, TableScan, Volatility,
};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};
use hypr_storage::Table;

use super::pattern::{DistanceCall, Query};
use super::provider::{NearestSearch, NearestTable};
use super::{DISTANCE_COLUMN, MAX_K};
use crate::catalog::StoredTable;

/// The optimizer rule.
#[derive(Debug)]
pub(super) struct NearestRule;

impl OptimizerRule for NearestRule {
    fn name(&self) -> &str {
        "nearest_rows"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Sort(sort) = &plan else { return Ok(Transformed::no(plan)) };
        match Match::of(sort) {
            Some(found) => found.rewrite(sort).map(Transformed::yes),
            None => Ok(Transformed::no(plan)),
        }
    }
}

/// The nodes between a sort and the table it reads.
struct Match<'a> {
    /// From the sort down, each with the distance as an expression over its input.
    path: Vec<(&'a LogicalPlan, Expr)>,
    /// The distance over the input of the sort.
    sort_key: Expr,
    scan: &'a TableScan,
    table: Arc<Table>,
    /// Conjuncts on the table's rows.
    conditions: Vec<Expr>,
    call: DistanceCall,
}

impl<'a> Match<'a> {
    fn of(sort: &'a Sort) -> Option<Self> {
        sort.fetch.filter(|k| (1..=MAX_K).contains(k))?;
        let key = sort.expr.first()?;
        let sort_key = key.expr.clone();
        let (mut path, mut conditions) = (Vec::new(), Vec::new());
        let (mut plan, mut expr) = (sort.input.as_ref(), unaliased(&sort_key).clone());
        loop {
            match plan {
                LogicalPlan::Projection(projection) if conditions.is_empty() => {
                    expr = through(&expr, plan, |at| projection.expr[at].clone())?;
                    path.push((plan, expr.clone()));
                    plan = &projection.input;
                }
                LogicalPlan::SubqueryAlias(alias) if conditions.is_empty() => {
                    let inner = alias.input.schema().columns();
                    expr = through(&expr, plan, |at| Expr::Column(inner[at].clone()))?;
                    path.push((plan, expr.clone()));
                    plan = &alias.input;
                }
                LogicalPlan::Filter(filter) => {
                    conditions.extend(split_conjunction_owned(filter.predicate.clone()));
                    plan = &filter.input;
                }
                LogicalPlan::TableScan(scan) => {
                    return Self::at_scan(scan, path, conditions, sort_key, &expr, key.asc);
                }
                _ => return None,
            }
        }
    }

    fn at_scan(
        scan: &'a TableScan,
        path: Vec<(&'a LogicalPlan, Expr)>,
        mut conditions: Vec<Expr>,
        sort_key: Expr,
        distance: &Expr,
        ascending: bool,
    ) -> Option<Self> {
        if scan.fetch.is_some() {
            return None;
        }
        let provider = source_as_provider(&scan.source).ok()?;
        let table = provider.downcast_ref::<StoredTable>()?.plain_table()?;
        let call = DistanceCall::of(distance, ascending)?;
        let field = ExprSchema::field_from_column(&scan.projected_schema, &call.column).ok()?;
        let is_vector = matches!(field.data_type(), arrow_schema::DataType::FixedSizeList(_, width)
            if usize::try_from(*width).is_ok_and(|width| call.query.fits(width)));
        for filter in scan.filters.iter().flat_map(|filter| split_conjunction_owned(filter.clone())) {
            if !conditions.contains(&filter) {
                conditions.push(filter);
            }
        }
        let usable = is_vector && conditions.iter().all(|condition| is_plain(condition) || call.bounds(condition));
        usable.then_some(Self { path, sort_key, scan, table, conditions, call })
    }

    fn rewrite(self, sort: &Sort) -> Result<LogicalPlan> {
        let (bounds, mut conditions): (Vec<Expr>, Vec<Expr>) =
            self.conditions.iter().cloned().partition(|condition| self.call.bounds(condition));
        let is_not_null = |condition: &Expr| {
            matches!(condition,
            Expr::IsNotNull(inner) if **inner == Expr::Column(self.call.column.clone()))
        };
        let not_null = conditions.iter().any(is_not_null);
        conditions.retain(|condition| !is_not_null(condition));
        let search = NearestSearch {
            column: self.scan.source.schema().index_of(&self.call.column.name)?,
            call: self.call.clone(),
            k: sort.fetch.unwrap_or(MAX_K),
            ties: sort.expr.len() > 1,
            nulls_first: sort.expr.first().is_some_and(|key| key.nulls_first),
            not_null,
        };
        let mut plan = self.nearest_scan(search, conditions)?;
        let mut distance = distance_column(&plan)?;
        if let Some(bounds) = conjunction(bounds) {
            let predicate = replace(bounds, &self.call.expr, &distance)?;
            plan = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(plan))?);
        }
        for (node, expr) in self.path.into_iter().rev() {
            plan = match node {
                LogicalPlan::Projection(projection) => {
                    let names = NamePreserver::new_for_projection();
                    let exprs = projection.expr.iter().map(|original| {
                        let name = names.save(original);
                        Ok(name.restore(replace(original.clone(), &expr, &distance)?))
                    });
                    let mut exprs = exprs.collect::<Result<Vec<_>>>()?;
                    exprs.push(distance.clone());
                    LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(plan))?)
                }
                LogicalPlan::SubqueryAlias(alias) => {
                    LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(plan), alias.alias.clone())?)
                }
                other => other.clone(),
            };
            distance = distance_column(&plan)?;
        }
        sorted(sort, plan, &self.sort_key, &distance)
    }

    /// The scan of the table, of the rows that meet `conditions`, with the distance as one more column.
    fn nearest_scan(&self, search: NearestSearch, conditions: Vec<Expr>) -> Result<LogicalPlan> {
        let source = provider_as_source(Arc::new(NearestTable::new(Arc::clone(&self.table), search)));
        let mut projection =
            self.scan.projection.clone().unwrap_or_else(|| (0..self.scan.source.schema().fields().len()).collect());
        projection.push(source.schema().fields().len() - 1);
        // The planner computes the subqueries and binds the parameters that it sees in expressions of the plan. The first
        // of these says nothing of rows.
        let mut named = match self.call.query {
            Query::Later(_) => vec![self.call.expr.clone().is_not_null()],
            Query::Known(_) => Vec::new(),
        };
        named.extend(conditions);
        TableScan::try_new(self.scan.table_name.clone(), source, Some(projection), named, None)
            .map(LogicalPlan::TableScan)
    }
}

/// `sort` over `input` by `distance` in the place of `key`, and then the columns that it had.
fn sorted(sort: &Sort, input: LogicalPlan, key: &Expr, distance: &Expr) -> Result<LogicalPlan> {
    let exprs = sort
        .expr
        .iter()
        .map(|sort_expr| {
            let expr = replace(sort_expr.expr.clone(), key, distance)?;
            Ok(SortExpr { expr, ..sort_expr.clone() })
        })
        .collect::<Result<Vec<_>>>()?;
    let sorted = LogicalPlan::Sort(Sort { expr: exprs, input: Arc::new(input), fetch: sort.fetch });
    let columns = sort.input.schema().columns().into_iter().map(Expr::Column).collect();
    Projection::try_new(columns, Arc::new(sorted)).map(LogicalPlan::Projection)
}

/// The distance column of `plan`, which is its last.
fn distance_column(plan: &LogicalPlan) -> Result<Expr> {
    let schema = plan.schema();
    let at = schema.fields().len().saturating_sub(1);
    debug_assert_eq!(schema.field(at).name(), DISTANCE_COLUMN);
    Ok(Expr::Column(Column::from(schema.qualified_field(at))))
}

fn replace(expr: Expr, from: &Expr, to: &Expr) -> Result<Expr> {
    let replaced = expr
        .transform_down(|expr| Ok(if expr == *from { Transformed::yes(to.clone()) } else { Transformed::no(expr) }));
    replaced.map(|replaced| replaced.data)
}

/// `expr`, over the output of `node`, over its input; `inner` gives the expression behind each output column.
fn through(expr: &Expr, node: &LogicalPlan, inner: impl Fn(usize) -> Expr) -> Option<Expr> {
    let schema = node.schema();
    let replaced = expr.clone().transform_up(|expr| match &expr {
        Expr::Column(column) => {
            let at = schema.index_of_column(column)?;
            Ok(Transformed::yes(unaliased(&inner(at)).clone()))
        }
        _ => Ok(Transformed::no(expr)),
    });
    replaced.ok().map(|replaced| replaced.data)
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// True for conditions that say the same whenever they are asked, of a row alone.
fn is_plain(condition: &Expr) -> bool {
    let odd = |expr: &Expr| match expr {
        Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::OuterReferenceColumn(..) => true,
        Expr::ScalarFunction(call) => call.func.signature().volatility != Volatility::Immutable,
        _ => false,
    };
    !condition.exists(|expr| Ok(odd(expr))).unwrap_or(true)
}
