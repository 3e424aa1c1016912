//! Plans `text_search`, `vector_search`, `rrf` and `rerank` in `FROM`.

use std::sync::Arc;

use arrow_schema::{DataType, Schema};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, Result, TableReference};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::functions::core::expr_fn::coalesce;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, ScalarUDF, lit};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, Function, FunctionArg, FunctionArguments, ObjectName, ObjectNamePart, TableFactor,
    TableFunctionArgs,
};
use hypr_common::types::is_vector;
use hypr_common::{Error, types};
use hypr_storage::ann::{Effort, Metric};
use hypr_storage::{ROW_ID_COLUMN, Table};

use super::arguments::{self, Arguments, RERANK, RRF, Signature, TEXT_SEARCH, VECTOR_SEARCH, bad};
use super::candidates::Candidates;
use super::fuse::{FuseNode, Fusion};
use super::node::{Search, SearchKind, SearchNode};
use super::{FUSED_SCORE, RERANK_SCORE, free_name};
use crate::catalog::{Catalog, StoredTable};
use crate::dialect::ddl;
use crate::{TableRef, error, index_ddl};

/// The scores that searches add; `rrf` does not give those of its subqueries on.
const SCORES: [&str; 4] = ["score", "distance", FUSED_SCORE, RERANK_SCORE];
/// The constant of the paper.
const DEFAULT_K: f64 = 60.0;

/// Plans the calls in `FROM`.
#[derive(Debug)]
pub(super) struct SearchRelations {
    catalog: Catalog,
}

impl SearchRelations {
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog }
    }
}

impl RelationPlanner for SearchRelations {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        match relation {
            TableFactor::Table { ref name, args: Some(ref args), ref alias, .. } => {
                let Some(signature) = signature(name) else {
                    return Ok(RelationPlanning::Original(Box::new(relation)));
                };
                let call = Call { catalog: &self.catalog, inside_fusion: false };
                let planned = call.plan(signature, args.args.clone(), context)?;
                let plan = LogicalPlanBuilder::from(planned.plan).alias(signature.name)?.build()?;
                Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias.clone()))))
            }
            relation => Ok(RelationPlanning::Original(Box::new(relation))),
        }
    }
}

fn signature(name: &ObjectName) -> Option<&'static Signature> {
    let [ObjectNamePart::Identifier(ident)] = name.0.as_slice() else { return None };
    let name = ddl::normalize(ident);
    [&TEXT_SEARCH, &VECTOR_SEARCH, &RRF, &RERANK].into_iter().find(|signature| signature.name == name)
}

/// A search as a plan, and what `rrf` and `rerank` want to know of it.
struct Planned {
    plan: LogicalPlan,
    /// What the user searches for, as text.
    query: Option<Expr>,
    /// The column of scores.
    score: Option<String>,
    weight: f64,
    /// The table whose row ids the plan gives.
    row_ids_of: Option<Arc<Table>>,
}

impl Planned {
    fn of(plan: LogicalPlan) -> Self {
        Self { plan, query: None, score: None, weight: 1.0, row_ids_of: None }
    }
}

/// The planning of one call.
struct Call<'a> {
    catalog: &'a Catalog,
    /// The call is an argument of `rrf`: its rows keep their ids.
    inside_fusion: bool,
}

impl Call<'_> {
    fn plan(
        &self,
        signature: &'static Signature,
        args: Vec<FunctionArg>,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<Planned> {
        let args = Arguments::new(signature, args).map_err(error::to_datafusion)?;
        match signature.name {
            "text_search" => self.text_search(args, context),
            "vector_search" => self.vector_search(args, context),
            "rrf" => self.fuse(args, context),
            _ => self.rerank(args, context),
        }
    }

    fn text_search(&self, mut args: Arguments, context: &mut dyn RelationPlannerContext) -> Result<Planned> {
        let table = self.table(&mut args, context)?;
        let query = args.required("query").map_err(error::to_datafusion)?;
        let query = arguments::constant(query, Some(DataType::Utf8), context)?;
        if !is_text(&query.get_type(&DFSchema::empty())?) {
            return Err(error::to_datafusion(bad(args.signature, "the query is text")));
        }
        let is_searchable = |field: &arrow_schema::Field| is_text(field.data_type()) && !types::is_json(field);
        let at = column(&mut args, &table, "TEXT", &is_searchable, &|field| is_text(field.data_type()))?;
        let name = table.schema().field(at).name().clone();
        let options = index_ddl::text_options(self.catalog.database(), &table, &name).map_err(error::to_datafusion)?;
        let search = Search {
            kind: SearchKind::Text { column: name, options },
            score: free_name("score", &table.schema()),
            table,
        };
        self.search(args, search, query.clone(), Some(query), context)
    }

    fn vector_search(&self, mut args: Arguments, context: &mut dyn RelationPlannerContext) -> Result<Planned> {
        let table = self.table(&mut args, context)?;
        let mut model = args.literal("model").map_err(error::to_datafusion)?;
        let mut query = args.required("query").map_err(error::to_datafusion)?;
        if let Some((text, its_model)) = arguments::embed_call(&query) {
            (query, model) = (text, its_model.or(model));
        }
        let query = arguments::constant(query, None, context)?;
        let query_type = query.get_type(&DFSchema::empty()).unwrap_or(DataType::Null);
        if !crate::functions::vector::is_vector_like(&query_type) {
            let what = format!("the query is text or a vector, not {query_type}");
            return Err(error::to_datafusion(bad(args.signature, &what)));
        }
        let metric = match args.literal("metric").map_err(error::to_datafusion)?.as_deref() {
            None | Some("cosine") => Metric::Cosine,
            Some("l2") => Metric::L2,
            Some("inner_product") => Metric::InnerProduct,
            Some(other) => {
                let what = format!("\"{other}\" is no metric, there is: cosine, l2, inner_product");
                return Err(error::to_datafusion(bad(args.signature, &what)));
            }
        };
        let mut count = |name| args.count(name).map_err(error::to_datafusion);
        let effort = Effort {
            ef_search: count("ef_search")?,
            nprobes: count("nprobes")?,
            refine_factor: count("refine_factor")?,
        };
        let at = column(&mut args, &table, "VECTOR(n)", &is_vector, &is_vector)?;
        let text = is_text(&query_type).then(|| query.clone());
        let search = Search {
            kind: SearchKind::Vector { column: at, metric, model, effort },
            score: free_name("distance", &table.schema()),
            table,
        };
        self.search(args, search, query, text, context)
    }

    fn search(
        &self,
        mut args: Arguments,
        search: Search,
        query: Expr,
        text: Option<Expr>,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<Planned> {
        let limit = args.limit(context)?;
        let weight = args.number("rank_weight").map_err(error::to_datafusion)?;
        if weight.is_some() && !self.inside_fusion {
            let what = "\"rank_weight\" is for a search inside of rrf";
            return Err(error::to_datafusion(bad(args.signature, what)));
        }
        let table = Arc::clone(&search.table);
        let name = TableReference::bare(table.definition().name.clone());
        let source = provider_as_source(Arc::new(Candidates::new(Arc::clone(&table))));
        let candidates = LogicalPlanBuilder::scan(name, source, None)?.build()?;
        let score = search.score.clone();
        let node = SearchNode::try_new(Arc::new(candidates), Arc::new(search), query, limit, self.inside_fusion)?;
        Ok(Planned {
            plan: node.into_plan(),
            query: text,
            score: Some(score),
            weight: weight.unwrap_or(1.0),
            row_ids_of: self.inside_fusion.then_some(table),
        })
    }

    /// The table, as the session sees it.
    fn table(&self, args: &mut Arguments, context: &dyn RelationPlannerContext) -> Result<Arc<Table>> {
        let table: TableRef = args.table().map_err(error::to_datafusion)?;
        let name = TableReference::partial(table.schema_name().to_owned(), table.name.clone());
        let provider = source_as_provider(&context.context_provider().get_table_source(name)?)?;
        match provider.downcast_ref::<StoredTable>().map(StoredTable::table) {
            // Indexes know what everybody sees, so they would leave out the transaction's own rows.
            Some(table) if table.is_inside_transaction() => {
                let function = args.signature.name;
                let message = format!("{function} is not available inside a transaction; COMMIT first");
                Err(error::to_datafusion(Error::unsupported(message)))
            }
            Some(table) => Ok(table),
            None => Err(error::to_datafusion(bad(args.signature, &format!("\"{table}\" is no table of rows")))),
        }
    }

    fn fuse(&self, mut args: Arguments, context: &mut dyn RelationPlannerContext) -> Result<Planned> {
        let invalid = |what: &str| error::to_datafusion(bad(&RRF, what));
        let k = args.number("k").map_err(error::to_datafusion)?.unwrap_or(DEFAULT_K);
        let limit = args.number("limit").map_err(error::to_datafusion)?;
        if limit.is_some_and(|limit| limit.fract() != 0.0) {
            return Err(invalid("the limit is a whole number"));
        }
        let given_key = args.column("join_key").map_err(error::to_datafusion)?;
        let inside = Call { catalog: self.catalog, inside_fusion: true };
        let inputs =
            args.inputs.into_iter().map(|input| inside.input(input, &RRF, context)).collect::<Result<Vec<_>>>()?;
        if inputs.len() < 2 {
            return Err(invalid("it takes at least two searches"));
        }
        let key = match given_key {
            Some(column) => vec![column],
            None => common_key(&inputs).ok_or_else(|| {
                invalid("its searches give rows that cannot be told apart; name a column with join_key => column")
            })?,
        };
        for name in &key {
            if let Some(input) = inputs.iter().find(|input| !input.plan.schema().has_column_with_unqualified_name(name))
            {
                let columns: Vec<&str> =
                    input.plan.schema().fields().iter().map(|field| field.name().as_str()).collect();
                return Err(invalid(&format!(
                    "one of its searches has no column \"{name}\", only {}",
                    columns.join(", ")
                )));
            }
        }
        let mut hidden = vec![ROW_ID_COLUMN.to_owned()];
        for input in &inputs {
            match &input.score {
                Some(score) => hidden.push(score.clone()),
                None => hidden.extend(SCORES.map(ToOwned::to_owned)),
            }
        }
        let weights = inputs.iter().map(|input| input.weight).collect();
        let query = inputs.iter().find_map(|input| input.query.clone());
        let plans = inputs.into_iter().map(|input| unqualified(input.plan)).collect::<Result<Vec<_>>>()?;
        let shown: Vec<_> =
            plans[0].schema().fields().iter().filter(|field| !hidden.contains(field.name())).cloned().collect();
        let score = free_name(FUSED_SCORE, &Schema::new(shown));
        let fusion = Fusion { k, weights, key, score: score.clone(), hidden, limit: limit.map(|limit| limit as usize) };
        let plan = FuseNode::try_new(plans, Arc::new(fusion))?.into_plan();
        Ok(Planned { query, score: Some(score), ..Planned::of(plan) })
    }

    /// An argument of `rrf` or `rerank`: a call, a query in parentheses, or for `rerank` a table.
    fn input(
        &self,
        input: SqlExpr,
        signature: &'static Signature,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<Planned> {
        match input {
            SqlExpr::Function(Function { name, args: FunctionArguments::List(list), .. }) => {
                if let Some(signature) = self::signature(&name) {
                    return self.plan(signature, list.args, context);
                }
                let args = Some(TableFunctionArgs { args: list.args, settings: None });
                context.plan(table_factor(name, args)).map(Planned::of)
            }
            SqlExpr::Subquery(subquery) => {
                let query = TableFactor::Derived { lateral: false, subquery, alias: None, sample: None };
                let plan = context.plan(query)?;
                if signature.name == RRF.name && !is_ordered(&plan) {
                    let what = "a query in it needs ORDER BY, from which its rows get their ranks";
                    return Err(error::to_datafusion(bad(signature, what)));
                }
                Ok(Planned::of(plan))
            }
            SqlExpr::Nested(inner) => self.input(*inner, signature, context),
            SqlExpr::Identifier(ident) if signature.name == RERANK.name => {
                context.plan(table_factor(ObjectName::from(vec![ident]), None)).map(Planned::of)
            }
            other => {
                let what = format!("\"{other}\" is no search; give text_search(..), vector_search(..) or (SELECT ..)");
                Err(error::to_datafusion(bad(signature, &what)))
            }
        }
    }

    fn rerank(&self, mut args: Arguments, context: &mut dyn RelationPlannerContext) -> Result<Planned> {
        let invalid = |what: &str| error::to_datafusion(bad(&RERANK, what));
        let document = args.column("document").map_err(error::to_datafusion)?;
        let document = document.ok_or_else(|| invalid("the argument \"document\" is missing"))?;
        let model = args.literal("model").map_err(error::to_datafusion)?;
        let has_limit = args.take("limit").map(|limit| arguments::constant(limit, Some(DataType::Int64), context));
        let input = args.required("input").map_err(error::to_datafusion)?;
        let outside = Call { catalog: self.catalog, inside_fusion: false };
        let input = outside.input(input, &RERANK, context)?;
        let query = match args.take("query") {
            Some(query) => arguments::constant(query, Some(DataType::Utf8), context)?,
            None => input
                .query
                .clone()
                .ok_or_else(|| invalid("it has no search to take the query from; say query => 'text'"))?,
        };
        let schema = input.plan.schema();
        let field = schema.field_with_unqualified_name(&document).map_err(|_| {
            let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            invalid(&format!("its rows have no column \"{document}\", only {}", columns.join(", ")))
        })?;
        if !is_text(field.data_type()) {
            return Err(invalid(&format!("column \"{document}\" is {}, not TEXT", types::sql_type_name(field))));
        }
        let score = free_name(RERANK_SCORE, schema.as_arrow());
        let passage = Expr::Column(Column::new_unqualified(document));
        let similarity = function(context, "cosine_similarity")?
            .call(vec![embed(context, passage, model.as_deref())?, embed(context, query.clone(), model.as_deref())?]);
        let mut columns: Vec<Expr> = schema.columns().into_iter().map(Expr::Column).collect();
        // A row without a document is the last.
        columns.push(coalesce(vec![similarity, lit(-1.0)]).alias(&score));
        let order = Expr::Column(Column::new_unqualified(&score)).sort(false, true);
        let mut plan = LogicalPlanBuilder::from(input.plan).project(columns)?.sort(vec![order])?;
        if let Some(limit) = has_limit {
            plan = plan.limit_by_expr(None, Some(limit?))?;
        }
        Ok(Planned { query: Some(query), score: Some(score), ..Planned::of(plan.build()?) })
    }
}

/// The column that is named, or the only one that can be meant.
fn column(
    args: &mut Arguments,
    table: &Table,
    wanted: &str,
    is_default: &dyn Fn(&arrow_schema::Field) -> bool,
    is_possible: &dyn Fn(&arrow_schema::Field) -> bool,
) -> Result<usize> {
    let (schema, name) = (table.schema(), table.definition().name.as_str());
    let Some(given) = args.column("column").map_err(error::to_datafusion)? else {
        let possible: Vec<usize> = (0..schema.fields().len()).filter(|at| is_default(schema.field(*at))).collect();
        return match possible.as_slice() {
            [only] => Ok(*only),
            [] => {
                Err(error::to_datafusion(bad(args.signature, &format!("table \"{name}\" has no column of {wanted}"))))
            }
            several => {
                let names: Vec<&str> = several.iter().map(|at| schema.field(*at).name().as_str()).collect();
                let what = format!("table \"{name}\" has several columns of {wanted}, name one: {}", names.join(", "));
                Err(error::to_datafusion(bad(args.signature, &what)))
            }
        };
    };
    let Ok(at) = schema.index_of(&given) else {
        let names = schema.fields().iter().map(|field| field.name().as_str());
        let hint = error::hint(&given, names);
        let message = format!("column \"{given}\" does not exist in table \"{name}\"{hint}");
        return Err(error::to_datafusion(Error::not_found(message)));
    };
    let field = schema.field(at);
    if !is_possible(field) {
        let what = format!("column \"{given}\" is {}, not {wanted}", types::sql_type_name(field));
        return Err(error::to_datafusion(bad(args.signature, &what)));
    }
    Ok(at)
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn table_factor(name: ObjectName, args: Option<TableFunctionArgs>) -> TableFactor {
    TableFactor::Table {
        name,
        alias: None,
        args,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    }
}

/// What tells the rows of all inputs apart: the row id if all search one table, or the key of the one table that all
/// of them read.
fn common_key(inputs: &[Planned]) -> Option<Vec<String>> {
    let first = inputs.first()?.row_ids_of.as_ref();
    if let Some(first) = first
        && inputs.iter().all(|input| input.row_ids_of.as_ref().is_some_and(|table| Arc::ptr_eq(table, first)))
    {
        return Some(vec![ROW_ID_COLUMN.to_owned()]);
    }
    let mut tables = inputs.iter().map(|input| only_table(&input.plan));
    let table = tables.next()??;
    if !tables.all(|other| other.is_some_and(|other| Arc::ptr_eq(&other, &table))) {
        return None;
    }
    let key = table.definition().primary_key.clone();
    (!key.is_empty()).then_some(key)
}

/// The table that a plan reads, if it reads one.
fn only_table(plan: &LogicalPlan) -> Option<Arc<Table>> {
    let mut tables: Vec<Arc<Table>> = Vec::new();
    let mut strange = false;
    let walked = plan.apply(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source)?;
            let table = match provider.downcast_ref::<StoredTable>() {
                Some(stored) => Some(stored.table()),
                None => provider.downcast_ref::<Candidates>().map(Candidates::table),
            };
            match table {
                Some(table) if tables.iter().any(|known| Arc::ptr_eq(known, &table)) => {}
                Some(table) => tables.push(table),
                None => strange = true,
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    match (tables.as_slice(), walked.is_ok() && !strange) {
        ([only], true) => Some(Arc::clone(only)),
        _ => None,
    }
}

/// Whether the rows of a query come in an order that it says.
fn is_ordered(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Sort(_) | LogicalPlan::Extension(_) => true,
        LogicalPlan::Projection(projection) => is_ordered(&projection.input),
        LogicalPlan::SubqueryAlias(alias) => is_ordered(&alias.input),
        LogicalPlan::Limit(limit) => is_ordered(&limit.input),
        LogicalPlan::Filter(filter) => is_ordered(&filter.input),
        _ => false,
    }
}

/// The same rows, with columns that are named by their names alone.
fn unqualified(plan: LogicalPlan) -> Result<LogicalPlan> {
    if plan.schema().iter().all(|(qualifier, _)| qualifier.is_none()) {
        return Ok(plan);
    }
    let columns: Vec<Expr> = plan
        .schema()
        .columns()
        .into_iter()
        .map(|column| {
            let name = column.name.clone();
            Expr::Column(column).alias(name)
        })
        .collect();
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}

fn function(context: &dyn RelationPlannerContext, name: &str) -> Result<Arc<ScalarUDF>> {
    let found = context.context_provider().get_function_meta(name);
    found.ok_or_else(|| error::to_datafusion(Error::internal(format!("function {name} is missing"))))
}

/// The call that embeds `text`.
fn embed(context: &dyn RelationPlannerContext, text: Expr, model: Option<&str>) -> Result<Expr> {
    Ok(match model {
        None => function(context, "embed")?.call(vec![text]),
        Some(model) => function(context, "_embed")?.call(vec![lit("model"), lit(model), text]),
    })
}
