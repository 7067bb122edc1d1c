"""The sequence that the model reads, and where its answers are (paper 2.1, figure 1).

    frames  title and text  question 1 <ans> … question Q <ans>  final question

Dimensions: B posts · T tokens · F frames · Q intermediate questions · A answers: Q and the final one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from .backbone_files import listed
from .errors import PromptError
from .text import ans_token_id, known_share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .settings import SequenceSettings, Variant
    from .task import Task

#: A wording of which the tokenizer knows less asks nothing.
MIN_KNOWN_SHARE = 0.5
#: Fewer tokens than this for title and text would leave the model without the post.
MIN_TEXT_TOKENS = 16


@dataclass(frozen=True)
class Placeholders:
    """What stands for a post's frames, before its text.

    Attributes:
        token_id: of one visual token; `per_frame` of them are a frame.
        before, after: tokens around each frame.
        newline: one more visual token stands behind the last frame.
    """

    token_id: int
    per_frame: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    newline: bool = False


class PromptBatch(TypedDict):
    """Right-padded token ids, and where each answer is read: `AgentPS.forward`'s arguments.

    input_ids_BT: int64; what stands behind a post's last answer is padding. The attention is causal, so no answer
        sees it and no mask is needed, with which attention would be slower.
    answer_positions_BA: int64 index into T of each question's `<ans>` and of the last token, which answers the
        final question. A = 1 where the variant asks no intermediate question.
    """

    input_ids_BT: Tensor
    answer_positions_BA: Tensor


def _wording(tokenizer: PreTrainedTokenizerBase, ask: str) -> list[int]:
    """A question's token ids.

    Raises:
        PromptError: it would be read as something else: a special token in it would be one more frame, or answer, and
            of characters that the vocabulary lacks nothing is left.
    """
    known = known_share(tokenizer, ask)
    if known < MIN_KNOWN_SHARE:
        name = tokenizer.name_or_path
        raise PromptError(
            f"the tokenizer of {name} knows {known:.0%} of the characters of the wording {ask!r:.200}, so the model "
            f"could not read it (its folder holds {listed(Path(name))}): take the tokenizer.json that came with the "
            "backbone's weights, or word the question in a language that the backbone knows"
        )
    ids = tokenizer.encode(ask + "\n", add_special_tokens=False)
    added = tokenizer.added_tokens_decoder
    special = sorted({str(added[token]) for token in ids if token in added})
    if special:
        raise PromptError(f"the wording {ask!r:.200} holds the special token {', '.join(special)}: remove it")
    return ids


class Prompt:
    """Builds the sequences of one task and variant."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        variant: Variant,
        sequence: SequenceSettings,
        *,
        frames: Placeholders,
    ) -> None:
        """
        Args:
            frames: what stands for a post's frames.

        Raises:
            PromptError: the questions leave no room for the post's own text, hold a special token, or cannot be written
                in the tokenizer's vocabulary; or a post's text could hold a frame.
        """
        frame_ids = [*frames.before, *[frames.token_id] * frames.per_frame, *frames.after]
        for token in sorted({frames.token_id, *frame_ids} - tokenizer.added_tokens_decoder.keys()):
            raise PromptError(
                f"the placeholder of a frame is token {token}, which is no special token of the tokenizer of "
                f"{tokenizer.name_or_path}: take config.json and tokenizer.json of one backbone"
            )
        self.pad_token_id: int = tokenizer.pad_token_id  # type: ignore[assignment]  # every backbone has one
        self.visual_ids = frame_ids * sequence.frames + [frames.token_id] * frames.newline
        self._frames, self._frame_tokens = sequence.frames, len(frame_ids)
        ans_id = ans_token_id(tokenizer)
        self.question_ids: list[int] = []
        #: Of each answer, from the first token of the questions: the same in every post.
        self.answer_offsets: list[int] = []
        if variant in ("agentps", "agentps_answers"):
            for question in task.questions:
                self.question_ids += [*_wording(tokenizer, question.ask), ans_id]
                self.answer_offsets.append(len(self.question_ids) - 1)
        self.question_ids += _wording(tokenizer, task.final.ask)
        self.answer_offsets.append(len(self.question_ids) - 1)
        room = sequence.max_tokens - len(self.question_ids)
        if room < MIN_TEXT_TOKENS:
            raise PromptError(
                f"task {task.name}: its questions take {len(self.question_ids)} of {sequence.max_tokens} tokens and "
                f"leave {max(room, 0)} for title and text; shorten the `ask` wordings or raise preprocess.max_tokens"
            )
        self.max_text_tokens = min(sequence.max_text_tokens, room)

    def batch(self, texts: Sequence[Sequence[int]], n_frames: Sequence[int] | None = None) -> PromptBatch:
        """Sequences of posts with these title-and-text ids, padded on the right to the longest of them.

        Args:
            n_frames: frames of each post, `sequence.frames` at most; None: all have so many.
        """
        frames = n_frames or [self._frames] * len(texts)
        visual = [self.visual_ids[(self._frames - n) * self._frame_tokens :] for n in frames]
        rows = [
            [*placeholders, *ids[: self.max_text_tokens], *self.question_ids]
            for placeholders, ids in zip(visual, texts, strict=True)
        ]
        width = max(map(len, rows))
        input_ids = torch.tensor([row + [self.pad_token_id] * (width - len(row)) for row in rows], dtype=torch.long)
        questions_start = torch.tensor([len(row) - len(self.question_ids) for row in rows], dtype=torch.long)
        return PromptBatch(
            input_ids_BT=input_ids,
            answer_positions_BA=questions_start.unsqueeze(1) + torch.tensor(self.answer_offsets, dtype=torch.long),
        )
