"""Somebody who calls a daemon that listens and should not get in: tls_stranger.py ADDRESS WAY.

Prints what became of it: "closed" (without a word), "refused" (by TLS), "told" (a sentence, by the daemon).
"""
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

ADDRESS, WAY = sys.argv[1], sys.argv[2]
LIMIT = 60


def dial():
    return socket.create_connection((ADDRESS, 6320), timeout=LIMIT)


def ends(s):
    """Whether the other side ends the connection, whatever it says before."""
    try:
        while s.recv(4096):
            pass
    except ConnectionError:
        pass
    return "closed"


def key_and_certificate(folder):
    key, certificate = os.path.join(folder, "key"), os.path.join(folder, "certificate")
    line = "openssl req -x509 -newkey ed25519 -nodes -subj /CN=stranger -days 3 -keyout".split()
    subprocess.run([*line, key, "-out", certificate], check=True, capture_output=True)
    return key, certificate


def context():
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    return c


def over_tls(c):
    """What the daemon answers to a request; in TLS 1.3 a client hears of a refusal only when it reads."""
    try:
        with c.wrap_socket(dial(), server_hostname="x") as s:
            s.sendall(b"copy\n")
            heard = b""
            while True:
                more = s.recv(4096)
                if not more:
                    break
                heard += more
    except (ssl.SSLError, ConnectionError):
        return "refused"
    return "told" if b"does not know the key" in heard else f"heard {heard!r}"


def slow():
    """A handshake of which a byte comes every second."""
    s, start = dial(), time.monotonic()
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500
    for byte in hello[: LIMIT]:
        s.settimeout(1)
        try:
            if s.send(bytes([byte])) and not s.recv(4096):
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    else:
        return "still there"
    return "closed" if time.monotonic() - start > 5 else "closed at once"


def flood():
    def again_and_again(n):
        words = [b"\x16", b"GET / HTTP/1.0\r\n\r\n", b"dtfs replication protocol 1\n", b"\x16\x03\x01\xff\xff" + b"a" * 2000]
        while True:
            try:
                s = dial()
                s.sendall(words[n % 4])
                ends(s)
            except OSError:
                time.sleep(0.2)
    for n in range(400):
        threading.Thread(target=again_and_again, args=(n,), daemon=True).start()
    print("flooding", flush=True)
    sys.stdin.read()


with tempfile.TemporaryDirectory() as folder:
    c = context()
    if WAY == "plain":
        s = dial()
        s.sendall(b"dtfs replication protocol 1\n" * 100)
        s.shutdown(socket.SHUT_WR)
        print(ends(s))
    elif WAY == "no-certificate":
        print(over_tls(c))
    elif WAY == "old-version":
        key, certificate = key_and_certificate(folder)
        c.load_cert_chain(certificate, key)
        c.maximum_version = ssl.TLSVersion.TLSv1_2
        print(over_tls(c))
    elif WAY == "unknown-key":
        key, certificate = key_and_certificate(folder)
        c.load_cert_chain(certificate, key)
        print(over_tls(c))
    elif WAY == "slow":
        print(slow())
    elif WAY == "flood":
        flood()
