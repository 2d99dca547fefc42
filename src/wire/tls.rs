//! The transport to a daemon that listens: TLS 1.3, both sides known by their pinned certificates.
//!
//! TLS is spoken by a thread of its own (`wire/pump.rs`) between the socket and a pair of local ones, so that a session reads and
//! writes plain bytes on two threads, and on the target a process that never sees a key. Nothing but TLS itself is read
//! from somebody whose certificate is not known.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection as Tls, DigitallySignedStruct, DistinguishedName,
    Error, ServerConfig, ServerConnection, SignatureScheme,
};

use super::local::{Breaker, Connection, Peer};
use super::pump::pump;
use crate::base::{Fingerprint, faults};

/// How long name, connection and handshake may take together.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The name of a copy and a line's end.
const MOST_REQUEST_BYTES: usize = 80;
/// Nobody looks at it: certificates are known by their fingerprint.
const NAME: &str = "dtfs.invalid";

/// A host's key and certificate.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// A new key and a certificate of it, as PEM text for a file that nobody else may read.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn generate() -> io::Result<String> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(io::Error::other)?;
        let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).map_err(io::Error::other)?;
        let certificate = params.self_signed(&key).map_err(io::Error::other)?;
        Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
    }

    /// Reads what [`Identity::generate`] made.
    ///
    /// # Errors
    /// When a part is missing or damaged; nothing of the text is in the error.
    pub fn from_pem(pem: &str) -> io::Result<Identity> {
        let damaged = |_| io::Error::new(io::ErrorKind::InvalidData, "it does not hold a certificate and its key");
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(damaged)?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(damaged)?;
        Ok(Identity { certificate, key })
    }

    /// What others know it by.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }
}

/// A certificate is trusted for its fingerprint and nothing else: no authority, no name, no date.
#[derive(Debug)]
struct Pinned {
    /// The one that is expected; `None` lets everybody prove a key, and leaves it to the caller to look at it.
    expected: Option<Fingerprint>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let is_it = self.expected.is_none_or(|expected| expected == Fingerprint::of(certificate));
        match is_it || faults::skipped("tls.pin") {
            true => Ok(()),
            false => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if faults::skipped("tls.proof") {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }
}

/// TLS 1.2 is not spoken.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn pinned(expected: Option<Fingerprint>) -> (Arc<CryptoProvider>, Arc<Pinned>) {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    (provider, Arc::new(Pinned { expected, algorithms }))
}

/// Connects to the daemon at `host` and asks for the copy `volume`.
///
/// # Errors
/// When nobody answers in time, or it is not the one with the fingerprint `expected`.
pub fn connect_tls(
    identity: Identity,
    (host, port): (&str, u16),
    expected: Fingerprint,
    volume: &str,
) -> io::Result<Connection> {
    let deadline = Instant::now() + HANDSHAKE;
    let mut tls = client(identity, expected)?;
    let tcp = dial(host, port, deadline)?;
    prepare(&tcp)?;
    handshake(&mut tls, &tcp, deadline).map_err(|error| explain(host, error))?;
    tls.writer().write_all(format!("{volume}\n").as_bytes())?;
    let (ours, theirs) = UnixStream::pair()?;
    let cut = tcp.try_clone()?;
    let breaker = Breaker::new(move || drop(cut.shutdown(Shutdown::Both)));
    std::thread::Builder::new().name("dtfs-tls".into()).spawn(move || pump(tls, &tcp, &theirs, &|| true))?;
    Ok(Connection { reader: Box::new(ours.try_clone()?), writer: Box::new(Closing(ours)), peer: Peer::none(breaker) })
}

/// A client that proves the key of `identity`, and wants to see that of `expected`.
fn client(identity: Identity, expected: Fingerprint) -> io::Result<Tls> {
    let (provider, verifier) = pinned(Some(expected));
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate], identity.key)
        .map_err(io::Error::other)?;
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    ClientConnection::new(Arc::new(config), name).map(Tls::Client).map_err(io::Error::other)
}

/// Says what a key that is not the expected one may mean.
fn explain(host: &str, error: io::Error) -> io::Error {
    let stranger = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(inner) if *inner == stranger => {
            let text = format!(
                "{host} shows another key than the one that is known, or it is another host; \
                 if its key was made anew: dtfs peer add {host} KEY (there: dtfs peer show)"
            );
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        }
        _ => error,
    }
}

/// Its end is the end of what is said, though the other half of the socket is still read from.
struct Closing(UnixStream);

impl Write for Closing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

/// Tries every address of the host.
fn dial(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in (host, port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(tcp) => return Ok(tcp),
            Err(error) => failed = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(failed)
}

/// Small messages go at once. A connection that is dead is noticed by the signs of life that sessions exchange.
fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nonblocking(true)?;
    tcp.set_nodelay(true)
}

/// Somebody who has proven a key, and what he asks for.
pub struct Guest {
    tls: Tls,
    tcp: TcpStream,
    /// Of the key that he has.
    pub fingerprint: Fingerprint,
    /// Where he calls from.
    pub address: SocketAddr,
}

/// Shakes hands with a caller. The caller's key is not looked at yet, and nothing he says was read.
///
/// # Errors
/// When he takes longer than ten seconds or does not speak TLS 1.3 with a certificate of his own.
pub fn welcome(identity: Identity, tcp: TcpStream, address: SocketAddr) -> io::Result<Guest> {
    let deadline = Instant::now() + HANDSHAKE;
    let (provider, verifier) = pinned(None);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate], identity.key)
        .map_err(io::Error::other)?;
    // Every session proves its key anew.
    config.send_tls13_tickets = 0;
    let mut tls = Tls::Server(ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?);
    prepare(&tcp)?;
    handshake(&mut tls, &tcp, deadline)?;
    let known = tls.peer_certificates().and_then(|chain| chain.first()).map(|first| Fingerprint::of(first));
    let fingerprint = known.ok_or_else(|| io::Error::new(io::ErrorKind::PermissionDenied, "no certificate"))?;
    Ok(Guest { tls, tcp, fingerprint, address })
}

impl Guest {
    /// Reads which copy is asked for. To be called for somebody who is known only.
    ///
    /// # Errors
    /// When it does not come in time, or is too long.
    pub fn request(&mut self) -> io::Result<String> {
        let deadline = Instant::now() + HANDSHAKE;
        let mut line = Vec::new();
        let mut stream = Timed { tcp: &self.tcp, deadline };
        loop {
            let mut byte = [0];
            match self.tls.reader().read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => return String::from_utf8(line).map_err(io::Error::other),
                Ok(_) if line.len() < MOST_REQUEST_BYTES => line.push(byte[0]),
                Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "the request has no end")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.tls.complete_io(&mut stream)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Says a few bytes, and goodbye.
    ///
    /// # Errors
    /// When he does not take them in time.
    pub fn dismiss(mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = Timed { tcp: &self.tcp, deadline: Instant::now() + HANDSHAKE };
        self.tls.writer().write_all(bytes)?;
        self.tls.send_close_notify();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut stream)?;
        }
        self.tcp.shutdown(Shutdown::Write)
    }

    /// Carries bytes between him and `plain` until both have ended, or `may` says no.
    pub fn serve(self, plain: &UnixStream, may: &dyn Fn() -> bool) {
        pump(self.tls, &self.tcp, plain, may);
    }
}

/// A socket that does not block, read and written until a deadline.
struct Timed<'a> {
    tcp: &'a TcpStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the other side takes too long"));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.tcp.as_fd(), flags)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tcp.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLIN)?,
                outcome => return outcome,
            }
        }
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.tcp.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLOUT)?,
                outcome => return outcome,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn handshake(tls: &mut Tls, tcp: &TcpStream, deadline: Instant) -> io::Result<()> {
    let mut stream = Timed { tcp, deadline };
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    while tls.wants_write() {
        tls.write_tls(&mut stream)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
