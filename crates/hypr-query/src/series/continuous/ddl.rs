//! Making and dropping views.

use std::sync::Arc;

use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{Replace, TableDefinition};

use super::catalog::{self, KIND, Listing, STORE_SCHEMA, View, store_columns};
use super::refresh::{Scope, refresh};
use crate::{Session, TableRef, ingest};

/// Makes a view and materialises it. False when it is there and `if_not_exists` allows that.
///
/// # Errors
/// `AlreadyExists` for a name that is taken, `Unsupported` for a query that cannot be kept up to date.
pub(in crate::series) async fn create(
    session: &Session,
    view: &TableRef,
    query: &str,
    if_not_exists: bool,
) -> Result<bool> {
    let (database, state) = (session.engine().database(), session.statement_state());
    let taken = database.object(KIND, view.schema_name(), &view.name).is_some();
    if taken && if_not_exists {
        return Ok(false);
    }
    let others = session.catalog().tables();
    if taken || others.iter().any(|other| other.schema_name == view.schema_name() && other.name == view.name) {
        let message = format!("\"{view}\" exists already; drop it first, or use IF NOT EXISTS");
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    let shape = catalog::plan(session.catalog(), &state, query).await?;
    let schema = crate::shape::result_schema(&state, &shape.plan)?;
    let columns = ingest::table_columns(&schema)?;
    let names = columns.iter().map(|field| field.name().clone()).collect();
    let listing = Listing::new(view, query.to_owned(), shape.base.clone(), names);
    let store = TableDefinition {
        schema_name: STORE_SCHEMA.to_owned(),
        name: listing.store_name(),
        columns: store_columns(&columns),
        primary_key: Vec::new(),
        options: Default::default(),
    };
    // A crash may have left one behind that no view refers to.
    database.drop_table(STORE_SCHEMA, &listing.store_name(), true).await?;
    database.create_table(store, false).await?;
    let made = async {
        let view = View::open(session.catalog(), &state, &listing).await?;
        refresh(&view, &state, Scope::Settled).await?;
        database.put_object(listing.to_object(), Replace::Never).await
    };
    match made.await {
        Ok(made) => Ok(made),
        Err(error) => {
            database.drop_table(STORE_SCHEMA, &listing.store_name(), true).await?;
            Err(error)
        }
    }
}

/// Drops a view. False when there is none and `if_exists` allows that.
///
/// # Errors
/// `NotFound`.
pub(in crate::series) async fn drop_view(session: &Session, view: &TableRef, if_exists: bool) -> Result<bool> {
    let database = session.engine().database();
    if database.object(KIND, view.schema_name(), &view.name).is_none() && !if_exists {
        return Err(Error::not_found(format!("materialized view \"{view}\" does not exist")));
    }
    let dropped = database.drop_object(KIND, view.schema_name(), &view.name, true).await?;
    let name = format!("{}.{}", view.schema_name(), view.name);
    if let Some(store) = database.table(STORE_SCHEMA, &name) {
        catalog::forget(session.catalog(), &Arc::clone(&store));
        database.drop_table(STORE_SCHEMA, &name, true).await?;
    }
    Ok(dropped)
}
