//! The W3C trace context, from one process to the next: in gRPC metadata, in HTTP headers, or in the map
//! that rides with a frame of a long-lived stream.
//!
//! Without an OTLP collector there is no trace, and all of this costs next to nothing.

use std::collections::HashMap;

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Something that a trace context travels in.
pub trait Carrier {
    /// The value of `key`, in lower case; the first if there are several.
    fn get(&self, key: &str) -> Option<&str>;
    /// Sets `key`, replacing what was there.
    fn set(&mut self, key: &str, value: String);
}

impl Carrier for HashMap<String, String> {
    fn get(&self, key: &str) -> Option<&str> {
        HashMap::get(self, key).map(String::as_str)
    }

    fn set(&mut self, key: &str, value: String) {
        self.insert(key.to_owned(), value);
    }
}

impl Carrier for MetadataMap {
    fn get(&self, key: &str) -> Option<&str> {
        MetadataMap::get(self, key)?.to_str().ok()
    }

    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.insert(key, value);
        }
    }
}

impl Carrier for http::HeaderMap {
    fn get(&self, key: &str) -> Option<&str> {
        http::HeaderMap::get(self, key)?.to_str().ok()
    }

    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (
            http::HeaderName::from_bytes(key.as_bytes()),
            http::HeaderValue::try_from(value),
        ) {
            self.insert(key, value);
        }
    }
}

/// Writes the context of the current span into `carrier`; nothing if it belongs to no trace.
pub fn inject(carrier: &mut impl Carrier) {
    inject_span(&Span::current(), carrier);
}

/// Writes the context of `span` into `carrier`; nothing if it belongs to no trace.
pub fn inject_span(span: &Span, carrier: &mut impl Carrier) {
    let context = span.context();
    if context.span().span_context().is_valid() {
        TraceContextPropagator::new().inject_context(&context, &mut Writer(carrier));
    }
}

/// Makes `span` a child of the span whose context is in `carrier`. Call it before the span is entered;
/// nothing happens if the carrier holds no context.
pub fn adopt(span: &Span, carrier: &impl Carrier) {
    if carrier.get("traceparent").is_none() {
        return;
    }
    let context =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Reader(carrier));
    if context.span().span_context().is_valid() {
        // Fails where no collector is configured: then there is no trace to belong to.
        let _ = span.set_parent(context);
    }
}

struct Writer<'a, C>(&'a mut C);

impl<C: Carrier> Injector for Writer<'_, C> {
    fn set(&mut self, key: &str, value: String) {
        // An empty tracestate says nothing, and would only make frames longer.
        if !value.is_empty() {
            self.0.set(key, value);
        }
    }
}

struct Reader<'a, C>(&'a C);

impl<C: Carrier> Extractor for Reader<'_, C> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)
    }

    fn keys(&self) -> Vec<&str> {
        ["traceparent", "tracestate"]
            .into_iter()
            .filter(|key| self.0.get(key).is_some())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_goes_through_a_span() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let mut incoming = MetadataMap::new();
            Carrier::set(&mut incoming, "traceparent", PARENT.to_owned());
            let span = tracing::info_span!("task");
            adopt(&span, &incoming);

            let mut outgoing = HashMap::new();
            span.in_scope(|| inject(&mut outgoing));
            let sent = &outgoing["traceparent"];
            assert_eq!(sent[..35], PARENT[..35], "the trace stays");
            assert_ne!(sent, PARENT, "the span is a new one");
        });
    }

    #[test]
    fn without_a_collector_nothing_is_written() {
        let mut outgoing = http::HeaderMap::new();
        let span = tracing::info_span!("task");
        let mut incoming = HashMap::new();
        Carrier::set(&mut incoming, "traceparent", "rubbish".to_owned());
        adopt(&span, &incoming);
        inject_span(&span, &mut outgoing);
        assert!(outgoing.is_empty());
    }
}
