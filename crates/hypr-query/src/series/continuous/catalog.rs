//! Views as the catalog keeps them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::SessionState;
use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{CatalogObject, PinnedTable, Table};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::fingerprint::PrintCache;
use super::provider::ContinuousTable;
use super::refresh::Stored;
use super::shape::Shape;
use crate::catalog::Catalog;
use crate::planner::Planner;
use crate::{TableRef, dialect, error};

/// The kind of their catalog objects.
pub(crate) const KIND: &str = "continuous_aggregate";
/// The schema of the tables that hold their rows; no user sees it.
pub(crate) const STORE_SCHEMA: &str = "_hypr_continuous";

/// True for schemas that hold what is ours.
pub(crate) fn is_reserved(schema: &str) -> bool {
    schema == STORE_SCHEMA
}

/// What a view's table has beside the view's columns, which it calls `c0`, `c1`, ..
pub(super) const KIND_COLUMN: &str = "_kind";
pub(super) const ROWS_COLUMN: &str = "_rows";
pub(super) const CHECKSUM_COLUMN: &str = "_checksum";

/// The values of [`KIND_COLUMN`]: a row of the view,
pub(super) const KIND_ROW: i64 = 0;
/// the fingerprint of a bucket,
pub(super) const KIND_BUCKET: i64 = 1;
/// and the horizon before which buckets are final.
pub(super) const KIND_HORIZON: i64 = 2;

/// The name of the view's column `at` in its table.
pub(super) fn stored_name(at: usize) -> String {
    format!("c{at}")
}

/// The columns of the table of a view with `columns`.
pub(super) fn store_columns(columns: &[Field]) -> SchemaRef {
    let mut fields: Vec<Field> = columns
        .iter()
        .enumerate()
        .map(|(at, field)| field.clone().with_name(stored_name(at)).with_nullable(true))
        .collect();
    fields.extend([KIND_COLUMN, ROWS_COLUMN, CHECKSUM_COLUMN].map(|name| Field::new(name, DataType::Int64, false)));
    Arc::new(Schema::new(fields))
}

/// What queries remember of the views, so that they need not read it again. Never the truth about anything.
#[derive(Debug, Default)]
pub(crate) struct Caches(Mutex<HashMap<(u128, u128), SharedCache>>);

type SharedCache = Arc<tokio::sync::Mutex<Cache>>;

#[derive(Debug, Default)]
pub(super) struct Cache {
    pub prints: PrintCache,
    pub stored: Option<(PinnedTable, Arc<Stored>)>,
}

impl Caches {
    fn of(&self, store: &Table, base: &Table) -> Arc<tokio::sync::Mutex<Cache>> {
        Arc::clone(self.0.lock().entry((store.identity(), base.identity())).or_default())
    }

    fn forget(&self, store: u128) {
        self.0.lock().retain(|(other, _), _| *other != store);
    }
}

/// A view as its definition says, not planned.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub schema_name: String,
    pub name: String,
    /// The text of its query.
    pub query: String,
    /// The table that it reads.
    pub base: TableRef,
    columns: Vec<String>,
}

impl Listing {
    pub(super) fn new(view: &TableRef, query: String, base: TableRef, columns: Vec<String>) -> Self {
        Self { schema_name: view.schema_name().to_owned(), name: view.name.clone(), query, base, columns }
    }

    pub(super) fn to_object(&self) -> CatalogObject {
        CatalogObject {
            kind: KIND.to_owned(),
            schema_name: self.schema_name.clone(),
            name: self.name.clone(),
            definition: json!({
                "query": self.query,
                "base_schema": self.base.schema_name(),
                "base": self.base.name,
                "columns": self.columns,
            }),
        }
    }

    fn from_object(object: &CatalogObject) -> Result<Self> {
        let text = |key: &str| object.definition.get(key).and_then(Value::as_str).map(str::to_owned);
        let columns = object.definition.get("columns").and_then(Value::as_array);
        let columns = columns.map(|all| all.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect());
        let (Some(query), Some(schema), Some(base), Some(columns)) =
            (text("query"), text("base_schema"), text("base"), columns)
        else {
            return Err(Error::corrupted(format!("the definition of {} is not understood", object.name)));
        };
        Ok(Self {
            schema_name: object.schema_name.clone(),
            name: object.name.clone(),
            query,
            base: TableRef { schema: Some(schema), name: base },
            columns,
        })
    }

    /// The name of the table of its rows.
    pub(super) fn store_name(&self) -> String {
        format!("{}.{}", self.schema_name, self.name)
    }

    pub(super) fn store(&self, catalog: &Catalog) -> Result<Arc<Table>> {
        let found = catalog.database().table(STORE_SCHEMA, &self.store_name());
        found.ok_or_else(|| Error::internal(format!("the rows of {} are missing", self.name)))
    }

    /// The view's columns, by its own names.
    pub(super) fn schema(&self, store: &Table) -> SchemaRef {
        let stored = store.schema();
        let fields =
            self.columns.iter().zip(stored.fields()).map(|(name, field)| field.as_ref().clone().with_name(name));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The view's columns as catalogs show them.
    pub(crate) fn columns(&self, catalog: &Catalog) -> Result<SchemaRef> {
        Ok(self.schema(&*self.store(catalog)?))
    }
}

/// All views, by schema and name.
pub(crate) fn listings(catalog: &Catalog) -> Vec<Listing> {
    catalog.database().objects(KIND).iter().filter_map(|object| Listing::from_object(object).ok()).collect()
}

/// Refuses to take away or to change the columns of a table that views read.
///
/// # Errors
/// `Conflict` names the views.
pub(crate) fn refuse_dependents(catalog: &Catalog, table: &TableRef) -> Result<()> {
    let reads = |view: &Listing| view.base.schema_name() == table.schema_name() && view.base.name == table.name;
    let names: Vec<String> = listings(catalog).into_iter().filter(reads).map(|view| view.name).collect();
    if names.is_empty() {
        return Ok(());
    }
    let names = names.join(", ");
    Err(Error::new(
        ErrorKind::Conflict,
        format!("table \"{table}\" is read by the continuous aggregate {names}; use DROP MATERIALIZED VIEW first"),
    ))
}

/// Refuses the name of a view for a table.
///
/// # Errors
/// `AlreadyExists`.
pub(crate) fn refuse_name(catalog: &Catalog, table: &TableRef) -> Result<()> {
    match catalog.database().object(KIND, table.schema_name(), &table.name) {
        Some(_) => {
            let message = format!("\"{table}\" is a continuous aggregate; use another name");
            Err(Error::new(ErrorKind::AlreadyExists, message))
        }
        None => Ok(()),
    }
}

/// The view of that name, to select from.
///
/// # Errors
/// `Corrupted` for a definition that is not understood.
pub(crate) fn find(catalog: &Catalog, schema: &str, name: &str) -> Result<Option<ContinuousTable>> {
    match catalog.database().object(KIND, schema, name) {
        Some(object) => ContinuousTable::new(catalog.clone(), Listing::from_object(&object)?).map(Some),
        None => Ok(None),
    }
}

/// A view, planned.
#[derive(Clone, Debug)]
pub(in crate::series) struct View {
    pub shape: Arc<Shape>,
    pub base: Arc<Table>,
    pub store: Arc<Table>,
    pub(super) cache: Arc<tokio::sync::Mutex<Cache>>,
}

impl View {
    /// Plans the query of `listing`.
    ///
    /// # Errors
    /// Those of planning, such as `NotFound` for a base table that is gone.
    pub async fn open(catalog: &Catalog, state: &SessionState, listing: &Listing) -> Result<Self> {
        let shape = Arc::new(plan(catalog, state, &listing.query).await?);
        let base = catalog.stored(&shape.base)?;
        let store = listing.store(catalog)?;
        let cache = catalog.continuous().of(&store, &base);
        Ok(Self { shape, base, store, cache })
    }
}

/// Plans and checks the query of a view.
pub(super) async fn plan(catalog: &Catalog, state: &SessionState, query: &str) -> Result<Shape> {
    let statement = dialect::parse(query, &NoNames)?;
    let plan = Box::pin(Planner { state, catalog, names: &NoNames }.plan(statement, None, &[])).await?;
    let shape = Shape::of(plan, state)?;
    catalog.stored(&shape.base)?;
    Ok(shape)
}

/// A view's query has been through the rewrites once.
struct NoNames;

impl dialect::Names for NoNames {
    fn is_table(&self, _: &str) -> bool {
        true
    }

    fn is_model(&self, _: &str) -> bool {
        false
    }
}

/// Frees what is remembered of a view.
pub(super) fn forget(catalog: &Catalog, store: &Table) {
    catalog.continuous().forget(store.identity());
}

/// An error of DataFusion as one of ours.
pub(super) fn from_df<T>(result: datafusion::common::Result<T>) -> Result<T> {
    result.map_err(error::from_datafusion)
}
