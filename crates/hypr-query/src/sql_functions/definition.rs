//! `CREATE FUNCTION` as a definition, and its form in the catalog.

use arrow_schema::{Field, FieldRef};
use datafusion::sql::sqlparser::ast::{
    ArgMode, CreateFunction as CreateFunctionAst, CreateFunctionBody, DataType as SqlType, Expr, FunctionBehavior,
    FunctionCalledOnNull, FunctionDefinitionSetParam, FunctionReturnType, Ident, Value,
};
use datafusion::sql::sqlparser::parser::Parser;
use hypr_common::{Error, Result};
use hypr_storage::CatalogObject;
use serde_json::{Value as Json, json};
use std::sync::Arc;

use super::grammar::MARK;
use super::{KIND, function_name};
use crate::dialect::ddl::normalize;
use crate::dialect::types;
use crate::{DEFAULT_SCHEMA, dialect};

/// What `CREATE FUNCTION` asks for.
#[derive(Clone, Debug)]
pub(crate) struct CreateFunction {
    pub function: SqlFunction,
    pub or_replace: bool,
    pub if_not_exists: bool,
}

/// A function written in SQL. Types and defaults are kept as SQL text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SqlFunction {
    pub name: String,
    pub parameters: Vec<Parameter>,
    pub returns: Returns,
    /// A query, or with `is_expression` what stands after `RETURN`.
    pub body: String,
    /// NULL for any argument gives NULL.
    pub strict: bool,
}

/// One parameter; one without a name is called `$1`, `$2`, ..
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameter {
    pub name: String,
    pub sql_type: String,
    pub default: Option<String>,
}

/// What a function gives.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Returns {
    /// One value of a type.
    Value(String),
    /// One value of a type for a group of rows.
    Aggregate(String),
    /// Rows with these columns: names and types.
    Table(Vec<(String, String)>),
}

impl CreateFunction {
    pub(crate) fn from_ast(ast: &CreateFunctionAst) -> Result<Self> {
        let name = function_name(&ast.name)
            .ok_or_else(|| Error::invalid(format!("{} is no name of a function; names have no schema", ast.name)))?;
        let within = |error: Error| Error::new(error.kind(), format!("function \"{name}\": {}", error.message()));
        let function = function(&name, ast).map_err(within)?;
        // The types are checked here, the body when it is planned.
        function.parameter_fields().map_err(within)?;
        function.result_fields().map_err(within)?;
        Ok(Self { function, or_replace: ast.or_replace, if_not_exists: ast.if_not_exists })
    }
}

fn function(name: &str, ast: &CreateFunctionAst) -> Result<SqlFunction> {
    match ast.language.as_ref().map(|language| language.value.to_lowercase()) {
        Some(language) if language != "sql" => {
            return Err(Error::unsupported(format!("LANGUAGE {language} is not available; write LANGUAGE SQL")));
        }
        _ => {}
    }
    let is_aggregate = |set: &FunctionDefinitionSetParam| function_name(&set.name).as_deref() == Some(MARK);
    let (marks, settings): (Vec<_>, Vec<_>) = ast.set_params.iter().partition(|set| is_aggregate(set));
    if ast.temporary || ast.using.is_some() || !settings.is_empty() || ast.security.is_some() {
        return Err(Error::unsupported("TEMPORARY, USING, SET and SECURITY are not available"));
    }
    let mut parameters: Vec<Parameter> = Vec::new();
    for (index, argument) in ast.args.iter().flatten().enumerate() {
        if !matches!(argument.mode, None | Some(ArgMode::In)) {
            return Err(Error::unsupported("parameters are IN; to give back several values, return a TABLE"));
        }
        let name = argument.name.as_ref().map_or_else(|| format!("${}", index + 1), parameter_name);
        if parameters.iter().any(|other| other.name == name) {
            return Err(Error::invalid(format!("parameter \"{name}\" is declared twice")));
        }
        let default = argument.default_expr.as_ref().map(ToString::to_string);
        if default.is_none() && parameters.last().is_some_and(|before| before.default.is_some()) {
            return Err(Error::invalid(format!("parameter \"{name}\" follows one with a default and has none")));
        }
        parameters.push(Parameter { name, sql_type: argument.data_type.to_string(), default });
    }
    let strict =
        matches!(ast.called_on_null, Some(FunctionCalledOnNull::Strict | FunctionCalledOnNull::ReturnsNullOnNullInput));
    // Whether calls may be folded follows from what the body calls; the words are accepted as promises.
    let _: Option<&FunctionBehavior> = ast.behavior.as_ref();
    let returns = match (returns(ast.return_type.as_ref())?, marks.is_empty()) {
        (Returns::Value(sql_type), false) => Returns::Aggregate(sql_type),
        (Returns::Table(_), false) => {
            return Err(Error::invalid("an aggregate function returns one value, not a TABLE"));
        }
        (returns, _) => returns,
    };
    let body = body(ast.function_body.as_ref())?;
    Ok(SqlFunction { name: name.to_owned(), parameters, returns, body, strict })
}

/// The parser gives the name as it was written, quotes and all.
fn parameter_name(ident: &Ident) -> String {
    match ident.value.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => normalize(ident),
    }
}

fn returns(return_type: Option<&FunctionReturnType>) -> Result<Returns> {
    match return_type {
        None => Err(Error::invalid("RETURNS is missing: write RETURNS type or RETURNS TABLE (name type, ..)")),
        Some(FunctionReturnType::SetOf(_)) => {
            Err(Error::unsupported("RETURNS SETOF is not available; write RETURNS TABLE (name type, ..)"))
        }
        Some(FunctionReturnType::DataType(SqlType::Table(columns))) => {
            let columns = columns.iter().flatten();
            let columns: Vec<_> =
                columns.map(|column| (normalize(&column.name), column.data_type.to_string())).collect();
            if columns.is_empty() {
                return Err(Error::invalid("RETURNS TABLE needs the names and types of its columns"));
            }
            Ok(Returns::Table(columns))
        }
        Some(FunctionReturnType::DataType(data_type)) => Ok(Returns::Value(data_type.to_string())),
    }
}

fn body(body: Option<&CreateFunctionBody>) -> Result<String> {
    let usage = "the body is missing: write AS $$ SELECT .. $$ or RETURN expression";
    let text = match body {
        Some(CreateFunctionBody::AsBeforeOptions { body: Expr::Value(value), link_symbol: None }) => match &value.value
        {
            Value::DollarQuotedString(text) => text.value.clone(),
            Value::SingleQuotedString(text) => text.clone(),
            _ => return Err(Error::invalid(usage)),
        },
        Some(CreateFunctionBody::Return(expr)) => format!("SELECT {expr}"),
        _ => return Err(Error::invalid(usage)),
    };
    let statements = dialect::split::split_statements(&text);
    match statements.as_slice() {
        [only] => Ok(only.sql.clone()),
        [] => Err(Error::invalid(usage)),
        more => Err(Error::unsupported(format!("the body has {} statements; write one query", more.len()))),
    }
}

impl SqlFunction {
    /// A field a parameter.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown type.
    pub(crate) fn parameter_fields(&self) -> Result<Vec<FieldRef>> {
        self.parameters.iter().map(|parameter| field(&parameter.name, &parameter.sql_type).map(Arc::new)).collect()
    }

    /// A field a column of the result; a value is one column with the function's name.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown type.
    pub(crate) fn result_fields(&self) -> Result<Vec<FieldRef>> {
        match &self.returns {
            Returns::Value(sql_type) | Returns::Aggregate(sql_type) => Ok(vec![Arc::new(field(&self.name, sql_type)?)]),
            Returns::Table(columns) => {
                columns.iter().map(|(name, sql_type)| field(name, sql_type).map(Arc::new)).collect()
            }
        }
    }

    pub(crate) fn to_object(&self) -> Result<CatalogObject> {
        let parameters = self
            .parameters
            .iter()
            .map(|parameter| json!({"name": parameter.name, "type": parameter.sql_type, "default": parameter.default}));
        let mut definition = json!({
            "language": "sql",
            "parameters": parameters.collect::<Vec<_>>(),
            "body": self.body,
            "strict": self.strict,
        });
        match &self.returns {
            Returns::Value(sql_type) => definition["returns"] = json!(sql_type),
            Returns::Aggregate(sql_type) => {
                definition["returns"] = json!(sql_type);
                definition["aggregate"] = json!(true);
            }
            Returns::Table(columns) => {
                let columns = columns.iter().map(|(name, sql_type)| json!({"name": name, "type": sql_type}));
                definition["returns_table"] = json!(columns.collect::<Vec<_>>());
            }
        }
        Ok(CatalogObject {
            kind: KIND.to_owned(),
            schema_name: DEFAULT_SCHEMA.to_owned(),
            name: self.name.clone(),
            definition,
        })
    }

    /// Reads what [`Self::to_object`] wrote.
    ///
    /// # Errors
    /// `Corrupted` for anything else.
    pub(crate) fn from_object(object: &CatalogObject) -> Result<Self> {
        let read = || {
            let definition = &object.definition;
            let text = |value: &Json, key: &str| value.get(key)?.as_str().map(str::to_owned);
            let parameters = definition.get("parameters")?.as_array()?.iter().map(|parameter| {
                Some(Parameter {
                    name: text(parameter, "name")?,
                    sql_type: text(parameter, "type")?,
                    default: text(parameter, "default"),
                })
            });
            let returns = match text(definition, "returns") {
                Some(sql_type) if definition.get("aggregate").is_some() => Returns::Aggregate(sql_type),
                Some(sql_type) => Returns::Value(sql_type),
                None => {
                    let columns = definition.get("returns_table")?.as_array()?.iter();
                    let columns = columns.map(|column| Some((text(column, "name")?, text(column, "type")?)));
                    Returns::Table(columns.collect::<Option<_>>()?)
                }
            };
            Some(Self {
                name: object.name.clone(),
                parameters: parameters.collect::<Option<_>>()?,
                returns,
                body: text(definition, "body")?,
                strict: definition.get("strict")?.as_bool()?,
            })
        };
        read().ok_or_else(|| Error::corrupted(format!("the definition of function \"{}\" is damaged", object.name)))
    }
}

fn field(name: &str, sql_type: &str) -> Result<Field> {
    let parse = || Parser::new(&dialect::sql_dialect::HyprDialect::default()).try_with_sql(sql_type)?.parse_data_type();
    let data_type = parse().map_err(|_| Error::invalid(format!("unknown type {sql_type}")))?;
    types::field(name, &data_type, true)
}
