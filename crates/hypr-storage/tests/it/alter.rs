//! `ALTER TABLE` against a model, with flushes, crashes and reopenings between.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use hypr_common::ErrorKind;
use hypr_storage::{CONSTRAINTS_OPTION, Constraints, Database, ScanRequest, Table, TableChange, Unique};
use proptest::prelude::*;

use crate::support::{crash, definition, delete, keyed, open, read, replace, rows};

fn table(db: &Database) -> Arc<Table> {
    db.table("public", "t").unwrap()
}

async fn alter(db: &Database, changes: &[TableChange]) -> hypr_common::Result<()> {
    let alteration = db.begin_alteration("public", "t").await.unwrap();
    Box::pin(alteration.commit(changes)).await
}

fn add(name: &str, data_type: DataType, fill: Option<ArrayRef>) -> TableChange {
    let nullable = fill.is_none();
    TableChange::AddColumn { field: Field::new(name, data_type, nullable), fill }
}

/// Rows as text, by column name, sorted.
async fn shown(table: &Table) -> Vec<BTreeMap<String, String>> {
    let mut all = Vec::new();
    for batch in Box::pin(read(table, ScanRequest::default())).await {
        for row in 0..batch.num_rows() {
            let cell = |(field, column): (&Arc<Field>, &ArrayRef)| {
                let value = arrow::util::display::array_value_to_string(column, row).unwrap();
                (field.name().clone(), if column.is_null(row) { "NULL".to_owned() } else { value })
            };
            all.push(batch.schema().fields().iter().zip(batch.columns()).map(cell).collect::<BTreeMap<_, _>>());
        }
    }
    all.sort();
    all
}

#[tokio::test]
async fn every_change_shows_at_once_and_after_flush_crash_and_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t) = Box::pin(keyed(dir.path())).await;
    t.insert(vec![rows(0..3, "flushed")]).await.unwrap();
    Box::pin(db.flush()).await.unwrap();
    t.insert(vec![rows(3..5, "tail")]).await.unwrap();
    let seven: ArrayRef = Arc::new(Int32Array::from(vec![7]));
    alter(
        &db,
        &[
            TableChange::RenameColumn { from: "body".into(), to: "text".into() },
            add("n", DataType::Int32, Some(seven)),
            add("note", DataType::Utf8, None),
        ],
    )
    .await
    .unwrap();
    let before = shown(&table(&db)).await;
    assert_eq!(before.len(), 5);
    assert!(before.iter().all(|row| row["n"] == "7" && row["note"] == "NULL" && !row.contains_key("body")));
    assert_eq!((before[0]["id"].as_str(), before[0]["text"].as_str()), ("0", "flushed0"));
    // Widening, and a new column under the old name of another.
    alter(&db, &[TableChange::WidenColumn { name: "n".into(), field: Field::new("n", DataType::Int64, false) }])
        .await
        .unwrap();
    alter(&db, &[TableChange::DropColumn("note".into()), add("body", DataType::Int32, None)]).await.unwrap();
    let batch = RecordBatch::try_new(
        table(&db).schema(),
        vec![
            Arc::new(Int64Array::from(vec![5])),
            Arc::new(StringArray::from(vec!["new"])),
            Arc::new(Int64Array::from(vec![1 << 40])),
            Arc::new(Int32Array::from(vec![1])),
        ],
    );
    table(&db).insert(vec![batch.unwrap()]).await.unwrap();
    delete(&table(&db), &[1]).await;
    let expected = shown(&table(&db)).await;
    assert_eq!(expected.len(), 5);
    let (_copy, crashed) = Box::pin(crash(dir.path())).await;
    assert_eq!(shown(&table(&crashed)).await, expected, "replayed from the log");
    Box::pin(crashed.flush()).await.unwrap();
    assert_eq!(shown(&table(&crashed)).await, expected, "in Lance");
    let (_copy, again) = Box::pin(crash(_copy.path())).await;
    assert_eq!(shown(&table(&again)).await, expected, "reopened");
    let wide = read(&table(&again), ScanRequest { projection: Some(vec![2]), ..Default::default() }).await;
    assert!(wide.iter().any(|batch| batch.column(0).as_primitive::<Int64Type>().values().contains(&(1 << 40))));
}

#[tokio::test]
async fn rows_from_before_a_column_was_not_null_do_not_stop_recovery() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t) = Box::pin(keyed(dir.path())).await;
    let id: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let none: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>]));
    t.insert(vec![RecordBatch::try_new(t.schema(), vec![id, none]).unwrap()]).await.unwrap();
    Box::pin(replace(&t, &[1], "now")).await;
    alter(&db, &[TableChange::SetNullable { name: "body".into(), nullable: false }]).await.unwrap();
    assert_eq!(shown(&table(&db)).await[0]["body"], "now1");
    let (_copy, crashed) = Box::pin(crash(dir.path())).await;
    assert_eq!(shown(&table(&crashed)).await[0]["body"], "now1");
    Box::pin(crashed.flush()).await.unwrap();
    assert_eq!(shown(&table(&crashed)).await.len(), 1);
}

#[tokio::test]
async fn old_handles_read_on_and_refuse_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let (db, old) = Box::pin(keyed(dir.path())).await;
    old.insert(vec![rows(0..2, "a")]).await.unwrap();
    alter(&db, &[TableChange::DropColumn("body".into())]).await.unwrap();
    assert_eq!(shown(&old).await[1]["body"], "a1");
    let error = old.insert(vec![rows(5..6, "b")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("run it again"), "{error}");
    assert_eq!(shown(&table(&db)).await.len(), 2);
    // The key still holds, with its index carried over.
    let batch = RecordBatch::try_new(table(&db).schema(), vec![Arc::new(Int64Array::from(vec![1]))]).unwrap();
    assert_eq!(table(&db).insert(vec![batch]).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t) = Box::pin(keyed(dir.path())).await;
    t.insert(vec![rows(0..2, "same"), rows(2..3, "same")]).await.unwrap();
    let none = RecordBatch::try_new(
        t.schema(),
        vec![Arc::new(Int64Array::from(vec![9])), Arc::new(StringArray::from(vec![None::<&str>]))],
    );
    t.insert(vec![none.unwrap()]).await.unwrap();
    db.create_table(definition("other", t.schema(), &[]), false).await.unwrap();
    let before = t.definition().clone();
    let unique = Constraints {
        unique: vec![Unique { name: "u".into(), columns: vec!["missing".into()] }],
        ..Constraints::default()
    };
    let options = BTreeMap::from([(CONSTRAINTS_OPTION.to_owned(), serde_json::to_string(&unique).unwrap())]);
    for (change, kind, message) in [
        (TableChange::DropColumn("id".into()), ErrorKind::InvalidInput, "PRIMARY KEY"),
        (TableChange::DropColumn("nope".into()), ErrorKind::InvalidInput, "has no column nope"),
        (add("id", DataType::Int32, None), ErrorKind::InvalidInput, "declares column id twice"),
        (
            TableChange::WidenColumn { name: "id".into(), field: Field::new("id", DataType::Int32, false) },
            ErrorKind::InvalidInput,
            "does not hold all its values",
        ),
        (TableChange::SetNullable { name: "body".into(), nullable: false }, ErrorKind::InvalidInput, "holds NULL"),
        (TableChange::SetNullable { name: "id".into(), nullable: true }, ErrorKind::InvalidInput, "takes no NULL"),
        (
            TableChange::Rename { schema_name: "public".into(), name: "other".into() },
            ErrorKind::AlreadyExists,
            "exists already",
        ),
        (TableChange::SetOptions(options), ErrorKind::InvalidInput, "UNIQUE names column missing"),
        (
            TableChange::AddColumn { field: Field::new("n", DataType::Int32, false), fill: None },
            ErrorKind::InvalidInput,
            "holds NULL",
        ),
    ] {
        let error = alter(&db, std::slice::from_ref(&change)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{change:?}: {error}");
        assert!(error.message().contains(message), "{change:?}: {error}");
        assert_eq!(*table(&db).definition(), before);
    }
    let error = db.begin_alteration("public", "nothing").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_unique_constraint_is_checked_when_it_is_added_and_kept_after() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t) = Box::pin(keyed(dir.path())).await;
    t.insert(vec![rows(0..2, "a")]).await.unwrap();
    let unique = Constraints {
        unique: vec![Unique { name: "u".into(), columns: vec!["body".into()] }],
        ..Constraints::default()
    };
    let options = BTreeMap::from([(CONSTRAINTS_OPTION.to_owned(), serde_json::to_string(&unique).unwrap())]);
    alter(&db, &[TableChange::SetOptions(options.clone())]).await.unwrap();
    let row = |id: i64, body: &str| {
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from(vec![id])), Arc::new(StringArray::from(vec![body]))];
        vec![RecordBatch::try_new(t.schema(), columns).unwrap()]
    };
    assert_eq!(table(&db).insert(row(5, "a1")).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    alter(&db, &[TableChange::SetOptions(BTreeMap::new())]).await.unwrap();
    table(&db).insert(row(5, "a1")).await.unwrap();
    let error = alter(&db, &[TableChange::SetOptions(options)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
}

#[tokio::test]
async fn a_renamed_table_keeps_its_rows_and_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (db, t) = Box::pin(keyed(dir.path())).await;
    t.insert(vec![rows(0..2, "a")]).await.unwrap();
    Box::pin(db.flush()).await.unwrap();
    t.insert(vec![rows(2..3, "b")]).await.unwrap();
    alter(&db, &[TableChange::Rename { schema_name: "public".into(), name: "moved".into() }]).await.unwrap();
    assert!(db.table("public", "t").is_none());
    drop(t);
    Box::pin(db.close()).await.unwrap();
    drop(db);
    let db = Box::pin(open(dir.path())).await;
    assert_eq!(shown(&db.table("public", "moved").unwrap()).await.len(), 3);
}

/// A step of the property test.
#[derive(Clone, Debug)]
enum Step {
    Insert(u8),
    Delete(u8),
    Add { filled: bool },
    Drop(u8),
    Rename(u8),
    Widen(u8),
    Flush,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..4u8).prop_map(Step::Insert),
        1 => any::<u8>().prop_map(Step::Delete),
        2 => any::<bool>().prop_map(|filled| Step::Add { filled }),
        1 => any::<u8>().prop_map(Step::Drop),
        1 => any::<u8>().prop_map(Step::Rename),
        1 => any::<u8>().prop_map(Step::Widen),
        2 => Just(Step::Flush),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..14)
}

/// A table as one would write it down: every row has a value for every column.
#[derive(Default)]
struct Model {
    /// Names and whether the column is wide.
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<Option<i64>>>,
    names: usize,
}

impl Model {
    fn name(&mut self) -> String {
        self.names += 1;
        // Names come back, so that a new column may have the name of a dropped or renamed one.
        format!("c{}", self.names % 5)
    }

    fn shown(&self) -> Vec<BTreeMap<String, String>> {
        let cell = |value: &Option<i64>| value.map_or_else(|| "NULL".to_owned(), |value| value.to_string());
        let mut rows: Vec<BTreeMap<String, String>> = self
            .rows
            .iter()
            .map(|row| self.columns.iter().zip(row).map(|((name, _), value)| (name.clone(), cell(value))).collect())
            .collect();
        rows.sort();
        rows
    }

    fn batch(&self, rows: &[Vec<Option<i64>>], schema: &Arc<Schema>) -> RecordBatch {
        let columns = self.columns.iter().enumerate().map(|(at, (_, wide))| {
            let values = rows.iter().map(|row| row[at]);
            match wide {
                true => Arc::new(values.collect::<Int64Array>()) as ArrayRef,
                false => Arc::new(values.map(|value| value.map(|value| value as i32)).collect::<Int32Array>()) as _,
            }
        });
        RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
    }

    /// Every other row has a NULL in each column that takes one.
    fn new_rows(ids: std::ops::Range<i64>, schema: &Schema) -> Vec<Vec<Option<i64>>> {
        let cell = |at: usize, id: i64, field: &Field| match at.is_multiple_of(2) || field.name() == "id" {
            true => Some(id),
            false => (!field.is_nullable()).then_some(-1),
        };
        ids.enumerate().map(|(at, id)| schema.fields().iter().map(|field| cell(at, id, field)).collect()).collect()
    }
}

async fn run(steps: Vec<Step>) {
    let mut dir = tempfile::tempdir().unwrap();
    let mut db = Box::pin(open(dir.path())).await;
    let mut model = Model { columns: vec![("id".to_owned(), true)], ..Model::default() };
    let id = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    db.create_table(definition("t", id, &["id"]), false).await.unwrap();
    let mut next = 0;
    for step in &steps {
        match step {
            Step::Insert(count) => {
                let t = table(&db);
                let new = Model::new_rows(next..next + i64::from(*count), &t.schema());
                next += i64::from(*count);
                t.insert(vec![model.batch(&new, &t.schema())]).await.unwrap();
                model.rows.extend(new);
            }
            Step::Delete(which) => {
                if !model.rows.is_empty() {
                    let row = model.rows.remove(usize::from(*which) % model.rows.len());
                    Box::pin(delete(&table(&db), &[row[0].unwrap()])).await;
                }
            }
            Step::Add { filled } => {
                let name = model.name();
                if model.columns.iter().any(|(other, _)| *other == name) {
                    continue;
                }
                let fill = filled.then(|| Arc::new(Int32Array::from(vec![42])) as ArrayRef);
                alter(&db, &[add(&name, DataType::Int32, fill)]).await.unwrap();
                model.columns.push((name, false));
                model.rows.iter_mut().for_each(|row| row.push(filled.then_some(42)));
            }
            Step::Drop(which) if model.columns.len() > 1 => {
                let at = 1 + usize::from(*which) % (model.columns.len() - 1);
                let (name, _) = model.columns.remove(at);
                alter(&db, &[TableChange::DropColumn(name)]).await.unwrap();
                for row in &mut model.rows {
                    row.remove(at);
                }
            }
            Step::Rename(which) => {
                let (at, to) = (usize::from(*which) % model.columns.len(), model.name());
                if at == 0 || model.columns.iter().any(|(other, _)| *other == to) {
                    continue;
                }
                let from = std::mem::replace(&mut model.columns[at].0, to.clone());
                alter(&db, &[TableChange::RenameColumn { from, to }]).await.unwrap();
            }
            Step::Widen(which) => {
                let at = usize::from(*which) % model.columns.len();
                let (name, wide) = &mut model.columns[at];
                let field = Field::new(name.as_str(), DataType::Int64, true);
                *wide = true;
                alter(&db, &[TableChange::WidenColumn { name: name.clone(), field }]).await.unwrap();
            }
            Step::Flush => Box::pin(db.flush()).await.unwrap(),
            Step::Crash => {
                let (copy, crashed) = Box::pin(crash(dir.path())).await;
                (dir, db) = (copy, crashed);
            }
            Step::Drop(_) => {}
        }
        assert_eq!(shown(&table(&db)).await, model.shown(), "after {step:?} of {steps:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_shows_what_the_model_says(steps in steps()) {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(Box::pin(run(steps)));
    }
}
