//! `conformance`: the storage conformance suite on every storage: a directory, memory, sshd, moto,
//! radosgw.
//! Prints the number of cases of each; a failing case is a panic, a missing one an error. A part of the full
//! tier, too.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // A test suite: it fails by panicking.

use pgark_archiver::storage::SharedStorage;
use pgark_archiver::storage::conformance::{CASES, run};
use pgark_archiver::storage::memory::MemoryStorage;
use pgark_archiver::storage::posix::PosixStorage;
use pgark_regress::TestDirectory;
use pgark_regress::evidence::CONFORMANCE_STORAGES;
use pgark_regress::s3_proxy::{Fault, Proxy};
use pgark_regress::s3_server::{S3Server, below_prefixes, section, storage};
use pgark_regress::sftp_server::SftpServer;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

struct Results(Vec<(&'static str, usize)>);

impl Results {
    fn run(&mut self, storage: &'static str, make: &dyn Fn() -> SharedStorage) {
        println!("{storage}:");
        let started = Instant::now();
        let cases = run(make);
        println!("{storage}: in {:.1?}", started.elapsed());
        println!("cases: {storage} {cases}");
        self.0.push((storage, cases));
    }
}

/// A real server's refusals have the codes that operators are told.
fn refusals(directory: &TestDirectory, server: &S3Server, good: &str) {
    let wrong = directory.file("wrong", "not-the-secret");
    let wrong = format!("file:{}", wrong.display());
    let swap = |key: &str| {
        let lines = good.lines().map(|line| match line.starts_with(key) {
            true => format!("{key} = \"{wrong}\"\n"),
            false => format!("{line}\n"),
        });
        lines.collect::<String>()
    };
    let endpoint = server.endpoint();
    let nowhere = pgark_regress::s3_server::section(directory, &endpoint, "nowhere");
    for (section, code) in [
        (swap("secret_access_key"), "s3_credentials_rejected"),
        (swap("access_key_id"), "s3_credentials_rejected"),
        (nowhere, "s3_bucket_missing"),
    ] {
        let storage = storage(&section);
        for refused in [
            storage.list("").map(drop).unwrap_err(),
            storage.probe().map(drop).unwrap_err(),
        ] {
            assert_eq!(refused.code(), code, "{refused:?}");
        }
    }
    println!("radosgw: refusals have their codes");
}

fn main() -> ExitCode {
    let directory = TestDirectory::new("conformance");
    let mut results = Results(Vec::new());
    results.run("memory", &|| Arc::new(MemoryStorage::new()));
    let count = AtomicU32::new(0);
    results.run("posix", &|| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        let made = PosixStorage::create(directory.join(&format!("posix-{n}")));
        Arc::new(made.expect("a directory can be made"))
    });
    {
        let folder = directory.folder("sftp");
        let sshd = SftpServer::start(&directory, "");
        results.run("sshd", &sshd.below(&folder));
        // Without OpenSSH's extension: the rename of SFTP version 3.
        let folder = directory.folder("sftp-rename");
        let sshd = SftpServer::start(&directory, "-P hardlink");
        results.run("sshd without hardlink@openssh.com", &sshd.below(&folder));
    }
    {
        let moto = S3Server::moto(&directory);
        moto.create_bucket("conformance");
        let section = section(&directory, &moto.endpoint(), "conformance");
        results.run("moto", &below_prefixes(section));
        // The same server without If-None-Match: what claims are for.
        moto.create_bucket("claims");
        let proxy = Proxy::start(moto.port());
        proxy.always(Fault::StripConditions);
        let section = pgark_regress::s3_server::section(&directory, &proxy.endpoint(), "claims");
        results.run("moto without If-None-Match", &below_prefixes(section));
    }
    {
        let radosgw = S3Server::radosgw(&directory);
        radosgw.create_bucket("conformance");
        let section = section(&directory, &radosgw.endpoint(), "conformance");
        results.run("radosgw", &below_prefixes(section.clone()));
        refusals(&directory, &radosgw, &section);
    }
    let complete = results.0.len() == CONFORMANCE_STORAGES
        && results.0.iter().all(|(_, cases)| *cases == CASES);
    ExitCode::from(u8::from(!complete))
}
