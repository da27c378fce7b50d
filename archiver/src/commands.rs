//! One file per verb: arguments, domain call, rendering.
