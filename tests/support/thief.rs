//! Somebody who has seen a host's certificate and does not have its key. openssl and Python's ssl refuse to show a certificate
//! without its key, so nothing would ever reach the other side: this one signs with another key.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use dtfs::wire::Identity;
use nix::sched::{CloneFlags, setns};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, Stream};

const LIMIT: Duration = Duration::from_secs(60);

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The connection was ended before anything was said.
    Refused,
    /// The session's greeting came.
    Served,
}

/// Calls `address` from the network of the process `keeper` with the certificate in `pem`, and asks for the copy `copy`.
pub(crate) fn steal(keeper: i32, address: &str, pem: &str) -> Outcome {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    let own = Identity::generate().expect("a key");
    let key = PrivateKeyDer::from_pem_slice(own.as_bytes()).expect("a key");
    let key = ring::sign::any_supported_type(&key).expect("a key that signs");
    let shown = Thief(Arc::new(CertifiedKey::new(vec![certificate], key)));
    let address = address.to_owned();
    // A thread of its own: only that goes to the other network.
    let calling = std::thread::spawn(move || {
        let network = File::open(format!("/proc/{keeper}/ns/net")).expect("a network");
        setns(network, CloneFlags::CLONE_NEWNET).expect("root can go there");
        let tcp = TcpStream::connect(&address).expect("somebody listens");
        tcp.set_read_timeout(Some(LIMIT)).expect("a timeout");
        call(tcp, shown)
    });
    calling.join().expect("the call ends")
}

fn call(mut tcp: TcpStream, shown: Thief) -> Outcome {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_cert_resolver(Arc::new(shown));
    let name = ServerName::try_from("dtfs.invalid").expect("a name");
    let mut tls = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = Stream::new(&mut tls, &mut tcp);
    let mut heard = [0; 4096];
    match stream.write_all(b"copy\n").and_then(|()| stream.read(&mut heard)) {
        Ok(0) => Outcome::Refused,
        Ok(_) => Outcome::Served,
        // Nothing but an answer that does not come at all would be something else.
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("neither served nor refused"),
        Err(_) => Outcome::Refused,
    }
}

#[derive(Debug)]
struct Thief(Arc<CertifiedKey>);

impl ResolvesClientCert for Thief {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Calls whoever answers.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
