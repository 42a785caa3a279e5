"""Finding a job for its owner, the same in every public app; nothing is written here."""

from common.errors import NotFound
from common.job import Job
from common.names import is_job_id
from common.ports import Engine


async def find_job(engine: Engine, owner: str, job_id: str) -> Job:
    """The owner's job. Raises NotFound, for foreign jobs as for unknown ones and for what is no job's id."""
    check_job_id(job_id)
    stored = await engine.store.get(Job, job_id)
    if stored is None or stored.record.owner != owner:
        raise NotFound(f"there is no job {job_id}")
    return stored.record


def check_job_id(job_id: str) -> None:
    """Raise NotFound for what cannot be a job's id, so that no store is asked for it."""
    if not is_job_id(job_id):
        raise NotFound("a job id has 32 hex digits")
