//! Schedules: what runs when. Pure functions of a definition and instants; the extension evaluates
//! them, and the agent does while the server is down.
//!
//! Summer time, for a cron expression with a zone. One time a day (`30 2 * * *`): when the clock skips it,
//! it is due at the first instant after the skip; when the clock shows it twice, it is due the first
//! time. Several times an hour or a day (`*/15 * * * *`, `0 */6 * * *`): whenever the clock shows
//! them, so none in a skipped hour and both in a repeated one. Intervals count seconds from their anchor
//! and know no zone.

mod cron;
mod definition;

pub use definition::{Definition, Missed, ScheduleError};
