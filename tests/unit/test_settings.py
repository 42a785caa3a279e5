"""Settings: read once from the environment, wrong ones named together, secrets never shown."""

import pytest
from pydantic import ValidationError

from common.settings import MIB, Settings, SettingsError, load


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_defaults_are_the_designs() -> None:
    settings = load()
    assert settings.model == "gemini-nano-banana-2.1"
    assert settings.upload_bytes_max == 10 * MIB
    assert (settings.jpeg_pixels_max, settings.png_pixels_max, settings.webp_pixels_max) == (50e6, 30e6, 16e6)
    assert (settings.upload_window_s, settings.upload_grace_s) == (900, 600)
    assert settings.model_deadline_s < settings.lease_s < 600
    assert (settings.paid_calls_max, settings.job_limit_s, settings.results_days) == (2, 1800, 30)
    assert settings.link_s <= 3600


def test_nothing_leads_to_google_or_opens_a_door_unless_it_is_set() -> None:
    settings = load()
    for name in ("gemini_api_key", "vertex_project", "jwt_secret", "push_auth", "push_audience", "push_email"):
        assert getattr(settings, name) is None
    assert settings.local_owner is None
    assert settings.cors_origins == ()
    assert settings.webhook_loopback is False
    assert settings.stand_in is False


def test_variables_are_named_like_the_fields_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPLOADS_BUCKET", "my-uploads")
    monkeypatch.setenv("LEASE_S", "200")
    monkeypatch.setenv("CORS_ORIGINS", " https://a.example.com/ ,https://b.example.com,, ")
    settings = load()
    assert (settings.uploads_bucket, settings.lease_s) == ("my-uploads", 200)
    assert settings.cors_origins == ("https://a.example.com", "https://b.example.com")


def test_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEASE_S", "200")
    assert load(lease_s=300).lease_s == 300


def test_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEASE_S", "")
    monkeypatch.setenv("GEMINI_API_KEY", "")
    assert load().lease_s == 150
    assert load().gemini_api_key is None


def test_all_wrong_variables_are_named_together_with_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEASE_S", "soon")
    monkeypatch.setenv("PUSH_AUTH", "trust")
    monkeypatch.setenv("JWT_SECRET", "short")
    with pytest.raises(SettingsError) as error:
        load()
    text = str(error.value)
    assert all(name in text for name in ("LEASE_S", "PUSH_AUTH", "JWT_SECRET"))
    assert "PUSH_AUTH=oidc" in text
    assert "short" not in text.replace("shorter", "")


def test_what_does_not_fit_together_is_named_together() -> None:
    with pytest.raises(SettingsError) as error:
        load(
            model_deadline_s=150,
            lease_s=150,
            public_url="ftp://example.com",
            notifier_url="events.example.com",
            cors_origins="*",
            uploads_bucket="one",
            results_bucket="one",
        )
    for name in ("MODEL_DEADLINE_S", "PUBLIC_URL", "NOTIFIER_URL", "CORS_ORIGINS", "RESULTS_BUCKET"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("upload_bytes_max", 0),
        ("link_s", 59),
        ("link_s", 3601),
        ("heartbeat_s", 0.4),
        ("paid_calls_max", 0),
        ("retell_s", 0),
        ("model_deadline_s", 0),
        ("image_workers", 0),
        ("log_level", "LOUD"),
        ("jwt_secret", "x" * 31),
        ("webhook_secret", "x" * 31),
    ],
)
def test_value_out_of_bounds_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name.upper()):
        load(**{name: value})


def test_no_representation_shows_a_secret() -> None:
    secrets = {"jwt_secret": "j" * 40, "webhook_secret": "w" * 40, "gemini_api_key": "AIzaSecretSecret"}
    settings = load(**secrets)
    for text in (repr(settings), str(settings), f"{settings}", settings.model_dump_json(), repr(settings.model_dump())):
        assert not any(secret in text for secret in secrets.values())


def test_error_about_one_variable_shows_no_other_ones_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AIzaSecretSecret")
    monkeypatch.setenv("JWT_SECRET", "j" * 40)
    with pytest.raises(SettingsError) as error:
        load(lease_s=1)
    assert "AIzaSecretSecret" not in str(error.value)
    assert "jjjj" not in str(error.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        setattr(load(), "lease_s", 1)  # noqa: B010 - mypy would not let us try


def test_urls_lose_their_last_slash_and_the_notifier_may_share_one() -> None:
    alone = load(public_url="https://api.example.com/")
    assert (alone.api_url, alone.events_url) == ("https://api.example.com", "https://api.example.com")
    both = load(public_url="https://api.example.com", notifier_url="https://events.example.com/")
    assert both.events_url == "https://events.example.com"


def test_buckets_must_differ_because_only_one_may_notify() -> None:
    assert load().buckets == ("uploads", "inputs", "results")
    for name in ("uploads_bucket", "inputs_bucket", "results_bucket"):
        other = "uploads" if name != "uploads_bucket" else "inputs"
        with pytest.raises(SettingsError, match="differ"):
            load(**{name: other})


@pytest.mark.parametrize("name", ["public_url", "notifier_url"])
@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@api.example.com",
        "https://@api.example.com",
        "https://api.example.com/?key=1",
        "https://api.example.com?",
        "https://api.example.com/#top",
        "https://api.example.com#",
        "https://",
        "https://:8080",
        "https://api.example.com:99999",
        "https://[::1",
        "https://api.example.com/a b",
        "https:/api.example.com",
    ],
)
def test_address_that_is_more_than_origin_and_path_is_refused(name: str, url: str) -> None:
    with pytest.raises(SettingsError, match=name.upper()) as error:
        load(**{name: url})
    assert "secret" not in str(error.value)


def test_address_may_have_a_port_and_a_path_before_ours() -> None:
    for url in ("http://[::1]:8080", "https://example.com/darkroom", "http://127.0.0.1:8080"):
        assert load(public_url=url).api_url == url


def test_unknown_model_is_named_together_with_the_others() -> None:
    with pytest.raises(SettingsError) as error:
        load(model="gpt-image", lease_s="abc")
    assert "MODEL: must be one of gemini-nano-banana-2.1" in str(error.value)
    assert "LEASE_S" in str(error.value)
