//! What a Flight SQL server can do at most, and what one does: a server that stores nothing, and clients that send it,
//! or any other server, single-row inserts or searches, or read a large result.
//!
//! ```text
//! cargo bench -p hyprstream --bench flight_rate -- serve
//! cargo bench -p hyprstream --bench flight_rate -- load http://HOST:PORT CLIENTS SECONDS
//! cargo bench -p hyprstream --bench flight_rate -- search http://HOST:PORT CLIENTS SECONDS VECTORS WIDTH SQL
//! cargo bench -p hyprstream --bench flight_rate -- ask http://HOST:PORT CLIENTS SECONDS TEXTS SQL
//! cargo bench -p hyprstream --bench flight_rate -- read http://HOST:PORT TIMES SQL
//! ```
//! `serve` prints its address. `load` prints one JSON object: acknowledged rows a second, each a `DoPut` of its
//! own on a prepared statement, over one connection a client. `search` binds the vectors of a file, `[rows, WIDTH]` as
//! little-endian f32, one after the other to the only parameter of SQL and reads its rows, which takes `DoPut`,
//! `GetFlightInfo` and `DoGet`; it prints queries a second and milliseconds of one. `ask` does the same with the lines of
//! a file of text, each bound to every parameter of SQL. `read` runs SQL and prints rows and bytes a second of the fastest
//! time, which a server that stores nothing answers with a million rows of those that `load` sends. On a server that
//! stores nothing, the rate is the floor of gRPC and Arrow IPC on the machine; `bench/rates.py`, `bench/vector.py`,
//! `bench/text.py` and `bench/rag.py` run it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementQuery, CommandStatementUpdate,
    DoPutPreparedStatementResult, DoPutUpdateResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{Action, FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use arrow_schema::{DataType, Field};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

type Anyhow<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const CREATE: &str =
    "CREATE TABLE IF NOT EXISTS bench_rate (id BIGINT PRIMARY KEY, name TEXT, reading DOUBLE, note TEXT)";
const INSERT: &str = "INSERT INTO bench_rate VALUES (?, ?, ?, ?)";
/// Rows that a server which stores nothing has, in batches of the size that ours sends.
static ROWS: LazyLock<Vec<RecordBatch>> =
    LazyLock::new(|| (0..1_000_000).step_by(BATCH_ROWS).map(|first| rows(first, BATCH_ROWS)).collect());
const BATCH_ROWS: usize = 8192;

/// Reads what it is sent, keeps nothing, and answers as a server that did the work would.
#[derive(Clone)]
struct NullServer;

#[tonic::async_trait]
impl FlightSqlService for NullServer {
    type FlightService = Self;

    async fn do_action_create_prepared_statement(
        &self,
        _query: ActionCreatePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        Ok(ActionCreatePreparedStatementResult { prepared_statement_handle: "1".into(), ..Default::default() })
    }

    async fn do_action_close_prepared_statement(
        &self,
        _query: ActionClosePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        Ok(())
    }

    async fn get_flight_info_statement(
        &self,
        _query: CommandStatementQuery,
        _request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let ticket = TicketStatementQuery { statement_handle: Bytes::new() }.as_any().encode_to_vec();
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
        Ok(Response::new(FlightInfo::new().with_endpoint(endpoint).with_total_records(1)))
    }

    async fn do_get_statement(
        &self,
        _ticket: TicketStatementQuery,
        _request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let messages = FlightDataEncoderBuilder::new().build(stream::iter(ROWS.iter().cloned().map(Ok)));
        Ok(Response::new(Box::pin(messages.map_err(Into::into))))
    }

    async fn get_flight_info_prepared_statement(
        &self,
        _query: CommandPreparedStatementQuery,
        _request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(
            CommandPreparedStatementQuery { prepared_statement_handle: "1".into() }.as_any().encode_to_vec(),
        ));
        Ok(Response::new(FlightInfo::new().with_endpoint(endpoint).with_total_records(1)))
    }

    async fn do_get_prepared_statement(
        &self,
        _query: CommandPreparedStatementQuery,
        _request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10));
        let rows = RecordBatch::try_from_iter([("id", ids)]).map_err(|error| Status::internal(error.to_string()));
        let messages = FlightDataEncoderBuilder::new().build(stream::iter([rows.map_err(Into::into)]));
        Ok(Response::new(Box::pin(messages.map_err(Into::into))))
    }

    async fn do_put_statement_update(
        &self,
        _command: CommandStatementUpdate,
        _request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        Ok(0)
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        drain(request.into_inner()).await?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(query.prepared_statement_handle) })
    }

    async fn do_put_prepared_statement_update(
        &self,
        _command: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        drain(request.into_inner()).await?;
        Ok(1)
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}

async fn drain(mut stream: PeekableFlightDataStream) -> Result<(), Status> {
    while stream.next().await.transpose()?.is_some() {}
    Ok(())
}

async fn serve() -> Anyhow<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    let connections: Pin<Box<dyn Stream<Item = std::io::Result<tokio::net::TcpStream>> + Send>> =
        Box::pin(stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream));
            Some((accepted, listener))
        }));
    Server::builder().add_service(FlightServiceServer::new(NullServer)).serve_with_incoming(connections).await?;
    Ok(())
}

fn rows(first: i64, rows: usize) -> RecordBatch {
    let ids = first..first + rows as i64;
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(Int64Array::from_iter_values(ids.clone()))),
        ("name", Arc::new(StringArray::from_iter_values(ids.clone().map(|id| format!("sensor-{}", id % 1000))))),
        ("reading", Arc::new(Float64Array::from_iter_values(ids.clone().map(|id| id as f64 * 0.25)))),
        ("note", Arc::new(StringArray::from_iter_values(ids.map(|id| format!("row {id}"))))),
    ];
    RecordBatch::try_from_iter(columns).expect("the columns are of one length")
}

async fn connect(url: &str) -> Anyhow<FlightServiceClient<Channel>> {
    let channel = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).connect().await?;
    Ok(FlightServiceClient::new(channel))
}

/// The handle of a statement.
async fn prepare(client: &mut FlightServiceClient<Channel>, sql: &str) -> Anyhow<Bytes> {
    let request = ActionCreatePreparedStatementRequest { query: sql.to_owned(), transaction_id: None };
    let action = Action::new("CreatePreparedStatement", request.as_any().encode_to_vec());
    let mut answers = client.do_action(action).await?.into_inner();
    let answer = answers.try_next().await?.ok_or("the server said nothing")?;
    let prepared: ActionCreatePreparedStatementResult =
        arrow_flight::sql::Any::decode(answer.body)?.unpack()?.ok_or("the answer is no prepared statement")?;
    Ok(prepared.prepared_statement_handle)
}

/// One row, one `DoPut`: true when the server says that it has it.
async fn put(client: &mut FlightServiceClient<Channel>, command: &[u8], id: i64) -> Anyhow<bool> {
    let messages = FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(FlightDescriptor::new_cmd(command.to_vec())))
        .build(stream::iter([Ok(rows(id, 1))]))
        .map(|message| message.expect("a row encodes"));
    let mut answers = client.do_put(messages).await?.into_inner();
    let answer = answers.try_next().await?.ok_or("the server said nothing")?;
    Ok(DoPutUpdateResult::decode(&*answer.app_metadata)?.record_count == 1)
}

async fn load(url: &str, clients: usize, seconds: f64) -> Anyhow<()> {
    let mut sql = FlightSqlServiceClient::new_from_inner(connect(url).await?);
    sql.execute(CREATE.to_owned(), None).await?;
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let next = Arc::new(AtomicI64::new(i64::try_from(started.as_micros())?));
    let (stop, rows) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let (url, next, stop, rows) = (url.to_owned(), Arc::clone(&next), Arc::clone(&stop), Arc::clone(&rows));
        tasks.push(tokio::spawn(async move {
            let mut client = connect(&url).await?;
            let handle = prepare(&mut client, INSERT).await?;
            let command = CommandPreparedStatementUpdate { prepared_statement_handle: handle }.as_any().encode_to_vec();
            while !stop.load(Ordering::Relaxed) {
                if !put(&mut client, &command, next.fetch_add(1, Ordering::Relaxed)).await? {
                    return Err("the server did not store one row".into());
                }
                rows.fetch_add(1, Ordering::Relaxed);
            }
            Anyhow::Ok(())
        }));
    }
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let rate = rows.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    println!("{{\"clients\": {clients}, \"rows_per_s\": {rate:.0}}}");
    Ok(())
}

/// One search with bound parameters: the number of rows found.
async fn search(client: &mut FlightServiceClient<Channel>, command: &[u8], parameters: RecordBatch) -> Anyhow<usize> {
    let descriptor = FlightDescriptor::new_cmd(command.to_vec());
    let messages = FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(descriptor.clone()))
        .build(stream::iter([Ok(parameters)]))
        .map(|message| message.expect("parameters encode"));
    let mut bound = client.do_put(messages).await?.into_inner();
    while bound.try_next().await?.is_some() {}
    let info = client.get_flight_info(descriptor).await?.into_inner();
    let ticket = info.endpoint.into_iter().next().and_then(|endpoint| endpoint.ticket).ok_or("no ticket")?;
    let messages = client.do_get(ticket).await?.into_inner().map_err(Into::into);
    let batches: Vec<RecordBatch> = FlightRecordBatchStream::new_from_flight_data(messages).try_collect().await?;
    Ok(batches.iter().map(RecordBatch::num_rows).sum())
}

async fn read(url: &str, times: usize, sql: &str) -> Anyhow<()> {
    let mut client = connect(url).await?;
    let query = CommandStatementQuery { query: sql.to_owned(), transaction_id: None };
    let (mut fastest, mut read) = (f64::INFINITY, (0, 0));
    for _ in 0..times {
        let start = Instant::now();
        let descriptor = FlightDescriptor::new_cmd(query.as_any().encode_to_vec());
        let info = client.get_flight_info(descriptor).await?.into_inner();
        read = (0, 0);
        for endpoint in info.endpoint {
            let ticket = endpoint.ticket.ok_or("no ticket")?;
            let messages = client.do_get(ticket).await?.into_inner().map_err(Into::into);
            let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
            while let Some(batch) = batches.try_next().await? {
                let bytes: usize = batch
                    .columns()
                    .iter()
                    .map(|column| column.to_data().get_slice_memory_size())
                    .sum::<Result<_, _>>()?;
                read = (read.0 + batch.num_rows(), read.1 + bytes);
            }
        }
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    let (rows_per_s, gb_per_s) = (read.0 as f64 / fastest, read.1 as f64 / fastest / 1e9);
    println!("{{\"rows\": {}, \"rows_per_s\": {rows_per_s:.0}, \"gb_per_s\": {gb_per_s:.3}}}", read.0);
    Ok(())
}

fn vectors(path: &str, width: usize) -> Anyhow<Vec<RecordBatch>> {
    let values: Vec<f32> = std::fs::read(path)?
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap_or_default()))
        .collect();
    let field = Arc::new(Field::new("item", DataType::Float32, true));
    let batch = |vector: &[f32]| {
        let values = Arc::new(Float32Array::from(vector.to_vec()));
        let list = FixedSizeListArray::try_new(Arc::clone(&field), i32::try_from(width)?, values, None)?;
        Ok(RecordBatch::try_from_iter([("vector", Arc::new(list) as ArrayRef)])?)
    };
    values.chunks_exact(width).map(batch).collect()
}

/// The lines of a file, each as the parameters of `sql`, which are `?`, or `$1` wherever it stands.
fn texts(path: &str, sql: &str) -> Anyhow<Vec<RecordBatch>> {
    let parameters = sql.matches('?').count() + usize::from(sql.contains("$1"));
    let batch = |line: &str| {
        let text: ArrayRef = Arc::new(StringArray::from(vec![line]));
        Ok(RecordBatch::try_from_iter((0..parameters).map(|at| (at.to_string(), Arc::clone(&text))))?)
    };
    std::fs::read_to_string(path)?.lines().map(batch).collect()
}

async fn search_load(url: &str, clients: usize, seconds: f64, bound: Vec<RecordBatch>, sql: &str) -> Anyhow<()> {
    let (stop, bound) = (Arc::new(AtomicBool::new(false)), Arc::new(bound));
    let start = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..clients {
        let (url, sql, stop, bound) = (url.to_owned(), sql.to_owned(), Arc::clone(&stop), Arc::clone(&bound));
        tasks.push(tokio::spawn(async move {
            let mut client = connect(&url).await?;
            let handle = prepare(&mut client, &sql).await?;
            let command = CommandPreparedStatementQuery { prepared_statement_handle: handle }.as_any().encode_to_vec();
            let mut took = Vec::new();
            for parameters in bound.iter().cycle().skip(number * 97) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let start = Instant::now();
                if search(&mut client, &command, parameters.clone()).await? == 0 {
                    return Err("a search found nothing".into());
                }
                took.push(start.elapsed().as_secs_f64() * 1e3);
            }
            Anyhow::Ok(took)
        }));
    }
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for task in tasks {
        took.append(&mut task.await??);
    }
    let rate = took.len() as f64 / start.elapsed().as_secs_f64();
    took.sort_by(f64::total_cmp);
    let at = |part: f64| took.get((took.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN);
    let (p50, p99) = (at(0.5), at(0.99));
    println!("{{\"clients\": {clients}, \"qps\": {rate:.0}, \"p50_ms\": {p50:.3}, \"p99_ms\": {p99:.3}}}");
    Ok(())
}

#[tokio::main]
async fn main() -> Anyhow<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve"] => serve().await,
        ["load", url, clients, seconds] => load(url, clients.parse()?, seconds.parse()?).await,
        ["search", url, clients, seconds, path, width, sql] => {
            search_load(url, clients.parse()?, seconds.parse()?, vectors(path, width.parse()?)?, sql).await
        }
        ["ask", url, clients, seconds, path, sql] => {
            search_load(url, clients.parse()?, seconds.parse()?, texts(path, sql)?, sql).await
        }
        ["read", url, times, sql] => read(url, times.parse()?, sql).await,
        _ => Err("say `serve`, `load URL CLIENTS SECONDS`, `search URL CLIENTS SECONDS VECTORS WIDTH SQL`, \
                  `ask URL CLIENTS SECONDS TEXTS SQL` or `read URL TIMES SQL`"
            .into()),
    }
}
