"""What Firebase Auth does between a custom token and Firestore, as far as Firestore's emulator needs it.

There is no emulator of Firebase Auth here, but that of Firestore believes unsigned ID tokens. They are made here by
https://firebase.google.com/docs/rules/rules-and-auth: the uid as `sub`, a custom token's claims at the top.
"""

import time
from collections.abc import Mapping
from typing import Any

import jwt


def id_token(project: str, uid: str, claims: Mapping[str, object], *, provider: str = "custom") -> str:
    """An ID token of somebody who has just signed in; the emulator takes it for an hour."""
    now = int(time.time())
    return jwt.encode(
        {
            "iss": f"https://securetoken.google.com/{project}",
            "aud": project,
            "iat": now,
            "exp": now + 3600,
            "auth_time": now,
            "sub": uid,
            "user_id": uid,
            "firebase": {"sign_in_provider": provider, "identities": {}},
            **claims,
        },
        "",
        algorithm="none",
    )


def signed_in_with(project: str, said: Mapping[str, Any]) -> str:
    """The ID token that Firebase Auth gives for a custom token that says this."""
    return id_token(project, said["uid"], said["claims"])
