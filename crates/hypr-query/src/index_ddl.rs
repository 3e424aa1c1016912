//! `CREATE INDEX .. USING FTS`, and `DROP INDEX` of any kind.
//!
//! A text index is a named, durable definition in the catalog; what it describes is a cache in memory that is made
//! from the rows and follows them by itself. Indexes of vectors are made in [`crate::vector_search`].

use std::collections::BTreeMap;

use datafusion::sql::sqlparser::ast::{BinaryOperator, CreateIndex as CreateIndexAst, Expr, IndexType, Value};
use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{CatalogObject, Database, Replace, Table, TextOptions};
use serde_json::{Value as Json, json};

use crate::dialect::ddl;
use crate::{DEFAULT_SCHEMA, Outcome, Session, TableRef};

/// The kind of catalog object.
const OBJECT: &str = "text_index";

/// What `CREATE INDEX .. USING FTS` asks for.
#[derive(Clone, Debug)]
pub(crate) struct CreateTextIndex {
    pub name: Option<String>,
    pub table: TableRef,
    pub column: String,
    /// As written, names in lower case.
    pub options: BTreeMap<String, String>,
    pub if_not_exists: bool,
}

impl CreateTextIndex {
    /// True for an index of words.
    pub(crate) fn is_meant(ast: &CreateIndexAst) -> bool {
        matches!(&ast.using, Some(IndexType::Custom(name)) if name.value.eq_ignore_ascii_case("fts"))
    }

    pub(crate) fn from_ast(ast: &CreateIndexAst) -> Result<Self> {
        let refused = [
            (ast.unique, "UNIQUE"),
            (!ast.include.is_empty(), "INCLUDE"),
            (ast.predicate.is_some(), "WHERE"),
            (ast.nulls_distinct.is_some(), "NULLS DISTINCT"),
            (!ast.alter_options.is_empty(), "its options"),
        ];
        if let Some((_, clause)) = refused.iter().find(|(given, _)| *given) {
            return Err(Error::unsupported(format!("CREATE INDEX with {clause} is not available")));
        }
        let [column] = ast.columns.as_slice() else {
            return Err(Error::invalid("an index is on one column"));
        };
        let column = match &column.column.expr {
            Expr::Identifier(ident) => ddl::normalize(ident),
            other => return Err(Error::invalid(format!("an index is on a column, not on {other}"))),
        };
        let mut table = ddl::table_ref(&ast.table_name)?;
        table.schema.get_or_insert_with(|| DEFAULT_SCHEMA.to_owned());
        let name = ast.name.as_ref().map(|name| ddl::table_ref(name).map(|name| name.name)).transpose()?;
        let options = ast.with.iter().map(option).collect::<Result<_>>()?;
        Ok(Self { name, table, column, options, if_not_exists: ast.if_not_exists })
    }
}

/// `name = value`.
fn option(expr: &Expr) -> Result<(String, String)> {
    if let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = expr
        && let Expr::Identifier(name) = left.as_ref()
    {
        let value = match right.as_ref() {
            Expr::Value(value) => match &value.value {
                Value::SingleQuotedString(text) => text.clone(),
                other => other.to_string(),
            },
            Expr::Identifier(word) => word.value.clone(),
            other => other.to_string(),
        };
        return Ok((ddl::normalize(name), value.to_lowercase()));
    }
    Err(Error::invalid(format!("index option {expr} is not of the form name = value")))
}

/// A defined index.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    pub schema: String,
    pub name: String,
    pub table: String,
    pub column: String,
    pub options: Json,
}

impl Index {
    fn of(object: &CatalogObject) -> Self {
        let text = |name: &str| object.definition.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
        Self {
            schema: object.schema_name.clone(),
            name: object.name.clone(),
            table: text("table"),
            column: text("column"),
            options: object.definition.get("options").cloned().unwrap_or(Json::Null),
        }
    }
}

/// The indexes of a table.
pub(crate) fn indexes(database: &Database, table: &Table) -> Vec<Index> {
    let definition = table.definition();
    let all = database.objects(OBJECT);
    let all = all.iter().map(Index::of);
    all.filter(|index| index.schema == definition.schema_name && index.table == definition.name).collect()
}

/// How the words of a column are made: as its index says, if it has one.
pub(crate) fn text_options(database: &Database, table: &Table, column: &str) -> Result<TextOptions> {
    let found = indexes(database, table).into_iter().find(|index| index.column == column);
    let Some(index) = found else { return Ok(TextOptions::default()) };
    serde_json::from_value(index.options)
        .map_err(|e| Error::corrupted(format!("the definition of index {} is damaged: {e}", index.name)))
}

/// Defines an index and makes it.
pub(crate) async fn create(session: &Session, create: &CreateTextIndex) -> Result<Outcome> {
    let database = session.engine().database();
    let table = session.catalog().stored(&create.table)?;
    let name = create.name.clone().unwrap_or_else(|| format!("{}_{}_idx", create.table.name, create.column));
    if database.object(OBJECT, create.table.schema_name(), &name).is_some() && create.if_not_exists {
        return Ok(Outcome::Affected(0));
    }
    let known = indexes(database, &table);
    if let Some(other) = known.iter().find(|other| other.column == create.column && other.name != name) {
        let column = &create.column;
        let message = format!("column \"{column}\" has a text index already: \"{}\"; drop it first", other.name);
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    let taken = database.vector_indexes()?;
    if taken.iter().any(|other| other.schema_name == create.table.schema_name() && other.name == name) {
        return Err(Error::new(ErrorKind::AlreadyExists, format!("index {name} exists already; choose another name")));
    }
    let options = text_index_options(&create.options)?;
    let definition = json!({
        "table": create.table.name, "column": create.column, "options": options,
    });
    let schema_name = create.table.schema_name().to_owned();
    if database.object(OBJECT, &schema_name, &name).is_none() {
        // Before it is defined: a column that cannot have it is refused here.
        make(&table, create, &options).await?;
    }
    let object = CatalogObject { kind: OBJECT.to_owned(), schema_name, name, definition };
    database.put_object(object, Replace::Never).await?;
    Ok(Outcome::Affected(0))
}

async fn make(table: &Table, create: &CreateTextIndex, options: &Json) -> Result<()> {
    let options: TextOptions = serde_json::from_value(options.clone())
        .map_err(|e| Error::internal("the options of a text index do not fit").with_source(e))?;
    let size = table.build_text_index(&create.column, &options).await?;
    tracing::info!(table = %create.table, column = %create.column, rows = size.rows, bytes = size.bytes, "text index built");
    Ok(())
}

/// The options as the catalog keeps them.
fn text_index_options(given: &BTreeMap<String, String>) -> Result<Json> {
    let mut options = TextOptions::default();
    for (name, value) in given {
        let flag = || match value.as_str() {
            "true" | "on" | "1" => Ok(true),
            "false" | "off" | "0" => Ok(false),
            _ => Err(Error::invalid(format!("index option {name} is true or false, not {value}"))),
        };
        match name.as_str() {
            "stemming" => options.stemming = flag()?,
            "stop_words" => options.stop_words = flag()?,
            "ascii_folding" => options.ascii_folding = flag()?,
            "language" => options.language.clone_from(value),
            _ => {
                return Err(Error::invalid(format!(
                    "index option {name} is not known; FTS has: stemming, stop_words, ascii_folding, language"
                )));
            }
        }
    }
    options.check()?;
    serde_json::to_value(options)
        .map_err(|e| Error::internal("the options of a text index have no form").with_source(e))
}

/// Drops indexes by name.
pub(crate) async fn drop(session: &Session, names: &[TableRef], if_exists: bool) -> Result<Outcome> {
    let database = session.engine().database();
    for name in names {
        let (schema, name) = (name.schema_name(), name.name.as_str());
        let Some(object) = database.object(OBJECT, schema, name) else {
            database.drop_vector_index(schema, name, if_exists).await?;
            continue;
        };
        let index = Index::of(&object);
        database.drop_object(OBJECT, schema, name, if_exists).await?;
        if let Some(table) = database.table(&index.schema, &index.table) {
            table.forget_text_index(&index.column);
        }
    }
    Ok(Outcome::Affected(0))
}

/// Drops the indexes of a table that is gone.
pub(crate) async fn forget_table(database: &Database, table: &TableRef) -> Result<()> {
    for object in database.objects(OBJECT) {
        let index = Index::of(&object);
        if index.schema == table.schema_name() && index.table == table.name {
            database.drop_object(OBJECT, &index.schema, &index.name, true).await?;
        }
    }
    Ok(())
}
