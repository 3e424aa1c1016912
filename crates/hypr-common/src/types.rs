//! The Arrow form of each SQL type that Arrow has no name for.
//!
//! | SQL | Arrow storage | extension name |
//! |---|---|---|
//! | `VECTOR(n)` | `FixedSizeList<Float32, n>` | `hyprstream.vector` |
//! | `VECTOR(DYNAMIC)` | `List<Float32>` | `hyprstream.vector` |
//! | `JSONB`, `JSON` | `Utf8` holding valid JSON | `arrow.json` (canonical) |
//! | `BLOB`, `BYTEA` | `LargeBinary` | none |
//! | `TEXT` | `Utf8` | none |

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field};

/// Arrow's metadata key for the name of an extension type.
pub const EXTENSION_NAME_KEY: &str = "ARROW:extension:name";
/// Arrow's metadata key for the parameters of an extension type.
pub const EXTENSION_METADATA_KEY: &str = "ARROW:extension:metadata";
/// Extension name of `VECTOR(n)` and `VECTOR(DYNAMIC)`.
pub const VECTOR_EXTENSION: &str = "hyprstream.vector";
/// The canonical extension name of JSON text.
pub const JSON_EXTENSION: &str = "arrow.json";

/// Storage type of `VECTOR(dimension)`.
pub fn vector_type(dimension: i32) -> DataType {
    DataType::FixedSizeList(vector_item(), dimension)
}

/// Storage type of `VECTOR(DYNAMIC)`.
pub fn dynamic_vector_type() -> DataType {
    DataType::List(vector_item())
}

fn vector_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Float32, true))
}

/// A `VECTOR(dimension)` column.
pub fn vector_field(name: &str, dimension: i32, nullable: bool) -> Field {
    with_extension(Field::new(name, vector_type(dimension), nullable), VECTOR_EXTENSION)
}

/// A `VECTOR(DYNAMIC)` column.
pub fn dynamic_vector_field(name: &str, nullable: bool) -> Field {
    with_extension(Field::new(name, dynamic_vector_type(), nullable), VECTOR_EXTENSION)
}

/// A `JSONB` column.
pub fn json_field(name: &str, nullable: bool) -> Field {
    with_extension(Field::new(name, DataType::Utf8, nullable), JSON_EXTENSION)
}

/// True when `field` was declared `JSON` or `JSONB`.
pub fn is_json(field: &Field) -> bool {
    extension_name(field) == Some(JSON_EXTENSION)
}

/// True when `field` was declared `VECTOR`.
pub fn is_vector(field: &Field) -> bool {
    extension_name(field) == Some(VECTOR_EXTENSION)
}

/// The SQL name of a column's type, as `information_schema` and error messages show it.
pub fn sql_type_name(field: &Field) -> String {
    match field.data_type() {
        DataType::FixedSizeList(_, dimension) if is_vector(field) => format!("VECTOR({dimension})"),
        DataType::List(_) if is_vector(field) => "VECTOR(DYNAMIC)".to_owned(),
        DataType::Utf8 if is_json(field) => "JSONB".to_owned(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "TEXT".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BLOB".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int8 => "TINYINT".to_owned(),
        DataType::Int16 => "SMALLINT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Float32 => "REAL".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Timestamp(_, None) => "TIMESTAMP".to_owned(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP WITH TIME ZONE".to_owned(),
        other => other.to_string(),
    }
}

fn extension_name(field: &Field) -> Option<&str> {
    field.metadata().get(EXTENSION_NAME_KEY).map(String::as_str)
}

fn with_extension(field: Field, name: &str) -> Field {
    let mut metadata = HashMap::from([(EXTENSION_NAME_KEY.to_owned(), name.to_owned())]);
    if name == JSON_EXTENSION {
        // The canonical JSON type requires its (empty) parameters to be present.
        metadata.insert(EXTENSION_METADATA_KEY.to_owned(), String::new());
    }
    field.with_metadata(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_types_keep_their_sql_names() {
        assert_eq!(sql_type_name(&vector_field("v", 768, true)), "VECTOR(768)");
        assert_eq!(sql_type_name(&dynamic_vector_field("v", true)), "VECTOR(DYNAMIC)");
        assert_eq!(sql_type_name(&json_field("j", true)), "JSONB");
        assert_eq!(sql_type_name(&Field::new("b", DataType::LargeBinary, true)), "BLOB");
        assert_eq!(sql_type_name(&Field::new("t", DataType::Utf8, true)), "TEXT");
    }
}
