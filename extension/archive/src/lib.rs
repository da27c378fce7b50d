//! `pgark_archive`: Postgres's archive module (`archive_library = 'pgark_archive'`), a small
//! blocking client of the pgark agent's socket.
//!
//! It runs inside the archiver process, where a call that blocks holds up more than archiving: the
//! archiver takes part in process signal barriers, so a `DROP DATABASE` in any session waits for
//! it, and so do a reload and a shutdown. Hence no call lasts longer than [`client::PUSH_LIMIT`],
//! and each gives way within 100 ms to whatever the server has pending. The agent goes on
//! uploading meanwhile; Postgres asks again and the next call is a look-up.
//!
//! Plain Rust, no pgrx and no headers: `server` declares the dozen symbols it takes from the
//! backend, and there is one file per ABI (`pg15`, and `pg16` for 16 and later).

#[cfg(not(panic = "unwind"))]
compile_error!(
    "pgark_archive must be built with panic = \"unwind\": an abort would end the server"
);

#[cfg(any(
    not(any(feature = "pg15", feature = "pg16", feature = "pg17", feature = "pg18")),
    all(
        feature = "pg15",
        any(feature = "pg16", feature = "pg17", feature = "pg18")
    ),
    all(feature = "pg16", any(feature = "pg17", feature = "pg18")),
    all(feature = "pg17", feature = "pg18"),
))]
compile_error!("choose exactly one of the features pg15, pg16, pg17 and pg18");

mod client;
mod shutdown;

// Unit tests run outside a backend and have none of its symbols.
#[cfg(not(test))]
mod archive;
#[cfg(all(not(test), feature = "pg15"))]
mod pg15;
#[cfg(all(not(test), not(feature = "pg15")))]
mod pg16;
#[cfg(not(test))]
mod server;
