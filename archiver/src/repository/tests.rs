//! The engine on storage in memory: objects, sessions, backups, and every flipped bit of a small
//! repository.

mod backups;
mod fixture;
mod flips;
mod objects;
mod sessions;
mod unfinished;
