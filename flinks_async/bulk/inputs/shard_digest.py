"""What stands for tokens when they are compared: bytes that are hashed with a key, and never written."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from .rows import Token

_PURPOSE: Final = b"flinks shard"


def identity(token: Token) -> bytes:
    """What makes it another token than others: its instance and itself, with a character between that neither holds."""
    return f"{token.instance or ''}\n{token.token.reveal()}".encode()


def shard_digest(identities: Iterable[bytes], key: bytes) -> str:
    """32 hexadecimal digits for tokens in their order. They have no line breaks, so these can divide them."""
    return blake2b(b"\n".join(identities), key=key, digest_size=16, person=_PURPOSE).hexdigest()
