"""What the door of the service must know of the version that scores behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from model.images import ImageLimits, frame_indices
from model.settings import PostLimits, SequenceSettings

if TYPE_CHECKING:
    from scoring.record import Record
    from scoring.score import Input

#: Pixels of a patch, and characters of a token, as most models have them: only how posts compare matters.
_PATCH, _CHARACTERS = 14, 4


@dataclass(frozen=True)
class Status:
    """What `/ready` tells. trouble: which version could not be loaded, while the older one serves."""

    model: str
    version: str
    task: str
    since: datetime
    challenger: str | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class About:
    """
    micro_batch: posts that the training read together. shadow: posts for the challenger, by what became of them.
    """

    status: Status
    limits: ImageLimits
    post_limits: PostLimits
    sequence: SequenceSettings
    micro_batch: int
    shadow: Mapping[str, int] = field(default_factory=dict)

    def tokens(self, post: Input) -> int:
        """About as many as the model will read of the post; a post that cannot be scored costs none."""
        if post.error is not None:
            return 0
        return self._tokens(len(post.images), len(post.title) + len(post.text))

    @property
    def batch_tokens(self) -> int:
        """Of a micro-batch of posts that are as long as posts can be."""
        return self.micro_batch * self._tokens(self.sequence.frames, self.sequence.max_text_tokens * _CHARACTERS)

    def _tokens(self, n_images: int, characters: int) -> int:
        sequence = self.sequence
        frames = len(frame_indices(max(n_images, 1), sequence.frames, repeat=sequence.repeat_frames))
        side = max(1, sequence.image_size // _PATCH // sequence.frame_pooling)
        questions = sequence.max_tokens - sequence.max_text_tokens
        return frames * side**2 + min(characters // _CHARACTERS, sequence.max_text_tokens) + questions


class Served(Protocol):
    """What the application needs."""

    @property
    def about(self) -> About: ...
    async def submit(self, inputs: Sequence[Input]) -> list[Record]:
        """A record for each post, in order."""
        ...
