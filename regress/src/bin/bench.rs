//! `make bench`: pgark and pgBackRest side by side, written to `regress/evidence/bench.json`.

fn main() {
    pgark_regress::bench::run(&pgark_regress::bench::Settings::from_environment());
}
