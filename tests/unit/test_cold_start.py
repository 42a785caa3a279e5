"""What a starting ingest-api must not have loaded yet: each of these costs every cold start 20 to 300 ms."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LATE = ("PIL", "aiohttp", "cryptography", "google.api_core", "google.auth", "google.cloud", "grpc", "httpx2", "jwt")


def test_ingest_api_starts_on_google_cloud_without_what_only_requests_need() -> None:
    program = (
        f"import sys, ingest.api; ingest.api.app();print(*[name for name in {LATE!r} if name in sys.modules], sep=', ')"
    )
    environment = {"PATH": os.environ["PATH"], "GOOGLE_CLOUD_PROJECT": "cold", "JWT_SECRET": "c" * 32}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip(), f"import these where they are used: {done.stdout}"
