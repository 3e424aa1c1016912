//! One damaged byte anywhere in a database directory: it is named or does no harm, and the rest is served.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::{ArrayRef, Int32Array, LargeBinaryArray, RecordBatch, StringArray};
use arrow_schema::{DataType, Field};
use datafusion::prelude::SessionContext;
use hypr_common::model::{LayerTable, ModelMetadata, ModelSource, ModelTables, TOKENIZER_FILE, layer_schema};
use hypr_storage::{Database, ModelStore, ScanRequest, Severity, StorageOptions, Table, check};
use tempfile::{TempDir, tempdir};

use crate::support::{columns, contents, copy_of, definition, delete, expected, manual, replace, rows};

/// Offsets tried in each file; small files are tried at every one of so many places.
const OFFSETS: u64 = 3;

fn model(model_id: &str) -> ModelTables {
    let metadata = ModelMetadata {
        model_id: model_id.to_owned(),
        model_type: "test".to_owned(),
        total_parameters: 1000,
        architecture_config: serde_json::json!({"family": "test"}),
        vocab_size: 3,
        hidden_size: 4,
        num_attention_heads: 1,
        num_hidden_layers: 1,
    };
    let mut shape = ListBuilder::new(Int32Builder::new()).with_field(Field::new("item", DataType::Int32, false));
    shape.append_value([Some(1000)]);
    let weights: Vec<u8> = (0..4000_u32).map(|value| (value % 251) as u8).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![0])),
        Arc::new(StringArray::from(vec!["weight"])),
        Arc::new(StringArray::from(vec!["attn_q"])),
        Arc::new(Int32Array::from(vec![0])),
        Arc::new(StringArray::from(vec!["F32"])),
        Arc::new(shape.finish()),
        Arc::new(LargeBinaryArray::from_vec(vec![&weights])),
    ];
    let piece = RecordBatch::try_new(layer_schema(), columns).unwrap();
    let layers = vec![LayerTable { layer_id: 0, pieces: vec![piece] }];
    let files =
        BTreeMap::from([(TOKENIZER_FILE.to_owned(), arrow_buffer::Buffer::from(b"{\"model\": {}}".as_slice()))]);
    ModelTables { metadata, version: 0, layers, files }
}

/// Two tables with everything a table can have on disk and in the log, and two models.
async fn directory() -> (TempDir, Vec<(String, Vec<(i64, String)>)>) {
    let dir = tempdir().unwrap();
    let options = StorageOptions { compaction_fan_in: 3, version_retention: Duration::from_secs(3600), ..manual() };
    let db = Database::open(dir.path(), options).await.unwrap();
    for (name, key) in [("keyed", &["id"][..]), ("plain", &[])] {
        db.create_table(definition(name, columns(), key), false).await.unwrap();
        let table = db.table("public", name).unwrap();
        for start in [0, 200, 400, 600] {
            table.insert(vec![rows(start..start + 200, name)]).await.unwrap();
            if name == "keyed" {
                db.flush().await.unwrap();
            }
        }
        db.flush().await.unwrap();
        delete(&table, &[3, 4, 700]).await;
        db.flush().await.unwrap();
    }
    // Behind the flushes of both: the log alone has these.
    for name in ["keyed", "plain"] {
        let table = db.table("public", name).unwrap();
        replace(&table, &[7], "replaced").await;
        table.insert(vec![rows(1000..1010, name)]).await.unwrap();
    }
    let models = db.models();
    models.publish(&model("first")).unwrap();
    models.publish(&model("second")).unwrap();
    let mut wanted = Vec::new();
    for name in ["keyed", "plain"] {
        let ids = (0..800).chain(1000..1010).filter(|id| ![3, 4, 700].contains(id));
        let mut rows = expected(ids, name);
        rows.iter_mut().filter(|row| row.0 == 7).for_each(|row| row.1 = "replaced7".to_owned());
        assert_eq!(contents(&db.table("public", name).unwrap()).await, rows);
        wanted.push((name.to_owned(), rows));
    }
    let copy = copy_of(dir.path());
    (copy, wanted)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// What kind of file it is, for the tally.
fn kind(file: &Path) -> String {
    let text = file.to_str().unwrap();
    let kinds = ["wal", "_versions", "_transactions", "data", "_deletions", "checksums", "models", "catalog"];
    let parts: Vec<&str> = text.split('/').collect();
    let known = kinds.iter().find(|kind| parts.iter().any(|part| part.starts_with(**kind)));
    let name = parts.last().unwrap();
    match known {
        Some(&"models") => format!("models: {name}"),
        Some(kind) => (*kind).to_owned(),
        None => (*name).to_owned(),
    }
}

async fn read(table: &Table) -> Result<Vec<(i64, String)>, String> {
    let context = SessionContext::new();
    let plan = table.scan(&context.state(), ScanRequest::default()).await.map_err(|error| error.to_string())?;
    let batches = datafusion::physical_plan::collect(plan, context.task_ctx()).await;
    batches.map_err(|error| error.to_string())?;
    Ok(contents(table).await)
}

#[derive(Debug, Default)]
struct Tally {
    tried: usize,
    /// A statement was refused, naming the file.
    refused: usize,
    /// `check` named the file.
    found: usize,
}

/// Flips one bit, and looks at everything. `relative` is the damaged file.
async fn try_flip(dir: &Path, relative: &Path, wanted: &[(String, Vec<(i64, String)>)], tally: &mut Tally) {
    let name = relative.file_name().unwrap().to_str().unwrap();
    let report = check(dir, &manual()).await.unwrap();
    let mut damage = report.findings.iter().filter(|finding| finding.severity == Severity::Damage).peekable();
    let found = damage.peek().is_some();
    for finding in damage {
        let named =
            finding.message.contains(name) || finding.path.as_ref().is_some_and(|path| path.ends_with(relative));
        assert!(named, "{relative:?}: a finding names another file: {finding:?}");
    }
    let db = Database::open(dir, manual()).await.unwrap_or_else(|error| panic!("{relative:?}: {error}"));
    let mut refused = 0;
    for (table, rows) in wanted {
        let table = db.table("public", table).unwrap_or_else(|| panic!("{relative:?}: table {table} is gone"));
        match read(&table).await {
            Ok(found) => assert_eq!(&found, rows, "{relative:?}: wrong rows"),
            Err(error) => {
                assert!(error.contains(name), "{relative:?}: the error names another file: {error}");
                refused += 1;
            }
        }
    }
    let in_tables = relative.starts_with("tables");
    assert!(refused <= if in_tables { 1 } else { 2 }, "{relative:?}: a table with sound files is refused");
    let models = ModelStore::open(dir).unwrap();
    for id in ["first", "second"] {
        let harmed = relative.starts_with(format!("models/{id}"));
        let opened = ModelSource::open(&models, id).and_then(|_| models.verify(id));
        match opened {
            Ok(()) => assert!(!harmed, "{relative:?}: damage of a model went unnoticed"),
            Err(error) => {
                assert!(harmed && error.message().contains(name), "{relative:?}: {error}");
                refused += 1;
            }
        }
    }
    assert!(found || refused == 0, "{relative:?}: refused, and check finds nothing");
    tally.tried += 1;
    tally.refused += usize::from(refused > 0);
    tally.found += usize::from(found);
}

#[tokio::test]
async fn a_damaged_byte_in_any_file_is_named_or_harmless_and_the_rest_is_served() {
    let (dir, wanted) = directory().await;
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    for file in files(dir.path()) {
        let relative = file.strip_prefix(dir.path()).unwrap().to_owned();
        let bytes = std::fs::read(&file).unwrap();
        let tally = tallies.entry(kind(&relative)).or_default();
        for number in 0..OFFSETS.min(bytes.len() as u64) {
            // Spread over the file, and different in each.
            let at =
                (number * bytes.len() as u64 / OFFSETS + relative.as_os_str().len() as u64 * 7) % bytes.len() as u64;
            let copy = copy_of(dir.path());
            let mut damaged = bytes.clone();
            damaged[at as usize] ^= 1 << (number % 8);
            std::fs::write(copy.path().join(&relative), damaged).unwrap();
            try_flip(copy.path(), &relative, &wanted, tally).await;
        }
    }
    for (kind, tally) in &tallies {
        println!("{kind}: {tally:?}");
    }
    for kind in ["wal", "_versions", "_transactions", "data", "_deletions", "checksums", "catalog"] {
        let tally = tallies.get(kind).unwrap_or_else(|| panic!("there is no {kind} file: {tallies:?}"));
        assert!(tally.found > 0, "damage of {kind} is never found: {tally:?}");
    }
    for kind in ["_versions", "data", "_deletions", "_transactions"] {
        assert_eq!(tallies[kind].found, tallies[kind].tried, "{kind}: every byte has a checksum");
        assert!(kind == "_transactions" || tallies[kind].refused > 0, "{kind} is never read: {tallies:?}");
    }
}
