//! Bulk ingest: a stream of batches into a table, made for it if need be.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use hypr_common::{Error, ErrorKind, Result, types};
use hypr_storage::{Table, TableDefinition};

use crate::catalog::Catalog;
use crate::rules::Rules;
use crate::series::continuous;
use crate::{IngestMode, Session, TableRef, convert, error};

/// The most bytes of one commit.
const COMMIT_BYTES: usize = 64 << 20;

/// See [`crate::Session::ingest`].
pub(crate) async fn run(
    session: &Session,
    table: &TableRef,
    mode: IngestMode,
    mut batches: SendableRecordBatchStream,
) -> Result<u64> {
    let catalog = session.catalog();
    let target = open_target(catalog, table, mode, &batches.schema()).await?;
    let schema = target.schema();
    let rules = Rules::of(session, &session.statement_state(), &target)?;
    let (mut rows, mut pending, mut pending_bytes) = (0, Vec::new(), 0);
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(error::from_datafusion)?;
        let batch = convert::batch_by_name(&batch, &schema, &table.name, &rules)?;
        rules.check(std::slice::from_ref(&batch))?;
        for piece in pieces(&batch) {
            let bytes = piece.get_array_memory_size();
            if pending_bytes + bytes > COMMIT_BYTES && !pending.is_empty() {
                rows += target.insert(std::mem::take(&mut pending)).await?;
                pending_bytes = 0;
            }
            pending_bytes += bytes;
            pending.push(piece);
        }
    }
    if !pending.is_empty() {
        rows += target.insert(pending).await?;
    }
    Ok(rows)
}

/// Slices of at most about [`COMMIT_BYTES`].
fn pieces(batch: &RecordBatch) -> Vec<RecordBatch> {
    let bytes = batch.get_array_memory_size();
    let rows = batch.num_rows();
    if rows == 0 {
        return Vec::new();
    }
    let step = (rows / bytes.div_ceil(COMMIT_BYTES).max(1)).max(1);
    (0..rows).step_by(step).map(|start| batch.slice(start, step.min(rows - start))).collect()
}

async fn open_target(catalog: &Catalog, table: &TableRef, mode: IngestMode, schema: &Schema) -> Result<Arc<Table>> {
    if catalog.model_table(table.schema_name(), &table.name).is_some() {
        return catalog.stored(table);
    }
    continuous::refuse_name(catalog, table)?;
    if mode == IngestMode::Replace {
        continuous::refuse_dependents(catalog, table)?;
        catalog.drop_table(table, true).await?;
    }
    if mode != IngestMode::Append {
        let definition = TableDefinition {
            schema_name: table.schema_name().to_owned(),
            name: table.name.clone(),
            columns: Arc::new(Schema::new(table_columns(schema)?)),
            primary_key: Vec::new(),
            options: BTreeMap::new(),
        };
        let created = catalog.create_table(definition, mode == IngestMode::CreateAppend).await?;
        if !created && mode == IngestMode::Create {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("table \"{table}\" exists already; append to it"),
            ));
        }
    }
    catalog.stored(table)
}

/// The columns of a table made for data of `schema`.
pub(crate) fn table_columns(schema: &Schema) -> Result<Vec<Field>> {
    if schema.fields().is_empty() {
        return Err(Error::invalid("a table needs at least one column"));
    }
    let mut columns: Vec<Field> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        if columns.iter().any(|other| other.name() == field.name()) {
            return Err(Error::invalid(format!("two columns are called \"{}\"; rename one", field.name())));
        }
        columns.push(table_column(field));
    }
    Ok(columns)
}

fn table_column(field: &Field) -> Field {
    let name = field.name();
    match field.data_type() {
        DataType::Dictionary(_, values) => table_column(&field.clone().with_data_type(values.as_ref().clone())),
        DataType::FixedSizeList(item, dimension) if is_vector_item(item) => types::vector_field(name, *dimension, true),
        DataType::List(item) | DataType::LargeList(item) if is_vector_item(item) => {
            types::dynamic_vector_field(name, true)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View if is_json_text(field) => {
            types::json_field(name, true)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => {
            Field::new(name, DataType::Utf8, true)
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            Field::new(name, DataType::LargeBinary, true)
        }
        other => Field::new(name, other.clone(), true),
    }
}

fn is_vector_item(item: &Field) -> bool {
    matches!(item.data_type(), DataType::Float32 | DataType::Float16)
}

fn is_json_text(field: &Field) -> bool {
    field.metadata().get(types::EXTENSION_NAME_KEY).is_some_and(|name| name == types::JSON_EXTENSION)
}
