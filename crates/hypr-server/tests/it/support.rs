//! A server in this process and a stock Flight SQL client for it.

use std::net::SocketAddr;
use std::path::Path;

use arrow_array::RecordBatch;
use arrow_flight::FlightInfo;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use hypr_common::Result;
use hypr_server::Config;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

pub type Sql = FlightSqlServiceClient<Channel>;

pub struct Server {
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<()>>,
}

pub fn config(dir: &Path) -> Config {
    let overrides = [
        ("storage.data_dir", dir.to_str().unwrap()),
        ("server.port", "0"),
        ("server.drain_timeout_s", "5"),
        ("engine.threads", "1"),
    ];
    Config::load(None, [], &overrides.map(|(key, value)| (key.to_owned(), value.to_owned()))).unwrap()
}

impl Server {
    pub async fn start(dir: &Path) -> Self {
        Self::start_with(config(dir)).await
    }

    pub async fn start_with(config: Config) -> Self {
        let (ready, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let running =
            tokio::spawn(hypr_server::serve(config, move |address| ready.send(address).unwrap(), async move {
                let _ = stopped.await;
            }));
        match address.await {
            Ok(address) => Self { address, stop, running },
            Err(_) => panic!("the server did not start: {:?}", running.await),
        }
    }

    pub async fn client(&self) -> Sql {
        let channel = self.channel().await;
        FlightSqlServiceClient::new_from_inner(FlightServiceClient::new(channel).max_decoding_message_size(16 << 20))
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub fn begin_stop(self) -> JoinHandle<Result<()>> {
        self.stop.send(()).unwrap();
        self.running
    }

    pub async fn stop(self) {
        self.begin_stop().await.unwrap().unwrap();
    }
}

/// Reads everything that an info's tickets give.
pub async fn read(client: &mut Sql, info: FlightInfo) -> std::result::Result<Vec<RecordBatch>, FlightError> {
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let stream = client.do_get(endpoint.ticket.unwrap()).await?;
        batches.extend(stream.try_collect::<Vec<_>>().await?);
    }
    Ok(batches)
}

pub async fn query(client: &mut Sql, sql: &str) -> Vec<RecordBatch> {
    let info = client.execute(sql.to_owned(), None).await.unwrap();
    read(client, info).await.unwrap()
}

pub async fn update(client: &mut Sql, sql: &str) -> i64 {
    client.execute_update(sql.to_owned(), None).await.unwrap()
}

pub fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// The one value of a result of one row and one column.
pub async fn scalar(client: &mut Sql, sql: &str) -> String {
    let batches = query(client, sql).await;
    assert_eq!(rows(&batches), 1, "{sql}");
    let batch = batches.iter().find(|batch| batch.num_rows() == 1).unwrap();
    arrow_cast::display::array_value_to_string(batch.column(0), 0).unwrap()
}

pub fn status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not a status: {other}"),
    }
}

pub async fn refused(client: &mut Sql, sql: &str) -> (Code, String) {
    let status = status(client.execute(sql.to_owned(), None).await.unwrap_err());
    (status.code(), status.message().to_owned())
}
