"""What `uvicorn --factory` starts on Google Cloud: the services of this package, imported behind their open ports."""

from common.google.start import behind_port

api = behind_port("ingest.api")
push = behind_port("ingest.push")
