"""Everything that can be set for a service, read once from the environment; nothing is decided here."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1024 * 1024


class SettingsError(Exception):
    """The environment cannot be used as it is; the text lists every problem with an example."""


class Settings(BaseSettings):
    """Read from variables of the same name in capitals. Build it with `load`, which reports all problems together.

    No `repr` shows a secret. There is no default for how pushes are authenticated: a service without it
    would be open.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    # Where clients find us; links in answers start with these.
    public_url: str = Field("http://127.0.0.1:8080", examples=["https://api.example.com"])
    notifier_url: str = Field("", examples=["https://events.example.com"])
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field((), examples=["https://app.example.com"])

    # Who may call. `local_owner` is set by `darkroom serve` on loopback, never on a server.
    local_owner: str | None = Field(None, examples=["local:me"])
    jwt_secret: SecretStr | None = Field(None, examples=["32 random bytes or more"], min_length=32)
    push_auth: Literal["iam", "oidc"] | None = Field(None, examples=["oidc"])
    push_audience: str | None = Field(None, examples=["darkroom-processor"])
    push_issuer: str = Field("https://accounts.google.com")
    push_email: str | None = Field(None, examples=["push@my-project.iam.gserviceaccount.com"])

    # Google Cloud, where the services run there; a laptop needs none of it. There is no default project.
    google_cloud_project: str | None = Field(None, examples=["my-project"])
    firestore_database: str = Field("(default)", examples=["darkroom"])
    signer_email: str | None = Field(None, examples=["api@my-project.iam.gserviceaccount.com"])
    storage_url: str = Field("https://storage.googleapis.com", examples=["https://storage.googleapis.com"])
    iam_credentials_url: str = Field("https://iamcredentials.googleapis.com")
    push_certs_url: str = Field("https://www.googleapis.com/oauth2/v3/certs")

    # Buckets. Only `uploads_bucket` announces what arrives.
    uploads_bucket: str = "uploads"
    inputs_bucket: str = "inputs"
    results_bucket: str = "results"

    # Intake.
    upload_bytes_max: int = Field(10 * MIB, ge=1, le=100 * MIB)
    upload_window_s: int = Field(15 * 60, ge=1)
    upload_grace_s: int = Field(10 * 60, ge=0)
    jpeg_pixels_max: int = Field(50_000_000, ge=1)
    png_pixels_max: int = Field(30_000_000, ge=1)
    webp_pixels_max: int = Field(16_000_000, ge=1)
    input_edge_px: int = Field(512, ge=64, le=4096)
    image_timeout_s: float = Field(10.0, gt=0)
    image_memory_bytes_max: int = Field(1024 * MIB, ge=256 * MIB)
    image_workers: int = Field(2, ge=1, le=64)
    scratch_dir: Path | None = Field(None, examples=["/var/lib/darkroom/scratch"])

    # The model.
    model: str = Field("gemini-nano-banana-2.1")
    gemini_api_key: SecretStr | None = Field(None, examples=["AIza…"])
    gemini_base_url: str | None = Field(None, examples=["http://127.0.0.1:9000"])
    vertex_project: str | None = Field(None, examples=["my-project"])
    vertex_location: str | None = Field(None, examples=["global"])
    stand_in: bool = False
    model_deadline_s: float = Field(120.0, gt=0)
    lease_s: int = Field(150, ge=1)
    paid_calls_max: int = Field(2, ge=1, le=10)
    calls_in_flight_max: int = Field(32, ge=1)

    # The job.
    job_limit_s: int = Field(30 * 60, ge=1)
    results_days: int = Field(30, ge=1)
    link_s: int = Field(3600, ge=60, le=3600)
    retell_s: int = Field(60, ge=1)

    # Telling.
    webhook_secret: SecretStr | None = Field(None, examples=["32 random bytes or more"], min_length=32)
    webhook_loopback: bool = False
    webhook_timeout_s: float = Field(15.0, gt=0)
    stream_s: int = Field(15 * 60, ge=1)
    heartbeat_s: int = Field(15, ge=1)

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, object]) -> dict[str, object]:
        origins = values.get("cors_origins")
        if isinstance(origins, str):
            values = {**values, "cors_origins": tuple(o.strip().rstrip("/") for o in origins.split(",") if o.strip())}
        return values

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        # Loaded here, because most of what reads settings needs no catalogue.
        from common import catalogue

        models = [known.name for known in catalogue.load().models]
        if model not in models:
            raise ValueError(f"must be one of {', '.join(models)}")
        return model

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        problems = []
        if not self.model_deadline_s < self.lease_s:
            problems.append("MODEL_DEADLINE_S must be below LEASE_S, e.g. 120 and 150")
        for name in ("public_url", "notifier_url"):
            if getattr(self, name) and not _is_base(getattr(self, name)):
                problems.append(
                    f"{name.upper()} must be an http(s) address without user name, query or fragment,"
                    " e.g. https://api.example.com"
                )
        if "*" in self.cors_origins:
            problems.append("CORS_ORIGINS must list origins; `*` would let any page use a caller's token")
        if len(set(self.buckets)) != 3:
            problems.append("UPLOADS_BUCKET, INPUTS_BUCKET and RESULTS_BUCKET must differ: only uploads may notify")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @cached_property
    def events_url(self) -> str:
        """Origin of the notifier's public app; the same as `public_url` where one server answers both."""
        return (self.notifier_url or self.public_url).rstrip("/")

    @cached_property
    def buckets(self) -> tuple[str, str, str]:
        """Uploads, inputs, results."""
        return self.uploads_bucket, self.inputs_bucket, self.results_bucket

    @cached_property
    def api_url(self) -> str:
        """Origin of the ingest public app."""
        return self.public_url.rstrip("/")


def load(**overrides: object) -> Settings:
    """Settings from the environment, `overrides` first. Raises SettingsError naming every variable that is wrong."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as exc:
        raise SettingsError("\n".join(_explain(exc))) from exc


def _is_base(text: str) -> bool:
    """Whether a link may be made by putting a path behind it; a path before ours is fine."""
    try:
        url = urlsplit(text)
        return (
            url.scheme in {"http", "https"}
            and bool(url.hostname)
            and url.port != 0
            and not any(c in text for c in "@?#")
            and text.isprintable()
            and " " not in text
        )
    except ValueError:
        return False


def _explain(error: ValidationError) -> list[str]:
    lines = ["The configuration cannot be used:"]
    for problem in error.errors(include_input=False, include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        field = Settings.model_fields.get(name)
        example = f", e.g. {name.upper()}={field.examples[0]}" if field and field.examples else ""
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "too_short":
            text = f"must have {problem['ctx']['min_length']} characters or more; `openssl rand -hex 32` makes such"
            example = ""
        lines.append(f"  {name.upper()}: {text}{example}" if name else f"  {text}")
    return lines
