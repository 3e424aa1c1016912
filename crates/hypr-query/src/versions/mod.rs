//! Time travel: `FOR VERSION AS OF`, `FOR TIMESTAMP AS OF`, tags, `RESTORE`, and `table_versions`.
//!
//! What a version is says `hypr_storage`'s module `versions`. A table of a query that names one becomes a table
//! whose name holds the version ([`name`]); the planner finds it there and pins it while it plans.

pub(crate) mod grammar;
pub(crate) mod name;
mod provider;
mod statements;
mod time;

pub(crate) use name::At;
pub(crate) use provider::{TableVersions, provider};
pub(crate) use statements::{VersionStatement, run};
