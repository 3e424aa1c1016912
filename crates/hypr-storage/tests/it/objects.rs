//! Named definitions beside the tables.

use hypr_common::ErrorKind;
use hypr_storage::{CatalogObject, Replace};
use serde_json::json;

use crate::support::{crash, open};

fn view(name: &str, sql: &str) -> CatalogObject {
    CatalogObject {
        kind: "view".to_owned(),
        schema_name: "public".to_owned(),
        name: name.to_owned(),
        definition: json!({ "sql": sql }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_survive_a_crash_and_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    assert!(db.put_object(view("a", "SELECT 1"), Replace::Never).await.unwrap());
    assert!(db.put_object(view("b", "SELECT 2"), Replace::Never).await.unwrap());
    assert!(db.put_object(view("a", "SELECT 3"), Replace::Always).await.unwrap());
    assert!(db.drop_object("view", "public", "b", false).await.unwrap());

    let (copy, after_crash) = crash(dir.path()).await;
    assert_eq!(after_crash.objects("view"), [view("a", "SELECT 3")]);
    after_crash.flush().await.unwrap();
    drop(after_crash);
    let reopened = open(copy.path()).await;
    assert_eq!(reopened.objects("view"), [view("a", "SELECT 3")]);
    assert!(reopened.objects("function").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_once_in_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    db.put_object(view("a", "SELECT 1"), Replace::Never).await.unwrap();

    let error = db.put_object(view("a", "SELECT 2"), Replace::Never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.message().contains("view public.a exists already"), "{error}");
    assert!(!db.put_object(view("a", "SELECT 2"), Replace::KeepExisting).await.unwrap());
    assert_eq!(db.object("view", "public", "a"), Some(view("a", "SELECT 1")));

    let function = CatalogObject { kind: "function".to_owned(), ..view("a", "SELECT 4") };
    db.put_object(function, Replace::Never).await.unwrap();
    assert_eq!(db.drop_object("view", "public", "z", false).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!db.drop_object("view", "public", "z", true).await.unwrap());
    assert!(db.drop_object("view", "public", "a", false).await.unwrap());
    assert_eq!(db.objects("function").len(), 1);
}
