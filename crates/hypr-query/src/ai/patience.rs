//! Offering a request again while the engine's queue is full.

use std::time::Duration;

use futures::future::BoxFuture;
use hypr_common::{ErrorKind, Result};

/// The longest pause between two offers.
const LONGEST: Duration = Duration::from_millis(500);

/// Makes a request at growing intervals while it is answered with `Busy`, for at most `timeout`. Calls `retried`
/// before each pause.
///
/// # Errors
/// The last answer.
pub(crate) async fn patiently<T>(
    timeout: Duration,
    offer: impl Fn() -> BoxFuture<'static, Result<T>>,
    retried: impl Fn(),
) -> Result<T> {
    let mut wait = Duration::from_millis(2);
    let mut waited = Duration::ZERO;
    loop {
        match offer().await {
            Err(error) if error.kind() == ErrorKind::Busy && waited < timeout => {
                retried();
                tokio::time::sleep(wait).await;
                waited += wait;
                wait = (wait * 2).min(LONGEST);
            }
            other => return other,
        }
    }
}
