//! What a statement does and which parameters it takes.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::{Expr as PlanExpr, ExprSchemable, LogicalPlan};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{ObjectName, ObjectType, Statement as Sql, TableFactor, TableWithJoins};
use hypr_common::{Error, Result};

use crate::alter::AlterTable;
use crate::copy::CopyStatement;
use crate::dialect::ddl::{self, CreateTable};
use crate::dialect::procedure::Procedure;
use crate::dialect::vector_index::CreateVectorIndex;
use crate::dml::Change;
use crate::index_ddl::CreateTextIndex;
use crate::lifecycle::ModelStatement;
use crate::planned::PlanCache;
use crate::prefixes::PrefixStatement;
use crate::series::statement::SeriesStatement;
use crate::sql_functions::CreateFunction;
use crate::transaction::Control;
use crate::vector_search::settings::SetSearch;
use crate::versions::VersionStatement;
use crate::views::CreateView;
use crate::{DEFAULT_SCHEMA, StatementKind, TableRef, error, functions};

/// A parsed statement, what it does and what it takes.
#[derive(Clone, Debug)]
pub(crate) struct PreparedPlan {
    pub statement: Arc<Statement>,
    pub action: Action,
    /// `$1`, `$2`, ..; none where the type is not known.
    pub parameters: Vec<Option<FieldRef>>,
    /// Of a query.
    pub cache: PlanCache,
}

impl PreparedPlan {
    /// A statement whose parameters are not known yet.
    ///
    /// # Errors
    /// For clauses that are not served.
    pub(crate) fn of(statement: Arc<Statement>) -> Result<Self> {
        let action = Action::of(&statement)?;
        Ok(Self { statement, action, parameters: Vec::new(), cache: PlanCache::default() })
    }
}

/// What a statement does. Names have their schema.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Query,
    Change(Box<Change>),
    CreateTable(Box<CreateTable>),
    CreateFunction(Box<CreateFunction>),
    DropFunction {
        names: Vec<String>,
        if_exists: bool,
    },
    Series(Box<SeriesStatement>),
    CreateIndex(Box<CreateVectorIndex>),
    CreateTextIndex(Box<CreateTextIndex>),
    DropIndex {
        indexes: Vec<TableRef>,
        if_exists: bool,
    },
    AlterTable(Box<AlterTable>),
    CreateView(Box<CreateView>),
    /// Tables, or views.
    Drop {
        names: Vec<TableRef>,
        views: bool,
        if_exists: bool,
        cascade: bool,
    },
    Control(Control),
    Set(SetSearch),
    Prefix(Box<PrefixStatement>),
    Model(Box<ModelStatement>),
    Version(Box<VersionStatement>),
    Copy(Box<CopyStatement>),
}

impl Action {
    pub(crate) fn of(statement: &Statement) -> Result<Self> {
        if let Some(set) = SetSearch::of(statement)? {
            return Ok(Self::Set(set));
        }
        let Statement::Statement(sql) = statement else {
            return Ok(Self::Query);
        };
        if let Some(control) = Control::of(sql)? {
            return Ok(Self::Control(control));
        }
        if let Some(prefix) = PrefixStatement::of(sql)? {
            return Ok(Self::Prefix(Box::new(prefix)));
        }
        if let Some(model) = ModelStatement::of(sql)? {
            return Ok(Self::Model(Box::new(model)));
        }
        if let Some(change) = Change::of(sql)? {
            return Ok(Self::Change(Box::new(change)));
        }
        if let Some(series) = SeriesStatement::of(sql)? {
            return Ok(Self::Series(Box::new(series)));
        }
        Ok(match sql.as_ref() {
            Sql::CreateTable(create) => {
                let mut create = CreateTable::from_ast(create.clone())?;
                create.table.schema.get_or_insert_with(|| DEFAULT_SCHEMA.to_owned());
                Self::CreateTable(Box::new(create))
            }
            Sql::CreateFunction(create) => Self::CreateFunction(Box::new(CreateFunction::from_ast(create)?)),
            Sql::DropFunction(drop) => Self::DropFunction {
                names: drop
                    .func_desc
                    .iter()
                    .map(|function| Ok(qualified(&function.name)?.name))
                    .collect::<Result<_>>()?,
                if_exists: drop.if_exists,
            },
            Sql::CreateIndex(create) if CreateTextIndex::is_meant(create) => {
                Self::CreateTextIndex(Box::new(CreateTextIndex::from_ast(create)?))
            }
            Sql::CreateIndex(create) => {
                let mut create = CreateVectorIndex::from_ast(create)?;
                create.table.schema.get_or_insert_with(|| DEFAULT_SCHEMA.to_owned());
                Self::CreateIndex(Box::new(create))
            }
            Sql::AlterTable(alter) => Self::AlterTable(Box::new(AlterTable::new(alter)?)),
            Sql::CreateView(create) => Self::CreateView(Box::new(CreateView::new(create)?)),
            Sql::Drop { object_type: ObjectType::Index, names, if_exists, .. } => {
                Self::DropIndex { indexes: names.iter().map(qualified).collect::<Result<_>>()?, if_exists: *if_exists }
            }
            Sql::Drop { object_type, names, if_exists, cascade, .. } => Self::Drop {
                names: names.iter().map(qualified).collect::<Result<_>>()?,
                views: *object_type == ObjectType::View,
                if_exists: *if_exists,
                cascade: *cascade,
            },
            sql => match Procedure::of(sql) {
                Some(procedure) => Self::of_procedure(procedure)?,
                None => Self::Query,
            },
        })
    }

    fn of_procedure(procedure: Procedure) -> Result<Self> {
        if let Some(statement) = VersionStatement::of(&procedure)? {
            return Ok(Self::Version(Box::new(statement)));
        }
        match CopyStatement::of(&procedure)? {
            Some(statement) => Ok(Self::Copy(Box::new(statement))),
            None => Err(Error::unsupported("CALL is not available")),
        }
    }

    pub(crate) fn kind(&self) -> StatementKind {
        match self {
            Action::Query => StatementKind::Query,
            Action::Change(change) => change.kind(),
            Action::Version(statement) => statement.kind(),
            Action::Copy(_) => StatementKind::Update,
            Action::CreateTable(create) if create.query.is_some() => StatementKind::Update,
            Action::CreateTable(_)
            | Action::AlterTable(_)
            | Action::CreateView(_)
            | Action::Drop { .. }
            | Action::CreateIndex(_)
            | Action::CreateTextIndex(_)
            | Action::DropIndex { .. }
            | Action::CreateFunction(_)
            | Action::DropFunction { .. }
            | Action::Series(_)
            | Action::Control(_)
            | Action::Prefix(_)
            | Action::Model(_)
            | Action::Set(_) => StatementKind::Ddl,
        }
    }
}

/// A name with its schema.
pub(crate) fn qualified(name: &ObjectName) -> Result<TableRef> {
    let mut table = ddl::table_ref(name)?;
    table.schema.get_or_insert_with(|| DEFAULT_SCHEMA.to_owned());
    Ok(table)
}

/// The only table of a list of one.
pub(crate) fn target(table: &TableWithJoins) -> Result<TableRef> {
    match &table.relation {
        TableFactor::Table { name, .. } if table.joins.is_empty() => qualified(name),
        _ => Err(Error::invalid("only a table can be changed")),
    }
}

/// The parameters of a statement of several plans.
pub(crate) fn parameters_of_all(plans: &[LogicalPlan]) -> Result<Vec<Option<FieldRef>>> {
    let mut all: Vec<Option<FieldRef>> = Vec::new();
    for plan in plans {
        for (index, parameter) in parameters_of(plan)?.into_iter().enumerate() {
            if all.len() <= index {
                all.resize(index + 1, None);
            }
            all[index] = all[index].take().or(parameter);
        }
    }
    Ok(all)
}

/// The parameters of a plan, with the types that planning inferred.
pub(crate) fn parameters_of(plan: &LogicalPlan) -> Result<Vec<Option<FieldRef>>> {
    let fields = plan.get_parameter_fields().map_err(error::from_datafusion)?;
    let mut parameters = Vec::new();
    for (name, field) in fields {
        let index = name.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok()).unwrap_or(0);
        let Some(index) = index.checked_sub(1).filter(|index| *index < MAX_PARAMETERS) else {
            return Err(Error::invalid(format!("parameter {name}: write parameters as ? or as $1, $2, ..")));
        };
        if parameters.len() <= index {
            parameters.resize(index + 1, None);
        }
        parameters[index] = field.filter(|field| !field.data_type().is_null());
    }
    infer_from_use(plan, &mut parameters)?;
    Ok(parameters)
}

/// Types that DataFusion does not infer: of a parameter under a cast, and of a vector beside another vector.
fn infer_from_use(plan: &LogicalPlan, parameters: &mut [Option<FieldRef>]) -> Result<()> {
    let mut infer = |expr: &PlanExpr, field: FieldRef| {
        if let PlanExpr::Placeholder(placeholder) = expr
            && placeholder.field.as_ref().is_none_or(|field| field.data_type().is_null())
            && let Some(index) = placeholder.id.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok())
            && let Some(parameter) = index.checked_sub(1).and_then(|index| parameters.get_mut(index))
        {
            parameter.get_or_insert(field);
        }
    };
    let walk = plan.apply_with_subqueries(|node| {
        let inputs = node.inputs();
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                match (expr, inputs.first()) {
                    (PlanExpr::Cast(cast), _) => infer(&cast.expr, Arc::clone(&cast.field)),
                    (PlanExpr::ScalarFunction(call), Some(input)) if functions::is_metric(call.func.name()) => {
                        if let [a, b] = call.args.as_slice() {
                            for (unknown, known) in [(a, b), (b, a)] {
                                let known = known.to_field(input.schema()).map(|(_, field)| field);
                                if let Some(field) = known.ok().filter(|field| !field.data_type().is_null()) {
                                    infer(unknown, field);
                                }
                            }
                        }
                    }
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    walk.map(|_| ()).map_err(error::from_datafusion)
}

/// As in PostgreSQL's protocol.
const MAX_PARAMETERS: usize = 65_535;

/// The parameters as clients see them.
pub(crate) fn parameter_schema(parameters: &[Option<FieldRef>]) -> SchemaRef {
    let fields = parameters.iter().enumerate().map(|(index, field)| {
        let name = format!("${}", index + 1);
        match field {
            Some(field) => field.as_ref().clone().with_name(name).with_nullable(true),
            None => Field::new(name, DataType::Utf8, true),
        }
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Checks that `params` has a column for each parameter.
pub(crate) fn check_count(parameters: usize, params: &RecordBatch) -> Result<()> {
    if params.num_columns() == parameters {
        return Ok(());
    }
    Err(Error::invalid(format!("the statement takes {parameters} parameters and {} were bound", params.num_columns())))
}

/// Whether values of just the inferred types are bound.
pub(crate) fn are_as_inferred(parameters: &[Option<FieldRef>], params: &RecordBatch) -> bool {
    let is_inferred = |(bound, inferred): (&FieldRef, &Option<FieldRef>)| {
        inferred.as_ref().is_some_and(|inferred| inferred.data_type() == bound.data_type())
    };
    parameters.is_empty() || params.schema_ref().fields().iter().zip(parameters).all(is_inferred)
}

/// The types to plan with: those of the values, and the inferred ones where all values are NULL.
pub(crate) fn bound_types(parameters: &[Option<FieldRef>], params: &RecordBatch) -> Vec<FieldRef> {
    let schema = params.schema();
    let bound = schema.fields().iter().zip(parameters).map(|(bound, inferred)| match inferred {
        Some(inferred) if bound.data_type().is_null() => Arc::clone(inferred),
        _ => Arc::new(Field::new(bound.name(), plain_type(bound.data_type()), true)),
    });
    bound.collect()
}

/// The type that expressions compute with for values that came encoded.
fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, values) => plain_type(values),
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        other => other.clone(),
    }
}

/// Replaces the parameters of `plan` by row `row` of `params`.
pub(crate) fn bind(plan: LogicalPlan, types: &[FieldRef], params: &RecordBatch, row: usize) -> Result<LogicalPlan> {
    if types.is_empty() {
        return Ok(plan);
    }
    plan.with_param_values(ParamValues::from(values(types, params, row)?)).map_err(error::from_datafusion)
}

/// Row `row` of `params` in the types of the parameters.
pub(crate) fn values(types: &[FieldRef], params: &RecordBatch, row: usize) -> Result<Vec<ScalarValue>> {
    let value = |(column, field): (&ArrayRef, &FieldRef)| {
        let value = ScalarValue::try_from_array(column, row).map_err(error::from_datafusion)?;
        if value.data_type() == *field.data_type() {
            return Ok(value);
        }
        value.cast_to(field.data_type()).map_err(error::from_datafusion)
    };
    params.columns().iter().zip(types).map(value).collect()
}
