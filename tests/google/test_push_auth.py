"""Who may push: our own subscription and nobody else, through a real push route, in both modes of PUSH_AUTH.

Google's keys come over HTTP from the fakes; how they are fetched and kept is tested in test_push_keys.py.
"""

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import jwt
import pytest
from starlette.applications import Starlette

from common.auth import Pushes
from common.google.push_keys import PushKeys
from common.messages import JobQueued
from common.problems import HANDLERS
from common.pubsub import push_route, sweep_route
from common.settings import Settings, SettingsError
from tests.bench import Clock
from tests.google.fakes import Fakes, Key

AUDIENCE, EMAIL = "darkroom-processor", "push@p.iam.gserviceaccount.com"
GOOGLE, GOOGLE_SHORT = "https://accounts.google.com", "accounts.google.com"
REMOVED = "SIGNATURE_REMOVED_BY_GOOGLE"
MODES = ["oidc", "iam"]
FACT = JobQueued(job_id="0" * 32)
BODY = {"message": {"data": base64.b64encode(FACT.encode()).decode(), "messageId": "1"}, "subscription": "s"}
Claims = dict[str, Any]


@dataclass
class Purse:
    """The tokens of a test: good ones, and whatever a forger could make."""

    fakes: Fakes
    clock: Clock
    stranger: Key

    @property
    def now_s(self) -> int:
        return int(self.clock().timestamp())

    def claims(self, **other: object) -> Claims:
        """What Pub/Sub says of itself, but for these; a claim of None is left out."""
        usual = {"iss": GOOGLE, "aud": AUDIENCE, "email": EMAIL, "email_verified": True, "sub": "1234567890"}
        times = {"iat": self.now_s, "exp": self.now_s + 3600}
        return {name: claim for name, claim in {**usual, **times, **other}.items() if claim is not None}

    def signed(self, *, alg: str = "RS256", key: Key | None = None, **claims: object) -> str:
        """A token with these claims, signed under the `kid` that Google's page shows, perhaps by somebody else."""
        return self.fakes.mint_push_token(self.claims(**claims), alg=alg, key=key, kid=self.kid)

    def titled(self, key: Key | None = None, **header: object) -> str:
        """A good token with more in its header."""
        chosen = key or self.fakes.push_keys[0]
        return jwt.encode(self.claims(), chosen.private, algorithm="RS256", headers={"kid": self.kid, **header})

    def forged(self, header: object, signature: str = "", claims: object = None) -> str:
        """Any header over the right claims, and any signature."""
        return f"{segment(header)}.{segment(self.claims() if claims is None else claims)}.{signature}"

    @property
    def kid(self) -> str:
        return self.fakes.push_keys[0].id


def segment(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def as_behind_iam(token: str) -> str:
    """The token as Cloud Run hands it on."""
    return f"{token.rpartition('.')[0]}.{REMOVED}"


@dataclass
class Door:
    """A private app under Cloud Run's name; `heard` and `swept` say what got in."""

    client: httpx2.AsyncClient
    heard: list[JobQueued]
    swept: list[None]

    async def knock(
        self, *authorizations: str, path: str = "/push/job-queued", serverless: str | None = None
    ) -> httpx2.Response:
        headers = [(b"authorization", value.encode("latin-1")) for value in authorizations]
        if serverless is not None:
            headers.append((b"x-serverless-authorization", serverless.encode()))
        return await self.client.post(path, json=BODY, headers=headers)


@asynccontextmanager
async def a_door(mode: str, purse: Purse, **settings: Any) -> AsyncIterator[Door]:
    heard: list[JobQueued] = []
    swept: list[None] = []

    async def handle(fact: JobQueued) -> None:
        heard.append(fact)

    async def sweep() -> int:
        swept.append(None)
        return 0

    wanted = {"push_auth": mode, "push_audience": AUDIENCE, "push_email": EMAIL, **purse.fakes.settings, **settings}
    configured = Settings(**wanted)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("K_SERVICE", "processor-push")
        pushes = Pushes(configured, PushKeys(configured.push_certs_url, purse.clock).public_key, purse.clock)
    routes = [push_route("/push/job-queued", JobQueued, handle, pushes), sweep_route(sweep, pushes)]
    transport = httpx2.ASGITransport(app=Starlette(routes=routes, exception_handlers=HANDLERS))
    async with httpx2.AsyncClient(transport=transport, base_url="https://private") as client:
        yield Door(client, heard, swept)


@pytest.fixture(scope="module")
def stranger() -> Key:
    return Key()


@pytest.fixture
def purse(fakes: Fakes, stranger: Key) -> Purse:
    return Purse(fakes, Clock(), stranger)


def token_for(mode: str, token: str) -> str:
    return f"Bearer {token if mode == 'oidc' else as_behind_iam(token)}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("issuer", [GOOGLE, GOOGLE_SHORT])
@pytest.mark.parametrize("configured", [GOOGLE, GOOGLE_SHORT])
async def test_our_subscription_and_our_scheduler_are_let_in(
    mode: str, issuer: str, configured: str, purse: Purse
) -> None:
    async with a_door(mode, purse, push_issuer=configured) as door:
        for _ in range(2):
            answer = await door.knock(token_for(mode, purse.signed(iss=issuer)))
            assert answer.status_code == 204
        answer = await door.knock(token_for(mode, purse.signed(iss=issuer)), path="/tasks/sweep")
        assert answer.status_code == 204
        assert (door.heard, len(door.swept)) == ([FACT, FACT], 1)


BAD_CLAIMS: Mapping[str, Callable[[int], Mapping[str, object]]] = {
    "other audience": lambda _: {"aud": "darkroom-notifier"},
    "no audience": lambda _: {"aud": None},
    "empty audience": lambda _: {"aud": ""},
    "our audience and another": lambda _: {"aud": [AUDIENCE, "other"]},
    "our audience in a list": lambda _: {"aud": [AUDIENCE]},
    "audience that begins with ours": lambda _: {"aud": f"{AUDIENCE}-2"},
    "other issuer": lambda _: {"iss": "https://evil.example.com"},
    "issuer that begins with Google": lambda _: {"iss": f"{GOOGLE}.evil.example.com"},
    "issuer that ends with Google": lambda _: {"iss": f"https://evil.example.com/{GOOGLE_SHORT}"},
    "issuer without TLS": lambda _: {"iss": "http://accounts.google.com"},
    "issuer in capitals": lambda _: {"iss": GOOGLE.upper()},
    "issuers": lambda _: {"iss": [GOOGLE]},
    "no issuer": lambda _: {"iss": None},
    "other email": lambda _: {"email": "push@other.iam.gserviceaccount.com"},
    "email in capitals": lambda _: {"email": EMAIL.upper()},
    "emails": lambda _: {"email": [EMAIL]},
    "no email": lambda _: {"email": None},
    "unverified": lambda _: {"email_verified": False},
    "verified in words": lambda _: {"email_verified": "true"},
    "verified by one": lambda _: {"email_verified": 1},
    "verification unknown": lambda _: {"email_verified": None},
    "expired": lambda now_s: {"exp": now_s - 31},
    "never expires": lambda _: {"exp": None},
    "expiry in words": lambda _: {"exp": "tomorrow"},
    "expiry true": lambda _: {"exp": True},
    "expiry infinite": lambda _: {"exp": float("inf")},
    "not yet": lambda now_s: {"nbf": now_s + 60},
    "not for ages": lambda _: {"nbf": 10**400},
    "issued in the future": lambda now_s: {"iat": now_s + 60},
    "subject that is a number": lambda _: {"sub": 7},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", BAD_CLAIMS)
async def test_token_that_says_anything_else_is_refused(mode: str, case: str, purse: Purse) -> None:
    key = purse.fakes.push_keys[0]
    claims = purse.claims(**BAD_CLAIMS[case](purse.now_s))
    signed = f"{segment({'alg': 'RS256', 'kid': key.id, 'typ': 'JWT'})}.{segment(claims)}"
    token = f"{signed}.{segment(key.sign(signed.encode()))}"
    async with a_door(mode, purse) as door:
        await is_refused(door, token_for(mode, token))


BAD_HEADERS: Mapping[str, Callable[[Purse], Sequence[str]]] = {
    "no header": lambda _: [],
    "empty header": lambda _: [""],
    "no token": lambda _: ["Bearer"],
    "empty token": lambda _: ["Bearer "],
    "no scheme": lambda purse: [purse.signed()],
    "another scheme": lambda purse: [f"Basic {purse.signed()}"],
    "two tokens in one header": lambda purse: [f"Bearer {purse.signed()} {purse.signed()}"],
    "two tokens with a comma": lambda purse: [f"Bearer {purse.signed()}, Bearer {purse.signed()}"],
    "two headers": lambda purse: [f"Bearer {purse.signed()}", f"Bearer {purse.signed()}"],
    "rubbish": lambda _: ["Bearer rubbish"],
    "letters of other scripts": lambda _: ["Bearer é.é.é"],
    "only two parts": lambda purse: [f"Bearer {purse.signed().rpartition('.')[0]}"],
    "more than three parts": lambda purse: [f"Bearer {purse.signed()}.x"],
    "header that is no JSON": lambda purse: [f"Bearer {purse.forged(b'{', 'x')}"],
    "header that is a list": lambda purse: [f"Bearer {purse.forged([], 'x')}"],
    "header that is deep": lambda purse: [f"Bearer {purse.forged(b'[' * 20_000, 'x')}"],
    "claims that are a list": lambda purse: [f"Bearer {purse.forged({'alg': 'RS256', 'kid': purse.kid}, 'x', [])}"],
    "no alg": lambda purse: [f"Bearer {purse.forged({'kid': purse.kid}, 'x' * 342)}"],
    "alg none": lambda purse: [f"Bearer {purse.signed(alg='none')}"],
    "alg none, signed": lambda purse: [f"Bearer {purse.signed(alg='none')}{'x' * 342}"],
    "alg None": lambda purse: [f"Bearer {purse.forged({'alg': 'None', 'kid': purse.kid})}"],
    "HS256 with the public key": lambda purse: [f"Bearer {purse.signed(alg='HS256')}"],
    "RS512 with Google's key": lambda purse: [f"Bearer {purse.signed(alg='RS512')}"],
}
BAD_SIGNATURES: Mapping[str, Callable[[Purse], str]] = {
    "no signature": lambda purse: f"{purse.signed().rpartition('.')[0]}.",
    "signature cut short": lambda purse: purse.signed()[:-4],
    "signature of another token": lambda purse: (
        f"{purse.signed(sub='x').rpartition('.')[0]}.{purse.signed().rpartition('.')[2]}"
    ),
    "signature removed": lambda purse: as_behind_iam(purse.signed()),
    "other key, same kid": lambda purse: purse.signed(key=purse.stranger),
    "unknown kid": lambda purse: purse.titled(kid="unknown"),
    "no kid": lambda purse: jwt.encode(purse.claims(), purse.fakes.push_keys[0].private, algorithm="RS256"),
    "empty kid": lambda purse: purse.titled(kid=""),
    "kid that is a path": lambda purse: purse.titled(kid="../../../../dev/null"),
    "kid that is an address": lambda purse: purse.titled(kid=f"http://{purse.fakes.host}/oauth2/v3/certs"),
    "kid that is a number": lambda purse: purse.forged({"alg": "RS256", "kid": 1}, "x" * 342),
    "kid that is a list": lambda purse: purse.forged({"alg": "RS256", "kid": [purse.kid]}, "x" * 342),
    "key in its own header": lambda purse: purse.titled(purse.stranger, jwk=purse.stranger.jwk()),
    "address of its own keys": lambda purse: purse.titled(purse.stranger, jku="https://evil.example.com/jwks"),
    "address of its own certificate": lambda purse: purse.titled(purse.stranger, x5u="https://evil.example.com/x5u"),
    "its own certificate": lambda purse: purse.titled(purse.stranger, x5c=["MIIB"]),
    "claims beside the token": lambda purse: purse.titled(purse.stranger, b64=False, crit=["b64"]),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", BAD_HEADERS)
async def test_what_is_no_token_of_google_is_refused(mode: str, case: str, purse: Purse) -> None:
    async with a_door(mode, purse) as door:
        await is_refused(door, *BAD_HEADERS[case](purse))


@pytest.mark.parametrize("case", BAD_HEADERS)
async def test_mark_of_the_platform_does_not_mend_it(case: str, purse: Purse) -> None:
    """Cloud Run would not have let these through; should they come all the same, the mark alone is not enough."""
    async with a_door("iam", purse) as door:
        await is_refused(door, *(as_behind_iam(value) for value in BAD_HEADERS[case](purse)))


@pytest.mark.parametrize("case", BAD_SIGNATURES)
async def test_where_we_check_signatures_a_wrong_one_is_refused(case: str, purse: Purse) -> None:
    async with a_door("oidc", purse) as door:
        await is_refused(door, f"Bearer {BAD_SIGNATURES[case](purse)}")


@pytest.mark.parametrize(
    "mark", ["", "x", REMOVED.lower(), f"{REMOVED}_", f"{REMOVED}.x", f"x.{REMOVED}", f"{REMOVED}=", f"{REMOVED} x"]
)
async def test_behind_iam_no_other_mark_is_taken(mark: str, purse: Purse) -> None:
    async with a_door("iam", purse) as door:
        await is_refused(door, f"Bearer {purse.signed().rpartition('.')[0]}.{mark}")


async def test_behind_iam_a_signature_that_is_still_there_is_refused(purse: Purse) -> None:
    """However genuine: Cloud Run takes every signature away that it has checked."""
    async with a_door("iam", purse) as door:
        await is_refused(door, f"Bearer {purse.signed()}")


async def test_behind_iam_a_token_that_cloud_run_did_not_look_at_is_refused(purse: Purse) -> None:
    """With X-Serverless-Authorization it checks that one, and hands on Authorization as the caller wrote it."""
    async with a_door("iam", purse) as door:
        mine = token_for("iam", purse.signed())
        await is_refused(door, mine, serverless=token_for("iam", purse.signed(email="me@example.com")))
        assert (await door.knock(mine)).status_code == 204


@pytest.mark.parametrize("mode", MODES)
async def test_half_a_minute_of_clock_skew_is_forgiven(mode: str, purse: Purse) -> None:
    async with a_door(mode, purse) as door:
        for token in (purse.signed(exp=purse.now_s - 25), purse.signed(nbf=purse.now_s + 25, iat=purse.now_s + 25)):
            assert (await door.knock(token_for(mode, token))).status_code == 204


@pytest.mark.parametrize("mode", MODES)
async def test_token_that_was_let_in_is_refused_when_it_has_expired(mode: str, purse: Purse) -> None:
    async with a_door(mode, purse) as door:
        token = token_for(mode, purse.signed())
        assert (await door.knock(token)).status_code == 204
        purse.clock.advance(3700)
        await is_refused(door, token, heard=1)


async def test_signature_of_a_key_that_google_shows_since_a_minute_ago_is_taken(purse: Purse) -> None:
    async with a_door("oidc", purse) as door:
        assert (await door.knock(f"Bearer {purse.signed()}")).status_code == 204
        before = purse.signed()
        purse.fakes.rotate_push_keys()
        purse.clock.advance(61)
        assert (await door.knock(f"Bearer {purse.signed()}")).status_code == 204
        assert (await door.knock(f"Bearer {before}")).status_code == 204


async def test_while_googles_keys_cannot_be_fetched_a_push_shall_come_again(purse: Purse) -> None:
    async with a_door("oidc", purse, push_certs_url=f"http://{purse.fakes.host}/nowhere") as door:
        answer = await door.knock(f"Bearer {purse.signed()}")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert door.heard == []


async def test_another_issuer_is_only_itself(purse: Purse) -> None:
    async with a_door("oidc", purse, push_issuer="https://darkroom.local") as door:
        assert (await door.knock(f"Bearer {purse.signed(iss='https://darkroom.local')}")).status_code == 204
        for issuer in (GOOGLE, GOOGLE_SHORT, "darkroom.local"):
            await is_refused(door, f"Bearer {purse.signed(iss=issuer)}", heard=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("push_auth", None),
        ("push_audience", None),
        ("push_audience", ""),
        ("push_issuer", ""),
        ("push_email", None),
        ("push_email", ""),
    ],
)
async def test_private_app_that_would_be_open_does_not_start(name: str, value: str | None, purse: Purse) -> None:
    with pytest.raises(SettingsError, match=name.upper()):
        async with a_door("oidc", purse, **{name: value}):
            pass


@pytest.mark.parametrize("value", [None, ""])
def test_behind_iam_means_on_cloud_run(value: str | None, purse: Purse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("K_SERVICE", raising=False)
    if value is not None:
        monkeypatch.setenv("K_SERVICE", value)
    settings = Settings(push_auth="iam", push_audience=AUDIENCE, push_email=EMAIL)
    with pytest.raises(SettingsError, match="PUSH_AUTH=oidc"):
        Pushes(settings, PushKeys(settings.push_certs_url, purse.clock).public_key, purse.clock)


async def is_refused(door: Door, *authorizations: str, heard: int = 0, serverless: str | None = None) -> None:
    answer = await door.knock(*authorizations, serverless=serverless)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not any(value.rpartition(" ")[2] in answer.text for value in authorizations if value.count("."))
    assert len(door.heard) == heard
