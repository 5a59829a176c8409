//! The program `millstream`: one binary, one role per stage, and the command line.

pub mod admin;
pub mod cli;
pub mod config;
pub mod gateway;
pub mod generate;
pub mod runtime;
pub mod telemetry;
