//! A parsed statement as a logical plan, resolved against the catalog as it is now.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, FieldRef, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DFSchema, Result as DfResult, TableReference, plan_datafusion_err};
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::execution::SessionState;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, ScalarUDF, Statement as PlannedStatement, TableSource, WindowUDF,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::create_physical_expr;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::sql::parser::Statement;
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast::{DataType as SqlType, Expr as SqlExpr, Ident, ObjectName, Statement as Sql};
use futures::FutureExt;
use futures::future::BoxFuture;
use hypr_common::{Error, Result};

use crate::catalog::{Catalog, StoredTable};
use crate::dialect::Names;
use crate::dialect::types::HyprTypePlanner;
use crate::sql_functions::{self, Templates};
use crate::statement_state::{self, RunsAs};
use crate::views::Definition;
use crate::{CATALOG, DEFAULT_SCHEMA, TableRef, error, functions, versions};

/// What names mean in one statement beside the catalog.
#[derive(Default)]
pub(crate) struct Overlay {
    /// Relations, before those of the catalog.
    pub sources: HashMap<TableRef, Arc<dyn TableSource>>,
    /// The types that [`column_type_name`] stands for.
    pub columns: Vec<FieldRef>,
}

/// Plans statements for one session.
pub(crate) struct Planner<'a> {
    pub state: &'a SessionState,
    pub catalog: &'a Catalog,
    /// What names mean in the bodies of functions.
    pub names: &'a dyn Names,
}

impl Planner<'_> {
    /// Plans `statement`. `parameters` are the types of `$1`, `$2`, .. where they are known.
    pub(crate) async fn plan(
        &self,
        statement: Statement,
        overlay: Option<&Overlay>,
        parameters: &[FieldRef],
    ) -> Result<LogicalPlan> {
        self.plan_within(statement, overlay, parameters, &mut Vec::new()).await
    }

    /// [`Self::plan`] for a statement inside the bodies of the functions `calling`.
    pub(crate) fn plan_within<'a>(
        &'a self,
        statement: Statement,
        overlay: Option<&'a Overlay>,
        parameters: &'a [FieldRef],
        calling: &'a mut Vec<String>,
    ) -> BoxFuture<'a, Result<LogicalPlan>> {
        self.plan_inside(statement, overlay, parameters, calling, &[]).boxed()
    }

    /// Plans the query of the last of `open`, views that are being planned within one another.
    ///
    /// # Errors
    /// `InvalidInput` for a view that reads itself.
    pub(crate) fn plan_view<'a>(
        &'a self,
        query: Statement,
        open: &'a [TableRef],
    ) -> BoxFuture<'a, Result<LogicalPlan>> {
        async move { self.plan_inside(query, None, &[], &mut Vec::new(), open).await }.boxed()
    }

    async fn plan_inside(
        &self,
        mut statement: Statement,
        overlay: Option<&Overlay>,
        parameters: &[FieldRef],
        calling: &mut Vec<String>,
        open: &[TableRef],
    ) -> Result<LogicalPlan> {
        let templates = sql_functions::templates(self, &statement, calling).await?;
        sql_functions::place_arguments(&mut statement, &templates)?;
        let calls = !templates.is_empty();
        let statement = with_parameter_types(statement, parameters.len());
        let context = self.resolve(&statement, overlay, parameters, templates, open).await?;
        let mut plan = SqlToRel::new_with_options(&context, parser_options())
            .statement_to_plan(statement)
            .map_err(error::from_datafusion)?;
        if calls {
            plan = sql_functions::inline_calls(plan).map_err(error::from_datafusion)?;
        }
        match plan {
            LogicalPlan::Statement(PlannedStatement::Prepare(prepare)) => Ok(Arc::unwrap_or_clone(prepare.input)),
            LogicalPlan::Ddl(_) | LogicalPlan::Copy(_) => Err(Error::unsupported("this statement is not available")),
            plan => Ok(plan),
        }
    }

    /// Looks up every table that `statement` names.
    async fn resolve(
        &self,
        statement: &Statement,
        overlay: Option<&Overlay>,
        parameters: &[FieldRef],
        templates: Templates,
        open: &[TableRef],
    ) -> Result<Context<'_>> {
        let references = self.state.resolve_table_references(statement).map_err(error::from_datafusion)?;
        let mut tables = HashMap::with_capacity(references.len());
        for reference in references {
            let table = table_ref(&reference);
            if tables.contains_key(&table) {
                continue;
            }
            let source = match overlay.and_then(|overlay| overlay.sources.get(&table)) {
                Some(source) => Some(Arc::clone(source)),
                None => match self.catalog.view(&table)? {
                    Some(view) => Some(self.view(&table, &view, open).await?),
                    None => self.source(&reference).await?,
                },
            };
            if let Some(source) = source {
                tables.insert(table, source);
            }
        }
        let columns = overlay.map_or_else(Vec::new, |overlay| overlay.columns.clone());
        let types = Arc::new(Types { parameters: parameters.to_vec(), columns });
        Ok(Context { templates, ..self.context(tables, types) })
    }

    fn context(&self, tables: HashMap<TableRef, Arc<dyn TableSource>>, types: Arc<Types>) -> Context<'_> {
        let functions = statement_state::full(self.state);
        Context { state: self.state, functions, catalog: self.catalog, tables, types, templates: Templates::new() }
    }

    /// An expression over the columns of `schema`, ready to run.
    ///
    /// # Errors
    /// `InvalidInput` for an expression that does not fit, or that asks tables.
    pub(crate) fn expression(&self, sql: SqlExpr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
        let types = Arc::new(Types { parameters: Vec::new(), columns: Vec::new() });
        let context = self.context(HashMap::new(), types);
        let expr = SqlToRel::new_with_options(&context, parser_options())
            .sql_to_expr(sql, schema, &mut PlannerContext::new())
            .map_err(error::from_datafusion)?;
        let simplify = SimplifyContext::builder()
            .with_schema(Arc::new(schema.clone()))
            .with_config_options(Arc::clone(self.state.config_options()))
            .with_query_execution_start_time(self.state.execution_props().query_execution_start_time)
            .build();
        let simplifier = ExprSimplifier::new(simplify);
        simplifier
            .coerce(expr, schema)
            .and_then(|expr| simplifier.simplify(expr))
            .and_then(|expr| create_physical_expr(&expr, schema, self.state.execution_props()))
            .map_err(error::from_datafusion)
    }

    /// A view as the plan of its query.
    async fn view(&self, name: &TableRef, view: &Definition, open: &[TableRef]) -> Result<Arc<dyn TableSource>> {
        if open.contains(name) {
            return Err(Error::invalid(format!("view \"{name}\" would read itself")));
        }
        let open = [open, std::slice::from_ref(name)].concat();
        let plan = view.shown(self.plan_view(view.statement()?, &open).await?)?;
        Ok(provider_as_source(Arc::new(ViewTable::new(plan, None))))
    }

    async fn source(&self, reference: &TableReference) -> Result<Option<Arc<dyn TableSource>>> {
        if let Some((name, at)) = versions::name::decode(reference.table()) {
            let table = TableRef { name: name.to_owned(), ..table_ref(reference) };
            let provider = versions::provider(self.state, self.catalog, &table, &at).await?;
            return Ok(Some(provider_as_source(provider)));
        }
        let Ok(schema) = self.state.schema_for_ref(reference.clone()) else {
            return Ok(None);
        };
        let table = schema.table(reference.table()).await.map_err(error::from_datafusion)?;
        Ok(table.map(provider_as_source))
    }
}

fn parser_options() -> ParserOptions {
    ParserOptions {
        support_varchar_with_length: true,
        map_string_types_to_utf8view: false,
        collect_spans: true,
        ..ParserOptions::default()
    }
}

/// A resolved name: the default schema is spelled out, the catalog is left out.
pub(crate) fn table_ref(reference: &TableReference) -> TableRef {
    let schema = reference.schema().unwrap_or(DEFAULT_SCHEMA).to_owned();
    TableRef { schema: Some(schema), name: reference.table().to_owned() }
}

/// `$1` has no type for DataFusion until it stands beside something that has one. `PREPARE` is where its
/// planner takes types from, so the statement is wrapped in one, whose types [`Types`] resolves.
fn with_parameter_types(statement: Statement, parameters: usize) -> Statement {
    let Statement::Statement(sql) = statement else {
        return statement;
    };
    if parameters == 0 || !matches!(*sql, Sql::Query(_)) {
        return Statement::Statement(sql);
    }
    let data_types = (0..parameters).map(parameter_type_name).collect();
    Statement::Statement(Box::new(Sql::Prepare { name: Ident::new("statement"), data_types, statement: sql }))
}

const PARAMETER_TYPE: &str = "hyprstream parameter";

fn parameter_type_name(index: usize) -> SqlType {
    let name = ObjectName::from(vec![Ident::with_quote('"', PARAMETER_TYPE)]);
    SqlType::Custom(name, vec![index.to_string()])
}

const COLUMN_TYPE: &str = "hyprstream column";

/// The type of column `index` of [`Overlay::columns`], for casts in queries of ours.
pub(crate) fn column_type_name(index: usize) -> SqlType {
    SqlType::Custom(ObjectName::from(vec![Ident::with_quote('"', COLUMN_TYPE)]), vec![index.to_string()])
}

/// Resolves the types of parameters and columns beside those of the dialect.
#[derive(Debug)]
struct Types {
    parameters: Vec<FieldRef>,
    columns: Vec<FieldRef>,
}

impl TypePlanner for Types {
    fn plan_type_field(&self, sql_type: &SqlType) -> DfResult<Option<FieldRef>> {
        if let SqlType::Custom(name, modifiers) = sql_type
            && let [part] = name.0.as_slice()
            && let Some(ident) = part.as_ident()
            && let Some(known) = match ident.value.as_str() {
                PARAMETER_TYPE => Some(&self.parameters),
                COLUMN_TYPE => Some(&self.columns),
                _ => None,
            }
        {
            let index = modifiers.first().and_then(|index| index.parse::<usize>().ok());
            return Ok(index.and_then(|index| known.get(index)).cloned());
        }
        HyprTypePlanner.plan_type_field(sql_type)
    }
}

/// What DataFusion's planner asks while it plans one statement.
struct Context<'a> {
    state: &'a SessionState,
    /// The state that has the functions.
    functions: Arc<SessionState>,
    catalog: &'a Catalog,
    tables: HashMap<TableRef, Arc<dyn TableSource>>,
    types: Arc<Types>,
    /// Functions written in SQL that the statement calls.
    templates: Templates,
}

impl Context<'_> {
    fn current_user(&self) -> Option<Arc<ScalarUDF>> {
        self.state.config().get_extension::<RunsAs>().map(|who| functions::of_principal(&who.0))
    }
}

impl ContextProvider for Context<'_> {
    fn get_table_source(&self, name: TableReference) -> DfResult<Arc<dyn TableSource>> {
        if let Some(catalog) = name.catalog()
            && catalog != CATALOG
        {
            let message = format!("catalog \"{catalog}\" does not exist; it is \"{CATALOG}\"");
            return Err(error::to_datafusion(Error::not_found(message)));
        }
        let table = table_ref(&name);
        if let Some(source) = self.tables.get(&table) {
            return Ok(Arc::clone(source));
        }
        // The arguments of search functions name tables where nobody looks for names.
        let stored = self.catalog.stored(&table).map_err(error::to_datafusion)?;
        Ok(provider_as_source(Arc::new(StoredTable::new(stored))))
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> DfResult<Arc<dyn TableSource>> {
        // The planner hands over the name as it was written.
        let name = match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
            Some(quoted) => quoted.to_owned(),
            None => name.to_lowercase(),
        };
        if let Some(template) = self.templates.get(&name) {
            return Ok(provider_as_source(Arc::new(ViewTable::new(template.rows(&args)?, None))));
        }
        let function = self.functions.table_functions().get(&name).ok_or_else(|| {
            let known = self.functions.table_functions().keys().map(String::as_str);
            let hint = error::hint(&name, known);
            plan_datafusion_err!("table function \"{name}\" does not exist{hint}")
        })?;
        let context = SimplifyContext::builder()
            .with_config_options(Arc::clone(self.state.config_options()))
            .with_query_execution_start_time(self.state.execution_props().query_execution_start_time)
            .build();
        let simplifier = ExprSimplifier::new(context);
        let schema = DFSchema::empty();
        let args = args
            .into_iter()
            .map(|arg| simplifier.coerce(arg, &schema).and_then(|arg| simplifier.simplify(arg)))
            .collect::<DfResult<Vec<_>>>()?;
        let args = datafusion::catalog::TableFunctionArgs::new(&args, self.state);
        Ok(provider_as_source(function.create_table_provider_with_args(args)?))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> DfResult<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        self.state.relation_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::clone(&self.types) as _)
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        if name == functions::CURRENT_USER {
            return self.current_user();
        }
        let written_in_sql = self.templates.get(name).and_then(|template| template.marker());
        written_in_sql.or_else(|| self.functions.scalar_functions().get(name).cloned())
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.functions.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        let written_in_sql = self.templates.get(name).and_then(|template| template.aggregate_marker());
        written_in_sql.or_else(|| self.functions.aggregate_functions().get(name).cloned())
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.functions.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.functions.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.functions.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.functions.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.functions.window_functions().keys().cloned().collect()
    }
}
