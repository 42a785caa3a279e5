"""Google's metadata server, IAM Credentials API and key pages, as one HTTP server with keys made for this run.

It takes only what the real ones take: the metadata flavour header, tokens that it gave out, its own account.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from jwt.algorithms import RSAAlgorithm

# Not under gserviceaccount.com: for such an account google-auth asks the real IAM, in a thread, which regions it has.
EMAIL = "darkroom@fakes.iam.example.com"
PROJECT = "fakes"
ISSUER = "https://accounts.google.com"
Answer = tuple[int, Mapping[str, str], bytes]
_silence_s_max = 30


class Key:
    """An RSA key under an id."""

    def __init__(self) -> None:
        self.id = secrets.token_hex(8)
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def public(self) -> rsa.RSAPublicKey:
        return self.private.public_key()

    def jwk(self) -> dict[str, Any]:
        return {**RSAAlgorithm.to_jwk(self.public, as_dict=True), "kid": self.id, "alg": "RS256", "use": "sig"}

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data, padding.PKCS1v15(), hashes.SHA256())


class Fakes:
    """What tests know of the server: where it is, its keys, what was asked, and how its next answers shall fail.

    `faults` are statuses that IAM answers first, `metadata_faults` the same for tokens; `calls` counts answered
    requests by kind. `token_life_s` and `certs_life_s` are told with tokens and push certificates. While `answering` is
    cleared, the metadata server takes requests and says nothing.
    """

    def __init__(self, host: str, empty_folder: str) -> None:
        self.host = host
        self.email = EMAIL
        self.signer = Key()
        self.push_keys = [Key()]
        self.tokens: set[str] = set()
        self.faults: deque[int] = deque()
        self.metadata_faults: deque[int] = deque()
        self.answering = threading.Event()
        self.answering.set()
        self.calls: Counter[str] = Counter()
        self.token_life_s = 3600
        self.certs_life_s = 20_000
        self._empty_folder = empty_folder

    @property
    def settings(self) -> dict[str, str]:
        """Settings that lead here."""
        return {
            "iam_credentials_url": f"http://{self.host}",
            "push_certs_url": f"http://{self.host}/oauth2/v3/certs",
        }

    @property
    def metadata_environment(self) -> dict[str, str]:
        """What leads Application Default Credentials here, also where gcloud knows a person."""
        return {
            "GCE_METADATA_HOST": self.host,
            "GCE_METADATA_IP": self.host,
            "CLOUDSDK_CONFIG": self._empty_folder,
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"])),
        }

    @property
    def environment(self) -> dict[str, str]:
        """Both, for processes of their own."""
        return self.metadata_environment | {name.upper(): value for name, value in self.settings.items()}

    def lead(self, environment: pytest.MonkeyPatch) -> None:
        """Have Application Default Credentials of this process come from here."""
        for name, value in self.metadata_environment.items():
            environment.setenv(name, value)
        from google.auth.compute_engine import _metadata

        # google-auth reads this variable when it is imported, which may have happened before.
        environment.setattr(_metadata, "_GCE_METADATA_HOST", self.host)

    def rotate_push_keys(self) -> None:
        """Sign pushes with a new key from now on; the page shows the old one too, as Google's does for days."""
        self.push_keys.insert(0, Key())

    def mint_push_token(
        self, claims: Mapping[str, object], *, kid: str | None = None, alg: str = "RS256", key: Key | None = None
    ) -> str:
        """A push's token with these claims over the usual issuer and times; a claim of None is left out.

        `alg` may be any that PyJWT signs with RSA, `none`, or `HS256` with the public key for a secret, as forgers do.
        """
        now = int(time.time())
        usual = {"iss": ISSUER, "sub": "1234567890", "iat": now, "exp": now + 3600}
        body = {name: claim for name, claim in {**usual, **claims}.items() if claim is not None}
        key = key or self.push_keys[0]
        kid = key.id if kid is None else kid
        if alg.startswith("RS"):
            return jwt.encode(body, key.private, algorithm=alg, headers={"kid": kid})
        signed = f"{_segment({'alg': alg, 'typ': 'JWT', 'kid': kid})}.{_segment(body)}"
        if alg == "none":
            return f"{signed}."
        public = key.public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return f"{signed}.{_base64url(hmac.digest(public, signed.encode(), hashlib.sha256))}"


@contextmanager
def fakes_running() -> Iterator[Fakes]:
    """Start it on a free loopback port, in a thread."""
    with tempfile.TemporaryDirectory() as folder:
        server = _Server(("127.0.0.1", 0), BaseHTTPRequestHandler)
        fakes = Fakes(f"127.0.0.1:{server.server_address[1]}", folder)
        server.RequestHandlerClass = partial(_Handler, fakes)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="fakes")
        thread.start()
        try:
            yield fakes
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # The sixth of many who come at once would wait a second.
    request_queue_size = 512


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A small answer in one packet: headers and body written apart wait for each other (Nagle, 40 ms).
    wbufsize = -1
    disable_nagle_algorithm = True

    def __init__(self, fakes: Fakes, *arguments: Any) -> None:
        self._fakes = fakes
        super().__init__(*arguments)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/" or url.path.startswith("/computeMetadata/v1/"):
            self._send(self._metadata(url.path.removeprefix("/computeMetadata/v1"), url.query))
        elif url.path == "/oauth2/v3/certs":
            self._fakes.calls["certs"] += 1
            age = {"cache-control": f"public, max-age={self._fakes.certs_life_s}, must-revalidate, no-transform"}
            self._send(_json({"keys": [key.jwk() for key in self._fakes.push_keys]}, headers=age))
        elif url.path == f"/service_accounts/v1/jwk/{self._fakes.email}":
            # https://www.googleapis.com/service_accounts/v1/jwk/… shows every account's public keys like this.
            self._send(_json({"keys": [self._fakes.signer.jwk()]}))
        elif url.path == "/tokeninfo":
            known = parse_qs(url.query).get("access_token", [""])[0] in self._fakes.tokens
            self._send(
                _json({"email": self._fakes.email} if known else {"error": "invalid_token"}, 200 if known else 400)
            )
        else:
            self._send(_refusal(404))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        called = re.fullmatch(r"/v1/projects/-/serviceAccounts/([^/:]+):(signBlob|signJwt)", urlsplit(self.path).path)
        self._send(_refusal(404) if called is None else self._sign(called[1], called[2], body))

    def _metadata(self, path: str, query: str) -> Answer:
        """https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys"""
        fakes = self._fakes
        fakes.answering.wait(_silence_s_max)
        if self.headers.get("metadata-flavor") != "Google":
            return _refusal(403)
        if fakes.metadata_faults and path != "/":
            return _refusal(fakes.metadata_faults.popleft())
        account = path.removeprefix("/instance/service-accounts/").replace(fakes.email, "default")
        match path, account:
            case "/", _:
                return _text("computeMetadata/\n")
            case "/project/project-id", _:
                return _text(PROJECT)
            case _, "default/" if "recursive=true" in query:
                return _json({"email": fakes.email, "aliases": ["default"], "scopes": ["cloud-platform"]}, flavour=True)
            case _, "default/email":
                return _text(fakes.email)
            case _, "default/token":
                fakes.calls["token"] += 1
                token = f"ya29.fake-{secrets.token_urlsafe(24)}"
                fakes.tokens.add(token)
                told = {"access_token": token, "expires_in": fakes.token_life_s, "token_type": "Bearer"}
                return _json(told, flavour=True)
        return _refusal(404)

    def _sign(self, email: str, method: str, body: bytes) -> Answer:
        """https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts"""
        fakes = self._fakes
        fakes.calls[method] += 1
        if fakes.faults:
            return _refusal(fakes.faults.popleft())
        if self.headers.get("authorization", "").removeprefix("Bearer ") not in fakes.tokens:
            return _refusal(401)
        if email != fakes.email:
            return _refusal(403)
        key, payload = fakes.signer, json.loads(body)["payload"]
        if method == "signBlob":
            signature = key.sign(base64.b64decode(payload, validate=True))
            return _json({"keyId": key.id, "signedBlob": base64.b64encode(signature).decode()})
        token = jwt.encode(json.loads(payload), key.private, algorithm="RS256", headers={"kid": key.id})
        return _json({"keyId": key.id, "signedJwt": token})

    def _send(self, answer: Answer) -> None:
        status, headers, body = answer
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: who tests looks at `calls`."""


def _json(
    value: object, status: int = 200, *, headers: Mapping[str, str] | None = None, flavour: bool = False
) -> Answer:
    told = {"content-type": "application/json", **(headers or {})}
    return status, told | ({"metadata-flavor": "Google"} if flavour else {}), json.dumps(value).encode()


def _text(text: str) -> Answer:
    return 200, {"content-type": "application/text", "metadata-flavor": "Google"}, text.encode()


def _refusal(status: int) -> Answer:
    return _json({"error": {"code": status, "message": "refused by the fakes"}}, status)


def _segment(value: object) -> str:
    return _base64url(json.dumps(value).encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
