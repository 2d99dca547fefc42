//! The transport to a daemon that listens: TLS 1.3, both sides known by their pinned certificates.
//!
//! TLS is spoken by a thread of its own ([`pump`]) between the socket and a pair of local ones, so that a session reads and
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
use crate::base::Fingerprint;

/// How long name, connection and handshake may take together.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Both sides say something every two seconds; after so long a session is dead whatever the kernel thinks.
const SILENCE: Duration = Duration::from_secs(45);
/// How often a session asks whether it may go on.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Bytes that wait in one direction.
const BUFFER_BYTES: usize = 256 << 10;
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
        match self.expected.is_none_or(|expected| expected == Fingerprint::of(certificate)) {
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
    let (provider, verifier) = pinned(Some(expected));
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate], identity.key)
        .map_err(io::Error::other)?;
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    let mut tls = Tls::Client(ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?);
    let tcp = dial(host, port, deadline)?;
    prepare(&tcp)?;
    handshake(&mut tls, &tcp, deadline)?;
    tls.writer().write_all(format!("{volume}\n").as_bytes())?;
    let (ours, theirs) = UnixStream::pair()?;
    let cut = tcp.try_clone()?;
    let breaker = Breaker::new(move || drop(cut.shutdown(Shutdown::Both)));
    std::thread::Builder::new().name("dtfs-tls".into()).spawn(move || pump(tls, &tcp, &theirs, &|| true))?;
    Ok(Connection { reader: Box::new(ours.try_clone()?), writer: Box::new(Closing(ours)), peer: Peer::none(breaker) })
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

/// Carries bytes until both directions have ended, the connection fails, or nothing was heard for too long.
fn pump(tls: Tls, tcp: &TcpStream, plain: &UnixStream, may: &dyn Fn() -> bool) {
    let mut pump =
        Pump { tls, tcp, plain, inward: Vec::new(), heard: Instant::now(), tcp_ended: false, plain_ended: false };
    if let Err(error) = pump.run(may) {
        tracing::info!(%error, "the connection ends");
    }
    let _ = tcp.shutdown(Shutdown::Both);
    let _ = plain.shutdown(Shutdown::Both);
}

struct Pump<'a> {
    tls: Tls,
    tcp: &'a TcpStream,
    plain: &'a UnixStream,
    /// What came and was not passed on yet.
    inward: Vec<u8>,
    heard: Instant,
    /// Nothing more comes from the other host, and that was passed on.
    tcp_ended: bool,
    /// Nothing more goes there.
    plain_ended: bool,
}

impl Pump<'_> {
    fn run(&mut self, may: &dyn Fn() -> bool) -> io::Result<()> {
        self.plain.set_nonblocking(true)?;
        self.tls.set_buffer_limit(Some(BUFFER_BYTES));
        let mut asked = Instant::now();
        while !(self.tcp_ended && self.inward.is_empty() && self.plain_ended && !self.tls.wants_write()) {
            if asked.elapsed() >= ASK_EVERY {
                asked = Instant::now();
                if !may() {
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the key is not let in any more"));
                }
            }
            if !self.tcp_ended && self.heard.elapsed() > SILENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was heard for too long"));
            }
            let (tcp, plain) = self.wait()?;
            if tcp.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                self.from_tcp()?;
            }
            if plain.intersects(PollFlags::POLLIN | PollFlags::POLLHUP) {
                self.from_plain()?;
            }
            self.to_plain()?;
            self.to_tcp()?;
        }
        Ok(())
    }

    /// Waits for what can be gone on with. Nothing is read while what was read before waits to be passed on.
    fn wait(&self) -> io::Result<(PollFlags, PollFlags)> {
        let when = |wanted: bool, flag: PollFlags| if wanted { flag } else { PollFlags::empty() };
        let tcp = when(!self.tcp_ended && self.inward.is_empty(), PollFlags::POLLIN)
            | when(self.tls.wants_write(), PollFlags::POLLOUT);
        let plain = when(!self.plain_ended && !self.tls.wants_write(), PollFlags::POLLIN)
            | when(!self.inward.is_empty(), PollFlags::POLLOUT);
        let mut fds = [PollFd::new(self.tcp.as_fd(), tcp), PollFd::new(self.plain.as_fd(), plain)];
        // A socket that has ended is always ready, and says so only to those who ask for nothing: leave it out.
        let timeout = PollTimeout::try_from(ASK_EVERY).unwrap_or(PollTimeout::MAX);
        let ready = match (tcp.is_empty(), plain.is_empty()) {
            (false, false) => poll(&mut fds, timeout),
            (false, true) => poll(&mut fds[..1], timeout),
            (true, false) => poll(&mut fds[1..], timeout),
            (true, true) => Ok(0),
        };
        match ready {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let events = |fd: &PollFd<'_>, asked: PollFlags| match asked.is_empty() {
            true => PollFlags::empty(),
            false => fd.revents().unwrap_or(PollFlags::empty()),
        };
        Ok((events(&fds[0], tcp), events(&fds[1], plain)))
    }

    fn from_tcp(&mut self) -> io::Result<()> {
        if self.tcp_ended || !self.inward.is_empty() {
            return Ok(());
        }
        let came = match self.tls.read_tls(&mut &*self.tcp) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let state = self.tls.process_new_packets().map_err(io::Error::other)?;
        self.heard = Instant::now();
        let mut buffer = vec![0; state.plaintext_bytes_to_read()];
        self.tls.reader().read_exact(&mut buffer)?;
        self.inward = buffer;
        self.tcp_ended = came == 0 || state.peer_has_closed();
        if self.tcp_ended && self.inward.is_empty() {
            let _ = self.plain.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn from_plain(&mut self) -> io::Result<()> {
        if self.plain_ended || self.tls.wants_write() {
            return Ok(());
        }
        let mut buffer = [0; 64 << 10];
        match (&mut &*self.plain).read(&mut buffer) {
            Ok(0) => {
                self.plain_ended = true;
                self.tls.send_close_notify();
                Ok(())
            }
            Ok(bytes) => self.tls.writer().write_all(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn to_plain(&mut self) -> io::Result<()> {
        while !self.inward.is_empty() {
            match (&mut &*self.plain).write(&self.inward) {
                Ok(bytes) => drop(self.inward.drain(..bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.tcp_ended {
            let _ = self.plain.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn to_tcp(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut &*self.tcp) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.plain_ended {
            let _ = self.tcp.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}
