//! Bulk ingestion: a stream of record batches into a table, without SQL.

use arrow_array::RecordBatch;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::sql::server::PeekableFlightDataStream;
use arrow_flight::sql::{CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption};
use arrow_schema::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt};
use hypr_common::{Error, Result};
use hypr_query::{CATALOG, IngestMode, TableRef};
use tonic::Status;

use super::HyprFlightSql;
use super::sessions::Client;
use crate::error::{from_incoming, to_status};

impl HyprFlightSql {
    /// Stores the uploaded rows and answers with their number.
    pub(super) async fn ingest(
        &self,
        client: &Client,
        command: CommandStatementIngest,
        stream: PeekableFlightDataStream,
    ) -> Result<i64, Status> {
        let session = self.session_for(client, command.transaction_id.as_ref())?;
        let (table, mode) = target(command).map_err(to_status)?;
        let batches = open(stream).await.map_err(to_status)?;
        let rows = session.ingest(table, mode, batches).await.map_err(to_status)?;
        Ok(i64::try_from(rows).unwrap_or(i64::MAX))
    }
}

/// The table a command names, and what to do about it.
fn target(command: CommandStatementIngest) -> Result<(TableRef, IngestMode)> {
    if command.temporary {
        return Err(Error::unsupported(
            "temporary tables are not supported; ingest into a table and drop it afterwards",
        ));
    }
    if let Some(catalog) = command.catalog.filter(|catalog| !catalog.is_empty() && catalog != CATALOG) {
        return Err(Error::not_found(format!("catalog `{catalog}` does not exist; the only catalog is `{CATALOG}`")));
    }
    if command.table.is_empty() {
        return Err(Error::invalid("the ingestion names no table"));
    }
    let mode = mode(&command.table, command.table_definition_options.unwrap_or_default())?;
    let schema = command.schema.filter(|schema| !schema.is_empty());
    Ok((TableRef { schema, name: command.table }, mode))
}

/// A missing option means the careful choice: make the table if there is none, fail if there is one.
fn mode(table: &str, options: TableDefinitionOptions) -> Result<IngestMode> {
    let create = options.if_not_exist() != TableNotExistOption::Fail;
    match (create, options.if_exists()) {
        (true, TableExistsOption::Unspecified | TableExistsOption::Fail) => Ok(IngestMode::Create),
        (true, TableExistsOption::Append) => Ok(IngestMode::CreateAppend),
        (true, TableExistsOption::Replace) => Ok(IngestMode::Replace),
        (false, TableExistsOption::Append) => Ok(IngestMode::Append),
        (false, _) => Err(Error::invalid(format!(
            "the ingestion into `{table}` may neither create nor append; use create, append, create_append or replace"
        ))),
    }
}

/// Waits for the upload's schema and hands on its batches as they come.
async fn open(stream: PeekableFlightDataStream) -> Result<SendableRecordBatchStream> {
    let messages =
        stream.map_err(FlightError::from).try_filter(|data| std::future::ready(!data.data_header.is_empty()));
    let mut decoder = FlightDataDecoder::new(messages);
    let schema: SchemaRef = loop {
        match decoder.next().await.transpose().map_err(from_incoming)? {
            Some(message) => match message.payload {
                DecodedPayload::Schema(schema) => break schema,
                DecodedPayload::None => {}
                DecodedPayload::RecordBatch(_) => {
                    return Err(Error::invalid("the upload sends rows before its schema"));
                }
            },
            None => return Err(Error::invalid("the upload ended before its schema")),
        }
    };
    let batches = decoder.filter_map(|message| std::future::ready(batch_of(message).transpose()));
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
}

fn batch_of(
    message: Result<arrow_flight::decode::DecodedFlightData, FlightError>,
) -> Result<Option<RecordBatch>, DataFusionError> {
    match message {
        Ok(message) => match message.payload {
            DecodedPayload::RecordBatch(batch) => Ok(Some(batch)),
            DecodedPayload::None => Ok(None),
            DecodedPayload::Schema(_) => {
                Err(DataFusionError::External(Box::new(Error::invalid("the upload changes its schema half-way"))))
            }
        },
        Err(error) => Err(DataFusionError::External(Box::new(from_incoming(error)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(if_not_exist: TableNotExistOption, if_exists: TableExistsOption) -> CommandStatementIngest {
        CommandStatementIngest {
            table: "t".to_owned(),
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: if_not_exist.into(),
                if_exists: if_exists.into(),
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_four_adbc_modes_are_told_apart() {
        use TableExistsOption as Exists;
        use TableNotExistOption as Missing;
        let modes = [
            (Missing::Create, Exists::Fail, IngestMode::Create),
            (Missing::Fail, Exists::Append, IngestMode::Append),
            (Missing::Create, Exists::Append, IngestMode::CreateAppend),
            (Missing::Create, Exists::Replace, IngestMode::Replace),
            (Missing::Unspecified, Exists::Unspecified, IngestMode::Create),
        ];
        for (missing, exists, expected) in modes {
            assert_eq!(target(command(missing, exists)).unwrap().1, expected);
        }
        assert!(target(command(Missing::Fail, Exists::Fail)).is_err());
    }

    #[test]
    fn other_catalogs_and_temporary_tables_are_refused() {
        let mut elsewhere = command(TableNotExistOption::Create, TableExistsOption::Fail);
        elsewhere.catalog = Some("other".to_owned());
        assert!(target(elsewhere).unwrap_err().message().contains("`other`"));
        let mut temporary = command(TableNotExistOption::Create, TableExistsOption::Fail);
        temporary.temporary = true;
        assert_eq!(target(temporary).unwrap_err().kind(), hypr_common::ErrorKind::Unsupported);
    }
}
