//! Who is asking. Every entry point carries a [`Principal`], also while there is only one.

use std::sync::Arc;

/// The identity a request acts as. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    name: Arc<str>,
}

impl Principal {
    /// Whoever reaches the loopback interface of an unsecured server, or opens a data directory directly.
    pub fn anonymous_local() -> Self {
        Self { name: "anonymous".into() }
    }

    /// The name shown in logs and by `current_user`.
    pub fn name(&self) -> &str {
        &self.name
    }
}
