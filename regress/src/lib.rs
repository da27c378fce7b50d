//! harness

pub mod fuzz;
