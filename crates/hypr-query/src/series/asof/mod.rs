//! `l ASOF JOIN r MATCH_CONDITION (l.ts >= r.ts [AND l.ts - r.ts <= tolerance]) [ON l.k = r.k | USING (k)]`: each row
//! of the left side with the one of the right side that is nearest in time.
//!
//! The way through a statement: [`rewrite`] puts the join in parentheses of its own and marks `ASOF INNER JOIN`;
//! [`relation`] plans it as an outer join whose filter is a marker, so that names and `USING` mean what they always
//! do; [`PlanAsofJoins`] makes an [`AsofJoinNode`] of that after types are known; [`exec`] merges sorted inputs.
//!
//! Rules: `ASOF JOIN` and `ASOF LEFT JOIN` keep left rows without a match, `ASOF INNER JOIN` drops them. NULL keys and
//! times match nothing. Of several right rows at the nearest time any one is taken.

mod exec;
mod node;
mod relation;
pub(crate) mod rewrite;

pub(super) use node::{AsofJoinNode, PlanAsofJoins, PushFiltersIntoAsof, plan};
pub(super) use relation::AsofRelations;
