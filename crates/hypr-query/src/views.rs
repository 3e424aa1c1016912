//! Views: queries with a name, kept in the catalog and planned into the statements that use them.
//!
//! A view keeps the text of its query, the columns that the query had when the view was made (so `*` does not grow
//! with its tables), and the tables and columns it uses. What it uses is not dropped, renamed or widened under it.
//! Deliberately absent: materialised views (see continuous aggregates) and changes of rows through views.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::Arc;

use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow_schema::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session as CatalogSession, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, Result as DfResult, TableReference, not_impl_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{CreateView as CreateViewAst, Query, Statement as Sql};
use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{CatalogObject, Replace};
use serde_json::{Value, json};

use crate::dialect::ddl::normalize;
use crate::planner::table_ref;
use crate::series::continuous;
use crate::{Outcome, Session, TableRef, ddl as run_ddl, dialect, error, prepared, shape};

/// The kind of views in the catalog.
pub(crate) const KIND: &str = "view";

/// `CREATE VIEW`.
#[derive(Clone, Debug)]
pub(crate) struct CreateView {
    view: TableRef,
    replace: Replace,
    /// Names of the columns; none for those of the query.
    columns: Vec<String>,
    query: Box<Query>,
}

impl CreateView {
    pub(crate) fn new(ast: &CreateViewAst) -> Result<Self> {
        if ast.materialized {
            return Err(Error::unsupported(
                "CREATE MATERIALIZED VIEW: see continuous aggregates, or CREATE TABLE .. AS",
            ));
        }
        if ast.temporary || ast.secure || ast.to.is_some() || !ast.cluster_by.is_empty() || ast.params.is_some() {
            return Err(Error::unsupported("CREATE VIEW takes a name, columns and a query"));
        }
        let replace = match (ast.or_replace || ast.or_alter, ast.if_not_exists) {
            (true, true) => return Err(Error::invalid("write OR REPLACE or IF NOT EXISTS, not both")),
            (true, false) => Replace::Always,
            (false, true) => Replace::KeepExisting,
            (false, false) => Replace::Never,
        };
        let columns = ast.columns.iter().map(|column| normalize(&column.name)).collect();
        Ok(Self { view: prepared::qualified(&ast.name)?, replace, columns, query: ast.query.clone() })
    }

    /// Runs it.
    pub(crate) async fn run(&self, session: &Session) -> Result<Outcome> {
        let (schema_name, name) = (self.view.schema_name().to_owned(), self.view.name.clone());
        let exists = session.engine().database().object(KIND, &schema_name, &name).is_some();
        if !exists {
            run_ddl::check_new_name(session, &self.view)?;
        }
        let state = session.statement_state();
        let statement = Statement::Statement(Box::new(Sql::Query(self.query.clone())));
        let planner = session.planner(&state);
        let plan = planner.plan_view(statement.clone(), std::slice::from_ref(&self.view)).await?;
        if !prepared::parameters_of(&plan)?.is_empty() {
            return Err(Error::invalid("a view takes no parameters"));
        }
        let queried = shape::result_schema(&state, &plan)?;
        let schema = self.schema(&queried)?;
        let relations = state.resolve_table_references(&statement).map_err(error::from_datafusion)?;
        let source = plan.schema().fields().iter().map(|field| field.name().clone());
        let definition = Definition {
            query: self.query.to_string(),
            source: source.collect(),
            schema,
            uses: uses(session, &state, &plan, &relations)?,
        };
        let object = CatalogObject { kind: KIND.to_owned(), schema_name, name, definition: definition.to_json()? };
        session.engine().database().put_object(object, self.replace).await?;
        Ok(Outcome::Affected(0))
    }

    /// The columns of the view.
    fn schema(&self, query: &Schema) -> Result<SchemaRef> {
        let mut fields: Vec<_> = query.fields().iter().map(|field| field.as_ref().clone()).collect();
        if self.columns.len() > fields.len() {
            return Err(Error::invalid(format!(
                "the view names {} columns and its query has {}",
                self.columns.len(),
                fields.len()
            )));
        }
        for (field, name) in fields.iter_mut().zip(&self.columns) {
            *field = field.clone().with_name(name);
        }
        for (at, field) in fields.iter().enumerate() {
            if fields[..at].iter().any(|other| other.name() == field.name()) {
                return Err(Error::invalid(format!(
                    "the view would have two columns called \"{}\"; give one another name",
                    field.name()
                )));
            }
        }
        Ok(Arc::new(Schema::new(fields)))
    }
}

/// Refuses the name of a view for a table.
///
/// # Errors
/// `AlreadyExists`.
pub(crate) fn refuse_name(session: &Session, name: &TableRef) -> Result<()> {
    match is_view(session, name) {
        true => Err(Error::new(ErrorKind::AlreadyExists, format!("a view \"{name}\" exists already; drop it first"))),
        false => Ok(()),
    }
}

/// True when there is a view of that name.
pub(crate) fn is_view(session: &Session, name: &TableRef) -> bool {
    session.engine().database().object(KIND, name.schema_name(), &name.name).is_some()
}

/// Drops views.
pub(crate) async fn drop_views(
    session: &Session,
    views: &[TableRef],
    if_exists: bool,
    cascade: bool,
) -> Result<Outcome> {
    for view in views {
        if session.catalog().stored(view).is_ok() {
            return Err(Error::invalid(format!("\"{view}\" is a table; use DROP TABLE")));
        }
        drop_dependents(session, view, cascade, "dropped").await?;
        session.engine().database().drop_object(KIND, view.schema_name(), &view.name, if_exists).await?;
    }
    Ok(Outcome::Affected(0))
}

/// Before a table or view goes: with `cascade` its views go too, without it they keep it.
pub(crate) async fn drop_dependents(session: &Session, table: &TableRef, cascade: bool, what: &str) -> Result<()> {
    if !cascade {
        return refuse_dependents(session, table, None, what);
    }
    while let Some((view, _)) = dependents(session, table, None)?.pop() {
        Box::pin(drop_dependents(session, &view, true, what)).await?;
        session.engine().database().drop_object(KIND, view.schema_name(), &view.name, true).await?;
    }
    refuse_dependents(session, table, None, what)
}

/// Refuses to change what views and aggregates use: a table, or one of its columns.
pub(crate) fn refuse_dependents(session: &Session, table: &TableRef, column: Option<&str>, what: &str) -> Result<()> {
    if let Some((view, _)) = dependents(session, table, column)?.first() {
        let hint = if column.is_some() { "drop the view first" } else { "drop the view first, or use CASCADE" };
        return Err(in_use(table, column, what, &format!("view \"{view}\" uses it; {hint}")));
    }
    continuous::refuse_dependents(session.catalog(), table)
}

/// The error for a table, or a column of it, that cannot be `what` (dropped, renamed, ..), because of `why`.
pub(crate) fn in_use(table: &TableRef, column: Option<&str>, what: &str, why: &str) -> Error {
    let used = match column {
        Some(column) => format!("column \"{column}\" of \"{table}\""),
        None => format!("\"{table}\""),
    };
    Error::invalid(format!("{used} cannot be {what}: {why}"))
}

fn dependents(session: &Session, table: &TableRef, column: Option<&str>) -> Result<Vec<(TableRef, Definition)>> {
    let mut found = Vec::new();
    for object in session.engine().database().objects(KIND) {
        let definition = Definition::of(&object)?;
        let used = definition.uses.get(&(table.schema_name().to_owned(), table.name.clone()));
        if used.is_some_and(|columns| column.is_none_or(|column| columns.contains(column))) {
            found.push((TableRef { schema: Some(object.schema_name), name: object.name }, definition));
        }
    }
    Ok(found)
}

/// The tables, and views, of a query, and the columns of each.
type Uses = BTreeMap<(String, String), BTreeSet<String>>;

/// What a view keeps.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    /// The text of the query.
    query: String,
    /// The query's columns that the view shows, in order.
    source: Vec<String>,
    /// The columns of the view.
    pub(crate) schema: SchemaRef,
    uses: Uses,
}

impl Definition {
    /// # Errors
    /// `Corrupted` for a definition that this module did not write.
    pub(crate) fn of(object: &CatalogObject) -> Result<Self> {
        let damaged = || Error::corrupted(format!("the definition of view {} is damaged", object.name));
        let definition = &object.definition;
        let texts = |value: &Value| {
            value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        let parse = || {
            let bytes: Vec<u8> = serde_json::from_value(definition.get("schema")?.clone()).ok()?;
            let mut uses = Uses::new();
            for used in definition.get("uses")?.as_array()? {
                let key = (used.get("schema")?.as_str()?.to_owned(), used.get("name")?.as_str()?.to_owned());
                uses.insert(key, texts(used.get("columns")?)?.into_iter().collect());
            }
            Some(Self {
                query: definition.get("query")?.as_str()?.to_owned(),
                source: texts(definition.get("source")?)?,
                schema: StreamReader::try_new(Cursor::new(bytes), None).ok()?.schema(),
                uses,
            })
        };
        parse().ok_or_else(damaged)
    }

    fn to_json(&self) -> Result<Value> {
        let mut schema = Vec::new();
        StreamWriter::try_new(&mut schema, &self.schema)?.finish()?;
        let uses = self
            .uses
            .iter()
            .map(|((schema, name), columns)| json!({ "schema": schema, "name": name, "columns": columns }));
        Ok(json!({
            "query": self.query,
            "source": self.source,
            "schema": schema,
            "uses": uses.collect::<Vec<_>>(),
        }))
    }

    /// The query to plan.
    pub(crate) fn statement(&self) -> Result<Statement> {
        dialect::parse_plain(&self.query)
    }

    /// `plan`, which is that of the query, with the columns of the view.
    pub(crate) fn shown(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let schema = Arc::clone(plan.schema());
        let unchanged = schema.fields().len() == self.source.len();
        let columns = self.source.iter().zip(self.schema.fields()).enumerate().map(|(at, (name, field))| {
            let found = match unchanged {
                true => Some(at),
                false => schema.fields().iter().position(|field| field.name() == name),
            };
            let at = found.ok_or_else(|| Error::invalid(format!("a view needs column \"{name}\", which is gone")))?;
            let column = Expr::Column(Column::from(schema.qualified_field(at)));
            Ok(column.alias(field.name()))
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let shown = LogicalPlanBuilder::from(plan).project(columns).and_then(LogicalPlanBuilder::build);
        shown.map_err(error::from_datafusion)
    }
}

/// The tables that a plan scans, with the columns it needs of them.
fn uses(session: &Session, state: &SessionState, plan: &LogicalPlan, relations: &[TableReference]) -> Result<Uses> {
    let optimized = state.optimize(plan).map_err(error::from_datafusion)?;
    let mut uses = Uses::new();
    let walked = optimized.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let table = table_ref(&scan.table_name);
            let columns = uses.entry((table.schema_name().to_owned(), table.name)).or_default();
            columns.extend(scan.projected_schema.fields().iter().map(|field| field.name().clone()));
            for filter in &scan.filters {
                columns.extend(filter.column_refs().iter().map(|column| column.name.clone()));
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.map_err(error::from_datafusion)?;
    for relation in relations {
        let view = table_ref(relation);
        if let Some(object) = session.engine().database().object(KIND, view.schema_name(), &view.name) {
            let columns = Definition::of(&object)?.schema.fields().iter().map(|field| field.name().clone()).collect();
            uses.insert((view.schema_name().to_owned(), view.name), columns);
        }
    }
    Ok(uses)
}

/// A view as `information_schema` sees it; statements get its plan instead.
#[derive(Debug)]
pub(crate) struct ViewInfo(pub(crate) Definition);

#[async_trait]
impl TableProvider for ViewInfo {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn get_table_definition(&self) -> Option<&str> {
        Some(&self.0.query)
    }

    async fn scan(
        &self,
        _: &dyn CatalogSession,
        _: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        not_impl_err!("a view is planned, not scanned")
    }
}

/// The error for a change of rows through a view.
pub(crate) fn not_a_table(view: &TableRef) -> Error {
    Error::new(ErrorKind::Unsupported, format!("\"{view}\" is a view; change the tables it reads"))
}
