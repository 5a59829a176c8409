//! `https://` where we are the client: a gateway behind a proxy, a collector. Certificates are checked against the system's authorities, or those
//! of the file that `SSL_CERT_FILE` names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::cli::Admin;
use millstream_tests::pipeline::{binary, free_port, until};
use millstream_tests::servers::certificates::{Authority, Issued};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

fn server_config(issued: &Issued) -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap())
}

/// Answers every request in the same way; gives its URL and the bodies that came.
fn serve(authority: &Authority, answer: &'static str) -> (String, Receiver<Vec<u8>>) {
    let config = server_config(&authority.issue(&["127.0.0.1"]).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let (bodies, received) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut reader = BufReader::new(StreamOwned::new(connection, stream));
            // A client that does not trust the certificate ends here.
            while let Ok(body) = request(&mut reader) {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
                let _ = write!(reader.get_mut(), "{head}content-length: {}\r\n\r\n{answer}", answer.len());
                let _ = bodies.send(body);
            }
        }
    });
    (url, received)
}

/// The body of a request.
fn request(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn send(to: &str, trusted: &Path, folder: &Path) -> Output {
    let file = folder.join("records.ndjson");
    std::fs::write(&file, r#"{"type":"user","message_id":"m","identifiers":{"user_id":"42"}}"#).unwrap();
    let mut command = Command::new(binary().unwrap());
    command.args(["send", "--source", "native", "--key", "k", "--attempts", "1", "--to", to]).arg(file);
    command.env("SSL_CERT_FILE", trusted).output().unwrap()
}

#[test]
fn records_are_sent_over_tls_to_those_who_are_trusted() {
    let (authority, another) = (Authority::new().unwrap(), Authority::new().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let answer = r#"{"accepted":1,"rejected":0,"request_id":"r","records":[{"message_id":"m","status":"accepted"}]}"#;
    let (url, received) = serve(&authority, answer);
    let sent = send(&url, &authority.path(), folder.path());
    assert!(sent.status.success(), "{sent:?}");
    assert!(!received.recv_timeout(Duration::from_secs(60)).unwrap().is_empty());
    let refused = send(&url, &another.path(), folder.path());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("certificate"), "{said}");
}

/// Ends with the test.
struct Local(Child);

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn spans_are_exported_over_tls() {
    let (authority, folder) = (Authority::new().unwrap(), tempfile::tempdir().unwrap());
    let (collector, received) = serve(&authority, "");
    let (listen, admin) = (free_port().unwrap(), free_port().unwrap());
    let mut command = Command::new(binary().unwrap());
    command.args(["local", "--shards", "1", "--sample-ratio", "1", "--otlp-endpoint", &collector]);
    command.arg("--listen").arg(format!("127.0.0.1:{listen}")).arg("--admin-listen").arg(format!("127.0.0.1:{admin}"));
    command.arg("--data-dir").arg(folder.path()).env("SSL_CERT_FILE", authority.path());
    let _local = Local(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let asked = Admin::new(&format!("http://127.0.0.1:{admin}")).unwrap();
    until("local ready", || Ok(asked.is_ready().then_some(()))).unwrap();
    let answer = reqwest::blocking::Client::new()
        .post(format!("http://127.0.0.1:{listen}/v1/batch"))
        .bearer_auth("demo-key")
        .header("content-type", "application/json")
        .body(r#"{"batch":[{"type":"user","message_id":"m","identifiers":{"user_id":"42"}}]}"#)
        .send()
        .unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().unwrap());
    let body = received.recv_timeout(Duration::from_secs(60)).unwrap();
    let exported = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
    assert!(!exported.resource_spans[0].scope_spans[0].spans.is_empty());
}

#[test]
fn a_local_pipeline_whose_key_everybody_knows_listens_on_loopback_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary().unwrap());
    command.args(["local", "--listen", "0.0.0.0:0", "--admin-listen", "127.0.0.1:0"]);
    let refused = command.arg("--data-dir").arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("well-known key `demo-key`"), "{said}");
}
