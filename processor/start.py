"""What `uvicorn --factory` starts on Google Cloud: the service of this package, imported behind its open port."""

from common.google.start import behind_port

push = behind_port("processor.push")
