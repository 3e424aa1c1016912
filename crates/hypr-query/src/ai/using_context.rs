//! What AI calls add to the SQL grammar: `FROM model USING CONTEXT (query)`, `FROM model`, named options.
//!
//! A derived table with a marked alias carries the model's name from the tokens to the planner of relations;
//! the mark has a character that no name typed by accident has.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident,
    ObjectName, ObjectNamePart, Query, Select, SelectItem, Statement as Sql, TableFactor, Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Word};
use hypr_common::{Error, Result};

use super::context::PASSAGES;
use super::function::AiFunction;
use super::options;
use crate::error;

/// What starts the alias that carries a model's name.
const MARK: &str = "hyprstream\u{1}model:";
/// The relation that `FROM model` becomes.
pub(super) const MODEL_ALIAS: &str = "__model";

/// The model that `ident` carries, if it does.
pub(super) fn marked_model(ident: &Ident) -> Option<&str> {
    ident.value.strip_prefix(MARK)
}

fn mark(model: &str) -> String {
    format!("{MARK}{model}")
}

/// Turns `FROM model USING CONTEXT (query)` into `FROM (query) AS "<marker>"`, which every dialect parses.
/// Tokens keep the positions of the text.
///
/// # Errors
/// `InvalidInput` with a position when `USING CONTEXT` is not followed by a query in parentheses, or does not
/// follow the name of a model.
pub fn rewrite_tokens(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    let solid: Vec<usize> = (0..tokens.len()).filter(|at| !is_blank(&tokens[*at].token)).collect();
    let mut names = Vec::new();
    for window in solid.windows(2) {
        if word(&tokens[window[0]]).is_some_and(|word| word.keyword == Keyword::USING)
            && word(&tokens[window[1]]).is_some_and(|word| is_word(word, "CONTEXT"))
        {
            names.push((window[0], window[1]));
        }
    }
    if names.is_empty() {
        return Ok(tokens);
    }
    let mut drops = vec![false; tokens.len()];
    let mut closings = Vec::with_capacity(names.len());
    for (using, context) in names {
        let at = tokens[using].span.start;
        let before = solid.iter().rev().find(|solid| **solid < using).copied();
        let Some((name, model)) = before.and_then(|name| word(&tokens[name]).map(|word| (name, model_name(word))))
        else {
            return Err(misplaced("expected the name of a model before USING CONTEXT", at));
        };
        let open = solid.iter().find(|solid| **solid > context).copied();
        let close = open.filter(|open| tokens[*open].token == Token::LParen).and_then(|open| closing(&tokens, open));
        let Some(close) = close else {
            return Err(misplaced("expected a query in parentheses after USING CONTEXT", at));
        };
        drops[name] = true;
        drops[using] = true;
        drops[context] = true;
        closings.push((close, mark(&model)));
    }
    let mut rewritten = Vec::with_capacity(tokens.len() + closings.len());
    for (at, token) in tokens.into_iter().enumerate() {
        let span = token.span;
        if !drops[at] {
            rewritten.push(token);
        }
        if let Some((_, alias)) = closings.iter().find(|(close, _)| *close == at) {
            rewritten.push(TokenWithSpan::new(Token::make_keyword("AS"), span));
            rewritten.push(TokenWithSpan::new(Token::make_word(alias, Some('"')), span));
        }
    }
    Ok(rewritten)
}

fn misplaced(message: &str, at: Location) -> Error {
    error::syntax(message, at.line, at.column)
}

fn is_blank(token: &Token) -> bool {
    matches!(token, Token::Whitespace(_))
}

fn word(token: &TokenWithSpan) -> Option<&Word> {
    match &token.token {
        Token::Word(word) => Some(word),
        _ => None,
    }
}

fn is_word(word: &Word, text: &str) -> bool {
    word.quote_style.is_none() && word.value.eq_ignore_ascii_case(text)
}

/// Names without quotes are lower case.
fn model_name(word: &Word) -> String {
    if word.quote_style.is_some() { word.value.clone() } else { word.value.to_lowercase() }
}

/// The parenthesis that closes the one at `open`.
fn closing(tokens: &[TokenWithSpan], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.token {
            Token::LParen => depth += 1,
            Token::RParen => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Rewrites AI calls in a parsed statement, to be called before tables are resolved: named options become
/// arguments, calls beside `USING CONTEXT` get its passages and model, `FROM model` of a model that is no table
/// becomes one row. `is_table` and `is_model` answer for a name in the current schema, normalised.
///
/// # Errors
/// `InvalidInput` for an unknown or repeated option; the message lists the valid ones.
pub fn rewrite_statement(
    statement: &mut Statement,
    is_table: &dyn Fn(&str) -> bool,
    is_model: &dyn Fn(&str) -> bool,
) -> Result<()> {
    match statement {
        Statement::Statement(sql) => rewrite_sql(sql, is_table, is_model),
        Statement::Explain(explain) => rewrite_statement(&mut explain.statement, is_table, is_model),
        _ => Ok(()),
    }
}

fn rewrite_sql(sql: &mut Sql, is_table: &dyn Fn(&str) -> bool, is_model: &dyn Fn(&str) -> bool) -> Result<()> {
    let mut ctes = Ctes::default();
    let _ = sql.visit(&mut ctes);
    let is_model = |name: &str| !ctes.0.iter().any(|cte| cte == name) && !is_table(name) && is_model(name);
    let mut models = Models { is_model: &is_model };
    if let ControlFlow::Break(error) = sql.visit(&mut models) {
        return Err(error);
    }
    match sql.visit(&mut Options) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// The names of common table expressions.
#[derive(Default)]
struct Ctes(Vec<String>);

impl VisitorMut for Ctes {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        self.0.extend(query.with.iter().flat_map(|with| &with.cte_tables).map(|cte| normalised(&cte.alias.name)));
        ControlFlow::Continue(())
    }
}

fn normalised(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// Finds `FROM model` and gives the calls beside it the model and the passages.
struct Models<'a> {
    is_model: &'a dyn Fn(&str) -> bool,
}

impl VisitorMut for Models<'_> {
    type Break = Error;

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Error> {
        name_calls(select);
        let mut found = None;
        let calls = has_call(select);
        for table in &mut select.from {
            let joined = table.joins.iter_mut().map(|join| &mut join.relation);
            for relation in std::iter::once(&mut table.relation).chain(joined) {
                let Some(model) = self.model_of(relation, calls) else {
                    continue;
                };
                if found.replace(model).is_some() {
                    return ControlFlow::Break(Error::invalid("a SELECT takes one model in FROM"));
                }
            }
        }
        match found {
            Some((model, passages)) => give(select, &model, passages),
            None => ControlFlow::Continue(()),
        }
    }
}

impl Models<'_> {
    /// The model that `relation` names, and whether it comes with passages.
    fn model_of(&self, relation: &mut TableFactor, calls: bool) -> Option<(String, bool)> {
        match relation {
            TableFactor::Derived { alias: Some(alias), .. } => {
                marked_model(&alias.name).map(|model| (model.to_owned(), true))
            }
            TableFactor::Table { name, alias: None, args: None, .. } if calls => match name.0.as_mut_slice() {
                [ObjectNamePart::Identifier(ident)] if (self.is_model)(&normalised(ident)) => {
                    let model = normalised(ident);
                    *ident = Ident { value: mark(&model), quote_style: Some('"'), span: ident.span };
                    Some((model, false))
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// True when the select, its subqueries apart, generates text.
fn has_call(select: &mut Select) -> bool {
    let mut found = false;
    let _: ControlFlow<()> = own_calls(select, &mut |_| {
        found = true;
        ControlFlow::Continue(())
    });
    found
}

/// Adds `model => model` and the passages to the select's own calls; options the caller gave stay.
fn give(select: &mut Select, model: &str, passages: bool) -> ControlFlow<Error> {
    own_calls(select, &mut |function| {
        let FunctionArguments::List(list) = &mut function.args else {
            return ControlFlow::Continue(());
        };
        let given: Vec<String> = list.args.iter().filter_map(option_name).collect();
        let mut add = |name: &str, value: Expr| {
            if !given.iter().any(|given| given == name) {
                list.args.push(named(name, value));
            }
        };
        add("model", Expr::value(Value::SingleQuotedString(model.to_owned())));
        if passages {
            let column = [MODEL_ALIAS, PASSAGES].map(|name| Ident::with_quote('"', name));
            add(options::CONTEXT, Expr::CompoundIdentifier(column.to_vec()));
        }
        ControlFlow::Continue(())
    })
}

fn named(name: &str, value: Expr) -> FunctionArg {
    FunctionArg::Named {
        name: Ident::new(name),
        arg: FunctionArgExpr::Expr(value),
        operator: datafusion::sql::sqlparser::ast::FunctionArgOperator::RightArrow,
    }
}

/// Visits calls of `generate_response` in `select` that are not in a query inside it.
fn own_calls<B>(select: &mut Select, visit: &mut dyn FnMut(&mut Function) -> ControlFlow<B>) -> ControlFlow<B> {
    struct Own<'a, B> {
        depth: usize,
        visit: &'a mut dyn FnMut(&mut Function) -> ControlFlow<B>,
    }
    impl<B> VisitorMut for Own<'_, B> {
        type Break = B;

        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<B> {
            self.depth += 1;
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<B> {
            self.depth -= 1;
            ControlFlow::Continue(())
        }

        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<B> {
            match expr {
                Expr::Function(function)
                    if self.depth == 0 && ai_function(&function.name) == Some(AiFunction::Generate) =>
                {
                    (self.visit)(function)
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    select.visit(&mut Own { depth: 0, visit })
}

fn ai_function(name: &ObjectName) -> Option<AiFunction> {
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(ident)] => AiFunction::of_name(&ident.value),
        _ => None,
    }
}

/// An AI call that is a column of its own and has no alias is named after the function, once.
fn name_calls(select: &mut Select) {
    let taken: Vec<String> = select
        .projection
        .iter()
        .filter_map(|item| match item {
            SelectItem::ExprWithAlias { alias, .. } => Some(normalised(alias)),
            SelectItem::UnnamedExpr(Expr::Identifier(ident)) => Some(normalised(ident)),
            _ => None,
        })
        .collect();
    for function in AiFunction::ALL {
        let mut number = 0;
        for item in &mut select.projection {
            let SelectItem::UnnamedExpr(Expr::Function(call)) = item else {
                continue;
            };
            if ai_function(&call.name) != Some(function) {
                continue;
            }
            number += 1;
            let name = if number == 1 { function.name().to_owned() } else { format!("{}_{number}", function.name()) };
            if !taken.contains(&name) {
                *item = SelectItem::ExprWithAlias { expr: Expr::Function(call.clone()), alias: Ident::new(name) };
            }
        }
    }
}

/// Turns named options into arguments, and gives parameters of AI calls their types.
struct Options;

impl VisitorMut for Options {
    type Break = Error;

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        let Expr::Function(function) = expr else {
            return ControlFlow::Continue(());
        };
        match ai_function(&function.name) {
            Some(ai) => encode(function, ai).map_or_else(ControlFlow::Break, ControlFlow::Continue),
            None => ControlFlow::Continue(()),
        }
    }
}

fn encode(function: &mut Function, ai: AiFunction) -> Result<()> {
    let FunctionArguments::List(list) = &mut function.args else {
        return Ok(());
    };
    let (named, mut plain): (Vec<_>, Vec<_>) =
        std::mem::take(&mut list.args).into_iter().partition(|arg| option_name(arg).is_some());
    let mut names = Vec::with_capacity(named.len());
    let mut values = Vec::with_capacity(named.len());
    for option in named {
        let (Some(name), Some(mut value)) = (option_name(&option), option_value(option)) else {
            continue;
        };
        let parameter = options::find(ai, &name)?.parameter.clone();
        if names.contains(&name) {
            return Err(Error::invalid(format!("option \"{name}\" of {} is given twice", ai.name())));
        }
        type_parameter(&mut value, parameter);
        names.push(name);
        values.push(FunctionArg::Unnamed(FunctionArgExpr::Expr(value)));
    }
    for (at, arg) in plain.iter_mut().enumerate() {
        if let FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) = arg {
            let labels = || DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(DataType::Text), None));
            type_parameter(
                value,
                match (ai, at) {
                    (AiFunction::Classify, 1) => Some(labels()),
                    // What is bound may be a text, a picture or sound.
                    (AiFunction::Embed, _) => None,
                    _ => Some(DataType::Text),
                },
            );
        }
    }
    if !names.is_empty() {
        let names = Expr::value(Value::SingleQuotedString(names.join(",")));
        list.args.push(FunctionArg::Unnamed(FunctionArgExpr::Expr(names)));
        list.args.append(&mut values);
        function.name = ObjectName::from(vec![Ident::new(ai.name_with_options())]);
    }
    list.args.append(&mut plain);
    Ok(())
}

fn option_name(arg: &FunctionArg) -> Option<String> {
    match arg {
        FunctionArg::Named { name, .. } => Some(normalised(name)),
        FunctionArg::ExprNamed { name: Expr::Identifier(name), .. } => Some(normalised(name)),
        _ => None,
    }
}

fn option_value(arg: FunctionArg) -> Option<Expr> {
    match arg {
        FunctionArg::Named { arg: FunctionArgExpr::Expr(value), .. }
        | FunctionArg::ExprNamed { arg: FunctionArgExpr::Expr(value), .. } => Some(value),
        _ => None,
    }
}

/// A bare parameter has no type of its own; a cast gives it one.
fn type_parameter(value: &mut Expr, data_type: Option<DataType>) {
    let is_parameter = matches!(value, Expr::Value(value) if matches!(value.value, Value::Placeholder(_)));
    if let (true, Some(data_type)) = (is_parameter, data_type) {
        let expr = Box::new(std::mem::replace(value, Expr::value(Value::Null)));
        *value = Expr::Cast { kind: CastKind::Cast, expr, data_type, array: false, format: None };
    }
}
