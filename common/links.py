"""Links to results, signed for whoever is shown a job: the same link again while most of its life is left.

They are kept here and not behind the port, which promises each signature the life that it is asked for. On Google
Cloud a signature is a request to IAM, of which a project has 60,000 a minute (https://cloud.google.com/iam/quotas): one
caller who asks again and again would use up everybody's. A kept link to an object that was deleted leads to a 404.
"""

from common.kept import Kept
from common.ports import Engine
from common.settings import Settings

links_max = 10_000
"""Of one instance; they take 13 MB."""


class ResultLinks:
    """Signed GETs of objects in the bucket of results, kept for a quarter of their life. None is ever logged."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._blobs = engine.blobs
        self._bucket = settings.results_bucket
        self._expires_s = settings.link_s
        self._kept: Kept[str] = Kept(engine.now, keep_s=settings.link_s / 4, entries_max=links_max)

    async def url(self, name: str) -> str:
        """Where anyone may fetch the object for three quarters of `link_s` or longer. Raises Unavailable."""
        return await self._kept.get(name, lambda: self._sign(name))

    async def _sign(self, name: str) -> str:
        return (await self._blobs.sign_get(self._bucket, name, expires_s=self._expires_s)).url
