use std::net::TcpListener;
use std::thread::{JoinHandle, spawn};

use super::*;

const SEED: u64 = 20;

fn host() -> (String, Fingerprint) {
    let pem = Identity::generate().unwrap();
    let fingerprint = Identity::from_pem(&pem).unwrap().fingerprint();
    (pem, fingerprint)
}

fn identity(pem: &str) -> Identity {
    Identity::from_pem(pem).unwrap()
}

/// splitmix64.
struct Prng(u64);

impl Prng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> usize {
        (self.next() % limit) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// A door for one caller: what `then` makes of a guest, or why he was not welcome.
fn door<T: Send + 'static>(
    pem: &str,
    then: impl FnOnce(Guest) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<io::Result<T>>) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, identity) = (socket.local_addr().unwrap(), identity(pem));
    let handle = spawn(move || {
        let (tcp, from) = socket.accept()?;
        welcome(identity, tcp, from).map(then)
    });
    (address, handle)
}

/// A client whose `at`th byte is changed on its way.
struct Meddled<'a> {
    tcp: &'a TcpStream,
    at: usize,
    mask: u8,
    written: usize,
}

impl Write for Meddled<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut changed = bytes.to_vec();
        if let Some(byte) = self.at.checked_sub(self.written).and_then(|at| changed.get_mut(at)) {
            *byte ^= self.mask;
        }
        self.tcp.write_all(&changed)?;
        self.written += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Meddled<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.read(buffer)
    }
}

/// Shakes hands as a client; returns how many bytes it sent.
fn shake(mut tls: Tls, address: SocketAddr, at: usize, mask: u8) -> usize {
    let tcp = TcpStream::connect(address).unwrap();
    // The other side may wait for more, because a length was changed.
    tcp.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut stream = Meddled { tcp: &tcp, at, mask, written: 0 };
    while tls.is_handshaking() && tls.complete_io(&mut stream).is_ok() {}
    while tls.wants_write() && tls.write_tls(&mut stream).is_ok() {}
    let _ = tcp.shutdown(Shutdown::Write);
    stream.written
}

#[test]
fn a_byte_changed_on_the_way_makes_nobody_somebody_else() {
    println!("seed {SEED}");
    let (mut prng, server, caller) = (Prng(SEED), host(), host());
    let call = |at: usize, mask: u8| {
        let (address, handle) = door(&server.0, |guest| guest.fingerprint);
        let sent = shake(client(identity(&caller.0), server.1).unwrap(), address, at, mask);
        (sent, handle.join().unwrap())
    };
    let (length, plain) = call(usize::MAX, 0);
    assert_eq!(plain.unwrap(), caller.1, "a handshake that nobody changes is good");
    let mut refused = 0;
    for _ in 0..100 {
        let (at, mask) = (prng.below(length as u64), 1 << prng.below(8));
        match call(at, mask).1 {
            // What TLS does not look at (the version in a record's header) may be anything.
            Ok(fingerprint) => assert_eq!(fingerprint, caller.1, "byte {at}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 80, "only {refused} of 100 changed handshakes were refused");
}

#[test]
fn what_is_no_handshake_is_refused() {
    println!("seed {SEED}");
    let (mut prng, server) = (Prng(SEED), host());
    for round in 0..200 {
        let (address, handle) = door(&server.0, drop);
        let length = prng.below(3000);
        let mut bytes = prng.bytes(length);
        if round % 2 == 0 {
            // The header of a record of some kind, with a length that may be too long.
            bytes
                .splice(0..0, [20 + prng.below(5) as u8, 3, prng.below(5) as u8, prng.next() as u8, prng.next() as u8]);
        }
        let mut tcp = TcpStream::connect(address).unwrap();
        let _ = tcp.write_all(&bytes);
        let _ = tcp.shutdown(Shutdown::Write);
        assert!(handle.join().unwrap().is_err(), "round {round}");
    }
}

#[test]
fn a_host_with_another_key_is_told_from_one_that_does_not_answer() {
    let (server, caller, other) = (host(), host(), host());
    let (address, handle) = door(&server.0, drop);
    let call = || connect_tls(identity(&caller.0), ("127.0.0.1", address.port()), other.1, "copy").map(drop);
    let error = call().unwrap_err().to_string();
    assert!(error.contains("shows another key"), "{error}");
    assert!(handle.join().unwrap().is_err());
    let error = call().unwrap_err().to_string();
    assert!(!error.contains("another key"), "{error}");
}

#[test]
fn a_request_is_bounded() {
    let (server, caller) = (host(), host());
    let (address, handle) = door(&server.0, |mut guest| guest.request());
    let long = "a".repeat(MOST_REQUEST_BYTES + 1);
    let _connection = connect_tls(identity(&caller.0), ("127.0.0.1", address.port()), server.1, &long).unwrap();
    assert!(handle.join().unwrap().unwrap().is_err());
}

/// Everything that a caller says comes back, also what he says in one breath with his request, and after he said goodbye.
#[test]
fn every_byte_is_carried_in_both_directions() {
    let (server, caller) = (host(), host());
    for bytes in [1, 30, 5_000, 3 << 20] {
        let (address, handle) = door(&server.0, |mut guest| {
            assert_eq!(guest.request().unwrap(), "copy");
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let echo = spawn(move || {
                let mut back = theirs.try_clone().unwrap();
                io::copy(&mut theirs, &mut back).unwrap();
            });
            guest.serve(&ours, &|| true);
            echo.join().unwrap();
        });
        let said = Prng(bytes as u64).bytes(bytes);
        let mut tls = client(identity(&caller.0), server.1).unwrap();
        let tcp = TcpStream::connect(address).unwrap();
        prepare(&tcp).unwrap();
        // Before the handshake: it goes in one packet with its last message.
        tls.writer().write_all(b"copy\n").unwrap();
        let early = said.len().min(100);
        tls.writer().write_all(&said[..early]).unwrap();
        handshake(&mut tls, &tcp, Instant::now() + HANDSHAKE).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let carried = spawn(move || pump(tls, &tcp, &theirs, &|| true));
        let (mut reader, mut writer) = (ours.try_clone().unwrap(), Closing(ours));
        let rest = said[early..].to_vec();
        let writes = spawn(move || writer.write_all(&rest).unwrap());
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).unwrap();
        assert!(heard == said, "{} bytes of {bytes} came back", heard.len());
        writes.join().unwrap();
        carried.join().unwrap();
        handle.join().unwrap().unwrap();
    }
}
