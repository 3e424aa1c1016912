//! The binary as scripts see it: lines, files, signals and exit codes.
#![allow(clippy::unwrap_used)]

mod check;
mod contract;
mod crash;
mod formats;
mod import;
mod models;
mod process;
