//! Retention over a repository: the policy kept in it, the facts it is applied to, and `expire`.
//!
//! `pgark_types::retention` decides; this reads what there is and writes tombs. Nothing is removed
//! here: gc does that.

mod demand;
mod expire;
mod history;
mod joined;
mod policy;
mod times;

pub(crate) use demand::Demand;
pub use expire::{Expired, Request, expire, preview};
pub(crate) use expire::{decisions, suspended, wal_decisions};
pub(crate) use history::load_sound;
pub use history::{Loaded, load};
pub use policy::{Change, Kept, POLICIES_KEPT, change_policy, current, numbers, set};
pub(crate) use times::{Times, times};

#[cfg(test)]
mod tests;
