"""What an annotation costs: prices by model, tokens by what is sent, and a cap that is never passed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from model.errors import ConfigError
from model.strict import Chosen, explain_validation
from model.yaml_file import load_yaml
from steps.annotate.prompt import model_size
from steps.paths import REPOSITORY

PRICES = REPOSITORY / "configs" / "prices.yaml"

_TILE = 512  # pixels
#: Tokens of a chat request besides its text and images: roles and separators.
_FRAME_TOKENS = 16
#: Bytes of English text per token, on average; and tokens per number of an answer, with its comma.
_BYTES_PER_TOKEN = 4
_TOKENS_PER_NUMBER = 2


class ImagePrice(Chosen):
    """Tokens of an image: `base`, and `tile` more for each tile where the detail is not low."""

    base: int = Field(ge=0)
    tile: int = Field(ge=0)


class Price(Chosen):
    """Dollars per million tokens, and how the model counts an image's."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    #: The factor of the batch interface.
    batch: float = Field(gt=0, le=1)
    image: ImagePrice

    def dollars(self, prompt_tokens: float, completion_tokens: float, *, batch: bool = False) -> float:
        whole = (self.input * prompt_tokens + self.output * completion_tokens) / 1e6
        return whole * self.batch if batch else whole


#: Of an annotator that takes no money.
FREE = Price(input=0, output=0, batch=1, image=ImagePrice(base=85, tile=170))


#: The entry of the price table that is no model: when the prices were looked up.
_AS_OF = "as_of"


def load_prices(path: Path = PRICES) -> dict[str, Price]:
    """The price table, by model.

    Raises:
        ConfigError: no such file, not YAML, or a price that is none; the message names it.
    """
    raw = _read(path)
    if isinstance(raw, dict):
        raw.pop(_AS_OF, None)
    try:
        return TypeAdapter(dict[str, Price]).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(f"price table {path}: {explain_validation(error)}") from error


def prices_as_of(path: Path = PRICES) -> str:
    """When the prices of the table were looked up, as the table has it.

    Raises:
        ConfigError: as `load_prices`.
    """
    raw = _read(path)
    return str((raw.get(_AS_OF) if isinstance(raw, dict) else None) or "an unknown day")


def _read(path: Path) -> Any:
    try:
        return load_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"price table {path}: cannot be read as YAML: {error}") from error


def image_tokens(width: int, height: int, detail: str, price: ImagePrice) -> int:
    """Tokens of one image, as OpenAI documents them for GPT-4o.

    `low`: the base alone. Else the image is fitted into 2048 x 2048, its shorter side reduced to 768 (neither step
    enlarges), and every tile of 512 pixels that it touches counts. `auto` is counted as `high`: it may become that.

    Source: https://platform.openai.com/docs/guides/images-vision#calculating-costs
    """
    if detail == "low":
        return price.base
    width, height = model_size(width, height, detail)
    return price.base + price.tile * math.ceil(width / _TILE) * math.ceil(height / _TILE)


class Tokens(NamedTuple):
    """Tokens of one request, as expected, and as many as it can have at most."""

    prompt: float
    completion: float
    most_prompt: float
    most_completion: float

    def dollars(self, price: Price, *, batch: bool = False) -> float:
        return price.dollars(self.prompt, self.completion, batch=batch)

    def most_dollars(self, price: Price, *, batch: bool = False) -> float:
        return price.dollars(self.most_prompt, self.most_completion, batch=batch)


def request_tokens(text: str, images: float, n_questions: int, max_tokens: int) -> Tokens:
    """Tokens of a request before it is sent.

    Args:
        text: all of it, a schema for the answer included.
        images: tokens of all images.

    No token is shorter than a byte, so the bytes of the text bound its tokens whatever the tokenizer; about a quarter
    of them is what is to be expected.
    """
    size = len(text.encode())
    expected = min(max_tokens, _TOKENS_PER_NUMBER * n_questions)
    return Tokens(size / _BYTES_PER_TOKEN + images + _FRAME_TOKENS, expected, size + images + _FRAME_TOKENS, max_tokens)


class Budget:
    """Dollars of one run: what was spent, and what is reserved for requests under way.

    A request is sent only after the most that it can cost was reserved, so `spent` never passes the cap.
    """

    def __init__(self, cap: float | None) -> None:
        self.cap = cap
        self.spent = self.reserved = 0.0
        #: Reservations that are not settled.
        self.under_way = 0

    def reserve(self, dollars: float) -> bool:
        """Set `dollars` aside; False, and nothing is set aside, where they may pass the cap."""
        # in whole billionths: sums of floats may miss a cap by the last digit, to both sides
        if self.cap is not None and round(1e9 * (self.spent + self.reserved + dollars)) > round(1e9 * self.cap):
            return False
        self.reserved += dollars
        self.under_way += 1
        return True

    def take_over(self, dollars: float) -> None:
        """Set aside what was sent already, by an earlier run perhaps: it is owed, whatever the cap says."""
        self.reserved += dollars
        self.under_way += 1

    def settle(self, reserved: float, spent: float, reservations: int = 1) -> None:
        """A request came back, or will not be sent: its reservations make room for what it took."""
        self.under_way -= reservations
        self.reserved = max(0.0, self.reserved - reserved) if self.under_way else 0.0
        self.spent += spent
