//! Restore. (to be written)
