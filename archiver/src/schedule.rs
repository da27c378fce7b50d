//! Schedules, as far as the repository and the agent know them. SQL owns them (`pgark.schedule()`); the
//! repository keeps them with the policy, so that they survive the database, and what a schedule's
//! occurrence was claimed by, so that it runs once.

mod occurrence;

pub use occurrence::{Occurrence, claim, list, read};
