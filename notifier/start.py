"""What `uvicorn --factory` starts on Google Cloud: the services of this package, imported behind their open ports."""

from common.google.start import behind_port

api = behind_port("notifier.api")
push = behind_port("notifier.push")
