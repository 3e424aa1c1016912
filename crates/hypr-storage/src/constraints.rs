//! What a table demands of its rows beyond types and the primary key, and what it gives columns that a statement
//! leaves out.
//!
//! Expressions are kept as SQL text, because only the query crate plans SQL: it evaluates defaults and checks,
//! while uniqueness is kept by this crate's key indexes. All of it lies in one option of the table's definition,
//! so that catalogs written before constraints existed read as they did.

use std::collections::BTreeMap;

use hypr_common::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::TableDefinition;

/// The option of a [`TableDefinition`] that holds the constraints, as JSON.
pub const CONSTRAINTS_OPTION: &str = "constraints";

/// `DEFAULT`, `UNIQUE` and `CHECK` of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraints {
    /// The SQL expression of each column that has a default.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub defaults: BTreeMap<String, String>,
    /// Column lists whose values no two rows share; a NULL in one of them is never equal to anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unique: Vec<Unique>,
    /// Conditions that are not false for any row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// A `UNIQUE` constraint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unique {
    /// Its name, one of its kind in the table.
    pub name: String,
    /// The columns, in order.
    pub columns: Vec<String>,
}

/// A `CHECK` constraint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its name, one of its kind in the table.
    pub name: String,
    /// The condition, as SQL over the table's columns.
    pub expression: String,
}

impl Constraints {
    /// The constraints of `definition`.
    ///
    /// # Errors
    /// `Corrupted` when they were not written by this crate.
    pub fn of(definition: &TableDefinition) -> Result<Self> {
        let Some(json) = definition.options.get(CONSTRAINTS_OPTION) else {
            return Ok(Self::default());
        };
        serde_json::from_str(json).map_err(|error| {
            let table = definition.qualified_name();
            Error::corrupted(format!("the constraints of table {table} are damaged: {error}")).with_source(error)
        })
    }

    /// Puts them into the options of a definition, in place of what was there.
    ///
    /// # Errors
    /// `Internal` when they cannot be encoded, which is a defect.
    pub fn store(&self, options: &mut BTreeMap<String, String>) -> Result<()> {
        if *self == Self::default() {
            options.remove(CONSTRAINTS_OPTION);
            return Ok(());
        }
        let json = serde_json::to_string(self)
            .map_err(|error| Error::internal("encoding the constraints of a table failed").with_source(error))?;
        options.insert(CONSTRAINTS_OPTION.to_owned(), json);
        Ok(())
    }

    /// True when a constraint is called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.unique.iter().any(|unique| unique.name == name) || self.checks.iter().any(|check| check.name == name)
    }
}
