//! Named things of the catalog that hold no rows: views, functions, policies, tags. The store keeps their
//! definitions durable and in order with everything else in the log; what a definition means is for the layer
//! that wrote it.

use hypr_common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::catalog::CatalogChange;
use crate::database::{CatalogEdit, Database};

/// A named definition. Kinds are name spaces of their own: a view and a function may share a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CatalogObject {
    /// What it is, in lower case: `view`, `function`, ..
    pub kind: String,
    /// The schema (namespace) it is in.
    pub schema_name: String,
    /// Its name within kind and schema.
    pub name: String,
    /// What it says, in the words of the layer that put it.
    pub definition: serde_json::Value,
}

impl CatalogObject {
    pub(crate) fn key(&self) -> ObjectKey {
        (self.kind.clone(), self.schema_name.clone(), self.name.clone())
    }
}

/// Kind, schema and name.
pub(crate) type ObjectKey = (String, String, String);

/// What happens to an object that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// The new one is refused.
    Never,
    /// The new one takes its place.
    Always,
    /// It stays, and the new one is left out without an error.
    KeepExisting,
}

impl Database {
    /// Puts a definition into the catalog, durable when this returns. False when one was there and stays.
    ///
    /// # Errors
    /// `AlreadyExists` when `replace` is [`Replace::Never`].
    pub async fn put_object(&self, object: CatalogObject, replace: Replace) -> Result<bool> {
        let _guard = self.lock_catalog().await;
        if self.object(&object.kind, &object.schema_name, &object.name).is_some() {
            match replace {
                Replace::Always => {}
                Replace::KeepExisting => return Ok(false),
                Replace::Never => {
                    let CatalogObject { kind, schema_name, name, .. } = object;
                    let message = format!(
                        "{kind} {schema_name}.{name} exists already; drop it first, or use OR REPLACE or IF NOT EXISTS"
                    );
                    return Err(Error::new(ErrorKind::AlreadyExists, message));
                }
            }
        }
        self.log_change(&CatalogChange::PutObject { object: object.clone() }, CatalogEdit::PutObject(object)).await?;
        Ok(true)
    }

    /// Removes a definition, durable when this returns. False when there is none and `if_exists` allows that.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn drop_object(&self, kind: &str, schema: &str, name: &str, if_exists: bool) -> Result<bool> {
        let _guard = self.lock_catalog().await;
        let Some(object) = self.object(kind, schema, name) else {
            if if_exists {
                return Ok(false);
            }
            let message = format!("{kind} {schema}.{name} does not exist; use IF EXISTS to allow that");
            return Err(Error::not_found(message));
        };
        let edit = CatalogEdit::DropObject(object.key());
        let CatalogObject { kind, schema_name, name, .. } = object;
        self.log_change(&CatalogChange::DropObject { kind, schema_name, name }, edit).await?;
        Ok(true)
    }

    /// One definition.
    pub fn object(&self, kind: &str, schema: &str, name: &str) -> Option<CatalogObject> {
        self.with_objects(|objects| objects.get(&(kind.to_owned(), schema.to_owned(), name.to_owned())).cloned())
    }

    /// All definitions of a kind, by schema and name.
    pub fn objects(&self, kind: &str) -> Vec<CatalogObject> {
        self.with_objects(|objects| objects.values().filter(|object| object.kind == kind).cloned().collect())
    }
}
