//! What there is: catalogs, schemas, tables, table types and keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::builder::{Int32Builder, StringBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTableTypes, CommandGetTables,
    ProstMessageExt,
};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use hypr_common::types::sql_type_name;
use hypr_common::{Error, Result};
use hypr_query::{CATALOG, DEFAULT_SCHEMA, TableInfo};
use prost::Message;
use tonic::Response;

use super::results::stream_batch;
use super::{Answer, FlightStream, HyprFlightSql};
use crate::error::{from_flight, to_status};

/// The kinds of tables, sorted.
const TABLE_TYPES: &[&str] = &["SYSTEM TABLE", "TABLE", "VIEW"];

/// Flight SQL's column metadata keys (FlightSql.proto, "Used for getting column metadata").
const COLUMN_CATALOG: &str = "ARROW:FLIGHT:SQL:CATALOG_NAME";
const COLUMN_SCHEMA: &str = "ARROW:FLIGHT:SQL:SCHEMA_NAME";
const COLUMN_TABLE: &str = "ARROW:FLIGHT:SQL:TABLE_NAME";
const COLUMN_TYPE: &str = "ARROW:FLIGHT:SQL:TYPE_NAME";

/// The answer to `GetFlightInfo` of a metadata command: the command itself is the ticket.
pub(super) fn info_of_command(
    command: &impl ProstMessageExt,
    schema: &Schema,
    descriptor: FlightDescriptor,
) -> Answer<FlightInfo> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(command.as_any().encode_to_vec()));
    let info = FlightInfo::new().try_with_schema(schema).map_err(|error| to_status(error.into()))?;
    Ok(Response::new(info.with_descriptor(descriptor).with_endpoint(endpoint)))
}

/// The answer to `DoGet` of a command whose rows are at hand.
pub(super) fn answer(batch: Result<RecordBatch>) -> Answer<FlightStream> {
    batch.map(|batch| Response::new(stream_batch(batch))).map_err(to_status)
}

pub(super) fn catalogs(command: CommandGetCatalogs) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    builder.append(CATALOG);
    builder.build().map_err(from_flight)
}

pub(super) fn table_types(command: CommandGetTableTypes) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    for table_type in TABLE_TYPES {
        builder.append(table_type);
    }
    builder.build().map_err(from_flight)
}

impl HyprFlightSql {
    pub(super) fn db_schemas(&self, command: CommandGetDbSchemas) -> Result<RecordBatch> {
        let names: BTreeSet<String> = self.engine.schemas().into_iter().collect();
        let mut builder = command.into_builder();
        for name in names {
            builder.append(CATALOG, name);
        }
        builder.build().map_err(from_flight)
    }

    pub(super) fn tables(&self, command: CommandGetTables) -> Result<RecordBatch> {
        let mut builder = command.into_builder();
        for table in self.engine.tables() {
            let columns = described_columns(&table);
            builder
                .append(CATALOG, &table.schema_name, &table.name, table.table_type, &columns)
                .map_err(from_flight)?;
        }
        builder.build().map_err(from_flight)
    }

    /// One row a key column of one table.
    pub(super) fn primary_keys(&self, command: &CommandGetPrimaryKeys) -> Result<RecordBatch> {
        let schema_name = command.db_schema.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_SCHEMA);
        let wanted = command.catalog.as_deref().is_none_or(|catalog| catalog.is_empty() || catalog == CATALOG);
        let tables = self.engine.tables();
        let table = tables
            .iter()
            .find(|table| wanted && table.schema_name == schema_name && table.name == command.table)
            .ok_or_else(|| Error::not_found(format!("table {schema_name}.{} does not exist", command.table)))?;
        let (mut catalogs, mut schemas, mut names, mut columns) =
            (StringBuilder::new(), StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
        let (mut key_names, mut sequence) = (StringBuilder::new(), Int32Builder::new());
        for (column, number) in table.primary_key.iter().zip(1..) {
            catalogs.append_value(CATALOG);
            schemas.append_value(&table.schema_name);
            names.append_value(&table.name);
            columns.append_value(column);
            key_names.append_value(format!("{}_pkey", table.name));
            sequence.append_value(number);
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(catalogs.finish()),
            Arc::new(schemas.finish()),
            Arc::new(names.finish()),
            Arc::new(columns.finish()),
            Arc::new(key_names.finish()),
            Arc::new(sequence.finish()),
        ];
        Ok(RecordBatch::try_new(primary_key_schema(), columns)?)
    }
}

/// A table's columns with what Flight SQL clients read from their metadata.
fn described_columns(table: &TableInfo) -> Schema {
    let describe = |field: &Field| {
        let mut metadata = field.metadata().clone();
        metadata.insert(COLUMN_CATALOG.to_owned(), CATALOG.to_owned());
        metadata.insert(COLUMN_SCHEMA.to_owned(), table.schema_name.clone());
        metadata.insert(COLUMN_TABLE.to_owned(), table.name.clone());
        metadata.insert(COLUMN_TYPE.to_owned(), sql_type_name(field));
        field.clone().with_metadata(metadata)
    };
    Schema::new(table.columns.fields().iter().map(|field| describe(field)).collect::<Fields>())
}

/// Schema of `GetPrimaryKeys` (FlightSql.proto).
pub(super) fn primary_key_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ]))
}

/// Schema of `GetExportedKeys`, `GetImportedKeys` and `GetCrossReference` (FlightSql.proto).
pub(super) fn foreign_key_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
}

/// There are no foreign keys, so every question about them has no rows.
pub(super) fn no_foreign_keys() -> RecordBatch {
    RecordBatch::new_empty(foreign_key_schema())
}
