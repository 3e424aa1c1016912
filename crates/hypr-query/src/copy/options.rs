//! Formats of files and what can be said about them.

use std::path::Path;

use hypr_common::{Error, Result};

use crate::error::suggest;

/// A format that rows are read from and written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// Apache Parquet.
    Parquet,
    /// Comma-separated values, or with another separator.
    Csv,
    /// One JSON object a line.
    Json,
    /// An Arrow IPC file; an Arrow IPC stream is read, too.
    Arrow,
}

impl FileFormat {
    /// The format called `name`, in any case.
    ///
    /// # Errors
    /// `InvalidInput` names those that there are.
    pub fn parse(name: &str) -> Result<Self> {
        Ok(match name.to_lowercase().as_str() {
            "parquet" => Self::Parquet,
            "csv" | "tsv" => Self::Csv,
            "json" | "ndjson" | "jsonl" => Self::Json,
            "arrow" | "ipc" | "feather" => Self::Arrow,
            _ => return Err(Error::invalid(format!("\"{name}\" is no format; use parquet, csv, json or arrow"))),
        })
    }

    /// The format that the extension of `path` says, a closing `.gz` aside.
    ///
    /// # Errors
    /// `InvalidInput` when it says none.
    pub fn of_path(path: &str) -> Result<Self> {
        let plain = path.strip_suffix(".gz").unwrap_or(path);
        let extension = Path::new(plain).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let format = match extension.to_lowercase().as_str() {
            "pq" => Ok(Self::Parquet),
            "" => Err(()),
            extension => Self::parse(extension).map_err(|_| ()),
        };
        format.map_err(|()| {
            Error::invalid(format!(
                "the name of {path} does not say its format; add (FORMAT parquet), csv, json or arrow"
            ))
        })
    }
}

/// What a statement says about its files.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The format; by the extension if none.
    pub format: Option<FileFormat>,
    /// CSV: the first line holds names. Default true.
    pub header: bool,
    /// CSV: what parts values. Default a comma, in `.tsv` files a tab.
    pub delimiter: Option<u8>,
    /// CSV: what encloses values. Default `"`.
    pub quote: u8,
    /// CSV: the text that means NULL. Default the empty one.
    pub null: String,
    /// Parquet (`zstd` by default) and Arrow (`none` by default): how pages or buffers are packed.
    pub compression: Option<String>,
    /// Parquet: rows of a row group. Default 122,880.
    pub row_group_rows: usize,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self {
            format: None,
            header: true,
            delimiter: None,
            quote: b'"',
            null: String::new(),
            compression: None,
            row_group_rows: 122_880,
        }
    }
}

const NAMES: [&str; 7] = ["format", "header", "delimiter", "quote", "null", "compression", "row_group_size"];

impl FileOptions {
    /// Sets the option called `name`, lower case.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown name, with the closest that is known, or a value that does not fit.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = |wanted: &str| Err(Error::invalid(format!("option {name} takes {wanted}, not '{value}'")));
        match name {
            "format" => self.format = Some(FileFormat::parse(value)?),
            "header" => match value.to_lowercase().as_str() {
                "true" | "on" | "yes" | "1" => self.header = true,
                "false" | "off" | "no" | "0" => self.header = false,
                _ => return wrong("true or false"),
            },
            "delimiter" | "delim" | "sep" => match value {
                "\\t" | "tab" => self.delimiter = Some(b'\t'),
                _ if value.len() == 1 => self.delimiter = value.bytes().next(),
                _ => return wrong("one character"),
            },
            "quote" => match value.as_bytes() {
                [quote] => self.quote = *quote,
                _ => return wrong("one character"),
            },
            "null" | "nullstr" => value.clone_into(&mut self.null),
            "compression" => self.compression = Some(value.to_lowercase()),
            "row_group_size" => match value.parse() {
                Ok(rows) if rows > 0 => self.row_group_rows = rows,
                _ => return wrong("a number of rows"),
            },
            _ => {
                let hint = suggest(name, NAMES.into_iter()).map_or_else(
                    || format!("there is: {}", NAMES.join(", ")),
                    |close| format!("did you mean {close}?"),
                );
                return Err(Error::invalid(format!("COPY has no option {name}; {hint}")));
            }
        }
        Ok(())
    }

    /// The format of `path`.
    pub(super) fn format_of(&self, path: &str) -> Result<FileFormat> {
        self.format.map_or_else(|| FileFormat::of_path(path), Ok)
    }

    /// What parts values in `path`.
    pub(super) fn delimiter_of(&self, path: &str) -> u8 {
        let tabs = path.ends_with(".tsv") || path.ends_with(".tsv.gz");
        self.delimiter.unwrap_or(if tabs { b'\t' } else { b',' })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_says_the_format() {
        assert_eq!(FileFormat::of_path("/a/b.csv.gz").unwrap(), FileFormat::Csv);
        assert_eq!(FileFormat::of_path("s3://b/x.PARQUET").unwrap(), FileFormat::Parquet);
        assert_eq!(FileFormat::of_path("x.ndjson").unwrap(), FileFormat::Json);
        assert!(FileFormat::of_path("/a/b").unwrap_err().message().contains("FORMAT"));
        assert!(FileFormat::of_path("/a.csv/b").is_err());
    }

    #[test]
    fn a_misspelt_option_is_corrected() {
        let error = FileOptions::default().set("delimeter", ";").unwrap_err();
        assert!(error.message().contains("did you mean delimiter?"), "{error}");
        assert!(FileOptions::default().set("header", "maybe").is_err());
    }
}
