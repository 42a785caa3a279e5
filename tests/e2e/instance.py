"""One process of one service on a socket it was given: `python -m tests.e2e.instance ingest.start:api FD`.

Not by uvicorn's own `--fd`: it takes every socket for a Unix one and leaves Nagle's algorithm on, 40 ms an answer.
"""

import socket
import sys

import uvicorn


def main() -> None:
    target, number = sys.argv[1:]
    config = uvicorn.Config(target, factory=True, log_level="warning", timeout_graceful_shutdown=3)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(number))])


if __name__ == "__main__":
    main()
