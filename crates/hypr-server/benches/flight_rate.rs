//! What a Flight SQL server can do at most, and what one does: a server that stores nothing, and a client that
//! sends it, or any other server, single-row inserts.
//!
//! ```text
//! cargo bench -p hypr-server --bench flight_rate -- serve
//! cargo bench -p hypr-server --bench flight_rate -- load http://HOST:PORT CLIENTS SECONDS
//! ```
//! `serve` prints its address. `load` prints one JSON object: acknowledged rows a second, each a `DoPut` of its
//! own on a prepared statement, over one connection a client. On a server that stores nothing, the rate is the
//! floor of gRPC and Arrow IPC on the machine; `bench/rates.py` runs both.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::FlightServiceServer;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementQuery, CommandStatementUpdate,
    DoPutPreparedStatementResult, DoPutUpdateResult, ProstMessageExt, SqlInfo,
};
use arrow_flight::{Action, FlightDescriptor, FlightInfo};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

type Anyhow<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const CREATE: &str =
    "CREATE TABLE IF NOT EXISTS bench_rate (id BIGINT PRIMARY KEY, name TEXT, reading DOUBLE, note TEXT)";
const INSERT: &str = "INSERT INTO bench_rate VALUES (?, ?, ?, ?)";

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
        Ok(Response::new(FlightInfo::new().with_total_records(1)))
    }

    async fn get_flight_info_prepared_statement(
        &self,
        _query: CommandPreparedStatementQuery,
        _request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Ok(Response::new(FlightInfo::new().with_total_records(1)))
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

fn row(id: i64) -> RecordBatch {
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(Int64Array::from(vec![id]))),
        ("name", Arc::new(StringArray::from(vec![format!("sensor-{}", id % 1000)]))),
        ("reading", Arc::new(Float64Array::from(vec![id as f64 * 0.25]))),
        ("note", Arc::new(StringArray::from(vec![format!("row {id}")]))),
    ];
    RecordBatch::try_from_iter(columns).expect("the columns have one row each")
}

async fn connect(url: &str) -> Anyhow<FlightServiceClient<Channel>> {
    let channel = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).connect().await?;
    Ok(FlightServiceClient::new(channel))
}

/// The command that runs the prepared insert.
async fn prepare(client: &mut FlightServiceClient<Channel>) -> Anyhow<Vec<u8>> {
    let request = ActionCreatePreparedStatementRequest { query: INSERT.to_owned(), transaction_id: None };
    let action = Action::new("CreatePreparedStatement", request.as_any().encode_to_vec());
    let mut answers = client.do_action(action).await?.into_inner();
    let answer = answers.try_next().await?.ok_or("the server said nothing")?;
    let prepared: ActionCreatePreparedStatementResult =
        arrow_flight::sql::Any::decode(answer.body)?.unpack()?.ok_or("the answer is no prepared statement")?;
    let handle = prepared.prepared_statement_handle;
    Ok(CommandPreparedStatementUpdate { prepared_statement_handle: handle }.as_any().encode_to_vec())
}

/// One row, one `DoPut`: true when the server says that it has it.
async fn put(client: &mut FlightServiceClient<Channel>, command: &[u8], id: i64) -> Anyhow<bool> {
    let messages = FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(FlightDescriptor::new_cmd(command.to_vec())))
        .build(stream::iter([Ok(row(id))]))
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
            let command = prepare(&mut client).await?;
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

#[tokio::main]
async fn main() -> Anyhow<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve"] => serve().await,
        ["load", url, clients, seconds] => load(url, clients.parse()?, seconds.parse()?).await,
        _ => Err("say `serve`, or `load URL CLIENTS SECONDS`".into()),
    }
}
