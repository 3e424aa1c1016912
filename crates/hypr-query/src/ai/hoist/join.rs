//! AI calls in join conditions.
//!
//! An inner join filters after joining, so that calls are made only for pairs that the other conditions let
//! through. Other joins decide by the condition which rows have no partner, so their calls are made below the
//! side whose columns they read.

use std::sync::Arc;

use datafusion::common::{DFSchema, JoinType, Result, not_impl_err};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Filter, Join, LogicalPlan};

use super::collect::{Collector, has_call};
use super::{Pass, guard, restore};

pub(super) fn hoist(pass: &mut Pass<'_>, join: Join) -> Result<LogicalPlan> {
    let schema = Arc::clone(&join.schema);
    let (on_left, on_right): (Vec<Expr>, Vec<Expr>) = join.on.into_iter().unzip();
    let conjuncts = join.filter.map(split_conjunction_owned).unwrap_or_default();
    let (dear, cheap): (Vec<_>, Vec<_>) = conjuncts.into_iter().partition(has_call);
    let mut left = Side::new(Arc::unwrap_or_clone(join.left), on_left);
    let mut right = Side::new(Arc::unwrap_or_clone(join.right), on_right);
    let mut above = Vec::new();
    for conjunct in dear {
        if join.join_type == JoinType::Inner {
            above.push(conjunct);
        } else if left.covers(&conjunct) {
            left.conditions.push(conjunct);
        } else if right.covers(&conjunct) {
            right.conditions.push(conjunct);
        } else {
            return not_impl_err!(
                "an AI call over both sides of an outer or semi join; make the call in a subquery of one side, or use an inner join"
            );
        }
    }
    left.hoist(pass, &cheap)?;
    right.hoist(pass, &cheap)?;
    let filter = cheap.into_iter().chain(left.conditions).chain(right.conditions);
    let joined = Join::try_new(
        Arc::new(left.plan),
        Arc::new(right.plan),
        left.keys.into_iter().zip(right.keys).collect(),
        conjunction(filter),
        join.join_type,
        join.join_constraint,
        join.null_equality,
        join.null_aware,
    )?;
    let mut plan = LogicalPlan::Join(joined);
    if let Some(predicate) = conjunction(above) {
        plan = pass.filter(Filter::try_new(predicate, Arc::new(plan))?)?;
    }
    restore(plan, &schema)
}

/// One input of a join with what is computed from it alone.
struct Side {
    plan: LogicalPlan,
    schema: Arc<DFSchema>,
    keys: Vec<Expr>,
    /// Conjuncts with calls that read only this side.
    conditions: Vec<Expr>,
}

impl Side {
    fn new(plan: LogicalPlan, keys: Vec<Expr>) -> Self {
        let schema = Arc::clone(plan.schema());
        Self { plan, schema, keys, conditions: Vec::new() }
    }

    fn covers(&self, expr: &Expr) -> bool {
        expr.column_refs().iter().all(|column| self.schema.has_column(column))
    }

    /// Makes the calls of keys and conditions below the join. A condition matters only where the conditions
    /// without calls that read this side are not false.
    fn hoist(&mut self, pass: &mut Pass<'_>, cheap: &[Expr]) -> Result<()> {
        let own: Vec<Expr> = cheap.iter().filter(|conjunct| self.covers(conjunct)).cloned().collect();
        let open = guard::undecided(&own, Expr::is_false, Expr::is_not_false);
        let mut collector = Collector::new(&self.schema, &mut pass.names);
        for key in &mut self.keys {
            *key = collector.rewrite(key.clone(), None)?;
        }
        for condition in &mut self.conditions {
            *condition = collector.rewrite(condition.clone(), open.as_ref())?;
        }
        let calls = collector.finish();
        if !calls.is_empty() {
            let plan = std::mem::take(&mut self.plan);
            self.plan = pass.place(calls, plan)?;
        }
        Ok(())
    }
}
