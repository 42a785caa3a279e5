"""The models we may ask, read from models.toml: sizes, ratios, prices, rates, retirement. Nothing here calls one."""

import tomllib
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.errors import Rejected

# The ratios that ImageConfig.aspect_ratio accepts, width first (google-genai 3.4.0); not every model draws all.
Ratio = Literal[
    "1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9", "1:4", "4:1", "1:8", "8:1"
]  # fmt: skip
# ImageConfig.image_size. 1K is about one megapixel, each step up has four times the pixels.
Size = Literal["512", "1K", "2K", "4K"]
Price = Annotated[Decimal, Field(gt=0, lt=10)]


class Frozen(BaseModel):
    """Rows of our own data files: a misspelt key must fail the first test, so extras are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Frozen):
    """One image model. `prices` maps each size it draws to US dollars for one picture."""

    name: str
    title: str
    ratios: tuple[Ratio, ...]
    prices: dict[Size, Price] = Field(alias="price_usd", min_length=1)
    rate_per_minute: int = Field(ge=1)
    retired: date | None = None

    @property
    def sizes(self) -> tuple[Size, ...]:
        """What it draws, smallest first."""
        return tuple(self.prices)

    def check(self, aspect_ratio: str, size: str) -> None:
        """Raise Rejected, naming the choices, for a picture this model cannot draw.

        Google's client checks nothing, and the API's own refusal (400) would end an accepted job.
        """
        if aspect_ratio not in self.ratios:
            raise Rejected("unsupported_ratio", f"{self.name} draws {', '.join(self.ratios)}; not {aspect_ratio!r}")
        if size not in self.prices:
            raise Rejected("unsupported_size", f"{self.name} draws {', '.join(self.sizes)}; not {size!r}")

    def price_usd(self, size: str) -> Decimal:
        """US dollars for one picture of that size. Raises Rejected("unsupported_size") as `check` does."""
        for offered, price in self.prices.items():
            if offered == size:
                return price
        raise Rejected("unsupported_size", f"{self.name} draws {', '.join(self.sizes)}; not {size!r}")

    def warning(self, today: date) -> str | None:
        """A sentence for whoever chose a model that Google has given up, else None."""
        if self.retired is None or today < self.retired:
            return None
        return f"{self.name} was retired on {self.retired}; Google may stop answering any day. Choose another model."


class Catalogue(Frozen):
    """All models by file order, and the day on which their prices were checked."""

    prices_as_of: date
    default: str
    models: tuple[Model, ...]

    @model_validator(mode="after")
    def _has_default(self) -> Self:
        names = [model.name for model in self.models]
        if self.default not in names or len(set(names)) != len(names):
            raise ValueError("models.toml: names must be unique and `default` must be one of them")
        return self

    def model(self, name: str) -> Model:
        """The model of that name. Raises Rejected("unknown_model"), naming the choices."""
        for model in self.models:
            if model.name == name:
                return model
        raise Rejected("unknown_model", f"choose one of {', '.join(model.name for model in self.models)}; not {name!r}")


@cache
def load() -> Catalogue:
    """The catalogue that ships with this code, read once. Raises ValueError if the file is not sound."""
    return Catalogue.model_validate(tomllib.loads(Path(__file__).with_name("models.toml").read_text("utf-8")))
