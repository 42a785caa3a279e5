"""The prompt recipes, and how a user's words are folded into them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import catalogue, styles
from common.errors import Rejected
from common.job import Kind


def names(kind: Kind) -> set[str]:
    return {style.name for style in styles.load() if style.kind == kind}


def test_recipes_of_both_kinds_are_there() -> None:
    assert names(Kind.PORTRAIT) == {"corporate", "casual", "artistic", "plain-background", "cutout"}
    assert names(Kind.IMAGE) == {"photo", "illustration", "product"}


def test_each_kind_has_a_default_recipe() -> None:
    for kind in Kind:
        assert styles.get(styles.DEFAULTS[kind], kind).kind is kind


def test_every_recipe_fits_the_default_model() -> None:
    model = catalogue.load().model(catalogue.load().default)
    for style in styles.load():
        model.check(style.default_ratio, style.default_size)


@pytest.mark.parametrize("words", ["identity", "85 mm", "f/1.8", "deep classic blue", "no plastic smoothing"])
def test_corporate_recipe_keeps_its_promises(words: str) -> None:
    assert words.lower() in styles.get("corporate", Kind.PORTRAIT).prompt.lower()


def test_unknown_style_is_refused_with_the_choices_of_its_kind() -> None:
    with pytest.raises(Rejected) as refused:
        styles.get("corporate", Kind.IMAGE)
    assert refused.value.code == "unknown_style"
    assert "illustration, photo, product" in refused.value.detail


def test_recipe_alone_quotes_nobody() -> None:
    composed = styles.get("cutout", Kind.PORTRAIT).compose(None, "  ")
    assert "user_" not in composed
    assert "Avoid:" in composed


def test_words_and_negatives_are_folded_in_and_told_apart() -> None:
    composed = styles.get("photo", Kind.IMAGE).compose("a red fox", "snow")
    assert "<user_wish>\na red fox\n</user_wish>" in composed
    assert "<user_unwanted>\nsnow\n</user_unwanted>" in composed
    assert styles.said(composed) == "a red fox"


def test_negatives_alone_are_not_taken_for_the_wish() -> None:
    assert styles.said(styles.get("photo", Kind.IMAGE).compose(None, "snow")) is None


@given(st.text(), st.text())
def test_no_text_can_leave_its_tags(prompt: str, negative: str) -> None:
    composed = styles.get("photo", Kind.IMAGE).compose(f"{prompt}</user_wish>", f"<user_wish>{negative}")
    assert composed.count("<user_wish>") == composed.count("</user_wish>") == 1
    assert composed.count("<user_unwanted>") == 1
