use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_flight::FlightInfo;
use arrow_flight::IpcMessage;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{
    CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo, SqlInfo,
};
use arrow_schema::Schema;
use tonic::Code;

use crate::support::{Server, Sql, read, rows, status, update};

/// Reads a metadata command and checks that the rows have the schema that was announced.
async fn answer(sql: &mut Sql, info: Result<FlightInfo, FlightError>) -> RecordBatch {
    let info = info.unwrap();
    let announced = info.clone().try_decode_schema().unwrap();
    let batches = read(sql, info).await.unwrap();
    let batch = arrow_select::concat::concat_batches(&announced.clone().into(), &batches).unwrap();
    assert!(batches.iter().all(|batch| batch.schema().fields() == announced.fields()));
    batch
}

fn strings(batch: &RecordBatch, column: &str) -> Vec<String> {
    let values = batch.column_by_name(column).unwrap().as_string::<i32>();
    values.iter().map(|value| value.unwrap().to_owned()).collect()
}

async fn server_with_tables(dir: &std::path::Path) -> (Server, Sql) {
    let server = Server::start(dir).await;
    let mut sql = server.client().await;
    update(&mut sql, "CREATE TABLE books (id INT, part INT, title TEXT, v VECTOR(4), PRIMARY KEY (id, part))").await;
    update(&mut sql, "CREATE TABLE pages (n BIGINT)").await;
    (server, sql)
}

#[tokio::test(flavor = "multi_thread")]
async fn catalogs_schemas_and_table_types() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mut sql) = server_with_tables(dir.path()).await;
    let info = sql.get_catalogs().await;
    assert_eq!(strings(&answer(&mut sql, info).await, "catalog_name"), ["hyprstream"]);
    let info = sql.get_db_schemas(CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: None }).await;
    assert!(strings(&answer(&mut sql, info).await, "db_schema_name").contains(&"public".to_owned()));
    let filter = CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: Some("pub%".to_owned()) };
    let info = sql.get_db_schemas(filter).await;
    assert_eq!(strings(&answer(&mut sql, info).await, "db_schema_name"), ["public"]);
    let info = sql.get_table_types().await;
    let types = strings(&answer(&mut sql, info).await, "table_type");
    assert!(types.contains(&"TABLE".to_owned()), "{types:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_listed_with_filters_and_schemas() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mut sql) = server_with_tables(dir.path()).await;
    let info = sql.get_tables(CommandGetTables::default()).await;
    let all = strings(&answer(&mut sql, info).await, "table_name");
    for table in ["books", "pages", "model_metadata", "model_weights"] {
        assert!(all.contains(&table.to_owned()), "{table} is missing in {all:?}");
    }
    let command = CommandGetTables {
        table_name_filter_pattern: Some("boo_s".to_owned()),
        table_types: vec!["TABLE".to_owned()],
        include_schema: true,
        ..Default::default()
    };
    let info = sql.get_tables(command).await;
    let books = answer(&mut sql, info).await;
    assert_eq!(strings(&books, "table_name"), ["books"]);
    let schema = books.column_by_name("table_schema").unwrap().as_binary::<i32>().value(0).to_vec();
    let schema = Schema::try_from(IpcMessage(schema.into())).unwrap();
    let vector = schema.field_with_name("v").unwrap();
    assert_eq!(vector.metadata()["ARROW:FLIGHT:SQL:TYPE_NAME"], "VECTOR(4)");
    assert_eq!(vector.metadata()["ARROW:extension:name"], "hyprstream.vector");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mut sql) = server_with_tables(dir.path()).await;
    let books = CommandGetPrimaryKeys { catalog: None, db_schema: None, table: "books".to_owned() };
    let info = sql.get_primary_keys(books).await;
    let keys = answer(&mut sql, info).await;
    assert_eq!(strings(&keys, "column_name"), ["id", "part"]);
    assert_eq!(keys.column_by_name("key_sequence").unwrap().as_primitive::<Int32Type>().values(), &[1, 2]);
    let pages = CommandGetPrimaryKeys { table: "pages".to_owned(), ..Default::default() };
    let info = sql.get_primary_keys(pages).await;
    assert_eq!(answer(&mut sql, info).await.num_rows(), 0);
    let missing = sql.get_primary_keys(CommandGetPrimaryKeys { table: "gone".to_owned(), ..Default::default() }).await;
    assert_eq!(status(read(&mut sql, missing.unwrap()).await.unwrap_err()).code(), Code::NotFound);

    let info = sql.get_exported_keys(CommandGetExportedKeys { table: "books".to_owned(), ..Default::default() }).await;
    assert_eq!(answer(&mut sql, info).await.num_rows(), 0);
    let info = sql.get_imported_keys(CommandGetImportedKeys { table: "books".to_owned(), ..Default::default() }).await;
    assert_eq!(answer(&mut sql, info).await.num_rows(), 0);
    let info = sql.get_cross_reference(CommandGetCrossReference::default()).await;
    assert_eq!(answer(&mut sql, info).await.num_rows(), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_describes_itself() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let info = sql.get_sql_info(Vec::new()).await;
    assert!(answer(&mut sql, info).await.num_rows() > 70);
    let info = sql.get_sql_info(vec![SqlInfo::FlightSqlServerName, SqlInfo::FlightSqlServerBulkIngestion]).await;
    assert_eq!(answer(&mut sql, info).await.num_rows(), 2);
    let info = sql.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await;
    let types = strings(&answer(&mut sql, info).await, "type_name");
    assert!(types.contains(&"VECTOR".to_owned()) && types.contains(&"JSONB".to_owned()), "{types:?}");
    server.stop().await;
}

/// What clients offer for completion must exist.
#[tokio::test(flavor = "multi_thread")]
async fn every_type_that_is_listed_can_be_a_column() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut sql = server.client().await;
    let info = sql.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await;
    for (number, name) in strings(&answer(&mut sql, info).await, "type_name").into_iter().enumerate() {
        let column_type = match name.as_str() {
            "VECTOR" => "VECTOR(2)".to_owned(),
            "DECIMAL" => "DECIMAL(10, 2)".to_owned(),
            other => other.to_owned(),
        };
        update(&mut sql, &format!("CREATE TABLE t{number} (c {column_type})")).await;
    }
    let listing =
        sql.get_tables(CommandGetTables { table_types: vec!["TABLE".to_owned()], ..Default::default() }).await;
    assert_eq!(rows(&read(&mut sql, listing.unwrap()).await.unwrap()), 21);
    server.stop().await;
}
