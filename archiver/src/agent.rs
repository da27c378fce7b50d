//! The agent: the long-running companion. (to be written)
