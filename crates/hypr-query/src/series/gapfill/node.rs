//! The logical node.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use arrow_schema::Field;
use datafusion::common::{DFSchema, DFSchemaRef, Result, internal_err};
use datafusion::logical_expr::{
    Expr, Extension, LogicalPlan, LogicalPlanBuilder, Operator, UserDefinedLogicalNodeCore, ident,
};

/// How the column of a fill gets its missing values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd)]
pub(in crate::series) enum Fill {
    Previous,
    Linear,
}

/// The range to fill: from the latest lower bound to the earliest upper one. All are constants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::series) struct Range {
    pub lower: Vec<Expr>,
    /// With true, the bound is still in the range.
    pub upper: Vec<(Expr, bool)>,
}

impl Range {
    pub fn between(start: Expr, finish: Expr) -> Self {
        Self { lower: vec![start], upper: vec![(finish, false)] }
    }

    /// Adds what `time op bound` says.
    pub fn bound(&mut self, op: Operator, bound: &Expr) {
        match op {
            Operator::Gt | Operator::GtEq => self.lower.push(bound.clone()),
            Operator::Lt | Operator::LtEq => self.upper.push((bound.clone(), op == Operator::LtEq)),
            Operator::Eq => {
                self.lower.push(bound.clone());
                self.upper.push((bound.clone(), true));
            }
            _ => {}
        }
    }
}

/// See [`super`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::series) struct GapFillNode {
    pub input: Arc<LogicalPlan>,
    /// The group columns beside the bucket.
    pub series: Vec<Expr>,
    /// The column of buckets.
    pub time: Expr,
    pub width: Expr,
    pub zone: Option<Expr>,
    pub range: Range,
    /// Columns that are filled.
    pub fills: Vec<(Fill, Expr)>,
    schema: DFSchemaRef,
}

impl GapFillNode {
    pub fn try_new(
        input: Arc<LogicalPlan>,
        series: Vec<Expr>,
        time: Expr,
        width: Expr,
        zone: Option<Expr>,
        range: Range,
        fills: Vec<(Fill, Expr)>,
    ) -> Result<Self> {
        let fixed: HashSet<usize> = series
            .iter()
            .chain([&time])
            .filter_map(|expr| expr.try_as_col().and_then(|column| input.schema().maybe_index_of_column(column)))
            .collect();
        let fields = input.schema().iter().enumerate().map(|(at, (qualifier, field))| {
            let field = match fixed.contains(&at) {
                true => Arc::clone(field),
                false => Arc::new(Field::clone(field).with_nullable(true)),
            };
            (qualifier.cloned(), field)
        });
        let schema = DFSchema::new_with_metadata(fields.collect(), input.schema().metadata().clone())?;
        Ok(Self { schema: Arc::new(schema), input, series, time, width, zone, range, fills })
    }

    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }

    /// The node that `plan` is, if it is one.
    pub fn of(plan: &LogicalPlan) -> Option<&Self> {
        match plan {
            LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref(),
            _ => None,
        }
    }

    /// The same over another input with the same columns.
    pub fn with_input(self, input: LogicalPlan) -> Result<Self> {
        Self::try_new(Arc::new(input), self.series, self.time, self.width, self.zone, self.range, self.fills)
    }

    /// Adds columns, computed below and filled here.
    pub fn with_fills(mut self, fills: &[(Fill, Expr, String)]) -> Result<Self> {
        let mut columns: Vec<Expr> = self.input.schema().columns().into_iter().map(Expr::Column).collect();
        columns.extend(fills.iter().map(|(_, expr, name)| expr.clone().alias(name)));
        let input = LogicalPlanBuilder::from(Arc::clone(&self.input)).project(columns)?.build()?;
        self.fills.extend(fills.iter().map(|(fill, _, name)| (*fill, ident(name))));
        self.with_input(input)
    }
}

impl PartialOrd for GapFillNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.input.partial_cmp(&other.input).filter(|order| *order != Ordering::Equal || self == other)
    }
}

impl UserDefinedLogicalNodeCore for GapFillNode {
    fn name(&self) -> &str {
        "GapFill"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        let columns = self.series.iter().chain([&self.time]).chain(self.fills.iter().map(|(_, column)| column));
        let bounds = self.range.lower.iter().chain(self.range.upper.iter().map(|(bound, _)| bound));
        columns.chain([&self.width]).chain(&self.zone).chain(bounds).cloned().collect()
    }

    /// Conditions on the columns that tell series apart are better applied before filling.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        let series: HashSet<&str> =
            self.series.iter().filter_map(|expr| expr.try_as_col()).map(|column| column.name.as_str()).collect();
        let names = self.schema.fields().iter().map(|field| field.name());
        names.filter(|name| !series.contains(name.as_str())).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |exprs: &mut dyn Iterator<Item = String>| exprs.collect::<Vec<_>>().join(", ");
        write!(f, "GapFill: time={}, width={}", self.time, self.width)?;
        if let Some(zone) = &self.zone {
            write!(f, ", zone={zone}")?;
        }
        write!(f, ", from=[{}]", list(&mut self.range.lower.iter().map(ToString::to_string)))?;
        let upper = self.range.upper.iter().map(|(bound, with)| format!("{}{bound}", if *with { "=" } else { "" }));
        write!(f, ", to=[{}]", list(&mut upper.into_iter()))?;
        write!(f, ", series=[{}]", list(&mut self.series.iter().map(ToString::to_string)))?;
        write!(f, ", fills=[{}]", list(&mut self.fills.iter().map(|(fill, column)| format!("{fill:?} {column}"))))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let (Some(input), true) = (inputs.pop(), inputs.is_empty()) else {
            return internal_err!("GapFill takes one input");
        };
        let mut exprs = exprs.into_iter();
        let series: Vec<Expr> = exprs.by_ref().take(self.series.len()).collect();
        let Some(time) = exprs.next() else {
            return internal_err!("GapFill has lost its time");
        };
        let fills: Vec<(Fill, Expr)> = self.fills.iter().map(|(fill, _)| *fill).zip(exprs.by_ref()).collect();
        let Some(width) = exprs.next() else {
            return internal_err!("GapFill has lost its width");
        };
        let zone = if self.zone.is_some() { exprs.next() } else { None };
        let lower = exprs.by_ref().take(self.range.lower.len()).collect();
        let upper = exprs.zip(self.range.upper.iter().map(|(_, with)| *with)).collect();
        Self::try_new(Arc::new(input), series, time, width, zone, Range { lower, upper }, fills)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let mut needed = output_columns.to_vec();
        for expr in self.series.iter().chain([&self.time]).chain(self.fills.iter().map(|(_, column)| column)) {
            for column in expr.column_refs() {
                needed.push(self.input.schema().maybe_index_of_column(column)?);
            }
        }
        needed.sort_unstable();
        needed.dedup();
        Some(vec![needed])
    }
}
