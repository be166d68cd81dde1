"""Certificates and keys: good ones, damaged ones, and some that only OpenSSL takes.

In: the name of a kind. Out: the contents of the two files.
"""

import base64
import datetime
import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed448.Ed448PrivateKey
AnyKey = Key | ed25519.Ed25519PrivateKey
Files = tuple[bytes, bytes]
"""The contents of a certificate's file and of its key's."""

BOM = b"\xef\xbb\xbf"
# Making a key of 9,000 bits takes a minute. This one was made for these tests only.
RSA_9000 = Path(__file__).with_name("rsa9000.pem")


def files_of(key: AnyKey, secret: bytes = b"") -> Files:
    """Return a certificate for localhost that this key has signed, and the key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    is_edwards = isinstance(key, ed448.Ed448PrivateKey | ed25519.Ed25519PrivateKey)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, None if is_edwards else hashes.SHA256())
    )
    encryption = serialization.BestAvailableEncryption(secret) if secret else NoEncryption()
    shown = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return certificate.public_bytes(Encoding.PEM), shown


def good() -> Files:
    """Return a new pair that can be served."""
    return files_of(ec.generate_private_key(ec.SECP256R1()))


def _rsa_9000() -> Files:
    key = serialization.load_pem_private_key(RSA_9000.read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return files_of(key)


def _rsa_pss() -> Files:
    """Return an RSA key that says that it is for PSS only."""
    certificate, key = files_of(rsa.generate_private_key(65537, 2048))
    raw = serialization.load_pem_private_key(key, None).private_bytes(
        Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
    )
    plain, pss = bytes.fromhex("06092a864886f70d010101"), bytes.fromhex("06092a864886f70d01010a")
    # The parameters NULL of the first become an empty sequence: PSS with any hash.
    assert plain + b"\x05\x00" in raw
    raw = raw.replace(plain + b"\x05\x00", pss + b"\x30\x00")
    return certificate, _pem("PRIVATE KEY", raw)


def _pem(label: str, raw: bytes) -> bytes:
    body = base64.encodebytes(raw).decode().replace("\n", "")
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _changed(change: Callable[[bytes, bytes], Files]) -> Callable[[], Files]:
    return lambda: change(*good())


BAD: dict[str, Callable[[], Files]] = {
    "P-521": lambda: files_of(ec.generate_private_key(ec.SECP521R1())),
    "secp256k1": lambda: files_of(ec.generate_private_key(ec.SECP256K1())),
    "Ed448": lambda: files_of(ed448.Ed448PrivateKey.generate()),
    "RSA of 9000 bits": _rsa_9000,
    "RSA of 1024 bits": lambda: files_of(rsa.generate_private_key(65537, 1024)),
    "RSA-PSS": _rsa_pss,
    "BOM before the certificate": _changed(lambda cert, key: (BOM + cert, key)),
    "BOM before the key": _changed(lambda cert, key: (cert, BOM + key)),
    "TRUSTED CERTIFICATE": _changed(
        lambda cert, key: (cert.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE"), key)
    ),
    "another's key": lambda: (good()[0], good()[1]),
    "half of the certificate": _changed(lambda cert, key: (cert[: len(cert) // 2], key)),
    "half of the key": _changed(lambda cert, key: (cert, key[: len(key) // 2])),
    "a password": lambda: files_of(ec.generate_private_key(ec.SECP256R1()), b"secret"),
    "nothing": lambda: (b"", b""),
    "too large": _changed(lambda cert, key: (cert + b"\n" * 2_000_000, key)),
}
"""Kinds of files that cannot be served."""

GOOD: dict[str, Callable[[], Files]] = {
    "P-256": good,
    "P-384": lambda: files_of(ec.generate_private_key(ec.SECP384R1())),
    "Ed25519": lambda: files_of(ed25519.Ed25519PrivateKey.generate()),
    "RSA of 2048 bits": lambda: files_of(rsa.generate_private_key(65537, 2048)),
    "Windows's line breaks": _changed(
        lambda cert, key: (cert.replace(b"\n", b"\r\n"), key.replace(b"\n", b"\r\n"))
    ),
    "text before the certificate": _changed(lambda cert, key: (b"localhost\n" + cert, key)),
}


def trusting() -> ssl.SSLContext:
    """Return the context of a client that trusts every server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class TlsFiles:
    """A certificate's file and its key's, in a folder."""

    def __init__(self, folder: Path, contents: Files) -> None:
        self.certificate, self.key = folder / "certificate.pem", folder / "key.pem"
        self.write(contents)

    def write(self, contents: Files) -> None:
        """Replace both files."""
        for path, content in zip((self.certificate, self.key), contents, strict=True):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.replace(path)

    def flags(self) -> dict[str, object]:
        """Return the server's flags."""
        return {"tls_cert": self.certificate, "tls_key": self.key}
