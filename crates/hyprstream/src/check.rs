//! `hyprstream check`: verifies a data directory that no server holds.

use std::io::Write;
use std::path::Path;

use hypr_common::{Error, Result};
use hypr_storage::{CheckReport, Finding, Severity, StorageOptions};

use crate::Failure;
use crate::cli::{CheckArgs, CheckFormat};

/// Checks a directory and prints a line for each finding, and a verdict.
///
/// # Errors
/// `Corrupted` when something is damaged, and those of [`hypr_storage::check()`].
pub async fn run(args: CheckArgs) -> Result<(), Failure> {
    let dir = std::path::absolute(&args.dir).map_err(|error| Error::io(args.dir.display(), error))?;
    let report = hypr_storage::check(&dir, &StorageOptions::default()).await?;
    let text = match args.format {
        CheckFormat::Table => lines(&dir, &report),
        CheckFormat::Json => json(&dir, &report)?,
    };
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Error::io("standard output", error))?;
    let damaged = report.findings.iter().filter(|finding| finding.severity == Severity::Damage).count();
    if damaged > 0 {
        let message = format!("{} is damaged in {damaged} places; restore them from a backup", dir.display());
        return Err(Error::corrupted(message).into());
    }
    Ok(())
}

fn lines(dir: &Path, report: &CheckReport) -> String {
    let mut text = String::new();
    for Finding { severity, object, message, .. } in &report.findings {
        let severity = match severity {
            Severity::Damage => "damage",
            Severity::Note => "note",
        };
        text.push_str(&format!("{severity:<6}  {object}: {message}\n"));
    }
    let verdict = if report.is_sound() { "sound" } else { "damaged" };
    let CheckReport { tables, rows, files, bytes, models, .. } = report;
    text.push_str(&format!(
        "{verdict}: {} ({tables} tables, {rows} rows, {models} models; {files} files of tables with {bytes} bytes verified)\n",
        dir.display()
    ));
    text
}

/// One object, on one line.
fn json(dir: &Path, report: &CheckReport) -> Result<String> {
    let failed = |error| Error::internal("encoding the report failed").with_source(error);
    let mut value = serde_json::to_value(report).map_err(failed)?;
    value["directory"] = dir.display().to_string().into();
    value["verdict"] = if report.is_sound() { "sound" } else { "damaged" }.into();
    Ok(format!("{value}\n"))
}
