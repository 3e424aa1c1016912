//! The statements of this module: continuous aggregates and retention.

use datafusion::sql::sqlparser::ast::{
    AlterTableOperation, CreateTableOptions, CreateView, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArguments, ObjectName, ObjectType, SqlOption, Statement as Sql, Value,
};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use hypr_common::{Error, Result};

use super::{continuous, retention};
use crate::dialect::{ddl, is_blank};
use crate::{DEFAULT_SCHEMA, Outcome, Session, TableRef};

/// What one of them does.
#[derive(Clone, Debug)]
pub(crate) enum SeriesStatement {
    CreateView { view: TableRef, query: String, if_not_exists: bool },
    DropViews { views: Vec<TableRef>, if_exists: bool },
    Refresh(TableRef),
    SetRetention { table: TableRef, keep: Option<String>, column: Option<String> },
    ApplyRetention(TableRef),
}

const REFRESH: &str = "refresh_continuous_aggregate";
const APPLY: &str = "apply_retention";

/// Spells out `WITH (continuous)` as `WITH (continuous = true)`, which is what sqlparser takes; TimescaleDB's
/// `timescaledb.continuous` means the same.
pub(crate) fn rewrite_tokens(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    let words = tokens.iter().filter(|token| !is_blank(&token.token)).take(5);
    let is_view = words.clone().any(|token| is_keyword(token, Keyword::MATERIALIZED))
        && words.clone().next().is_some_and(|token| is_keyword(token, Keyword::CREATE));
    if !is_view {
        return Ok(tokens);
    }
    let mut out: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len() + 2);
    let mut in_options = false;
    for (at, token) in tokens.iter().enumerate() {
        in_options |= is_keyword(token, Keyword::WITH);
        let is_continuous = matches!(&token.token, Token::Word(word) if word.value.eq_ignore_ascii_case("continuous"));
        if is_keyword(token, Keyword::AS) {
            out.extend_from_slice(&tokens[at..]);
            return Ok(out);
        }
        if in_options && is_continuous {
            let prefix = out.len().checked_sub(2);
            let is_prefixed = prefix.is_some_and(|prefix| {
                matches!(&out[prefix].token, Token::Word(word) if word.value.eq_ignore_ascii_case("timescaledb"))
                    && out[prefix + 1].token == Token::Period
            });
            out.truncate(if is_prefixed { out.len() - 2 } else { out.len() });
            out.push(token.clone());
            let next = tokens[at + 1..].iter().map(|token| &token.token).find(|token| !is_blank(token));
            if matches!(next, Some(Token::Comma | Token::RParen)) {
                let spelled = [Token::Eq, Token::make_keyword("true")];
                out.extend(spelled.map(|spelled| TokenWithSpan { token: spelled, span: token.span }));
            }
            continue;
        }
        out.push(token.clone());
    }
    Ok(out)
}

fn is_keyword(token: &TokenWithSpan, keyword: Keyword) -> bool {
    matches!(&token.token, Token::Word(word) if word.keyword == keyword)
}

impl SeriesStatement {
    /// The statement that `sql` is, if it is one of these.
    ///
    /// # Errors
    /// `InvalidInput` and `Unsupported`, saying what to write instead.
    pub(crate) fn of(sql: &Sql) -> Result<Option<Self>> {
        Ok(Some(match sql {
            Sql::CreateView(view) if view.materialized => create_view(view)?,
            Sql::Drop { object_type: ObjectType::MaterializedView, names, if_exists, .. } => {
                let views = names.iter().map(qualified).collect::<Result<_>>()?;
                Self::DropViews { views, if_exists: *if_exists }
            }
            Sql::Call(call) => match call.name.to_string().to_lowercase().as_str() {
                REFRESH => Self::Refresh(argument(call)?),
                APPLY => Self::ApplyRetention(argument(call)?),
                _ => return Ok(None),
            },
            Sql::AlterTable(alter) => match alter.operations.as_slice() {
                [AlterTableOperation::SetOptionsParens { options }] if sets_retention(options) => {
                    set_retention(&alter.name, options)?
                }
                _ => return Ok(None),
            },
            _ => return Ok(None),
        }))
    }

    /// Runs it.
    ///
    /// # Errors
    /// Those of what it does.
    pub(crate) async fn run(&self, session: &Session) -> Result<Outcome> {
        let affected = match self {
            Self::CreateView { view, query, if_not_exists } => {
                continuous::create(session, view, query, *if_not_exists).await?;
                0
            }
            Self::DropViews { views, if_exists } => {
                for view in views {
                    continuous::drop_view(session, view, *if_exists).await?;
                }
                0
            }
            Self::Refresh(view) => super::refresh_view(session, view, continuous::Scope::All).await?,
            Self::SetRetention { table, keep, column } => {
                retention::set(session, table, keep.as_deref(), column.as_deref()).await?;
                0
            }
            Self::ApplyRetention(table) => {
                let now_us = session.engine().database().clock().now_us();
                retention::apply(session, table, now_us).await?
            }
        };
        Ok(Outcome::Affected(affected))
    }
}

fn create_view(view: &CreateView) -> Result<SeriesStatement> {
    let options = match &view.options {
        CreateTableOptions::With(options) | CreateTableOptions::Options(options) => options.as_slice(),
        _ => &[],
    };
    let mut continuous = false;
    for option in options {
        match key_value(option)? {
            (key, Some(value)) if key == "continuous" && value.eq_ignore_ascii_case("true") => continuous = true,
            (key, _) => return Err(Error::invalid(format!("a materialized view has no option \"{key}\""))),
        }
    }
    if !continuous {
        return Err(Error::unsupported(
            "CREATE MATERIALIZED VIEW keeps continuous aggregates only; write CREATE MATERIALIZED VIEW .. \
             WITH (continuous) AS SELECT time_bucket(..) .. GROUP BY ..",
        ));
    }
    if view.or_replace || view.or_alter || view.temporary || !view.columns.is_empty() || !view.cluster_by.is_empty() {
        return Err(Error::unsupported(
            "a continuous aggregate is made by CREATE MATERIALIZED VIEW [IF NOT EXISTS] name WITH (continuous) AS \
             SELECT, and names its columns in the SELECT",
        ));
    }
    Ok(SeriesStatement::CreateView {
        view: qualified(&view.name)?,
        query: view.query.to_string(),
        if_not_exists: view.if_not_exists,
    })
}

/// The key of an option and its value as text; `None` for NULL.
fn key_value(option: &SqlOption) -> Result<(String, Option<String>)> {
    let SqlOption::KeyValue { key, value } = option else {
        return Err(Error::invalid(format!("option {option} is not of the form name = value")));
    };
    let text = match value {
        Expr::Value(value) => match &value.value {
            Value::Null => None,
            Value::SingleQuotedString(text) => Some(text.clone()),
            other => Some(other.to_string()),
        },
        other => Some(other.to_string()),
    };
    Ok((ddl::normalize(key), text))
}

fn sets_retention(options: &[SqlOption]) -> bool {
    options.iter().any(|option| matches!(key_value(option), Ok((key, _)) if key == retention::KIND))
}

fn set_retention(table: &ObjectName, options: &[SqlOption]) -> Result<SeriesStatement> {
    let (mut keep, mut column) = (None, None);
    for option in options {
        match key_value(option)? {
            (key, value) if key == retention::KIND => keep = value,
            (key, value) if key == "retention_column" => column = value,
            (key, _) => return Err(Error::invalid(format!("retention is set by itself, not with \"{key}\""))),
        }
    }
    Ok(SeriesStatement::SetRetention { table: qualified(table)?, keep, column })
}

/// The one argument of a procedure: a name as text.
fn argument(call: &Function) -> Result<TableRef> {
    if let FunctionArguments::List(list) = &call.args
        && let [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))] = list.args.as_slice()
        && let Value::SingleQuotedString(name) = &value.value
    {
        let (schema, name) = name.split_once('.').unwrap_or((DEFAULT_SCHEMA, name));
        return Ok(TableRef { schema: Some(schema.to_owned()), name: name.to_owned() });
    }
    Err(Error::invalid(format!("write CALL {}('name')", call.name)))
}

fn qualified(name: &ObjectName) -> Result<TableRef> {
    let mut table = ddl::table_ref(name)?;
    table.schema.get_or_insert_with(|| DEFAULT_SCHEMA.to_owned());
    Ok(table)
}
