"""The official Pub/Sub and Firestore emulators as processes of the run: found with the Cloud SDK, started, stopped."""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

RULES = Path(__file__).parents[2] / "firestore.rules"
start_s_max = 60
_stop_s_max = 10


class NoEmulators(Exception):
    """The emulators are not here; the text says what to install."""


@dataclass(frozen=True, slots=True)
class Emulators:
    """Both, running. Each test takes a project id of its own, so nothing is ever wiped between tests."""

    firestore_host: str
    pubsub_host: str

    @property
    def environment(self) -> dict[str, str]:
        """What leads Google's clients to them."""
        return {"FIRESTORE_EMULATOR_HOST": self.firestore_host, "PUBSUB_EMULATOR_HOST": self.pubsub_host}

    def put_rules(self, project: str) -> None:
        """Let firestore.rules hold in one project from now on; without any, everything is open to everybody.

        Google's server clients pass by them here as there. Raises HTTPStatusError if they do not compile.
        """
        files = [{"name": RULES.name, "content": RULES.read_text()}]
        url = f"http://{self.firestore_host}/emulator/v1/projects/{project}:securityRules"
        httpx2.put(url, json={"rules": {"files": files}}, trust_env=False).raise_for_status()


@contextmanager
def emulators_running(folder: Path) -> Iterator[Emulators]:
    """Start both at once on free loopback ports, logging into `folder`. Raises NoEmulators."""
    platform = _platform()
    java = shutil.which("java")
    if java is None:
        raise NoEmulators("the emulators run on Java, and there is none; install a Java 17 runtime")
    pubsub = sorted(platform.glob("pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"))
    firestore = platform / "cloud-firestore-emulator" / "cloud-firestore-emulator.jar"
    if not pubsub or not firestore.exists():
        raise NoEmulators(
            "the Cloud SDK lacks emulators; install its components pubsub-emulator and firestore emulator"
        )
    lean = [java, "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    with ExitStack() as stack:
        firestore_host, pubsub_host = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{_free_port()}"
        _start(stack, folder / "pubsub.log", [*lean, "-jar", str(pubsub[-1]), *_address(pubsub_host)])
        main = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
        _start(
            stack,
            folder / "firestore.log",
            [*lean, "-Duser.language=en", "-cp", str(firestore), main, "start", *_address(firestore_host)],
        )
        for host, log in ((pubsub_host, "pubsub.log"), (firestore_host, "firestore.log")):
            _wait_until_ready(host, folder / log)
        yield Emulators(firestore_host, pubsub_host)


def _platform() -> Path:
    """The folder of the Cloud SDK where its components lie."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        raise NoEmulators("the Cloud SDK is not installed; it brings the emulators of Pub/Sub and Firestore")
    beside = Path(gcloud).resolve().parents[1] / "platform"
    if beside.is_dir():
        return beside
    asked = subprocess.run(
        [gcloud, "info", "--format=value(installation.sdk_root)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return Path(asked.stdout.strip()) / "platform"


def _start(stack: ExitStack, log: Path, command: Sequence[str]) -> None:
    # Their own group, so that Ctrl-C ends the tests first and the emulators in good order after them.
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    stack.callback(_stop, process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_stop_s_max)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_stop_s_max)


def _address(host: str) -> list[str]:
    name, _, port = host.partition(":")
    return [f"--host={name}", f"--port={port}"]


def _free_port() -> int:
    # The emulators report port 0 as 0, so a port must be chosen for them.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(host: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + start_s_max
    while time.monotonic() < until:
        with suppress(OSError):
            opener.open(f"http://{host}/", timeout=1).close()
            return
        time.sleep(0.05)
    raise NoEmulators(f"the emulator at {host} did not start within {start_s_max} s:\n{log.read_text()[-2000:]}")


def must_be_there() -> bool:
    """Whether a missing emulator is a failure and no reason to skip."""
    return os.environ.get("DARKROOM_REQUIRE_EMULATORS") == "1"
