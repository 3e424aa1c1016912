//! A table at a version as DataFusion scans it, and the list of versions as a table.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::builder::{Int64Builder, ListBuilder, StringBuilder, TimestampMicrosecondBuilder};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{Result as DfResult, ScalarValue, Statistics};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use hypr_common::{Error, Result};
use hypr_storage::{Database, ScanRequest, Table, TableAtVersion, TableVersion};

use super::At;
use super::time::version_name;
use crate::catalog::Catalog;
use crate::{TableRef, error};

/// The table at a version.
pub(crate) async fn provider(
    state: &SessionState,
    catalog: &Catalog,
    table: &TableRef,
    at: &At,
) -> Result<Arc<dyn TableProvider>> {
    let stored = catalog.stored(table)?;
    let name = version_name(state, at)?;
    let pinned = catalog.database().at_version(&stored, &name).await?;
    Ok(Arc::new(PastTable { pinned }))
}

#[derive(Debug)]
struct PastTable {
    pinned: TableAtVersion,
}

#[async_trait]
impl TableProvider for PastTable {
    fn schema(&self) -> SchemaRef {
        self.pinned.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let request =
            ScanRequest { projection: projection.cloned(), filters: filters.to_vec(), limit, with_row_id: false };
        self.pinned.scan(state, request).await.map_err(error::to_datafusion)
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        Ok(filters.iter().map(|filter| self.pinned.supports_filter(filter)).collect())
    }

    fn statistics(&self) -> Option<Statistics> {
        let mut statistics = Statistics::new_unknown(&self.pinned.schema());
        statistics.num_rows = Precision::Inexact(self.pinned.approximate_rows());
        Some(statistics)
    }
}

/// `table_versions('table')`: a row a version, oldest first; the last holds everything acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct TableVersions {
    catalog: Catalog,
}

impl TableVersions {
    pub(crate) const NAME: &str = "table_versions";

    pub(crate) fn new(catalog: Catalog) -> Self {
        Self { catalog }
    }
}

impl TableFunctionImpl for TableVersions {
    fn call_with_args(&self, args: TableFunctionArgs) -> DfResult<Arc<dyn TableProvider>> {
        let table = match args.exprs() {
            [Expr::Literal(ScalarValue::Utf8(Some(name)) | ScalarValue::LargeUtf8(Some(name)), _)] => named(name),
            _ => Err(Error::invalid("table_versions takes the name of a table, as in table_versions('docs')")),
        };
        let found = table.and_then(|table| self.catalog.stored(&table)).map_err(error::to_datafusion)?;
        Ok(Arc::new(Versions { database: self.catalog.database().clone(), table: found }))
    }
}

/// `'table'` or `'schema.table'`; the text is the name as the catalog has it.
fn named(text: &str) -> Result<TableRef> {
    match text.split('.').collect::<Vec<_>>().as_slice() {
        [name] => Ok(TableRef::bare(*name)),
        [schema, name] => Ok(TableRef { schema: Some((*schema).to_owned()), name: (*name).to_owned() }),
        _ => Err(Error::invalid(format!("\"{text}\" is no table name"))),
    }
}

#[derive(Debug)]
struct Versions {
    database: Database,
    table: Arc<Table>,
}

#[async_trait]
impl TableProvider for Versions {
    fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("version", DataType::Int64, false),
            Field::new("committed_at", committed_at(), false),
            Field::new("rows", DataType::Int64, false),
            Field::new("tags", DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))), false),
        ]))
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let versions = self.database.versions(&self.table).await.map_err(error::to_datafusion)?;
        let batch = listed(&versions, self.schema())?;
        let scan = MemorySourceConfig::try_new_exec(&[vec![batch]], self.schema(), projection.cloned())?;
        Ok(scan)
    }
}

fn committed_at() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn listed(versions: &[TableVersion], schema: SchemaRef) -> DfResult<RecordBatch> {
    let (mut numbers, mut rows) = (Int64Builder::new(), Int64Builder::new());
    let mut times = TimestampMicrosecondBuilder::new().with_data_type(committed_at());
    let mut tags = ListBuilder::new(StringBuilder::new());
    for version in versions {
        numbers.append_value(i64::try_from(version.version).unwrap_or(i64::MAX));
        times.append_value(version.committed_us);
        rows.append_value(i64::try_from(version.rows).unwrap_or(i64::MAX));
        for tag in &version.tags {
            tags.values().append_value(tag);
        }
        tags.append(true);
    }
    let columns = vec![
        Arc::new(numbers.finish()) as _,
        Arc::new(times.finish()) as _,
        Arc::new(rows.finish()) as _,
        Arc::new(tags.finish()) as _,
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}
