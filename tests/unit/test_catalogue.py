"""The catalogue of models: what it holds, and how it refuses."""

from datetime import date
from decimal import Decimal
from typing import get_args

import pytest

from common import catalogue
from common.errors import Rejected


def test_default_model_draws_fourteen_ratios_at_three_sizes() -> None:
    model = catalogue.load().model(catalogue.load().default)
    assert model.name == "gemini-nano-banana-2.1"
    assert set(model.ratios) == set(get_args(catalogue.Ratio))
    assert model.sizes == ("1K", "2K", "4K")


def test_every_model_has_a_price_that_rises_with_size() -> None:
    for model in catalogue.load().models:
        prices = [model.price_usd(size) for size in model.sizes]
        assert prices == sorted(prices)
        assert all(Decimal("0.01") < price < 1 for price in prices), model.name


def test_prices_are_exact_decimals() -> None:
    assert catalogue.load().model("gemini-nano-banana-2.1").price_usd("1K") == Decimal("0.0336")


def test_unknown_model_is_refused_with_the_choices() -> None:
    with pytest.raises(Rejected) as refused:
        catalogue.load().model("gemini-9")
    assert refused.value.code == "unknown_model"
    assert all(model.name in refused.value.detail for model in catalogue.load().models)


def test_unsupported_ratio_is_refused_with_the_choices() -> None:
    with pytest.raises(Rejected) as refused:
        catalogue.load().model("gemini-3-pro-image").check("1:8", "1K")
    assert refused.value.code == "unsupported_ratio"
    assert "21:9" in refused.value.detail


@pytest.mark.parametrize("size", ["512", "8K", "1k", ""])
def test_unsupported_size_is_refused_with_the_choices(size: str) -> None:
    model = catalogue.load().model("gemini-nano-banana-2.1")
    for refusing in (lambda: model.check("1:1", size), lambda: model.price_usd(size)):
        with pytest.raises(Rejected) as refused:
            refusing()
        assert refused.value.code == "unsupported_size"
        assert "1K, 2K, 4K" in refused.value.detail


def test_supported_picture_passes() -> None:
    catalogue.load().model("gemini-2.5-flash-image").check("3:4", "1K")


def test_retired_model_stays_selectable_and_warns_from_its_day_on() -> None:
    model = catalogue.load().model("gemini-2.5-flash-image")
    assert model.warning(date(2026, 10, 1)) is None
    assert "2026-10-02" in (model.warning(date(2026, 10, 2)) or "")
    assert catalogue.load().model("gemini-nano-banana-2.1").warning(date(2030, 1, 1)) is None


def test_catalogue_is_read_once() -> None:
    assert catalogue.load() is catalogue.load()
