//! Continuous aggregates: `CREATE MATERIALIZED VIEW name WITH (continuous) AS SELECT time_bucket(..) .. GROUP BY ..`.
//!
//! A view keeps the rows of whole buckets in a table of its own, and beside each bucket a [`fingerprint`] of the set
//! of base rows that the bucket was computed from. Rows of a table never change and their ids are never used again, so
//! a bucket is right exactly when the set of rows that it has now is the set that it was computed from. A query
//! compares the two for every bucket: those that agree come from the view's table, all others from the base table, so
//! the answer is that of the view's query over one state of the base table, however late rows come or go, and whatever
//! was lost in a crash. Materialising ([`refresh`]) is only a matter of speed.
//!
//! What a state of the base table has in each bucket is remembered per fragment, so that a query reads only fragments
//! that are new since the last one, and the tail.
//!
//! Retention deletes old rows from the base table. Buckets before the view's *horizon* were complete when that
//! happened: they are final, and come from the view's table whatever the base table holds. See [`super::retention`].
//!
//! Deliberately absent: views over joins, over other views, or with conditions that depend on the time of asking.

mod catalog;
mod ddl;
mod fingerprint;
mod provider;
mod refresh;
mod shape;

pub(super) use catalog::View;
pub(crate) use catalog::{Caches, KIND, find, is_reserved, listings, refuse_dependents, refuse_name};
pub(super) use ddl::{create, drop_view};
pub(super) use refresh::{Scope, floor, refresh};
