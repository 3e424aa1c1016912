//! SQL types as Arrow fields: `VECTOR`, `JSONB`, `BLOB` and the standard ones, in DDL and in casts.

use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, IntervalUnit, TimeUnit};
use datafusion::common::Result as DfResult;
use datafusion::logical_expr::planner::TypePlanner;
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, DataType as SqlType, ExactNumberInfo, ObjectName, TimezoneInfo,
};
use hypr_common::{Error, Result, types};

use crate::error;

/// The widest vector a table may declare.
pub(crate) const MAX_VECTOR_DIMENSION: i32 = 65_536;

/// Lets casts use the types of our DDL.
#[derive(Debug)]
pub(crate) struct HyprTypePlanner;

impl TypePlanner for HyprTypePlanner {
    fn plan_type_field(&self, sql_type: &SqlType) -> DfResult<Option<FieldRef>> {
        field("", sql_type, true).map(|field| Some(Arc::new(field))).map_err(error::to_datafusion)
    }
}

/// The column `name` of a SQL type.
///
/// # Errors
/// `InvalidInput` for an unknown type or a bad vector dimension.
pub(crate) fn field(name: &str, sql_type: &SqlType, nullable: bool) -> Result<Field> {
    match sql_type {
        SqlType::JSON | SqlType::JSONB => Ok(types::json_field(name, nullable)),
        SqlType::Custom(type_name, modifiers) => custom(name, type_name, modifiers, nullable),
        other => Ok(Field::new(name, data_type(other)?, nullable)),
    }
}

fn custom(name: &str, type_name: &ObjectName, modifiers: &[String], nullable: bool) -> Result<Field> {
    let spelled = type_name.to_string();
    match spelled.to_lowercase().as_str() {
        "vector" => match modifiers {
            [only] if only.eq_ignore_ascii_case("dynamic") => Ok(types::dynamic_vector_field(name, nullable)),
            [only] => Ok(types::vector_field(name, dimension(only)?, nullable)),
            _ => Err(Error::invalid("VECTOR needs a dimension: VECTOR(384), or VECTOR(DYNAMIC) for any")),
        },
        "string" => Ok(Field::new(name, DataType::Utf8, nullable)),
        "timestamptz" => Ok(Field::new(name, timestamp(TimeUnit::Nanosecond, true), nullable)),
        _ => Err(Error::invalid(format!("unknown type {spelled}"))),
    }
}

fn dimension(text: &str) -> Result<i32> {
    text.parse().ok().filter(|n| (1..=MAX_VECTOR_DIMENSION).contains(n)).ok_or_else(|| {
        Error::invalid(format!("VECTOR({text}) is not a dimension from 1 to {MAX_VECTOR_DIMENSION}, nor DYNAMIC"))
    })
}

fn data_type(sql_type: &SqlType) -> Result<DataType> {
    use SqlType as S;
    Ok(match sql_type {
        S::Boolean | S::Bool => DataType::Boolean,
        S::TinyInt(_) => DataType::Int8,
        S::SmallInt(_) | S::Int2(_) => DataType::Int16,
        S::Int(_) | S::Integer(_) | S::Int4(_) => DataType::Int32,
        S::BigInt(_) | S::Int8(_) => DataType::Int64,
        S::TinyIntUnsigned(_) => DataType::UInt8,
        S::SmallIntUnsigned(_) | S::Int2Unsigned(_) => DataType::UInt16,
        S::IntUnsigned(_) | S::IntegerUnsigned(_) | S::Int4Unsigned(_) => DataType::UInt32,
        S::BigIntUnsigned(_) | S::Int8Unsigned(_) => DataType::UInt64,
        S::Float(_) | S::Real | S::Float4 => DataType::Float32,
        S::Double(_) | S::DoublePrecision | S::Float8 => DataType::Float64,
        S::Decimal(info) | S::Numeric(info) | S::Dec(info) => decimal(info)?,
        S::Text
        | S::String(_)
        | S::Varchar(_)
        | S::Char(_)
        | S::Character(_)
        | S::CharacterVarying(_)
        | S::CharVarying(_)
        | S::Nvarchar(_)
        | S::Clob(_)
        | S::Uuid => DataType::Utf8,
        S::Blob(_) | S::Bytea | S::Binary(_) | S::Varbinary(_) | S::Bytes(_) => DataType::LargeBinary,
        S::Date => DataType::Date32,
        S::Time(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => DataType::Time64(TimeUnit::Nanosecond),
        S::Timestamp(precision, zone) => {
            timestamp(unit(*precision)?, matches!(zone, TimezoneInfo::Tz | TimezoneInfo::WithTimeZone))
        }
        S::Datetime(precision) => timestamp(unit(*precision)?, false),
        S::Interval { .. } => DataType::Interval(IntervalUnit::MonthDayNano),
        S::Array(ArrayElemTypeDef::SquareBracket(inner, None) | ArrayElemTypeDef::AngleBracket(inner)) => {
            DataType::List(Arc::new(field("item", inner, true)?))
        }
        other => return Err(Error::invalid(format!("unknown type {other}"))),
    })
}

fn timestamp(unit: TimeUnit, with_zone: bool) -> DataType {
    DataType::Timestamp(unit, with_zone.then(|| "UTC".into()))
}

fn unit(precision: Option<u64>) -> Result<TimeUnit> {
    match precision {
        None | Some(9) => Ok(TimeUnit::Nanosecond),
        Some(6) => Ok(TimeUnit::Microsecond),
        Some(3) => Ok(TimeUnit::Millisecond),
        Some(0) => Ok(TimeUnit::Second),
        Some(other) => Err(Error::invalid(format!("TIMESTAMP({other}): the precision is 0, 3, 6 or 9"))),
    }
}

fn decimal(info: &ExactNumberInfo) -> Result<DataType> {
    let (precision, scale) = match *info {
        ExactNumberInfo::None => (38, 10),
        ExactNumberInfo::Precision(precision) => (precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (precision, scale),
    };
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(p @ 1..=38), Ok(s)) if s >= 0 && s as u8 <= p => Ok(DataType::Decimal128(p, s)),
        _ => Err(Error::invalid(format!("DECIMAL({precision}, {scale}): precision is 1 to 38, scale at most that"))),
    }
}
