//! The catalog `hyprstream`: the store's tables and the built-in model tables, read live on every statement.
//!
//! Invariant: holds no state of its own but caches, so a table made by one session is there for all others at once,
//! but for what an open transaction keeps to itself.

mod stored_table;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::Result as DfResult;
use hypr_common::model::ModelSource;
use hypr_common::{Error, Result};
use hypr_inference::api::Inference;
use hypr_storage::{Database, PrefixStore, Table, TableDefinition, Transaction};

use crate::models::ModelTable;
use crate::series::continuous;
use crate::views::{self, Definition, ViewInfo};
use crate::{CATALOG, DEFAULT_SCHEMA, TableInfo, TableRef, error, versions};

pub(crate) use stored_table::StoredTable;

/// The catalog of one database.
#[derive(Clone)]
pub(crate) struct Catalog {
    database: Database,
    inference: Arc<dyn Inference>,
    prefixes: Arc<PrefixStore>,
    continuous: Arc<continuous::Caches>,
    /// What it is read and changed through, if not as it is for everybody.
    transaction: Option<Arc<Transaction>>,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

impl Catalog {
    pub(crate) fn new(database: Database, inference: Arc<dyn Inference>) -> Self {
        let prefixes = Arc::new(PrefixStore::new(database.dir()));
        Self { database, inference, prefixes, continuous: Arc::default(), transaction: None }
    }

    /// Saved beginnings of prompts.
    pub(crate) fn prefixes(&self) -> &Arc<PrefixStore> {
        &self.prefixes
    }

    /// What is remembered of continuous aggregates.
    pub(crate) fn continuous(&self) -> &continuous::Caches {
        &self.continuous
    }

    /// The catalog as `transaction` sees and changes it.
    pub(crate) fn inside(&self, transaction: Arc<Transaction>) -> Self {
        Self { transaction: Some(transaction), ..self.clone() }
    }

    pub(crate) fn transaction(&self) -> Option<&Arc<Transaction>> {
        self.transaction.as_ref()
    }

    fn table_of(&self, schema: &str, name: &str) -> Option<Arc<Table>> {
        match &self.transaction {
            Some(transaction) => transaction.table(schema, name),
            None => self.database.table(schema, name),
        }
    }

    fn stored_tables(&self) -> Vec<Arc<Table>> {
        match &self.transaction {
            Some(transaction) => transaction.tables(),
            None => self.database.tables(),
        }
    }

    /// See [`Database::create_table`].
    pub(crate) async fn create_table(&self, definition: TableDefinition, if_not_exists: bool) -> Result<bool> {
        match &self.transaction {
            Some(transaction) => transaction.create_table(&definition, if_not_exists),
            None => self.database.create_table(definition, if_not_exists).await,
        }
    }

    /// See [`Database::drop_table`].
    pub(crate) async fn drop_table(&self, table: &TableRef, if_exists: bool) -> Result<bool> {
        match &self.transaction {
            Some(transaction) => transaction.drop_table(table.schema_name(), &table.name, if_exists),
            None => self.database.drop_table(table.schema_name(), &table.name, if_exists).await,
        }
    }

    /// What holds the stored tables.
    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// The built-in table of that name. A table that was made before a name became built-in keeps it.
    pub(crate) fn model_table(&self, schema: &str, name: &str) -> Option<ModelTable> {
        let source: Arc<dyn ModelSource> = self.database.models();
        let built_in = match schema {
            DEFAULT_SCHEMA => ModelTable::find(name, source, &self.inference, &self.prefixes),
            _ => None,
        };
        built_in.filter(|_| self.table_of(schema, name).is_none())
    }

    /// The stored table, or an error that suggests a name.
    pub(crate) fn stored(&self, table: &TableRef) -> Result<Arc<Table>> {
        let (schema, name) = (table.schema_name(), table.name.as_str());
        if let Some(found) = self.table_of(schema, name).filter(|_| !continuous::is_reserved(schema)) {
            return Ok(found);
        }
        if let Some((plain, _)) = versions::name::decode(name) {
            return Err(Error::invalid(format!(
                "a version of \"{plain}\" cannot be changed; RESTORE TABLE {plain} TO VERSION AS OF .. brings it back"
            )));
        }
        if self.database.object(continuous::KIND, schema, name).is_some() {
            return Err(Error::unsupported(format!(
                "\"{name}\" is a continuous aggregate; change the table that it reads, or drop it with DROP MATERIALIZED VIEW"
            )));
        }
        if let Some(table) = self.model_table(schema, name) {
            return Err(Error::unsupported(format!("\"{name}\" is a built-in table, {}", table.filled_by())));
        }
        match self.view(table)? {
            Some(_) => Err(views::not_a_table(table)),
            None => Err(self.no_such_table(table)),
        }
    }

    /// The view of that name.
    pub(crate) fn view(&self, name: &TableRef) -> Result<Option<Definition>> {
        let object = self.database.object(views::KIND, name.schema_name(), &name.name);
        object.as_ref().map(Definition::of).transpose()
    }

    pub(crate) fn no_such_table(&self, table: &TableRef) -> Error {
        let names: Vec<String> = self
            .tables()
            .into_iter()
            .filter(|info| info.schema_name == table.schema_name())
            .map(|info| info.name)
            .collect();
        let hint = error::hint(&table.name, names.iter().map(String::as_str));
        Error::not_found(format!("table \"{table}\" does not exist{hint}"))
    }

    /// Every table, by schema and name.
    pub(crate) fn tables(&self) -> Vec<TableInfo> {
        let stored = self.stored_tables();
        let stored = stored.iter().filter(|table| !continuous::is_reserved(&table.definition().schema_name));
        let mut infos: Vec<TableInfo> = stored.map(|table| stored_info(table)).collect();
        infos.extend(continuous::listings(self).into_iter().filter_map(|view| {
            let columns = view.columns(self).ok()?;
            let (schema_name, name) = (view.schema_name, view.name);
            Some(TableInfo { schema_name, name, table_type: "VIEW", columns, primary_key: Vec::new() })
        }));
        infos.extend(ModelTable::NAMES.iter().filter_map(|name| {
            let table = self.model_table(DEFAULT_SCHEMA, name)?;
            Some(TableInfo {
                schema_name: DEFAULT_SCHEMA.to_owned(),
                name: (*name).to_owned(),
                table_type: "SYSTEM TABLE",
                columns: table.schema(),
                primary_key: table.primary_key(),
            })
        }));
        infos.extend(self.database.objects(views::KIND).into_iter().filter_map(|object| {
            let columns = Definition::of(&object).ok()?.schema;
            let (schema_name, name) = (object.schema_name, object.name);
            Some(TableInfo { schema_name, name, table_type: "VIEW", columns, primary_key: Vec::new() })
        }));
        infos.sort_by(|a, b| (&a.schema_name, &a.name).cmp(&(&b.schema_name, &b.name)));
        infos
    }

    /// The names of all schemas; the default one is always there.
    pub(crate) fn schemas(&self) -> Vec<String> {
        let mut names: BTreeSet<String> =
            self.stored_tables().iter().map(|table| table.definition().schema_name.clone()).collect();
        for kind in [continuous::KIND, views::KIND] {
            names.extend(self.database.objects(kind).into_iter().map(|view| view.schema_name));
        }
        names.retain(|name| !continuous::is_reserved(name));
        names.insert(DEFAULT_SCHEMA.to_owned());
        names.into_iter().collect()
    }
}

fn stored_info(table: &Table) -> TableInfo {
    let definition = table.definition();
    TableInfo {
        schema_name: definition.schema_name.clone(),
        name: definition.name.clone(),
        table_type: "TABLE",
        columns: table.schema(),
        primary_key: definition.primary_key.clone(),
    }
}

impl CatalogProviderList for Catalog {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::new(self.clone()) as _)
    }
}

impl CatalogProvider for Catalog {
    fn schema_names(&self) -> Vec<String> {
        self.schemas()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let known = name == DEFAULT_SCHEMA || self.schemas().iter().any(|schema| schema == name);
        known.then(|| Arc::new(Schema { catalog: self.clone(), name: name.to_owned() }) as _)
    }
}

/// One schema of the catalog.
#[derive(Debug)]
struct Schema {
    catalog: Catalog,
    name: String,
}

#[async_trait]
impl SchemaProvider for Schema {
    fn table_names(&self) -> Vec<String> {
        let tables = self.catalog.tables().into_iter();
        tables.filter(|info| info.schema_name == self.name).map(|info| info.name).collect()
    }

    async fn table(&self, name: &str) -> DfResult<Option<Arc<dyn TableProvider>>> {
        if let Some(table) = self.catalog.model_table(&self.name, name) {
            return Ok(Some(Arc::new(table)));
        }
        if let Some(view) = continuous::find(&self.catalog, &self.name, name).map_err(error::to_datafusion)? {
            return Ok(Some(Arc::new(view)));
        }
        let reference = TableRef { schema: Some(self.name.clone()), name: name.to_owned() };
        if let Some(view) = self.catalog.view(&reference).map_err(error::to_datafusion)? {
            return Ok(Some(Arc::new(ViewInfo(view))));
        }
        Ok(self.catalog.table_of(&self.name, name).map(|table| Arc::new(StoredTable::new(table)) as _))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.catalog.model_table(&self.name, name).is_some()
            || self.catalog.table_of(&self.name, name).is_some()
            || [continuous::KIND, views::KIND]
                .iter()
                .any(|kind| self.catalog.database.object(kind, &self.name, name).is_some())
    }
}
