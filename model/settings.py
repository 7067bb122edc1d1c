"""The options that travel with a checkpoint: what is read, by which network, trained how."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from .schema import IMAGES, TEXT, TITLE
from .strict import Chosen

#: `siglip`: no language model, the final head reads pooled embeddings of images and text (the paper's online
#: baseline, Table 1). `vanilla`: the final head only. `multitask`: every head on the last token. `agentps`: question
#: i's head on its `<ans>` (paper 2.1). `agentps_answers`: agentps, and the final head reads the
#: `<ans>` states beside the last token (an extension of ours).
Variant = Literal["siglip", "vanilla", "multitask", "agentps", "agentps_answers"]


def answers_questions(variant: Variant) -> bool:
    """Whether the variant has heads for the intermediate questions."""
    return variant not in ("siglip", "vanilla")


#: What is done about an annotator's errors, given people's process labels of some training posts (see
#: `steps.fine_tune.methods`).
LabelMethod = Literal["plain", "gold", "weighted", "dropped", "relabelled"]

#: The backbone built here from `LlavaOnevisionConfig`: no download, seconds on a CPU.
TINY = "tiny"
#: The one that preprocess makes for the posts of a run (`model.own`), and keeps with their shards.
OWN = "own"

#: NumPy's own generator, which is seeded beside torch's, takes no larger one.
MAX_SEED = 2**32 - 1

_COMMIT = re.compile(r"^[0-9a-f]{40}$")


class BackboneSettings(Chosen):
    """The pretrained backbone to start from, of one of the kinds in `model.backbones`."""

    #: `tiny`, `own`, a model hub's id, or a local directory in its format.
    name: str = Field(min_length=1)
    #: A commit of the hub's repository; required for a hub's id, so that a version can be loaded again.
    revision: str | None = None
    #: How the language model's linear weights are kept, which LoRA leaves as they are. `nf4`: in 4 bits instead of 16
    #: (QLoRA, arXiv 2305.14314), for a large backbone on a small card.
    quantization: Literal["nf4"] | None = None

    @model_validator(mode="after")
    def _pinned(self) -> BackboneSettings:
        if self.name in (TINY, OWN) and self.revision is not None:
            raise ValueError(f"the {self.name} backbone has no revision: remove `revision`")
        if self.revision is not None and not _COMMIT.match(self.revision):
            raise ValueError(
                f"revision {self.revision!r}: a branch or tag can move: give the commit, 40 hexadecimal digits"
            )
        return self


class SequenceSettings(Chosen):
    """The sequence that the model reads (paper 3.1.2)."""

    #: Frames of a post, at most: uniform sampling in order above; below, see `repeat_frames`.
    frames: int = Field(ge=1, le=10_000)
    #: Repeat the images of a shorter album cyclically until there are `frames` (the paper), or read each once.
    repeat_frames: bool = True
    #: 2: as many tokens a frame as the backbone itself makes (LLaVA-OneVision pools the tower's grid by 2 in height and
    #: in width); 4 and 8 by pooling them so once and twice more, for a quarter and a sixteenth of the tokens.
    frame_pooling: Literal[2, 4, 8] = 2
    #: Side of the square to which every frame is resized, in pixels; one that the backbone reads.
    image_size: int = Field(ge=8)
    #: Tokens of title and text, at most.
    max_text_tokens: int = Field(ge=1)
    #: Tokens of the text part in all: title, text, questions.
    max_tokens: int = Field(ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _room_for_questions(self) -> SequenceSettings:
        if self.max_text_tokens >= self.max_tokens:
            raise ValueError(
                f"max_text_tokens {self.max_text_tokens} leaves no room for questions in {self.max_tokens}"
            )
        return self


class LoraSettings(Chosen):
    """LoRA on the language model's linear layers (paper 3.1.2: rank 128, alpha 256)."""

    rank: int = Field(ge=1, le=65_536)
    alpha: int = Field(ge=1, le=1_000_000)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TrainSettings(Chosen):
    """Fine-tuning, on `transformers.Trainer`."""

    variant: Variant
    seed: int = Field(ge=0, le=MAX_SEED)
    #: None: the whole language model is trained (right only for a backbone that was never pretrained).
    lora: LoraSettings | None
    #: Train the projector between tower and language model too.
    train_projector: bool
    head_hidden: int = Field(ge=1, le=65_536)
    head_dropout: float = Field(default=0.0, ge=0, lt=1)
    epochs: int = Field(ge=1, le=100_000)
    #: What is evaluated and kept is the moving average of the weights after each step, which forgets by this factor a
    #: step. None: the weights of the last step. See `model.average`.
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    #: Posts an optimizer step, over all processes; must be a multiple of micro_batch x processes.
    batch: int = Field(ge=1, le=1_000_000)
    micro_batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_share: float = Field(ge=0, lt=1)
    max_grad_norm: float = Field(gt=0)
    #: Weight of the final question's loss beside each intermediate question's.
    final_weight: float = Field(gt=0)
    #: Checkpoints (for resuming) an epoch.
    saves_per_epoch: int = Field(ge=1)
    precision: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    #: Processes beside each training one that prepare its batches, so that a GPU does not wait for them.
    loader_workers: int = Field(default=0, ge=0, le=1_024)
    #: Processes, one a GPU where there are GPUs.
    processes: int = Field(default=1, ge=1)
    #: How the process labels that are trained on are made of the annotator's and people's; plain: the annotator's.
    labels: LabelMethod = "plain"
    #: `torchrun`: they are on this machine. `ray`: on the machines of the Ray cluster that RAY_ADDRESS names.
    engine: Literal["torchrun", "ray"] = "torchrun"
    #: With `ray`: while machines are missing, as few `processes` as this train, to the same result. None: they wait.
    least_processes: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainSettings:
        if self.batch % (self.micro_batch * self.processes):
            raise ValueError(
                f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch} x processes {self.processes}"
            )
        return self

    @model_validator(mode="after")
    def _elastic(self) -> TrainSettings:
        if self.least_processes is not None:
            if self.engine != "ray":
                raise ValueError("least_processes is for engine ray: remove it, or set engine to ray")
            if self.least_processes > self.processes:
                raise ValueError(f"least_processes {self.least_processes} is more than processes {self.processes}")
        return self


@dataclass(frozen=True)
class PostLimits:
    """The largest post that is read: what ingest lets into training is what a version scores."""

    max_images: int = 64
    #: Of title and text together. More than a model reads; what is longer costs time and money, and tells nothing.
    max_text_characters: int = 50_000

    def faults(self, title: str, text: str, n_images: int) -> list[str]:
        """What is too large, with the option that says so. The frames of a video count as images."""
        n_characters = len(title) + len(text)
        found = []
        if n_images > self.max_images:
            found.append(f"{IMAGES}: {n_images:,} images; at most {self.max_images:,} are read (ingest.max_images)")
        if n_characters > self.max_text_characters:
            found.append(
                f"{TITLE} and {TEXT}: {n_characters:,} characters; at most {self.max_text_characters:,} are read "
                "(ingest.max_text_characters)"
            )
        return found
