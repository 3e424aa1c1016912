//! One seed: random operations on a database, and a model of what was acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, UInt64Type};
use datafusion::common::stats::Precision;
use datafusion::prelude::SessionContext;
use hypr_common::clock::ManualClock;
use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{CatalogObject, Database, Replace, ScanRequest, StorageOptions, Table, check};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::disk::SimulatedDisk;
use super::random::Random;
use crate::support::{columns, definition, manual, rows};

/// Tables at once.
const TABLES: u64 = 4;
/// An operation of a history is stopped after at most this many disk operations.
const FUSE: u64 = 500;
/// Operations of a history before it is ended without a crash.
const OPERATIONS: usize = 60;

/// What happened; a run in which something never happened shows nothing.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub crashes: u64,
    pub crashes_in_flush: u64,
    pub crashes_in_recovery: u64,
    pub kills: u64,
    pub compactions: u64,
    pub tables_created: u64,
    pub tables_dropped: u64,
    pub objects_changed: u64,
    pub checks: u64,
    pub commits: u64,
    pub refused: u64,
    pub faults: u64,
    pub open_kept: u64,
    pub open_lost: u64,
    pub disk_operations: u64,
}

impl Counts {
    pub fn add(&mut self, more: &Self) {
        self.crashes += more.crashes;
        self.crashes_in_flush += more.crashes_in_flush;
        self.crashes_in_recovery += more.crashes_in_recovery;
        self.kills += more.kills;
        self.compactions += more.compactions;
        self.tables_created += more.tables_created;
        self.tables_dropped += more.tables_dropped;
        self.objects_changed += more.objects_changed;
        self.checks += more.checks;
        self.commits += more.commits;
        self.refused += more.refused;
        self.faults += more.faults;
        self.open_kept += more.open_kept;
        self.open_lost += more.open_lost;
        self.disk_operations += more.disk_operations;
    }
}

type Rows = BTreeMap<i64, String>;
/// New values of rows by key; `None` deletes.
type Changes = Vec<(i64, Option<String>)>;

#[derive(Clone, Debug, Default, PartialEq)]
struct TableModel {
    keyed: bool,
    rows: Rows,
}

/// A change whose answer never came, or said that it does not know.
#[derive(Clone, Debug)]
enum Open {
    /// New values; `None` deletes. All of them or none.
    Rows {
        table: String,
        rows: Vec<(i64, Option<String>)>,
    },
    Create {
        table: String,
        keyed: bool,
    },
    Drop {
        table: String,
    },
    Object {
        name: String,
        value: Option<u64>,
    },
}

pub struct History {
    random: Random,
    disk: SimulatedDisk,
    /// Holds `LOCK` and the models, which are not simulated.
    dir: TempDir,
    clock: Arc<ManualClock>,
    log: Arc<Mutex<Vec<String>>>,
    tables: BTreeMap<String, TableModel>,
    objects: BTreeMap<String, u64>,
    open: Vec<Open>,
    next_key: i64,
    next_table: u64,
    /// The disk may fail operations now.
    faulty: bool,
    /// The disk has failed operations since the database was opened.
    was_faulty: bool,
    /// The log takes no more writes until the database is opened again.
    poisoned: bool,
    counts: Counts,
}

/// Whether an error says that nothing was stored.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ResourceExhausted | ErrorKind::Unavailable | ErrorKind::AlreadyExists)
}

impl History {
    pub fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            random: Random::new(seed, 2),
            disk: SimulatedDisk::new(seed, dir.path()),
            dir,
            clock: Arc::new(ManualClock::new(1_000_000)),
            log: Arc::default(),
            tables: BTreeMap::new(),
            objects: BTreeMap::new(),
            open: Vec::new(),
            next_key: 0,
            next_table: 0,
            faulty: false,
            was_faulty: false,
            poisoned: false,
            counts: Counts::default(),
        }
    }

    pub fn log(&self) -> Arc<Mutex<Vec<String>>> {
        Arc::clone(&self.log)
    }

    fn note(&self, what: impl Into<String>) {
        self.log.lock().push(format!("{:>6}  {}", self.disk.operations(), what.into()));
    }

    fn options(&self) -> StorageOptions {
        StorageOptions {
            segment_bytes: 2048,
            compaction_fan_in: 3,
            compaction_target_rows: 500,
            version_retention: Duration::from_millis(20),
            disk: Arc::new(self.disk.clone()),
            clock: self.clock.clone(),
            ..manual()
        }
    }

    /// Works and crashes, `crashes` times.
    pub async fn run(mut self, crashes: u64) -> Counts {
        let mut db = self.recover().await;
        for _ in 0..crashes {
            self.disk.stop_after(1 + self.random.below(FUSE));
            for _ in 0..OPERATIONS {
                self.step(&db).await;
                if self.disk.has_stopped() || self.poisoned {
                    break;
                }
            }
            drop(db);
            if self.random.below(5) == 0 {
                self.counts.kills += 1;
                self.note("KILL");
                self.disk.restart();
            } else {
                self.counts.crashes += 1;
                self.note("CRASH");
                self.disk.crash();
            }
            self.check().await;
            db = self.recover().await;
        }
        self.counts.disk_operations = self.disk.operations();
        self.counts
    }

    /// What a crash leaves is no damage.
    async fn check(&mut self) {
        if self.random.below(3) > 0 {
            return;
        }
        self.counts.checks += 1;
        let report = check(self.dir.path(), &self.options()).await.unwrap();
        assert!(report.is_sound(), "{:#?}", report.findings);
    }

    /// Opens the database, which may crash again or meet a failing disk, and compares.
    async fn recover(&mut self) -> Database {
        (self.faulty, self.was_faulty, self.poisoned) = (false, false, false);
        let mut calm = false;
        loop {
            match self.random.below(6) {
                0 if !calm => self.disk.stop_after(self.random.below(30)),
                1 if !calm => self.disk.fail(10),
                _ => calm = true,
            }
            let opened = Database::open(self.dir.path(), self.options()).await;
            if self.disk.has_stopped() {
                self.note("crash while opening");
                drop(opened);
                self.counts.crashes_in_recovery += 1;
                self.disk.crash();
                continue;
            }
            self.disk.calm();
            let damaged = |db: &Database| db.tables().iter().find_map(|table| table.damage().map(str::to_owned));
            let why = match &opened {
                Ok(db) => format!("{:?}", damaged(db)),
                Err(error) => error.to_string(),
            };
            match opened {
                Ok(db) if damaged(&db).is_none() => {
                    self.note(format!("opened: {}", shown(&db).await));
                    self.settle(&db).await;
                    return db;
                }
                Ok(db) => assert!(!calm, "opened with damage: {:?}", damaged(&db)),
                Err(error) => assert!(!calm, "cannot be opened: {error}"),
            }
            self.note(format!("opening met a failing disk: {why}"));
        }
    }

    /// What is open has happened or not, wholly; from here on it is known.
    async fn settle(&mut self, db: &Database) {
        let mut found = BTreeMap::new();
        for table in db.tables() {
            let rows = read(&table).await.unwrap();
            found.insert(table.definition().name.clone(), rows);
        }
        for open in std::mem::take(&mut self.open) {
            let kept = match &open {
                Open::Create { table, keyed } => {
                    let kept = found.contains_key(table);
                    if kept {
                        self.tables.insert(table.clone(), TableModel { keyed: *keyed, ..Default::default() });
                    }
                    kept
                }
                Open::Drop { table } => {
                    let kept = !found.contains_key(table);
                    if kept {
                        self.tables.remove(table);
                    }
                    kept
                }
                Open::Rows { table, rows } => self.settle_rows(&found, table, rows),
                Open::Object { name, value } => {
                    let kept = objects(db).get(name) == value.as_ref();
                    if kept {
                        set(&mut self.objects, name, *value);
                    }
                    kept
                }
            };
            self.note(format!("{} {open:?}", if kept { "kept" } else { "lost" }));
            if kept { self.counts.open_kept += 1 } else { self.counts.open_lost += 1 }
        }
        let expected: BTreeMap<_, _> =
            self.tables.iter().map(|(name, table)| (name.clone(), table.rows.clone())).collect();
        assert_same(&found, &expected);
        assert_eq!(objects(db), self.objects, "the catalog's objects differ");
    }

    fn settle_rows(&mut self, found: &BTreeMap<String, Rows>, table: &str, rows: &[(i64, Option<String>)]) -> bool {
        let (Some(found), Some(model)) = (found.get(table), self.tables.get_mut(table)) else { return false };
        let kept = rows.iter().all(|(key, value)| found.get(key) == value.as_ref());
        if kept {
            apply(&mut model.rows, rows);
        }
        kept
    }

    async fn step(&mut self, db: &Database) {
        self.clock.advance_us(10_000);
        match self.random.below(26) {
            0 | 1 => self.create(db).await,
            2 => self.drop_table(db).await,
            3..=7 => self.insert(db, 1).await,
            8 | 9 => self.insert(db, 6).await,
            10..=12 => self.delete(db).await,
            13..=15 => self.replace(db).await,
            16..=18 => self.flush(db, 0).await,
            19 | 20 => self.flush(db, 4).await,
            21 => self.disturb(),
            22 | 23 => self.object(db).await,
            _ => self.compare(db).await,
        }
    }

    /// The disk becomes full or unreliable, or gets well again.
    fn disturb(&mut self) {
        self.counts.faults += 1;
        self.faulty = !self.faulty;
        self.was_faulty = true;
        match self.random.below(2) {
            _ if !self.faulty => self.disk.calm(),
            0 => self.disk.set_room(Some(self.random.below(3000) as usize)),
            _ => self.disk.fail(10 + self.random.below(60)),
        }
        self.note(format!("the disk is {}", if self.faulty { "unreliable" } else { "reliable" }));
    }

    fn pick(&mut self, db: &Database) -> Option<Arc<Table>> {
        let at = self.random.below(self.tables.len().max(1) as u64) as usize;
        let name = self.tables.keys().nth(at)?.clone();
        Some(db.table("public", &name).unwrap_or_else(|| panic!("table {name} is not there")))
    }

    /// Takes note of an outcome. `open` is what may have happened if the error does not say.
    fn outcome<T>(&mut self, what: &str, result: Result<T>, open: impl FnOnce() -> Open) -> bool {
        match result {
            Ok(_) => {
                self.counts.commits += 1;
                self.note(format!("{what}: done"));
                true
            }
            Err(error) => {
                // A log that could not take a write back refuses all others, also when the disk is well again.
                let refuses = self.was_faulty && error.kind() == ErrorKind::Unavailable;
                self.poisoned |= refuses;
                let troubled = self.faulty || refuses || self.disk.has_stopped();
                assert!(troubled, "{what} failed on a sound disk: {error}");
                self.note(format!("{what}: {:?} {error}", error.kind()));
                if is_refusal(&error) {
                    self.counts.refused += 1;
                } else {
                    self.poisoned = true;
                    self.open.push(open());
                }
                false
            }
        }
    }

    async fn create(&mut self, db: &Database) {
        if self.tables.len() as u64 >= TABLES {
            return;
        }
        // Names come back, with other content.
        let name = format!("t{}", self.next_table % (TABLES + 2));
        self.next_table += 1;
        let keyed = self.random.below(2) == 0;
        let key: &[&str] = if keyed { &["id"] } else { &[] };
        let known = self.tables.contains_key(&name);
        let result = db.create_table(definition(&name, columns(), key), false).await;
        if known {
            assert!(result.is_err(), "{name} was created twice");
            return;
        }
        let open = || Open::Create { table: name.clone(), keyed };
        if self.outcome(&format!("create {name}"), result, open) {
            self.counts.tables_created += 1;
            self.tables.insert(name, TableModel { keyed, rows: Rows::new() });
        }
    }

    async fn drop_table(&mut self, db: &Database) {
        let Some(table) = self.pick(db) else { return };
        let name = table.definition().name.clone();
        drop(table);
        let result = db.drop_table("public", &name, false).await;
        if self.outcome(&format!("drop {name}"), result, || Open::Drop { table: name.clone() }) {
            self.counts.tables_dropped += 1;
            self.tables.remove(&name);
        }
    }

    async fn object(&mut self, db: &Database) {
        let name = format!("o{}", self.random.below(3));
        let value = (self.random.below(3) > 0).then(|| self.random.below(1_000_000));
        let result = match value {
            Some(value) => {
                let (kind, schema_name) = ("view".to_owned(), "public".to_owned());
                let object = CatalogObject { kind, schema_name, name: name.clone(), definition: value.into() };
                db.put_object(object, Replace::Always).await
            }
            None => db.drop_object("view", "public", &name, true).await,
        };
        let open = || Open::Object { name: name.clone(), value };
        if self.outcome(&format!("object {name} is {value:?}"), result, open) {
            self.counts.objects_changed += 1;
            set(&mut self.objects, &name, value);
        }
    }

    fn new_rows(&mut self) -> Changes {
        let count = 1 + self.random.below(9) as i64;
        let first = self.next_key;
        self.next_key += count;
        (first..first + count).map(|key| (key, Some(format!("new{key}")))).collect()
    }

    /// `count` inserts at once, so that they share a sync.
    async fn insert(&mut self, db: &Database, count: usize) {
        let mut inserts = Vec::new();
        for _ in 0..count {
            let Some(table) = self.pick(db) else { return };
            inserts.push((table, self.new_rows()));
        }
        self.insert_all(inserts).await;
    }

    async fn insert_all(&mut self, inserts: Vec<(Arc<Table>, Changes)>) {
        let results = futures::future::join_all(inserts.iter().map(|(table, new)| {
            let batch = rows(new.iter().map(|(key, _)| *key), "new");
            async move { table.insert(vec![batch]).await }
        }))
        .await;
        for ((table, new), result) in inserts.into_iter().zip(results) {
            let name = table.definition().name.clone();
            let what = format!("insert {} rows from {} into {name}", new.len(), new[0].0);
            if self.outcome(&what, result, || Open::Rows { table: name.clone(), rows: new.clone() }) {
                apply(&mut self.tables.get_mut(&name).unwrap().rows, &new);
            }
        }
    }

    fn some_keys(&mut self, name: &str) -> Vec<i64> {
        let rows = &self.tables[name].rows;
        let count = 1 + self.random.below(rows.len().clamp(1, 12) as u64);
        let start = self.random.below(rows.len().max(1) as u64) as usize;
        rows.keys().skip(start).take(count as usize).copied().collect()
    }

    async fn delete(&mut self, db: &Database) {
        let Some(table) = self.pick(db) else { return };
        let name = table.definition().name.clone();
        let keys = self.some_keys(&name);
        let gone: Vec<_> = keys.iter().map(|key| (*key, None)).collect();
        let delete = async {
            let mutation = table.begin_mutation().await;
            let ids = row_ids(&table, &keys).await?;
            mutation.delete(ids).await
        };
        let result = delete.await;
        let what = format!("delete {} rows from {name}", keys.len());
        if self.outcome(&what, result, || Open::Rows { table: name.clone(), rows: gone.clone() }) {
            apply(&mut self.tables.get_mut(&name).unwrap().rows, &gone);
        }
    }

    async fn replace(&mut self, db: &Database) {
        let Some(table) = self.pick(db) else { return };
        let name = table.definition().name.clone();
        let keys = self.some_keys(&name);
        if keys.is_empty() {
            return;
        }
        self.next_key += 1;
        let prefix = format!("v{}-", self.next_key);
        let new: Vec<_> = keys.iter().map(|key| (*key, Some(format!("{prefix}{key}")))).collect();
        let replace = async {
            let mutation = table.begin_mutation().await;
            let ids = row_ids(&table, &keys).await?;
            mutation.replace(ids, vec![rows(keys.iter().copied(), &prefix)]).await
        };
        let result = replace.await;
        let what = format!("replace {} rows of {name}", keys.len());
        if self.outcome(&what, result, || Open::Rows { table: name.clone(), rows: new.clone() }) {
            apply(&mut self.tables.get_mut(&name).unwrap().rows, &new);
        }
    }

    /// A flush, with `count` inserts beside it.
    async fn flush(&mut self, db: &Database, count: usize) {
        let mut inserts = Vec::new();
        for _ in 0..count {
            let Some(table) = self.pick(db) else { return };
            inserts.push((table, self.new_rows()));
        }
        let before = fragments(db).await;
        let (result, ()) = futures::join!(db.flush(), self.insert_all(inserts));
        if let (Some(before), Some(after)) = (before, fragments(db).await) {
            self.counts.compactions += u64::from(after < before);
        }
        match result {
            Ok(()) => self.note(format!("flush: {}", shown(db).await)),
            Err(error) => {
                assert!(self.faulty || self.disk.has_stopped(), "a flush failed on a sound disk: {error}");
                self.note(format!("flush: {error}; {}", shown(db).await));
            }
        }
        if self.disk.has_stopped() {
            self.counts.crashes_in_flush += 1;
        }
    }

    async fn compare(&mut self, db: &Database) {
        let mut found = BTreeMap::new();
        for table in db.tables() {
            match read(&table).await {
                Ok(rows) => _ = found.insert(table.definition().name.clone(), rows),
                Err(error) => {
                    assert!(self.faulty || self.disk.has_stopped(), "a read failed on a sound disk: {error}");
                    return;
                }
            }
        }
        let expected: BTreeMap<_, _> =
            self.tables.iter().map(|(name, table)| (name.clone(), table.rows.clone())).collect();
        assert_same(&found, &expected);
    }
}

fn set(objects: &mut BTreeMap<String, u64>, name: &str, value: Option<u64>) {
    match value {
        Some(value) => _ = objects.insert(name.to_owned(), value),
        None => _ = objects.remove(name),
    }
}

fn objects(db: &Database) -> BTreeMap<String, u64> {
    db.objects("view").into_iter().map(|object| (object.name, object.definition.as_u64().unwrap())).collect()
}

/// What the tables consist of, for whoever reads a history.
async fn shown(db: &Database) -> String {
    let mut all = Vec::new();
    for table in db.tables() {
        if let Ok(plan) = table.scan(&SessionContext::new().state(), ScanRequest::default()).await {
            all.push(datafusion::physical_plan::displayable(plan.as_ref()).one_line().to_string().trim().to_owned());
        }
    }
    all.join("; ").replace("TableScanExec: table=public.", "").replace("projection=[id, body], ", "")
}

/// Lance fragments of all tables, as their plans say.
async fn fragments(db: &Database) -> Option<usize> {
    let mut sum = 0;
    for table in db.tables() {
        let plan = table.scan(&SessionContext::new().state(), ScanRequest::default()).await.ok()?;
        let shown = datafusion::physical_plan::displayable(plan.as_ref()).one_line().to_string();
        let count = shown.split("fragments=").nth(1).and_then(|rest| rest.split([',', ' ', '\n']).next());
        sum += count.map_or(0, |count| count.trim().parse().unwrap());
    }
    Some(sum)
}

fn apply(rows: &mut Rows, changes: &[(i64, Option<String>)]) {
    for (key, value) in changes {
        match value {
            Some(value) => _ = rows.insert(*key, value.clone()),
            None => _ = rows.remove(key),
        }
    }
}

fn assert_same(found: &BTreeMap<String, Rows>, expected: &BTreeMap<String, Rows>) {
    let names = |tables: &BTreeMap<String, Rows>| tables.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "the tables differ");
    for (name, expected) in expected {
        let found = &found[name];
        let differs = |left: &Rows, right: &Rows| -> Vec<(i64, String)> {
            left.iter().filter(|(key, value)| right.get(key) != Some(value)).map(|(k, v)| (*k, v.clone())).collect()
        };
        let (unknown, missing) = (differs(found, expected), differs(expected, found));
        assert!(unknown.is_empty() && missing.is_empty(), "{name}: missing {missing:?}, unknown {unknown:?}");
    }
}

/// All rows; a key or row id that is there twice fails, and so does a count that says it is exact and is not.
async fn read(table: &Table) -> Result<Rows> {
    let context = SessionContext::new();
    let request = ScanRequest { with_row_id: true, ..Default::default() };
    let plan = table.scan(&context.state(), request).await?;
    let stated = plan.partition_statistics(None).unwrap().num_rows;
    let batches = datafusion::physical_plan::collect(plan, context.task_ctx());
    let batches = batches.await.map_err(|error| Error::internal(error.to_string()))?;
    let (mut found, mut ids) = (Rows::new(), std::collections::BTreeSet::new());
    for batch in batches {
        let (keys, bodies) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_string::<i32>());
        let row_ids = batch.column(2).as_primitive::<UInt64Type>();
        for row in 0..batch.num_rows() {
            let twice = found.insert(keys.value(row), bodies.value(row).to_owned());
            let name = table.definition().qualified_name();
            assert_eq!(twice, None, "{name} has {} twice", keys.value(row));
            assert!(ids.insert(row_ids.value(row)), "{name} has row id {} twice", row_ids.value(row));
        }
    }
    if let Precision::Exact(stated) = stated {
        assert_eq!(stated, found.len(), "the stated row count of {}", table.definition().qualified_name());
    }
    Ok(found)
}

async fn row_ids(table: &Table, wanted: &[i64]) -> Result<Vec<u64>> {
    let context = SessionContext::new();
    let request = ScanRequest { projection: Some(vec![0]), with_row_id: true, ..Default::default() };
    let plan = table.scan(&context.state(), request).await?;
    let batches = datafusion::physical_plan::collect(plan, context.task_ctx());
    let mut found = Vec::new();
    for batch in batches.await.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))? {
        let keys = batch.column(0).as_primitive::<Int64Type>();
        let ids = batch.column(1).as_primitive::<UInt64Type>();
        found.extend((0..batch.num_rows()).filter(|&row| wanted.contains(&keys.value(row))).map(|row| ids.value(row)));
    }
    Ok(found)
}
