"""Firebase custom tokens for owners, signed keylessly; what they open is said in firestore.rules, and only there."""

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

from common.errors import Rejected
from common.ports import FirestoreToken

lifetime_s = 3600
"""The most that Firebase allows."""
claims_bytes_max = 1000
UID_PREFIX = "darkroom:"
"""What tells our users from everybody else in the project's Firebase Auth; firestore.rules looks for it."""
AUDIENCE = "https://identitytoolkit.googleapis.com/google.identity.identitytoolkit.v1.IdentityToolkit"


class Signer(Protocol):
    """A service account that signs: its address, and a JWT with just these claims."""

    async def email(self) -> str: ...

    async def sign_jwt(self, claims: Mapping[str, object]) -> str: ...


class CustomTokens:
    """Mints tokens by https://firebase.google.com/docs/auth/admin/create-custom-tokens for one project's Firestore."""

    def __init__(self, signer: Signer, project: str, database: str, now: Callable[[], datetime]) -> None:
        self._signer = signer
        self._project = project
        self._database = database
        self._now = now

    async def mint(self, owner: str) -> FirestoreToken:
        """A token for one hour, after which the session that it began opens nothing either.

        Raises Rejected("invalid_request") for an owner that fits no token, and Unavailable if IAM does not sign.
        Safe to repeat.
        """
        issued_at = int(self._now().timestamp())
        claims = token_claims(owner, email=await self._signer.email(), issued_at=issued_at)
        token = await self._signer.sign_jwt(claims)
        expires_at = datetime.fromtimestamp(issued_at + lifetime_s, UTC)
        return FirestoreToken(token, expires_at, self._project, self._database)


def token_claims(owner: str, *, email: str, issued_at: int) -> dict[str, object]:
    """What an owner's token says; `claims` in it are what security rules see.

    `email` is the service account that signs, `issued_at` seconds since 1970. Raises Rejected("invalid_request") for
    an owner of hundreds of control characters; any other that names objects fits.
    """
    claims = {"owner": owner, "owner_until": issued_at + lifetime_s}
    # Firebase refuses claims over 1,000 bytes of JSON and does not say in which spelling. `\uXXXX` is the longest.
    size = len(json.dumps(claims))
    if size > claims_bytes_max:
        raise Rejected("invalid_request", f"the owner makes claims of {size:,} bytes, and Firebase takes 1,000")
    return {
        "iss": email,
        "sub": email,
        "aud": AUDIENCE,
        "iat": issued_at,
        "exp": issued_at + lifetime_s,
        "uid": uid(owner),
        "claims": claims,
    }


def uid(owner: str) -> str:
    """The Firebase user that an owner's listeners sign in as: always the same, 73 characters of the 128 allowed.

    Never the uid of `fb:{uid}` itself: whoever holds the token would be that user everywhere in the project.
    """
    return UID_PREFIX + hashlib.sha256(owner.encode()).hexdigest()
