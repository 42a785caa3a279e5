"""The identity tokens that the embedded bus sends with each push, signed as Google signs its own."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ISSUER = "https://darkroom.local"
AUDIENCE = "darkroom-local"
EMAIL = "push@darkroom.local"
_KID = "local-1"
_life = timedelta(hours=1)
_renewal = timedelta(minutes=5)


class PushTokens:
    """RS256 tokens under a key that never leaves the data folder (mode 600), made on first use."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        self._now = now
        self._key = _load(path)
        self._token = ""
        self._minted_at: datetime | None = None

    def mint(self) -> str:
        """A token with the claims of a Pub/Sub push; the same one until shortly before it expires."""
        now = self._now()
        # A token from the future, after the clock was set back, would be refused until the clock has caught up.
        if self._minted_at is None or not self._minted_at <= now <= self._minted_at + _life - _renewal:
            self._minted_at = now
            claims = {
                "iss": ISSUER,
                "aud": AUDIENCE,
                "email": EMAIL,
                "email_verified": True,
                "iat": now,
                "exp": now + _life,
                "sub": EMAIL,
            }
            self._token = jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": _KID})
        return self._token

    async def public_key(self, kid: str) -> object | None:
        """The key that checks tokens with this `kid`, or None."""
        return self._key.public_key() if kid == _KID else None


def _load(path: Path) -> rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_secret(path, pem)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError(f"{path.name} holds no RSA key; remove it and a new one is made")
    return key


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read; a crash leaves the whole file or none."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
