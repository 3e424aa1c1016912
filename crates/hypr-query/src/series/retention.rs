//! Retention: rows older than a table's policy go, in the background.
//!
//! `CREATE TABLE .. WITH (retention = '30 days')` or `ALTER TABLE t SET (retention = '30 days')`; `NULL` ends it. The
//! age of a row is that of its `TIMESERIES KEY`, of `retention_column`, or of the table's only timestamp; rows without
//! a time stay.
//!
//! Rules: what continuous aggregates made of the rows stays. Before rows go, every view of the table is brought up to
//! date for the buckets that end by then, and those are final from then on. Rows go in whole buckets of every view of
//! the table, so no bucket is ever computed from a part of its rows. A row that is older than the policy when it is
//! written may go uncounted.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_buffer::IntervalMonthDayNano;
use arrow_cast::parse::{IntervalParseConfig, IntervalUnit, parse_interval_month_day_nano_config};
use arrow_schema::DataType;
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{LogicalPlanBuilder, ident, lit};
use hypr_common::{Error, Result};
use hypr_storage::{CatalogObject, ROW_ID_COLUMN, Replace, Table};
use serde_json::{Value, json};

use super::bucket;
use super::continuous::{Scope, View, floor, listings, refresh};
use super::times::{from_steps, to_steps, unit_ns};
use crate::catalog::StoredTable;
use crate::{Session, TableRef, error};

/// The kind of policies in the catalog, and the name of the option.
pub(crate) const KIND: &str = "retention";
/// The option that names the column of time.
const COLUMN: &str = "retention_column";
/// The option that `TIMESERIES KEY` leaves.
const TIMESERIES_KEY: &str = "timeseries_key";
/// The most steps back to an instant at which buckets of all views end.
const MAX_ALIGNMENTS: usize = 10_000;

/// What is kept.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Policy {
    keep: IntervalMonthDayNano,
    column: String,
}

/// Reads `30 days`.
fn parse_keep(text: &str) -> Result<IntervalMonthDayNano> {
    let parsed = parse_interval_month_day_nano_config(text, IntervalParseConfig::new(IntervalUnit::Day));
    let positive = |keep: &IntervalMonthDayNano| bucket::minus(0, *keep) < 0;
    parsed.ok().filter(positive).ok_or_else(|| {
        Error::invalid(format!("retention = '{text}' is no positive interval such as '30 days' or '6 months'"))
    })
}

/// Puts or ends the policy of a table.
///
/// # Errors
/// `InvalidInput` for an interval or a column that is none.
pub(super) async fn set(session: &Session, name: &TableRef, keep: Option<&str>, column: Option<&str>) -> Result<()> {
    let table = session.catalog().stored(name)?;
    if let Some(keep) = keep {
        policy(&table, keep, column)?;
    }
    let object = CatalogObject {
        kind: KIND.to_owned(),
        schema_name: name.schema_name().to_owned(),
        name: name.name.clone(),
        definition: json!({ "table": format!("{:032x}", table.identity()), "keep": keep, "column": column }),
    };
    session.engine().database().put_object(object, Replace::Always).await.map(drop)
}

/// Checks the options of `CREATE TABLE`.
///
/// # Errors
/// As for [`set`].
pub(crate) fn check_options(definition: &hypr_storage::TableDefinition) -> Result<()> {
    match definition.options.get(KIND) {
        Some(keep) => policy_of(definition, keep, None).map(drop),
        None => Ok(()),
    }
}

fn policy(table: &Table, keep: &str, column: Option<&str>) -> Result<Policy> {
    policy_of(table.definition(), keep, column)
}

fn policy_of(definition: &hypr_storage::TableDefinition, keep: &str, column: Option<&str>) -> Result<Policy> {
    let keep = parse_keep(keep)?;
    let options = &definition.options;
    let named = column.or_else(|| options.get(COLUMN).or_else(|| options.get(TIMESERIES_KEY)).map(String::as_str));
    let is_time =
        |field: &arrow_schema::FieldRef| matches!(field.data_type(), DataType::Timestamp(..) | DataType::Date32);
    let mut times = definition.columns.fields().iter().filter(|field| is_time(field));
    let column = match named {
        Some(named) => times.find(|field| field.name() == named).ok_or_else(|| {
            Error::invalid(format!("retention goes by a timestamp column, and \"{named}\" is none of the table's"))
        })?,
        None => match (times.next(), times.next()) {
            (Some(only), None) => only,
            _ => {
                return Err(Error::invalid(
                    "retention does not know which column is the time; add TIMESERIES KEY (column) to the table, \
                     or retention_column = 'column'",
                ));
            }
        },
    };
    Ok(Policy { keep, column: column.name().clone() })
}

/// The policy of a table: what was set last, else what it was created with.
pub(super) fn of(session: &Session, table: &Table) -> Result<Option<Policy>> {
    let definition = table.definition();
    let object = session.engine().database().object(KIND, &definition.schema_name, &definition.name);
    let identity = format!("{:032x}", table.identity());
    let text =
        |object: &CatalogObject, key: &str| object.definition.get(key).and_then(Value::as_str).map(str::to_owned);
    // A policy of a table that was dropped is not that of the next one with its name.
    match object.filter(|object| text(object, "table").as_deref() == Some(identity.as_str())) {
        Some(object) => match text(&object, "keep") {
            Some(keep) => policy(table, &keep, text(&object, "column").as_deref()).map(Some),
            None => Ok(None),
        },
        None => definition.options.get(KIND).map(|keep| policy(table, keep, None)).transpose(),
    }
}

/// The column that the policy of a table goes by, if it has one.
///
/// # Errors
/// `InvalidInput` for a policy that does not fit the table.
pub(crate) fn column(session: &Session, table: &Table) -> Result<Option<String>> {
    Ok(of(session, table)?.map(|policy| policy.column))
}

/// Deletes the rows of `name` that are older than its policy at `now_us`, and returns their number.
///
/// # Errors
/// Those of reading and writing; nothing is lost that views do not hold.
pub(super) async fn apply(session: &Session, name: &TableRef, now_us: i64) -> Result<u64> {
    let table = session.catalog().stored(name)?;
    let Some(policy) = of(session, &table)? else {
        return Ok(0);
    };
    let state = session.statement_state();
    let mut views = Vec::new();
    for listing in listings(session.catalog()) {
        if listing.base.schema_name() == name.schema_name() && listing.base.name == name.name {
            views.push(View::open(session.catalog(), &state, &listing).await?);
        }
    }
    let cutoff = bucket::minus(i128::from(now_us) * 1_000, policy.keep);
    let by_time: Vec<&View> = views.iter().filter(|view| view.shape.time == policy.column).collect();
    if by_time.len() < views.len() {
        return Err(Error::unsupported(format!(
            "table \"{name}\" has a continuous aggregate over another column of time than \"{}\", by which rows would go",
            policy.column
        )));
    }
    let Some(cutoff) = aligned(&by_time, cutoff) else {
        return Ok(0);
    };
    if ids_before(session, &state, &table, &policy.column, cutoff).await?.is_empty() {
        return Ok(0);
    }
    for view in &views {
        refresh(view, &state, Scope::Final(cutoff)).await?;
    }
    let mutation = table.begin_mutation().await;
    let ids = ids_before(session, &state, &table, &policy.column, cutoff).await?;
    if ids.is_empty() { Ok(0) } else { mutation.delete(ids).await }
}

/// The last instant at or before `cutoff` at which a bucket of every view ends.
fn aligned(views: &[&View], mut cutoff: i128) -> Option<i128> {
    for _ in 0..MAX_ALIGNMENTS {
        match views.iter().map(|view| floor(&view.shape, cutoff)).min() {
            Some(earlier) if earlier < cutoff => cutoff = earlier,
            _ => return Some(cutoff),
        }
    }
    None
}

async fn ids_before(
    session: &Session,
    state: &SessionState,
    table: &Arc<Table>,
    column: &str,
    cutoff: i128,
) -> Result<Vec<u64>> {
    let schema = table.schema();
    let data_type = schema.field_with_name(column)?.data_type();
    let Some(unit) = unit_ns(data_type) else {
        return Err(Error::internal(format!("column \"{column}\" is no time")));
    };
    let plan = || {
        let bound = from_steps(vec![to_steps(cutoff, unit)?].into(), data_type)?;
        let bound = datafusion::common::ScalarValue::try_from_array(&bound, 0)?;
        let provider = Arc::new(StoredTable::with_row_id(Arc::clone(table)));
        LogicalPlanBuilder::scan("expired", provider_as_source(provider), None)?
            .filter(ident(column).lt(lit(bound)))?
            .project([ident(ROW_ID_COLUMN)])?
            .build()
    };
    let plan = plan().map_err(error::from_datafusion)?;
    let mut ids = Vec::new();
    for batch in session.collect(state, &plan).await? {
        match batch.column(0).as_primitive_opt::<UInt64Type>() {
            Some(found) => ids.extend_from_slice(found.values()),
            None => return Err(Error::internal("a row id is no number")),
        }
    }
    Ok(ids)
}
