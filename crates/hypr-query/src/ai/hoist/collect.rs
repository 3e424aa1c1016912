//! Takes calls out of expressions, with the guard each stands under.

use std::sync::Arc;

use arrow_schema::FieldRef;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, Result, not_impl_err};
use datafusion::logical_expr::expr::{AggregateFunction, BinaryExpr, Case, ScalarFunction};
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator};

use super::super::function::{AiFunction, Call};
use super::super::node::{GenerateNode, GuardedCall, OUTPUT_PREFIX};
use super::guard;

/// True when `expr` has a call in it, subqueries apart.
pub(super) fn has_call(expr: &Expr) -> bool {
    expr.exists(|expr| Ok(Call::is(expr))).unwrap_or(false)
}

/// Numbers the outputs of a plan.
#[derive(Debug)]
pub(super) struct Names {
    next: usize,
}

impl Names {
    /// Names that no node of `plan` uses yet.
    pub fn after(plan: &LogicalPlan) -> Result<Self> {
        let mut next = 0;
        plan.apply_with_subqueries(|plan| {
            for field in plan.schema().fields() {
                let number = field.name().strip_prefix(OUTPUT_PREFIX).and_then(|number| number.parse::<usize>().ok());
                next = next.max(number.map_or(0, |number| number + 1));
            }
            Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
        })?;
        Ok(Self { next })
    }

    pub fn next(&mut self) -> String {
        self.next += 1;
        format!("{OUTPUT_PREFIX}{}", self.next - 1)
    }
}

/// Collects the calls of a node's expressions and leaves columns in their place.
pub(super) struct Collector<'a> {
    /// The schema of the input the calls are hoisted above.
    schema: &'a DFSchema,
    names: &'a mut Names,
    calls: Vec<(Call, GuardedCall)>,
    /// Answers that the input has already.
    known: Vec<(Call, GuardedCall)>,
}

impl<'a> Collector<'a> {
    pub fn new(schema: &'a DFSchema, names: &'a mut Names) -> Self {
        Self { schema, names, calls: Vec::new(), known: Vec::new() }
    }

    /// Uses the answers of nodes below instead of calling again.
    pub fn reuse(&mut self, known: Vec<(Call, GuardedCall)>) {
        self.known = known;
    }

    /// `expr` without its calls; `guard` says which rows need it.
    pub fn rewrite(&mut self, expr: Expr, guard: Option<&Expr>) -> Result<Expr> {
        if !has_call(&expr) {
            return Ok(expr);
        }
        match expr {
            call if Call::is(&call) => self.hoist(call, guard),
            Expr::Case(case) => self.rewrite_case(case, guard),
            Expr::BinaryExpr(BinaryExpr { op: op @ (Operator::And | Operator::Or), left, right }) => {
                let mut operands = Vec::new();
                flatten(op, *left, &mut operands);
                flatten(op, *right, &mut operands);
                self.rewrite_logical(op, operands, guard)
            }
            Expr::ScalarFunction(function) if is_coalesce(&function) => self.rewrite_coalesce(function, guard),
            Expr::ScalarFunction(function) if function.name() == "nvl2" && function.args.len() == 3 => {
                self.rewrite_nvl2(function, guard)
            }
            Expr::AggregateFunction(function) => self.rewrite_aggregate(function, guard),
            Expr::HigherOrderFunction(_) | Expr::Lambda(_) => {
                not_impl_err!("an AI call inside a lambda; make the call before, in a subquery")
            }
            other => other.map_children(|child| self.rewrite(child, guard).map(Transformed::yes)).map(|done| done.data),
        }
    }

    fn rewrite_all(&mut self, exprs: Vec<Expr>, guard: Option<&Expr>) -> Result<Vec<Expr>> {
        exprs.into_iter().map(|expr| self.rewrite(expr, guard)).collect()
    }

    fn hoist(&mut self, expr: Expr, guard: Option<&Expr>) -> Result<Expr> {
        // Drawn again, a condition may say otherwise, and a row that wants an answer would have none.
        let guard = guard.filter(|guard| !guard.is_volatile());
        let field = expr.to_field(self.schema)?.1;
        let Some(call) = Call::of(&expr)? else {
            return Ok(expr);
        };
        let key = Call { args: self.rewrite_all(call.args, guard)?, ..call };
        if let Some((_, known)) = self.known.iter().find(|(other, _)| *other == key) {
            return Ok(column(known.output.name()));
        }
        if let Some(at) = self.calls.iter().position(|(other, _)| *other == key)
            && self.widen(at, guard)
        {
            return Ok(column(self.calls[at].1.output.name()));
        }
        let output: FieldRef = Arc::new(field.as_ref().clone().with_name(self.names.next()).with_nullable(true));
        let made = column(output.name());
        let call = GuardedCall {
            guard: guard.cloned(),
            function: key.function,
            options: key.options.clone(),
            args: key.args.clone(),
            output,
        };
        self.calls.push((key, call));
        Ok(made)
    }

    /// Lets the call at `at` run under `guard` as well. False when that would make it wait for another call,
    /// which may wait for this one.
    fn widen(&mut self, at: usize, guard: Option<&Expr>) -> bool {
        let waits = guard.is_some_and(|guard| guard.column_refs().iter().any(|column| self.makes(&column.name)));
        let call = &mut self.calls[at].1;
        if call.guard.is_none() || call.guard.as_ref() == guard {
            return true;
        }
        if waits {
            return false;
        }
        call.guard = guard::either(call.guard.take(), guard.cloned());
        true
    }

    fn makes(&self, name: &str) -> bool {
        self.calls.iter().any(|(_, call)| call.output.name() == name)
    }

    fn rewrite_case(&mut self, case: Case, outer: Option<&Expr>) -> Result<Expr> {
        let Case { expr: base, when_then_expr, else_expr } = case;
        let base = base.map(|base| self.rewrite(*base, outer)).transpose()?;
        let mut before: Vec<Expr> = Vec::with_capacity(when_then_expr.len());
        let mut branches = Vec::with_capacity(when_then_expr.len());
        for (when, then) in when_then_expr {
            let reached = guard::first_true(&before, None).map(|reached| guard::within(outer, reached));
            let when = self.rewrite(*when, reached.as_ref().or(outer))?;
            let condition = match &base {
                Some(base) => base.clone().eq(when.clone()),
                None => when.clone(),
            };
            let taken = guard::first_true(&before, Some(&condition)).map(|taken| guard::within(outer, taken));
            let then = self.rewrite(*then, taken.as_ref())?;
            before.push(condition);
            branches.push((Box::new(when), Box::new(then)));
        }
        let otherwise = guard::first_true(&before, None).map(|none| guard::within(outer, none));
        let else_expr = else_expr.map(|expr| self.rewrite(*expr, otherwise.as_ref()).map(Box::new)).transpose()?;
        Ok(Expr::Case(Case::new(base.map(Box::new), branches, else_expr)))
    }

    /// `AND` and `OR`: operands without calls come first, whatever their place, and each call is made only
    /// where what is before it leaves the result open.
    fn rewrite_logical(&mut self, op: Operator, operands: Vec<Expr>, outer: Option<&Expr>) -> Result<Expr> {
        let (calls, mut done): (Vec<_>, Vec<_>) = operands.into_iter().partition(has_call);
        for operand in calls {
            let open = match op {
                Operator::And => guard::undecided(&done, Expr::is_false, Expr::is_not_false),
                _ => guard::undecided(&done, Expr::is_true, Expr::is_not_true),
            };
            let open = open.map(|open| guard::within(outer, open));
            let operand = self.rewrite(operand, open.as_ref().or(outer))?;
            done.push(operand);
        }
        let joined = match op {
            Operator::And => conjunction(done),
            _ => disjunction(done),
        };
        joined.map_or_else(|| not_impl_err!("{op} without operands"), Ok)
    }

    fn rewrite_coalesce(&mut self, function: ScalarFunction, outer: Option<&Expr>) -> Result<Expr> {
        let mut done: Vec<Expr> = Vec::with_capacity(function.args.len());
        for arg in function.args {
            let open = guard::undecided(&done, Expr::is_not_null, Expr::is_null);
            let open = open.map(|open| guard::within(outer, open));
            done.push(self.rewrite(arg, open.as_ref().or(outer))?);
        }
        Ok(Expr::ScalarFunction(ScalarFunction { func: function.func, args: done }))
    }

    /// `nvl2(value, if_not_null, if_null)`.
    fn rewrite_nvl2(&mut self, function: ScalarFunction, outer: Option<&Expr>) -> Result<Expr> {
        let mut args = function.args.into_iter();
        let mut done = Vec::with_capacity(3);
        if let (Some(value), Some(present), Some(absent)) = (args.next(), args.next(), args.next()) {
            let value = self.rewrite(value, outer)?;
            let when_present = guard::within(outer, value.clone().is_not_null());
            let when_absent = guard::within(outer, value.clone().is_null());
            done.push(value);
            done.push(self.rewrite(present, Some(&when_present))?);
            done.push(self.rewrite(absent, Some(&when_absent))?);
        }
        Ok(Expr::ScalarFunction(ScalarFunction { func: function.func, args: done }))
    }

    /// The arguments of an aggregate are needed for the rows its `FILTER` keeps.
    fn rewrite_aggregate(&mut self, mut function: AggregateFunction, outer: Option<&Expr>) -> Result<Expr> {
        let params = &mut function.params;
        if let Some(filter) = params.filter.take() {
            params.filter = Some(Box::new(self.rewrite(*filter, outer)?));
        }
        let kept = params.filter.as_ref().map(|filter| guard::within(outer, filter.as_ref().clone().is_true()));
        let kept = kept.as_ref().or(outer);
        params.args = self.rewrite_all(std::mem::take(&mut params.args), kept)?;
        for sort in &mut params.order_by {
            sort.expr = self.rewrite(sort.expr.clone(), kept)?;
        }
        Ok(Expr::AggregateFunction(function))
    }

    /// The answers that every row has, for [`Collector::reuse`] above.
    pub fn unguarded(&self) -> Vec<(Call, GuardedCall)> {
        self.known.iter().chain(self.calls.iter().filter(|(_, call)| call.guard.is_none())).cloned().collect()
    }

    /// The calls found, to be placed with [`place`].
    pub fn finish(self) -> Vec<GuardedCall> {
        self.calls.into_iter().map(|(_, call)| call).collect()
    }
}

/// Puts nodes that make `calls` above `input`: calls that read another's answer in a later node, and calls of
/// different functions in different nodes.
pub(super) fn place(mut calls: Vec<GuardedCall>, input: LogicalPlan, names: &mut Names) -> Result<LogicalPlan> {
    let mut plan = input;
    while !calls.is_empty() {
        let waiting: Vec<String> = calls.iter().map(|call| call.output.name().clone()).collect();
        let (ready, later): (Vec<_>, Vec<_>) = calls.into_iter().partition(|call| {
            let mut exprs = call.guard.iter().chain(&call.args);
            exprs.all(|expr| !expr.column_refs().iter().any(|column| waiting.contains(&column.name)))
        });
        if ready.is_empty() {
            return not_impl_err!("AI calls that wait for one another");
        }
        for function in AiFunction::ALL {
            let mut same: Vec<_> = ready.iter().filter(|call| call.function == function).cloned().collect();
            if !same.is_empty() {
                plan = compute_subqueries(&mut same, plan, names)?;
                plan = GenerateNode::try_new(Arc::new(plan), same, None)?.into_plan();
            }
        }
        calls = later;
    }
    Ok(plan)
}

/// DataFusion joins subqueries of projections and filters but not of nodes it does not know, so arguments and
/// guards with a subquery become columns of a projection.
fn compute_subqueries(calls: &mut [GuardedCall], plan: LogicalPlan, names: &mut Names) -> Result<LogicalPlan> {
    let mut computed = Vec::new();
    for expr in calls.iter_mut().flat_map(|call| call.guard.iter_mut().chain(&mut call.args)) {
        if has_subquery(expr) {
            let name = names.next();
            computed.push(std::mem::replace(expr, column(&name)).alias(name));
        }
    }
    if computed.is_empty() {
        return Ok(plan);
    }
    let mut exprs: Vec<Expr> = plan.schema().columns().into_iter().map(Expr::Column).collect();
    exprs.append(&mut computed);
    LogicalPlanBuilder::from(plan).project(exprs)?.build()
}

/// True when `expr` has a subquery in it.
pub(super) fn has_subquery(expr: &Expr) -> bool {
    let is_subquery = |expr: &Expr| {
        matches!(expr, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_))
    };
    expr.exists(|expr| Ok(is_subquery(expr))).unwrap_or(false)
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

fn is_coalesce(function: &ScalarFunction) -> bool {
    matches!(function.name(), "coalesce" | "nvl" | "ifnull")
}

fn flatten(op: Operator, expr: Expr, operands: &mut Vec<Expr>) {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: inner, right }) if inner == op => {
            flatten(op, *left, operands);
            flatten(op, *right, operands);
        }
        other => operands.push(other),
    }
}
