//! The stored form of table schemas: readable JSON, frozen apart from Arrow's run-time types, and the
//! schema a table has inside Lance.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use hypr_common::types::{
    self, EXTENSION_METADATA_KEY, EXTENSION_NAME_KEY, dynamic_vector_field, json_field, sql_type_name, vector_field,
};
use hypr_common::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::ROW_ID_COLUMN;

/// A column as `catalog.json` and the log keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredColumn {
    name: String,
    #[serde(rename = "type")]
    data_type: StoredType,
    nullable: bool,
    /// Field metadata other than that of the type.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum StoredType {
    Boolean,
    Int { bits: u8 },
    Uint { bits: u8 },
    Float { bits: u8 },
    Decimal { bits: u16, precision: u8, scale: i8 },
    Text,
    LargeText,
    Json,
    Binary,
    Blob,
    FixedBinary { width: i32 },
    Date,
    DateMillis,
    Time { unit: Unit },
    Timestamp { unit: Unit, time_zone: Option<String> },
    Duration { unit: Unit },
    Vector { dimension: Option<i32> },
    List { item: Box<StoredColumn> },
    LargeList { item: Box<StoredColumn> },
    FixedList { item: Box<StoredColumn>, len: i32 },
    Struct { fields: Vec<StoredColumn> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Unit {
    Second,
    Millisecond,
    Microsecond,
    Nanosecond,
}

impl From<TimeUnit> for Unit {
    fn from(unit: TimeUnit) -> Self {
        match unit {
            TimeUnit::Second => Self::Second,
            TimeUnit::Millisecond => Self::Millisecond,
            TimeUnit::Microsecond => Self::Microsecond,
            TimeUnit::Nanosecond => Self::Nanosecond,
        }
    }
}

impl From<Unit> for TimeUnit {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Second => Self::Second,
            Unit::Millisecond => Self::Millisecond,
            Unit::Microsecond => Self::Microsecond,
            Unit::Nanosecond => Self::Nanosecond,
        }
    }
}

/// The stored form of `schema`.
///
/// # Errors
/// `Unsupported` names the column and type that a table cannot keep.
pub(crate) fn store(schema: &Schema) -> Result<Vec<StoredColumn>> {
    schema.fields().iter().map(|field| store_field(field, true)).collect()
}

/// The schema that was stored.
pub(crate) fn load(columns: &[StoredColumn]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(load_field).collect::<Vec<_>>()))
}

fn store_field(field: &Field, top_level: bool) -> Result<StoredColumn> {
    let extension = [EXTENSION_NAME_KEY, EXTENSION_METADATA_KEY];
    let known = types::is_json(field) || types::is_vector(field);
    if !top_level && !field.metadata().is_empty() {
        return Err(unsupported(field, "JSON and VECTOR inside of lists and structs"));
    }
    let metadata = field.metadata().iter().filter(|(key, _)| !(known && extension.contains(&key.as_str())));
    Ok(StoredColumn {
        name: field.name().clone(),
        data_type: store_type(field)?,
        nullable: field.is_nullable(),
        metadata: metadata.map(|(key, value)| (key.clone(), value.clone())).collect(),
    })
}

fn store_type(field: &Field) -> Result<StoredType> {
    let item = |item: &Field| store_field(item, false).map(Box::new);
    Ok(match field.data_type() {
        DataType::FixedSizeList(child, dimension) if types::is_vector(field) => match child.data_type() {
            DataType::Float32 if *dimension > 0 => StoredType::Vector { dimension: Some(*dimension) },
            DataType::Float32 => {
                return Err(Error::invalid(format!("column {}: VECTOR needs at least one dimension", field.name())));
            }
            _ => return Err(unsupported(field, "vectors of anything but 32-bit floats")),
        },
        DataType::List(child) if types::is_vector(field) && *child.data_type() == DataType::Float32 => {
            StoredType::Vector { dimension: None }
        }
        DataType::Utf8 if types::is_json(field) => StoredType::Json,
        DataType::Boolean => StoredType::Boolean,
        DataType::Int8 => StoredType::Int { bits: 8 },
        DataType::Int16 => StoredType::Int { bits: 16 },
        DataType::Int32 => StoredType::Int { bits: 32 },
        DataType::Int64 => StoredType::Int { bits: 64 },
        DataType::UInt8 => StoredType::Uint { bits: 8 },
        DataType::UInt16 => StoredType::Uint { bits: 16 },
        DataType::UInt32 => StoredType::Uint { bits: 32 },
        DataType::UInt64 => StoredType::Uint { bits: 64 },
        DataType::Float16 => StoredType::Float { bits: 16 },
        DataType::Float32 => StoredType::Float { bits: 32 },
        DataType::Float64 => StoredType::Float { bits: 64 },
        DataType::Decimal128(precision, scale) => {
            StoredType::Decimal { bits: 128, precision: *precision, scale: *scale }
        }
        DataType::Decimal256(precision, scale) => {
            StoredType::Decimal { bits: 256, precision: *precision, scale: *scale }
        }
        DataType::Utf8 => StoredType::Text,
        DataType::LargeUtf8 => StoredType::LargeText,
        DataType::Binary => StoredType::Binary,
        DataType::LargeBinary => StoredType::Blob,
        DataType::FixedSizeBinary(width) => StoredType::FixedBinary { width: *width },
        DataType::Date32 => StoredType::Date,
        DataType::Date64 => StoredType::DateMillis,
        DataType::Time32(unit) | DataType::Time64(unit) => StoredType::Time { unit: (*unit).into() },
        DataType::Timestamp(unit, zone) => {
            StoredType::Timestamp { unit: (*unit).into(), time_zone: zone.as_ref().map(ToString::to_string) }
        }
        DataType::Duration(unit) => StoredType::Duration { unit: (*unit).into() },
        DataType::List(child) => StoredType::List { item: item(child)? },
        DataType::LargeList(child) => StoredType::LargeList { item: item(child)? },
        DataType::FixedSizeList(child, len) if child.data_type().is_primitive() => {
            StoredType::FixedList { item: item(child)?, len: *len }
        }
        DataType::Struct(fields) if !fields.is_empty() => {
            StoredType::Struct { fields: fields.iter().map(|f| store_field(f, false)).collect::<Result<_>>()? }
        }
        other => return Err(unsupported(field, &format!("type {other}"))),
    })
}

fn unsupported(field: &Field, what: &str) -> Error {
    Error::unsupported(format!(
        "column {} has a type that tables cannot keep yet ({what}); cast it to another type",
        field.name()
    ))
}

fn load_field(column: &StoredColumn) -> Field {
    let (name, nullable) = (column.name.as_str(), column.nullable);
    let field = match &column.data_type {
        StoredType::Json => json_field(name, nullable),
        StoredType::Vector { dimension: Some(dimension) } => vector_field(name, *dimension, nullable),
        StoredType::Vector { dimension: None } => dynamic_vector_field(name, nullable),
        plain => Field::new(name, load_type(plain), nullable),
    };
    if column.metadata.is_empty() {
        return field;
    }
    let mut metadata = field.metadata().clone();
    metadata.extend(column.metadata.clone());
    field.with_metadata(metadata)
}

fn load_type(stored: &StoredType) -> DataType {
    let item = |item: &StoredColumn| Arc::new(load_field(item));
    match stored {
        StoredType::Boolean => DataType::Boolean,
        StoredType::Int { bits: 8 } => DataType::Int8,
        StoredType::Int { bits: 16 } => DataType::Int16,
        StoredType::Int { bits: 32 } => DataType::Int32,
        StoredType::Int { .. } => DataType::Int64,
        StoredType::Uint { bits: 8 } => DataType::UInt8,
        StoredType::Uint { bits: 16 } => DataType::UInt16,
        StoredType::Uint { bits: 32 } => DataType::UInt32,
        StoredType::Uint { .. } => DataType::UInt64,
        StoredType::Float { bits: 16 } => DataType::Float16,
        StoredType::Float { bits: 32 } => DataType::Float32,
        StoredType::Float { .. } => DataType::Float64,
        StoredType::Decimal { bits: 128, precision, scale } => DataType::Decimal128(*precision, *scale),
        StoredType::Decimal { precision, scale, .. } => DataType::Decimal256(*precision, *scale),
        StoredType::Text | StoredType::Json => DataType::Utf8,
        StoredType::LargeText => DataType::LargeUtf8,
        StoredType::Binary => DataType::Binary,
        StoredType::Blob => DataType::LargeBinary,
        StoredType::FixedBinary { width } => DataType::FixedSizeBinary(*width),
        StoredType::Date => DataType::Date32,
        StoredType::DateMillis => DataType::Date64,
        StoredType::Time { unit: unit @ (Unit::Second | Unit::Millisecond) } => DataType::Time32((*unit).into()),
        StoredType::Time { unit } => DataType::Time64((*unit).into()),
        StoredType::Timestamp { unit, time_zone } => {
            DataType::Timestamp((*unit).into(), time_zone.as_deref().map(Arc::from))
        }
        StoredType::Duration { unit } => DataType::Duration((*unit).into()),
        StoredType::Vector { dimension: Some(dimension) } => types::vector_type(*dimension),
        StoredType::Vector { dimension: None } => types::dynamic_vector_type(),
        StoredType::List { item: child } => DataType::List(item(child)),
        StoredType::LargeList { item: child } => DataType::LargeList(item(child)),
        StoredType::FixedList { item: child, len } => DataType::FixedSizeList(item(child), *len),
        StoredType::Struct { fields } => DataType::Struct(fields.iter().map(load_field).collect::<Fields>()),
    }
}

/// The hidden column that numbers rows.
pub(crate) fn row_id_field() -> Field {
    Field::new(ROW_ID_COLUMN, DataType::UInt64, false)
}

/// `schema` with the row-id column last.
pub(crate) fn with_row_id(schema: &Schema) -> SchemaRef {
    let mut fields = schema.fields().to_vec();
    fields.push(Arc::new(row_id_field()));
    Arc::new(Schema::new(fields))
}

/// `schema` without field metadata.
pub(crate) fn bare(schema: &Schema) -> Schema {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_metadata(HashMap::new()));
    Schema::new(fields.collect::<Vec<_>>())
}

/// Checks what [`store`] cannot express: names and the primary key.
pub(crate) fn check_columns(table: &str, schema: &Schema, primary_key: &[String]) -> Result<()> {
    if schema.fields().is_empty() {
        return Err(Error::invalid(format!("table {table} needs at least one column")));
    }
    let mut seen = HashMap::new();
    for field in schema.fields() {
        let name = field.name().as_str();
        if name == ROW_ID_COLUMN || lance_core::is_system_column(name) {
            return Err(Error::invalid(format!("the column name {name} is reserved; choose another")));
        }
        // Lance addresses columns by paths in which these have a meaning.
        if name.is_empty() || name.contains(['.', '`']) {
            return Err(Error::invalid(format!(
                "\"{name}\" cannot name a column: names are not empty and hold no dot and no backtick"
            )));
        }
        if seen.insert(field.name().as_str(), ()).is_some() {
            return Err(Error::invalid(format!("table {table} declares column {} twice", field.name())));
        }
    }
    check_key(table, schema, "PRIMARY KEY", primary_key)
}

/// Checks the columns of a key; `what` names the clause.
pub(crate) fn check_key(table: &str, schema: &Schema, what: &str, key: &[String]) -> Result<()> {
    for (at, column) in key.iter().enumerate() {
        let field = schema
            .field_with_name(column)
            .map_err(|_| Error::invalid(format!("{what} names column {column}, which table {table} does not have")))?;
        if field.data_type().is_nested() {
            return Err(Error::unsupported(format!(
                "column {column} is {} and cannot be part of a {what}",
                sql_type_name(field)
            )));
        }
        if key[..at].contains(column) {
            return Err(Error::invalid(format!("{what} names column {column} twice")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_storable_type_survives_the_catalog() {
        let list = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
        let schema = Schema::new(vec![
            Field::new("a", DataType::Int16, false),
            Field::new("b", DataType::Decimal128(10, 2), true),
            Field::new("c", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new("d", DataType::Time32(TimeUnit::Second), true),
            vector_field("e", 768, false),
            dynamic_vector_field("f", true),
            json_field("g", true),
            Field::new("h", DataType::LargeBinary, true),
            Field::new("i", list.clone(), true),
            Field::new("j", DataType::Struct(vec![Field::new("x", list, true)].into()), true)
                .with_metadata(HashMap::from([("note".to_owned(), "kept".to_owned())])),
        ]);
        let json = serde_json::to_string(&store(&schema).unwrap()).unwrap();
        let back: Vec<StoredColumn> = serde_json::from_str(&json).unwrap();
        assert_eq!(*load(&back), schema);
    }

    #[test]
    fn types_that_lance_cannot_keep_are_named() {
        let schema = Schema::new(vec![Field::new("u", DataType::Utf8View, true)]);
        let error = store(&schema).unwrap_err();
        assert!(error.message().contains("column u") && error.message().contains("Utf8View"), "{error}");
    }

    #[test]
    fn the_stored_form_is_frozen() {
        let schema = Schema::new(vec![vector_field("v", 3, true), Field::new("id", DataType::Int64, false)]);
        let expected = r#"[{"name":"v","type":{"kind":"vector","dimension":3},"nullable":true},{"name":"id","type":{"kind":"int","bits":64},"nullable":false}]"#;
        assert_eq!(serde_json::to_string(&store(&schema).unwrap()).unwrap(), expected);
    }
}
