//! What the server can do, as `GetSqlInfo` and `GetXdbcTypeInfo` tell it.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow_flight::sql::metadata::{
    SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{
    Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity,
    SqlSupportedGroupBy, SqlSupportedResultSetConcurrency, SqlSupportedResultSetType, SqlSupportedSubqueries,
    SqlSupportedTransaction, SqlSupportedUnions, SqlSupportsConvert, SqlTransactionIsolationLevel, SupportedSqlGrammar,
    XdbcDataType, XdbcDatetimeSubcode,
};
use hypr_common::Result;

use crate::error::from_flight;

/// The Arrow columnar format this server writes.
const ARROW_FORMAT_VERSION: &str = "1.5";

/// Words with a meaning of their own in this dialect, beyond SQL-92.
const KEYWORDS: &[&str] = &[
    "BLOB",
    "CONTEXT",
    "EMBED",
    "EXPLAIN",
    "GENERATE_RESPONSE",
    "ILIKE",
    "JSONB",
    "LIMIT",
    "OFFSET",
    "QUALIFY",
    "TEXT",
    "USING",
    "VECTOR",
];
const NUMERIC_FUNCTIONS: &[&str] = &[
    "ABS",
    "ACOS",
    "ASIN",
    "ATAN",
    "ATAN2",
    "CEIL",
    "COS",
    "COSINE_DISTANCE",
    "COSINE_SIMILARITY",
    "EXP",
    "FLOOR",
    "INNER_PRODUCT",
    "L2_DISTANCE",
    "LN",
    "LOG",
    "LOG10",
    "LOG2",
    "POWER",
    "RANDOM",
    "ROUND",
    "SIGNUM",
    "SIN",
    "SQRT",
    "TAN",
    "TRUNC",
];
const STRING_FUNCTIONS: &[&str] = &[
    "ASCII",
    "BTRIM",
    "CHAR_LENGTH",
    "CHR",
    "CONCAT",
    "CONCAT_WS",
    "EMBED",
    "GENERATE_RESPONSE",
    "INITCAP",
    "LEFT",
    "LENGTH",
    "LOWER",
    "LPAD",
    "LTRIM",
    "MD5",
    "OCTET_LENGTH",
    "REGEXP_LIKE",
    "REGEXP_REPLACE",
    "REPEAT",
    "REPLACE",
    "REVERSE",
    "RIGHT",
    "RPAD",
    "RTRIM",
    "SPLIT_PART",
    "STARTS_WITH",
    "STRPOS",
    "SUBSTR",
    "TRANSLATE",
    "TRIM",
    "UPPER",
];
const DATETIME_FUNCTIONS: &[&str] = &[
    "CURRENT_DATE",
    "CURRENT_TIME",
    "DATE_BIN",
    "DATE_PART",
    "DATE_TRUNC",
    "FROM_UNIXTIME",
    "MAKE_DATE",
    "NOW",
    "TO_TIMESTAMP",
];
const SYSTEM_FUNCTIONS: &[&str] = &["ARROW_CAST", "ARROW_TYPEOF", "COALESCE", "NULLIF", "UUID", "VERSION"];

/// The answers to `GetSqlInfo`. `functions` are the names SQL knows; only those are listed.
pub(super) fn sql_info(functions: &[String], transaction_idle: Duration) -> Result<SqlInfoData> {
    let mut info = SqlInfoDataBuilder::new();
    server(&mut info);
    let idle_ms = i32::try_from(transaction_idle.as_millis()).unwrap_or(i32::MAX);
    info.append(SqlInfo::FlightSqlServerTransactionTimeout, idle_ms);
    syntax(&mut info);
    for (kind, names) in [
        (SqlInfo::SqlNumericFunctions, NUMERIC_FUNCTIONS),
        (SqlInfo::SqlStringFunctions, STRING_FUNCTIONS),
        (SqlInfo::SqlSystemFunctions, SYSTEM_FUNCTIONS),
        (SqlInfo::SqlDatetimeFunctions, DATETIME_FUNCTIONS),
    ] {
        let exists = |name: &&&str| functions.iter().any(|function| function.eq_ignore_ascii_case(name));
        info.append(kind, names.iter().filter(exists).map(|name| (*name).to_owned()).collect::<Vec<String>>());
    }
    queries(&mut info);
    transactions(&mut info);
    info.build().map_err(from_flight)
}

fn server(info: &mut SqlInfoDataBuilder) {
    info.append(SqlInfo::FlightSqlServerName, "Hyprstream");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, ARROW_FORMAT_VERSION);
    info.append(SqlInfo::FlightSqlServerReadOnly, false);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::Savepoint as i32);
    info.append(SqlInfo::FlightSqlServerCancel, true);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, true);
    info.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, true);
    info.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
}

fn syntax(info: &mut SqlInfoDataBuilder) {
    let insensitive = i64::from(SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32);
    info.append(SqlInfo::SqlDdlCatalog, false);
    info.append(SqlInfo::SqlDdlSchema, false);
    info.append(SqlInfo::SqlDdlTable, true);
    info.append(SqlInfo::SqlIdentifierCase, insensitive);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.append(SqlInfo::SqlQuotedIdentifierCase, 0_i64);
    info.append(SqlInfo::SqlAllTablesAreSelectable, true);
    info.append(SqlInfo::SqlNullOrdering, i64::from(SqlNullOrdering::SqlNullsSortedHigh as i32));
    info.append(SqlInfo::SqlKeywords, KEYWORDS);
    info.append(SqlInfo::SqlSearchStringEscape, "\\");
    info.append(SqlInfo::SqlExtraNameCharacters, "");
    info.append(SqlInfo::SqlSchemaTerm, "schema");
    info.append(SqlInfo::SqlProcedureTerm, "procedure");
    info.append(SqlInfo::SqlCatalogTerm, "catalog");
    info.append(SqlInfo::SqlCatalogAtStart, true);
}

fn queries(info: &mut SqlInfoDataBuilder) {
    let bits = |bits: &[i32]| bits.iter().fold(0_i32, |mask, bit| mask | (1 << bit));
    info.append(SqlInfo::SqlSupportsColumnAliasing, true);
    info.append(SqlInfo::SqlNullPlusNullIsNull, true);
    info.append(SqlInfo::SqlSupportsConvert, conversions());
    info.append(SqlInfo::SqlSupportsTableCorrelationNames, true);
    info.append(SqlInfo::SqlSupportsDifferentTableCorrelationNames, false);
    info.append(SqlInfo::SqlSupportsExpressionsInOrderBy, true);
    info.append(SqlInfo::SqlSupportsOrderByUnrelated, true);
    let group_by =
        [SqlSupportedGroupBy::SqlGroupByUnrelated as i32, SqlSupportedGroupBy::SqlGroupByBeyondSelect as i32];
    info.append(SqlInfo::SqlSupportedGroupBy, bits(&group_by));
    info.append(SqlInfo::SqlSupportsLikeEscapeClause, true);
    info.append(SqlInfo::SqlSupportsNonNullableColumns, true);
    info.append(
        SqlInfo::SqlSupportedGrammar,
        bits(&[SupportedSqlGrammar::SqlMinimumGrammar as i32, SupportedSqlGrammar::SqlCoreGrammar as i32]),
    );
    info.append(SqlInfo::SqlAnsi92SupportedLevel, bits(&[0]));
    info.append(SqlInfo::SqlSupportsIntegrityEnhancementFacility, false);
    info.append(SqlInfo::SqlOuterJoinsSupportLevel, bits(&[SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32]));
    info.append(SqlInfo::SqlSchemasSupportedActions, bits(&[]));
    info.append(SqlInfo::SqlCatalogsSupportedActions, bits(&[]));
    info.append(SqlInfo::SqlSupportedPositionedCommands, bits(&[]));
    info.append(SqlInfo::SqlSelectForUpdateSupported, false);
    info.append(SqlInfo::SqlStoredProceduresSupported, false);
    info.append(
        SqlInfo::SqlSupportedSubqueries,
        bits(&[
            SqlSupportedSubqueries::SqlSubqueriesInComparisons as i32,
            SqlSupportedSubqueries::SqlSubqueriesInExists as i32,
            SqlSupportedSubqueries::SqlSubqueriesInIns as i32,
        ]),
    );
    info.append(SqlInfo::SqlCorrelatedSubqueriesSupported, true);
    info.append(
        SqlInfo::SqlSupportedUnions,
        bits(&[SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32]),
    );
    info.append(
        SqlInfo::SqlSupportedResultSetTypes,
        bits(&[SqlSupportedResultSetType::SqlResultSetTypeForwardOnly as i32]),
    );
    info.append(
        SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly,
        bits(&[SqlSupportedResultSetConcurrency::SqlResultSetConcurrencyReadOnly as i32]),
    );
    info.append(SqlInfo::SqlBatchUpdatesSupported, true);
    info.append(SqlInfo::SqlNamedParametersSupported, false);
    info.append(SqlInfo::SqlLocatorsUpdateCopy, false);
    info.append(SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported, false);
    // 0: no limit other than memory and `server.max_message_mb`.
    for unlimited in [
        SqlInfo::SqlMaxBinaryLiteralLength,
        SqlInfo::SqlMaxCharLiteralLength,
        SqlInfo::SqlMaxColumnNameLength,
        SqlInfo::SqlMaxColumnsInSelect,
        SqlInfo::SqlMaxColumnsInTable,
        SqlInfo::SqlMaxStatementLength,
        SqlInfo::SqlMaxStatements,
        SqlInfo::SqlMaxTableNameLength,
        SqlInfo::SqlMaxTablesInSelect,
        SqlInfo::SqlMaxRowSize,
    ] {
        info.append(unlimited, 0_i64);
    }
    info.append(SqlInfo::SqlMaxRowSizeIncludesBlobs, true);
}

fn transactions(info: &mut SqlInfoDataBuilder) {
    info.append(SqlInfo::SqlTransactionsSupported, true);
    info.append(
        SqlInfo::SqlDefaultTransactionIsolation,
        i64::from(SqlTransactionIsolationLevel::SqlTransactionRepeatableRead as i32),
    );
    // Weaker levels are taken, and get this one.
    let levels = [
        SqlTransactionIsolationLevel::SqlTransactionReadUncommitted,
        SqlTransactionIsolationLevel::SqlTransactionReadCommitted,
        SqlTransactionIsolationLevel::SqlTransactionRepeatableRead,
    ];
    let levels = levels.iter().fold(0_i32, |mask, level| mask | (1 << (*level as i32)));
    info.append(SqlInfo::SqlSupportedTransactionsIsolationLevels, levels);
    info.append(SqlInfo::SqlDataDefinitionCausesTransactionCommit, false);
    info.append(SqlInfo::SqlDataDefinitionsInTransactionsIgnored, false);
    info.append(SqlInfo::SqlSavepointsSupported, true);
}

/// Which types `CAST` turns into which.
fn conversions() -> BTreeMap<i32, Vec<i32>> {
    use SqlSupportsConvert as Convert;
    let numbers = [
        Convert::SqlConvertTinyint,
        Convert::SqlConvertSmallint,
        Convert::SqlConvertInteger,
        Convert::SqlConvertBigint,
        Convert::SqlConvertReal,
        Convert::SqlConvertFloat,
        Convert::SqlConvertDecimal,
    ];
    let texts = [Convert::SqlConvertVarchar, Convert::SqlConvertLongvarchar];
    let times = [Convert::SqlConvertDate, Convert::SqlConvertTimestamp];
    let codes = |types: &[&[Convert]]| -> Vec<i32> { types.concat().iter().map(|convert| *convert as i32).collect() };
    let mut conversions = BTreeMap::new();
    for number in numbers {
        conversions.insert(number as i32, codes(&[&numbers, &texts]));
    }
    for text in texts {
        conversions.insert(text as i32, codes(&[&numbers, &texts, &times]));
    }
    for time in times {
        conversions.insert(time as i32, codes(&[&texts, &times]));
    }
    conversions
}

/// The answers to `GetXdbcTypeInfo`: one row a type that `CREATE TABLE` accepts.
pub(super) fn xdbc_types() -> Result<XdbcTypeInfoData> {
    let mut types = XdbcTypeInfoDataBuilder::new();
    for (name, code, digits) in [
        ("TINYINT", XdbcDataType::XdbcTinyint, 3),
        ("TINYINT UNSIGNED", XdbcDataType::XdbcTinyint, 3),
        ("SMALLINT", XdbcDataType::XdbcSmallint, 5),
        ("SMALLINT UNSIGNED", XdbcDataType::XdbcSmallint, 5),
        ("INT", XdbcDataType::XdbcInteger, 10),
        ("INT UNSIGNED", XdbcDataType::XdbcInteger, 10),
        ("BIGINT", XdbcDataType::XdbcBigint, 19),
        ("BIGINT UNSIGNED", XdbcDataType::XdbcBigint, 20),
        ("REAL", XdbcDataType::XdbcReal, 7),
        ("DOUBLE", XdbcDataType::XdbcDouble, 15),
        ("DECIMAL", XdbcDataType::XdbcDecimal, 38),
    ] {
        let create_params = (name == "DECIMAL").then(|| vec!["precision".to_owned(), "scale".to_owned()]);
        types.append(XdbcTypeInfo {
            column_size: Some(digits),
            unsigned_attribute: Some(name.ends_with("UNSIGNED")),
            auto_increment: Some(false),
            num_prec_radix: Some(10),
            minimum_scale: create_params.is_some().then_some(0),
            maximum_scale: create_params.is_some().then_some(digits),
            fixed_prec_scale: create_params.is_some(),
            create_params,
            ..described(name, code)
        });
    }
    types.append(described("BOOLEAN", XdbcDataType::XdbcBit));
    for (name, code) in [
        ("TEXT", XdbcDataType::XdbcVarchar),
        ("VARCHAR", XdbcDataType::XdbcVarchar),
        ("JSONB", XdbcDataType::XdbcLongvarchar),
        ("BLOB", XdbcDataType::XdbcVarbinary),
    ] {
        let create_params = (name == "VARCHAR").then(|| vec!["length".to_owned()]);
        types.append(XdbcTypeInfo { case_sensitive: true, create_params, ..quoted(name, code) });
    }
    // Nanoseconds. Subcode 1 stands for dates, under arrow-flight's name for its other meaning.
    for (name, code, subcode, digits) in [
        ("DATE", XdbcDataType::XdbcDate, XdbcDatetimeSubcode::XdbcSubcodeYear, 0),
        ("TIME", XdbcDataType::XdbcTime, XdbcDatetimeSubcode::XdbcSubcodeTime, 9),
        ("TIMESTAMP", XdbcDataType::XdbcTimestamp, XdbcDatetimeSubcode::XdbcSubcodeTimestamp, 9),
        (
            "TIMESTAMP WITH TIME ZONE",
            XdbcDataType::XdbcTimestamp,
            XdbcDatetimeSubcode::XdbcSubcodeTimestampWithTimezone,
            9,
        ),
    ] {
        types.append(XdbcTypeInfo {
            sql_data_type: XdbcDataType::XdbcDatetime,
            datetime_subcode: Some(subcode),
            minimum_scale: Some(0),
            maximum_scale: Some(digits),
            ..quoted(name, code)
        });
    }
    types.append(XdbcTypeInfo {
        create_params: Some(vec!["dimension".to_owned()]),
        literal_prefix: Some("ARRAY[".to_owned()),
        literal_suffix: Some("]".to_owned()),
        searchable: Searchable::None,
        ..described("VECTOR", XdbcDataType::XdbcUnknownType)
    });
    types.build().map_err(from_flight)
}

fn quoted(name: &str, code: XdbcDataType) -> XdbcTypeInfo {
    let quote = Some("'".to_owned());
    XdbcTypeInfo { literal_prefix: quote.clone(), literal_suffix: quote, ..described(name, code) }
}

fn described(name: &str, code: XdbcDataType) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: name.to_owned(),
        data_type: code,
        sql_data_type: code,
        local_type_name: Some(name.to_owned()),
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_decide_by_is_answered() {
        let info = sql_info(&["sqrt".to_owned()], Duration::from_secs(1)).unwrap();
        for asked in [
            SqlInfo::FlightSqlServerName,
            SqlInfo::FlightSqlServerTransaction,
            SqlInfo::FlightSqlServerBulkIngestion,
            SqlInfo::SqlIdentifierQuoteChar,
            SqlInfo::SqlSupportsConvert,
            SqlInfo::SqlNumericFunctions,
        ] {
            assert_eq!(info.record_batch([asked as u32]).unwrap().num_rows(), 1, "{asked:?}");
        }
    }

    #[test]
    fn every_documented_column_type_is_listed() {
        let types = xdbc_types().unwrap().record_batch(None).unwrap();
        assert_eq!(types.num_rows(), 21);
        let bigint = xdbc_types().unwrap().record_batch(Some(XdbcDataType::XdbcBigint as i32)).unwrap();
        assert_eq!(bigint.num_rows(), 2);
    }
}
