//! What a session can set: the schema of bare names, the time zone, how long a statement may take.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Ident, ObjectName, ObjectNamePart, Query, Statement as Sql, TableFactor, Visit, Visitor, visit_relations_mut,
};
use hypr_common::{Error, Result};

use crate::dialect::ddl::normalize;
use crate::{DEFAULT_SCHEMA, Session, TableRef, statement_state};

/// Settings of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where tables named without a schema are looked for first, and made. What it does not have is looked for
    /// in `public`.
    pub schema: String,
    /// The zone that timestamps without one are read in, by its IANA name or as an offset; UTC if none.
    pub time_zone: Option<String>,
    /// How long a statement may take, the reading of its rows included. Whoever runs the session keeps it.
    pub statement_timeout: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { schema: DEFAULT_SCHEMA.to_owned(), time_zone: None, statement_timeout: None }
    }
}

impl Session {
    /// This session with other settings; it shares the open transaction.
    ///
    /// # Errors
    /// `InvalidInput` for a time zone that is not known.
    pub fn with_settings(&self, settings: &Settings) -> Result<Self> {
        let mut session = self.clone();
        session.schema = Arc::from(settings.schema.as_str());
        let zone = settings.time_zone.clone().unwrap_or_else(|| "+00:00".to_owned());
        zone.parse::<arrow_array::timezone::Tz>()
            .map_err(|_| Error::invalid(format!("time zone \"{zone}\" is not known; name it as in Europe/Vienna")))?;
        session.state = Arc::new(statement_state::in_time_zone(&self.state, settings.time_zone.as_deref())?);
        Ok(session)
    }

    /// Gives bare names of tables the session's schema.
    pub(crate) fn qualify(&self, statement: &mut Statement) {
        let Statement::Statement(sql) = statement else { return };
        if &*self.schema == DEFAULT_SCHEMA {
            return;
        }
        let mut local = LocalNames::default();
        let _ = Visit::visit(sql.as_ref(), &mut local);
        match sql.as_mut() {
            Sql::CreateTable(create) => self.qualify_name(&mut create.name),
            Sql::Drop { names, .. } => {
                names.iter_mut().filter(|name| self.is_here(name)).for_each(|name| self.qualify_name(name))
            }
            _ => {}
        }
        let _ = visit_relations_mut(sql.as_mut(), |name: &mut ObjectName| {
            if self.is_here(name) && !local.has(name) {
                self.qualify_name(name);
            }
            ControlFlow::<()>::Continue(())
        });
    }

    fn qualify_name(&self, name: &mut ObjectName) {
        if name.0.len() == 1 {
            name.0.insert(0, ObjectNamePart::Identifier(Ident::with_quote('"', &*self.schema)));
        }
    }

    /// False for what only `public` has.
    fn is_here(&self, name: &ObjectName) -> bool {
        let [ObjectNamePart::Identifier(bare)] = name.0.as_slice() else { return false };
        let bare = normalize(bare);
        let here = TableRef { schema: Some(self.schema.to_string()), name: bare.clone() };
        let found = |table: &TableRef| self.catalog().stored(table).is_ok();
        let public = || self.catalog().model_table(DEFAULT_SCHEMA, &bare).is_some() || found(&TableRef::bare(&*bare));
        found(&here) || !public()
    }
}

/// Names that are not those of tables: what `WITH` calls its queries, and functions in `FROM`.
#[derive(Default)]
struct LocalNames(HashSet<String>);

impl LocalNames {
    fn has(&self, name: &ObjectName) -> bool {
        matches!(name.0.as_slice(), [ObjectNamePart::Identifier(bare)] if self.0.contains(&normalize(bare)))
    }
}

impl Visitor for LocalNames {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if let Some(with) = &query.with {
            self.0.extend(with.cte_tables.iter().map(|cte| normalize(&cte.alias.name)));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: Some(_), .. } = factor
            && let [ObjectNamePart::Identifier(bare)] = name.0.as_slice()
        {
            self.0.insert(normalize(bare));
        }
        ControlFlow::Continue(())
    }
}
