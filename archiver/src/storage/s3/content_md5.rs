//! `Content-MD5`: what S3 demands of a put with a lock and of changes to a bucket, and what every server
//! that is compatible to it knows. No security rests on it.

use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use md5::{Digest as _, Md5};

/// Adds the header to a request whose body is in memory.
pub(super) fn add(request: &mut HttpRequest) {
    if let Some(body) = request.body().bytes() {
        let value = of(body);
        request.headers_mut().insert("content-md5", value);
    }
}

/// The MD5 of `bytes` in Base64.
pub(super) fn of(bytes: &[u8]) -> String {
    aws_smithy_types::base64::encode(Md5::digest(bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_values() {
        assert_eq!(super::of(b""), "1B2M2Y8AsgTpgAmY7PhCfg==");
        assert_eq!(super::of(b"hello"), "XUFAKrxLKna5cZ2REBfFkg==");
    }
}
