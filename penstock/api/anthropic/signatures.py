"""The signatures of thinking blocks.

A signature is a checksum of the block's text, so it is the same on every server and after every
restart. It proves that a client sends the text back unchanged, and nothing else: a client may write
any conversation, so there is nothing for a secret to protect. The signature of an omitted text
contains the text.
"""

import base64
import binascii
import hashlib

_CHECKED = "penstock1."
_CARRIED = "penstock2."
_NUM_BYTES = 24


def sign(text: str) -> str:
    """Return the signature of a text that the client receives."""
    digest = hashlib.blake2b(text.encode(), digest_size=_NUM_BYTES, person=b"penstock").digest()
    return _CHECKED + base64.urlsafe_b64encode(digest).decode()


def carry(text: str) -> str:
    """Return the signature of a text that the client does not receive."""
    return _CARRIED + base64.urlsafe_b64encode(text.encode()).decode()


def is_signed(text: str, signature: str) -> bool:
    """Return True if this is our signature of the text."""
    if text:
        return signature == sign(text)
    return bool(signature) and signature == carry(carried_by(signature))


def carried_by(signature: str) -> str:
    """Return the text that a signature carries, or nothing if it carries none."""
    if not signature.startswith(_CARRIED):
        return ""
    try:
        encoded = signature.removeprefix(_CARRIED).encode("ascii")
        return base64.b64decode(encoded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        return ""
