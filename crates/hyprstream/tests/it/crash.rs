//! A server is killed at random moments under concurrent writers. Every acknowledged row must be there once,
//! no other may be, and a statement that was under way is there wholly or not at all.
//!
//! Each writer owns its keys, so it knows what each of its rows must look like. Only the statement that the
//! kill interrupted is open: both outcomes are accepted, and the one found is what must still be there later.
//! The moments and statements derive from a seed that is printed; `HYPRSTREAM_TEST_SEED` repeats one.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use futures::TryStreamExt;
use hypr_server::{Client, ClientOutcome};

use crate::process::Server;

const ROUNDS: u64 = 16;
const WRITERS: u64 = 4;
/// With a primary key, where replay could hide behind the key, and without, where it could not.
const TABLES: [&str; 2] = ["keyed", "plain"];
/// So small that flushes to the table's files, and compactions of those, run all the time.
const THRESHOLDS: [(&str, &str); 2] =
    [("HYPRSTREAM_STORAGE_FLUSH_ROWS", "40"), ("HYPRSTREAM_STORAGE_FLUSH_INTERVAL_MS", "30")];

/// xorshift64*, enough to pick moments and statements.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self((seed ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1);
        (0..8).for_each(|_| _ = random.below(2));
        random
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

/// Rows by key, of one table.
type Rows = BTreeMap<i64, String>;

/// A statement and what it does to the rows of a table.
#[derive(Clone, Debug)]
struct Change {
    table: usize,
    sql: String,
    /// New values; `None` deletes.
    rows: Vec<(i64, Option<String>)>,
}

impl Change {
    fn apply(&self, tables: &mut [Rows; 2]) {
        for (key, value) in &self.rows {
            match value {
                Some(value) => _ = tables[self.table].insert(*key, value.clone()),
                None => _ = tables[self.table].remove(key),
            }
        }
    }
}

/// One client and what it knows of its rows.
struct Writer {
    random: Random,
    next_key: i64,
    acknowledged: [Rows; 2],
    /// The statement whose answer never came.
    open: Option<Change>,
    answers: u64,
}

impl Writer {
    fn new(seed: u64, number: u64) -> Self {
        let random = Random::new(seed, number + 1);
        let next_key = number as i64 * 1_000_000_000;
        Self { random, next_key, acknowledged: Default::default(), open: None, answers: 0 }
    }

    fn next_change(&mut self) -> Change {
        let table = self.random.below(2) as usize;
        let name = TABLES[table];
        let rows = &self.acknowledged[table];
        let what = self.random.below(10);
        if what >= 6 && !rows.is_empty() {
            let at = self.random.below(rows.len() as u64) as usize;
            let key = self.acknowledged[table].keys().nth(at).copied().unwrap();
            if what >= 8 {
                return Change { table, sql: format!("DELETE FROM {name} WHERE id = {key}"), rows: vec![(key, None)] };
            }
            let value = format!("changed {}", self.random.below(1_000_000));
            let sql = format!("UPDATE {name} SET body = '{value}' WHERE id = {key}");
            return Change { table, sql, rows: vec![(key, Some(value))] };
        }
        let count = 1 + self.random.below(8) as i64;
        let keys = self.next_key..self.next_key + count;
        self.next_key += count;
        let rows: Vec<_> = keys.map(|key| (key, Some(format!("row {key}")))).collect();
        let values: Vec<_> = rows.iter().map(|(key, _)| format!("({key}, 'row {key}')")).collect();
        Change { table, sql: format!("INSERT INTO {name} VALUES {}", values.join(", ")), rows }
    }

    /// Writes until the connection breaks, which must not happen before `killed` is set.
    async fn write(&mut self, url: &str, killed: &AtomicBool) {
        let Ok(mut client) = Client::connect(url).await else {
            assert!(killed.load(Ordering::SeqCst), "the server cannot be reached");
            return;
        };
        loop {
            let change = self.next_change();
            self.open = Some(change.clone());
            match client.execute(&change.sql).await {
                Ok(ClientOutcome::Affected(rows)) => {
                    assert_eq!(rows as usize, change.rows.len(), "{}", change.sql);
                    change.apply(&mut self.acknowledged);
                    self.open = None;
                    self.answers += 1;
                }
                Ok(ClientOutcome::Rows { .. }) => panic!("rows from {}", change.sql),
                Err(error) => {
                    assert!(killed.load(Ordering::SeqCst), "{}: {error}", change.sql);
                    return;
                }
            }
        }
    }

    fn owns(&self, key: i64) -> bool {
        // Every writer has a billion keys of its own.
        key / 1_000_000_000 == self.next_key / 1_000_000_000
    }

    /// Compares with what is there; an open statement must have happened wholly or not at all.
    fn check(&mut self, found: &[Rows; 2], context: &str) {
        let own = |rows: &Rows| rows.iter().filter(|(key, _)| self.owns(**key)).map(|(k, v)| (*k, v.clone())).collect();
        let found: [Rows; 2] = [own(&found[0]), own(&found[1])];
        let mut expected = self.acknowledged.clone();
        if found != expected
            && let Some(change) = self.open.take()
        {
            change.apply(&mut expected);
            assert_same(&found, &expected, &format!("{context}, with or without {change:?}"));
            self.acknowledged = expected;
        } else {
            assert_same(&found, &expected, context);
        }
        self.open = None;
    }
}

fn assert_same(found: &[Rows; 2], expected: &[Rows; 2], context: &str) {
    for table in 0..TABLES.len() {
        let (found, expected) = (&found[table], &expected[table]);
        let differs = |left: &Rows, right: &Rows| {
            left.iter().filter(|(key, value)| right.get(key) != Some(value)).map(|(k, v)| (*k, v.clone())).collect()
        };
        let (unknown, missing): (Vec<_>, Vec<_>) = (differs(found, expected), differs(expected, found));
        let name = TABLES[table];
        assert!(
            unknown.is_empty() && missing.is_empty(),
            "{context}: {name}: missing {missing:?}, unknown {unknown:?}"
        );
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// All rows of both tables; a key that is there twice fails.
fn read(url: &str, context: &str) -> [Rows; 2] {
    runtime().block_on(async {
        let mut client = Client::connect(url).await.unwrap();
        let mut tables: [Rows; 2] = Default::default();
        for (name, rows) in TABLES.iter().zip(&mut tables) {
            let outcome = client.execute(&format!("SELECT id, body FROM {name}")).await.unwrap();
            let ClientOutcome::Rows { mut stream, .. } = outcome else { panic!("no rows from {name}") };
            while let Some(batch) = stream.try_next().await.unwrap() {
                let bodies = cast(batch.column(1), &DataType::Utf8).unwrap();
                let keys = batch.column(0).as_primitive::<Int64Type>().values();
                for (key, body) in keys.iter().zip(bodies.as_string::<i32>()) {
                    let twice = rows.insert(*key, body.unwrap().to_owned());
                    assert_eq!(twice, None, "{context}: {name} has {key} twice");
                }
            }
        }
        tables
    })
}

fn create_tables(url: &str) {
    runtime().block_on(async {
        let mut client = Client::connect(url).await.unwrap();
        for (name, key) in TABLES.iter().zip(["PRIMARY KEY", ""]) {
            client.execute(&format!("CREATE TABLE {name} (id BIGINT {key}, body TEXT)")).await.unwrap();
        }
    });
}

/// Lets all writers write, kills the server after a while, and returns what the writers know.
fn crash(server: Server, writers: Vec<Writer>, random: &mut Random) -> Vec<Writer> {
    let killed = Arc::new(AtomicBool::new(false));
    let start = |mut writer: Writer| -> JoinHandle<Writer> {
        let (url, killed) = (server.url.clone(), Arc::clone(&killed));
        std::thread::spawn(move || {
            runtime().block_on(writer.write(&url, &killed));
            writer
        })
    };
    let threads: Vec<_> = writers.into_iter().map(start).collect();
    std::thread::sleep(Duration::from_millis(200 + random.below(1600)));
    killed.store(true, Ordering::SeqCst);
    server.kill();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn verify(dir: &Path, writers: &mut [Writer], context: &str) -> Server {
    let server = Server::start(dir, &THRESHOLDS);
    let found = read(&server.url, context);
    writers.iter_mut().for_each(|writer| writer.check(&found, context));
    let strangers: HashMap<_, _> =
        found.iter().flatten().filter(|(key, _)| !writers.iter().any(|writer| writer.owns(**key))).collect();
    assert!(strangers.is_empty(), "{context}: rows nobody wrote: {strangers:?}");
    server
}

#[test]
fn acknowledged_rows_survive_kill_at_any_moment_exactly_once() {
    let seed = std::env::var("HYPRSTREAM_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    println!("HYPRSTREAM_TEST_SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed, 0);
    let mut writers: Vec<Writer> = (0..WRITERS).map(|number| Writer::new(seed, number)).collect();
    let mut server = Server::start(dir.path(), &THRESHOLDS);
    create_tables(&server.url);
    for round in 0..ROUNDS {
        writers = crash(server, writers, &mut random);
        server = verify(dir.path(), &mut writers, &format!("seed {seed}, round {round}"));
    }
    server.signal("TERM");
    assert_eq!(server.wait().0.code(), Some(0));
    verify(dir.path(), &mut writers, &format!("seed {seed}, after an orderly end"));
    let answers: u64 = writers.iter().map(|writer| writer.answers).sum();
    println!("{answers} statements acknowledged over {ROUNDS} kills");
    assert!(answers >= ROUNDS * WRITERS, "too few statements were acknowledged for this to mean anything");
}
