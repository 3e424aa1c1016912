//! The binary as scripts see it: lines, files, signals and exit codes.
#![allow(clippy::unwrap_used)]

mod check;
mod contract;
mod crash;
mod formats;
mod models;
mod process;
