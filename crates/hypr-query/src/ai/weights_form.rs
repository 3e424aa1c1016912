//! `generate_response(tokens, weight_data, config)` beside a query that selects rows of `model_weights`.
//!
//! A query that selects `weight_data` has a row for each piece of each tensor, and the call means one answer for
//! each row of input. So where a statement has such a call, a `SELECT` from `model_weights` that selects the column
//! bare becomes one row, which says which layers of which models the query chose, and the call checks that they are
//! one whole model and asks that model. No weight is read.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgOperator, FunctionArgumentList, FunctionArguments,
    GroupByExpr, Ident, ObjectName, ObjectNamePart, Select, SelectItem, Statement as Sql, TableFactor, VisitMut,
    VisitorMut,
};

use crate::dialect::ddl::normalize;
use crate::models::{PROMPT_OF, SELECTED_WEIGHTS, WHOLE_MODEL};

const WEIGHTS_TABLE: &str = "model_weights";
const WEIGHTS_COLUMN: &str = "weight_data";

/// Rewrites calls of that form and the queries that they take weights from.
pub(crate) fn rewrite_statement(statement: &mut Statement) {
    match statement {
        Statement::Statement(sql) => rewrite_sql(sql),
        Statement::Explain(explain) => rewrite_statement(&mut explain.statement),
        _ => {}
    }
}

fn rewrite_sql(sql: &mut Sql) {
    let mut names = Names(vec![WEIGHTS_COLUMN.to_owned()]);
    let _ = sql.visit(&mut names);
    let mut calls = Calls { names: &names.0, found: false };
    let _ = sql.visit(&mut calls);
    if calls.found {
        let _ = sql.visit(&mut Selections);
    }
}

/// What the column is called: its name, and the aliases it is selected under.
struct Names(Vec<String>);

impl VisitorMut for Names {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        for item in &select.projection {
            if let SelectItem::ExprWithAlias { expr, alias } = item
                && column(expr).is_some_and(|name| normalize(name) == WEIGHTS_COLUMN)
            {
                self.0.push(normalize(alias));
            }
        }
        ControlFlow::Continue(())
    }
}

/// The last part of a column's name.
fn column(expr: &Expr) -> Option<&Ident> {
    match expr {
        Expr::Identifier(ident) => Some(ident),
        Expr::CompoundIdentifier(parts) => parts.last(),
        _ => None,
    }
}

struct Calls<'a> {
    names: &'a [String],
    found: bool,
}

impl VisitorMut for Calls<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && function.name.to_string().eq_ignore_ascii_case("generate_response")
            && let FunctionArguments::List(list) = &mut function.args
            && let [tokens, weights, config] = unnamed(list).as_slice()
            && column(weights).is_some_and(|name| self.names.contains(&normalize(name)))
        {
            let prompt = call(PROMPT_OF, vec![tokens.clone(), weights.clone()]);
            let model = call(WHOLE_MODEL, vec![weights.clone(), config.clone()]);
            list.args.retain(|argument| !matches!(argument, FunctionArg::Unnamed(_)));
            list.args.insert(0, FunctionArg::Unnamed(FunctionArgExpr::Expr(prompt)));
            list.args.push(FunctionArg::Named {
                name: Ident::new("model"),
                arg: FunctionArgExpr::Expr(model),
                operator: FunctionArgOperator::RightArrow,
            });
            self.found = true;
        }
        ControlFlow::Continue(())
    }
}

fn unnamed(list: &FunctionArgumentList) -> Vec<Expr> {
    let exprs = list.args.iter().filter_map(|argument| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    });
    exprs.collect()
}

/// Makes one row of each `SELECT` of weights.
struct Selections;

impl VisitorMut for Selections {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(exprs, _) if exprs.is_empty());
        if !grouped
            && select.distinct.is_none()
            && select.having.is_none()
            && let Some(relation) = weights_relation(select)
        {
            let selects_weights = select.projection.iter().any(|item| selected(item).is_some_and(|(_, is)| is));
            let plain = select.projection.iter().all(|item| selected(item).is_some());
            if selects_weights && plain {
                select.projection.iter_mut().for_each(|item| fold(item, &relation));
            }
        }
        ControlFlow::Continue(())
    }
}

/// What `model_weights` is called in this `FROM`.
fn weights_relation(select: &Select) -> Option<Ident> {
    let relations = select
        .from
        .iter()
        .flat_map(|table| std::iter::once(&table.relation).chain(table.joins.iter().map(|join| &join.relation)));
    relations
        .filter_map(|relation| match relation {
            TableFactor::Table { name, alias, args: None, .. } => match name.0.last()? {
                ObjectNamePart::Identifier(ident) if normalize(ident) == WEIGHTS_TABLE => {
                    Some(alias.as_ref().map_or_else(|| ident.clone(), |alias| alias.name.clone()))
                }
                _ => None,
            },
            _ => None,
        })
        .next()
}

/// The name of a selected expression, and whether it is the column of weights; none for `*`.
fn selected(item: &SelectItem) -> Option<(Ident, bool)> {
    let is_weights = |expr: &Expr| column(expr).is_some_and(|name| normalize(name) == WEIGHTS_COLUMN);
    match item {
        SelectItem::UnnamedExpr(expr) => {
            let name = column(expr).cloned().unwrap_or_else(|| Ident::with_quote('"', expr.to_string()));
            Some((name, is_weights(expr)))
        }
        SelectItem::ExprWithAlias { expr, alias } => Some((alias.clone(), is_weights(expr))),
        _ => None,
    }
}

fn fold(item: &mut SelectItem, relation: &Ident) {
    let Some((alias, is_weights)) = selected(item) else {
        return;
    };
    let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = &*item else {
        return;
    };
    let expr = if is_weights {
        let column = |name: &str| Expr::CompoundIdentifier(vec![relation.clone(), Ident::new(name)]);
        call(SELECTED_WEIGHTS, vec![column("model_id"), column("layer_id")])
    } else {
        // The same for all rows of a model.
        call("min", vec![expr.clone()])
    };
    *item = SelectItem::ExprWithAlias { expr, alias };
}

fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args.into_iter().map(|value| FunctionArg::Unnamed(FunctionArgExpr::Expr(value))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
