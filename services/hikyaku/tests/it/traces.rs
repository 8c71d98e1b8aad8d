//! One trace for one mail, through the real binary to a collector; and no collector at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::running::Site;
use crate::talk::Smtp;

/// Keeps every span.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request
            .into_inner()
            .resource_spans
            .into_iter()
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn configuration(endpoint: &str, ratio: f64) -> String {
    format!("[telemetry]\notlp_endpoint = \"{endpoint}\"\notlp_ratio = {ratio:.1}\n")
}

#[test]
fn one_trace_shows_edge_log_delivery_and_mbox_of_one_mail() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let collector = Collector::default();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let _serving = runtime.enter();
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(server);

    let site = Site::new();
    site.configure(&configuration(&endpoint, 1.0));
    let node = site.start();
    let mut client = Smtp::connect(node.address("smtp"));
    for subject in ["one", "two"] {
        assert!(client.send(subject).starts_with("250 "));
    }
    node.wait_for("both deliveries", || {
        (node.log().matches("outcome=delivered").count() == 2).then_some(())
    });
    // what waits is sent at the end
    node.stop();
    assert!(has_traceparent(&site));

    let spans = collector.0.lock().unwrap().clone();
    let mut traces: BTreeMap<Vec<u8>, BTreeMap<String, Span>> = BTreeMap::new();
    for span in spans {
        let trace = traces.entry(span.trace_id.clone()).or_default();
        let twice = trace.insert(span.name.clone(), span);
        assert!(twice.is_none(), "{twice:?} is twice in a trace");
    }
    assert_eq!(traces.len(), 2, "a trace for each mail: {traces:?}");
    for trace in traces.values() {
        let names: BTreeSet<&str> = trace.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            BTreeSet::from(["delivery", "edge", "log append", "mbox"])
        );
        let parent = |name: &str| trace[name].parent_span_id.clone();
        assert!(parent("edge").is_empty());
        assert_eq!(parent("log append"), trace["edge"].span_id);
        assert_eq!(parent("delivery"), trace["edge"].span_id);
        assert_eq!(parent("mbox"), trace["delivery"].span_id);
    }
}

#[test]
fn nobody_has_to_answer() {
    let site = Site::new();
    // a port that takes connections and never says a word
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    site.configure(&configuration(
        &format!("http://{}", silent.local_addr().unwrap()),
        1.0,
    ));
    let node = site.start();
    let mut client = Smtp::connect(node.address("smtp"));
    for number in 0..50 {
        assert!(client.send(&number.to_string()).starts_with("250 "));
    }
    node.wait_for("the deliveries", || {
        (node.log().matches("outcome=delivered").count() == 50).then_some(())
    });
    let begun = tokio::time::Instant::now();
    node.stop();
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "the end waits for nobody long"
    );
}

#[test]
fn a_mail_that_is_not_traced_leaves_no_traceparent() {
    let site = Site::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    site.configure(&configuration(
        &format!("http://{}", silent.local_addr().unwrap()),
        0.0,
    ));
    let node = site.start();
    assert!(
        Smtp::connect(node.address("smtp"))
            .send("one")
            .starts_with("250 ")
    );
    node.wait_for("the delivery", || {
        node.log().contains("outcome=delivered").then_some(())
    });
    node.stop();
    assert!(!has_traceparent(&site));
}

/// Whether a record in the log carries one.
fn has_traceparent(site: &Site) -> bool {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(site.path("data").join("log")).unwrap() {
        records.extend(std::fs::read(entry.unwrap().path()).unwrap());
    }
    // version 00, then 32 hexadecimal digits
    records.windows(36).any(|part| {
        part.starts_with(b"00-")
            && part[3..35].iter().all(u8::is_ascii_hexdigit)
            && part[35] == b'-'
    })
}
