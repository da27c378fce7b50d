//! The bandwidth limit: bytes leave and are taken in no faster than the configuration says.

use crate::storage::policy::Limiter;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::time::Sleep;

/// Bytes that leave at once.
const CHUNK_BYTES: usize = 64 << 10;

/// An HTTP client whose requests' bodies are held to a limit, after they were signed.
#[derive(Debug)]
pub(super) struct Throttling {
    inner: SharedHttpClient,
    limiter: Arc<Limiter>,
}

impl Throttling {
    /// `inner` behind `limiter`, if that limits anything.
    pub(super) fn before(inner: SharedHttpClient, limiter: &Arc<Limiter>) -> SharedHttpClient {
        if !limiter.limits() {
            return inner;
        }
        SharedHttpClient::new(Self {
            inner,
            limiter: Arc::clone(limiter),
        })
    }
}

impl HttpClient for Throttling {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connector {
            inner: self.inner.http_connector(settings, components),
            limiter: Arc::clone(&self.limiter),
        })
    }
}

#[derive(Debug)]
struct Connector {
    inner: SharedHttpConnector,
    limiter: Arc<Limiter>,
}

impl HttpConnector for Connector {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        let bytes = request.body().bytes().map(Bytes::copy_from_slice);
        if let Some(left) = bytes.filter(|b| !b.is_empty()) {
            *request.body_mut() = SdkBody::from_body_1_x(Slow {
                left,
                limiter: Arc::clone(&self.limiter),
                wait: None,
            });
        }
        self.inner.call(request)
    }
}

/// A body in pieces, with pauses.
struct Slow {
    left: Bytes,
    limiter: Arc<Limiter>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Body for Slow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(context));
            self.wait = None;
        }
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.left.len().min(CHUNK_BYTES);
        let chunk = self.left.split_to(length);
        let pause = self.limiter.pay(length);
        self.wait = Some(Box::pin(tokio::time::sleep(pause)));
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    async fn send(limiter: &Arc<Limiter>, length: usize) -> usize {
        let mut body = Slow {
            left: Bytes::from(vec![7; length]),
            limiter: Arc::clone(limiter),
            wait: None,
        };
        assert_eq!(body.size_hint().exact(), Some(length as u64));
        let mut sent = 0;
        while let Some(frame) =
            std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            let data = frame.unwrap().into_data().unwrap();
            assert!(data.len() <= CHUNK_BYTES);
            sent += data.len();
        }
        sent
    }

    /// Two bodies share the limit, and a chunk is more than a tenth of a second's worth: the rate is held,
    /// and nothing waits for ever.
    #[test]
    fn bodies_share_the_rate_and_arrive_whole() {
        const RATE: u64 = 400_000;
        const LENGTH: usize = 300_000;
        let limiter = Arc::new(Limiter::new(RATE));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let started = Instant::now();
        let both = runtime.block_on(async {
            let both = async { tokio::join!(send(&limiter, LENGTH), send(&limiter, LENGTH)) };
            tokio::time::timeout(Duration::from_secs(30), both).await
        });
        assert_eq!(both.unwrap(), (LENGTH, LENGTH));
        // 600,000 bytes take a second and a half; the machine may be slow, and never too fast.
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(1400), "{took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
    }

    /// One byte a second: the first chunk leaves at once, and is paid for afterwards.
    #[test]
    fn a_chunk_above_the_limit_is_sent() {
        let limiter = Arc::new(Limiter::new(1));
        let mut body = Slow {
            left: Bytes::from_static(b"four"),
            limiter,
            wait: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let mut context = Context::from_waker(std::task::Waker::noop());
        let first = Pin::new(&mut body).poll_frame(&mut context);
        assert!(matches!(first, Poll::Ready(Some(Ok(_)))));
        assert!(body.is_end_stream());
        assert!(Pin::new(&mut body).poll_frame(&mut context).is_pending());
    }
}
