from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from model import tower_cache
from model import train as training
from model.checkpoint import trainable_state
from model.data import Shards
from model.errors import DataError
from model.schema import PROBABILITY, TRAIN, VAL
from model.scorer import in_chunks, predict
from model.settings import BackboneSettings, LoraSettings, TrainSettings
from model.train import AlbumSampler, FitResult, fit, last_whole_checkpoint
from steps.recipe import shards_digest
from tests.support.tiny import TASK, network, train_settings

REPOSITORY = Path(__file__).resolve().parent.parent.parent
STEPS_PER_EPOCH = 6  # 48 posts, 8 an optimizer step


def train(
    backbone: BackboneSettings, shards: Shards, work: Path, settings: TrainSettings, *callbacks: TrainerCallback
) -> tuple[dict[str, Tensor], FitResult]:
    set_seed(settings.seed)
    model, _, batches = network(backbone, shards, settings)
    result = fit(model, batches, settings, work, callbacks=callbacks, quiet=True)
    return {name: value.clone() for name, value in trainable_state(model).items()}, result


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name].cpu() - right[name].cpu()).abs().max()) for name in left)


def logged(result: FitResult, key: str) -> list[float]:
    return [row[key] for row in result.history if key in row]


def test_training_lowers_the_loss_and_learns_what_tells_the_label(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    _, result = train(tiny_backbone, tiny_shards, tmp_path, train_settings(epochs=6))
    losses = logged(result, "loss")
    assert losses[-1] < 0.5 * losses[0]
    assert result.best_val_average_precision > 0.9  # a third of the posts are positive
    assert result.resumed_from_step == 0


def test_the_first_loss_and_gradient_are_those_of_the_whole_batch(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    """One optimizer step on all 48 posts: what Trainer logs is the loss by hand, for any micro-batch.

    Parameters after AdamW could not show a wrong scale, as AdamW divides it out.
    """
    model, _, batches = network(tiny_backbone, tiny_shards, train_settings())
    answers = model(**batches(batches.rows(TRAIN, labelled=False)))
    loss = answers.loss_sum / answers.weight_sum
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    for micro in (48, 16, 3):
        settings = train_settings(epochs=1, batch=48, micro_batch=micro)
        _, result = train(tiny_backbone, tiny_shards, tmp_path / str(micro), settings)
        assert logged(result, "loss") == pytest.approx([loss.item()], rel=1e-4)
        assert logged(result, "grad_norm") == pytest.approx([norm.item()], rel=1e-4)


@pytest.mark.parametrize("frames", ["tiny_shards", "unique_shards"])
def test_accumulation_over_micro_batches_trains_the_same_parameters(
    tiny_backbone: BackboneSettings, frames: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shards: Shards = request.getfixturevalue(frames)
    whole, _ = train(tiny_backbone, shards, tmp_path / "8", train_settings(epochs=1, micro_batch=8))
    split, _ = train(tiny_backbone, shards, tmp_path / "2", train_settings(epochs=1, micro_batch=2))
    start = trainable_state(network(tiny_backbone, shards, train_settings())[0])
    assert largest_difference(whole, start) > 1e-3
    assert largest_difference(whole, split) <= 1e-5


@pytest.mark.parametrize("frames", ["tiny_shards", "unique_shards"])
def test_batches_that_other_processes_prepare_train_the_same_parameters(
    tiny_backbone: BackboneSettings, frames: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Also from the second epoch on, and with the tower's states on disk where these pay."""
    shards: Shards = request.getfixturevalue(frames)
    own, _ = train(tiny_backbone, shards, tmp_path / "0", train_settings(epochs=2))
    ahead, _ = train(tiny_backbone, shards, tmp_path / "2", train_settings(epochs=2, loader_workers=2))
    assert largest_difference(own, ahead) == 0


def test_micro_batches_hold_albums_of_like_size_and_optimizer_steps_random_posts() -> None:
    n_frames = np.random.default_rng(0).integers(1, 17, 50)
    sampler = AlbumSampler(n_frames, batch=8, seed=3)
    first = list(sampler)
    assert (sorted(first), len(sampler)) == (list(range(50)), 50)
    for start in range(0, 50, 8):
        sizes = n_frames[first[start : start + 8]]
        assert (np.diff(sizes) >= 0).all()
    means = [n_frames[first[start : start + 8]].mean() for start in range(0, 48, 8)]
    assert max(means) - min(means) < 6, "sorted over the whole epoch it would be 14"
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    again = AlbumSampler(n_frames, batch=8, seed=3)
    again.set_epoch(1)
    assert list(again) == second


def test_trainer_gives_each_epoch_of_uneven_albums_its_own_order(
    tiny_backbone: BackboneSettings, unique_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    monkeypatch.setattr(AlbumSampler, "set_epoch", lambda self, epoch: epochs.append(epoch))
    train(tiny_backbone, unique_shards, tmp_path, train_settings(epochs=2))
    assert sorted(set(epochs)) == [0, 1]


class Record(TrainerCallback):
    """The trained weights at the end of every epoch, before they are evaluated."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Tensor]] = []

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.epochs.append({name: value.clone() for name, value in trainable_state(kwargs["model"]).items()})


def test_the_weights_of_the_best_epoch_on_val_are_kept(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    record, settings = Record(), train_settings(epochs=4, learning_rate=0.02)
    kept, result = train(tiny_backbone, tiny_shards, tmp_path, settings, record)
    precisions = logged(result, "eval_average_precision")
    best = precisions.index(max(precisions))
    assert len(precisions) == 4
    assert (result.best_val_average_precision, result.best_epoch) == (max(precisions), best + 1)
    assert largest_difference(kept, record.epochs[best]) == 0
    assert all(largest_difference(kept, other) > 0 for k, other in enumerate(record.epochs) if k != best)
    # and the metric is scikit-learn's on those weights
    model, _, batches = network(tiny_backbone, tiny_shards, settings)
    model.load_state_dict(kept, strict=False)
    rows = batches.rows(VAL, labelled=True)
    scores = predict(model, in_chunks(rows, 8, batches)).final_N
    assert average_precision_score(batches.final_labels(rows), scores) == pytest.approx(max(precisions))


def test_the_best_epoch_is_that_of_the_posts_that_those_of_val_were_drawn_from(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    drawn = tiny_shards.subset(np.ones(len(tiny_shards.posts), bool))
    drawn.posts[PROBABILITY] = np.where(np.arange(len(drawn.posts)) % 3 == 0, 0.05, 1.0)
    settings = train_settings(epochs=1, learning_rate=1e-5)
    kept, result = train(tiny_backbone, drawn, tmp_path, settings)
    model, _, batches = network(tiny_backbone, drawn, settings)
    model.load_state_dict(kept, strict=False)
    rows = batches.rows(VAL, labelled=True)
    scores, labels = predict(model, in_chunks(rows, 8, batches)).final_N, batches.final_labels(rows)
    weights = 1 / drawn.posts[PROBABILITY].to_numpy()[rows]
    weighed = average_precision_score(labels, scores, sample_weight=weights)
    assert result.best_val_average_precision == pytest.approx(weighed)
    assert weighed != pytest.approx(average_precision_score(labels, scores))
    assert shards_digest(drawn, TASK) != shards_digest(tiny_shards, TASK), "it is another training"


class Steps(Record):
    """Before the first optimizer step, and after each."""

    def on_train_begin(self, *arguments: Any, **kwargs: Any) -> None:
        super().on_epoch_end(*arguments, **kwargs)

    def on_step_end(self, *arguments: Any, **kwargs: Any) -> None:
        super().on_epoch_end(*arguments, **kwargs)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        pass


def test_the_average_of_the_weights_is_what_is_evaluated_and_kept_and_trains_nothing_else(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    settings, steps, plain = train_settings(epochs=1), Steps(), Steps()
    averaged = settings.model_copy(update={"ema_decay": 0.4})
    kept, result = train(tiny_backbone, tiny_shards, tmp_path / "average", averaged, steps)
    train(tiny_backbone, tiny_shards, tmp_path / "plain", settings, plain)
    assert largest_difference(steps.epochs[-1], plain.epochs[-1]) == 0
    # after n steps (1 + n) / (10 + n), at most 0.4: 2 / 11, 3 / 12, 4 / 13, 5 / 14, then 0.4 twice
    expected = steps.epochs[0]
    for decay, trained in zip((2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4), steps.epochs[1:], strict=True):
        expected = {name: decay * expected[name] + (1 - decay) * trained[name] for name in expected}
    assert largest_difference(kept, expected) < 1e-6
    assert largest_difference(kept, steps.epochs[-1]) > 1e-4
    model, _, batches = network(tiny_backbone, tiny_shards, settings)
    model.load_state_dict(kept, strict=False)
    rows = batches.rows(VAL, labelled=True)
    precision = average_precision_score(batches.final_labels(rows), predict(model, in_chunks(rows, 8, batches)).final_N)
    assert precision == pytest.approx(result.best_val_average_precision)


#: A process for each of the given trainings is forked from one that has imported everything.
_KILLED = """
import json, os, signal, sys
from pathlib import Path
from transformers import TrainerCallback, set_seed
from model.data import Shards
from model.settings import BackboneSettings, TrainSettings
from model.train import fit
from tests.support.tiny import network

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)

for work, options in json.loads(sys.argv[3]).items():
    child = os.fork()
    if child == 0:
        settings = TrainSettings.model_validate_json(json.dumps(options))
        set_seed(settings.seed)
        model, _, batches = network(BackboneSettings(name=sys.argv[1]), Shards(Path(sys.argv[2])), settings)
        fit(model, batches, settings, Path(work), callbacks=[Kill()], quiet=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, work
"""
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {"lora": None},
    "lora": {"lora": LoraSettings(rank=4, alpha=8, dropout=0.1)},
    "average": {"lora": None, "ema_decay": 0.8},
}


def to_be_killed(kind: str) -> TrainSettings:
    return train_settings(epochs=3, **OPTIONS[kind], head_dropout=0.1, micro_batch=4)


@pytest.fixture(scope="module")
def killed(tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of the trainings, killed two optimizer steps after a checkpoint, in the second epoch."""
    folder, kill_at = tmp_path_factory.mktemp("killed"), STEPS_PER_EPOCH + 5
    trainings = {str(folder / kind): to_be_killed(kind).model_dump(mode="json") for kind in OPTIONS}
    arguments = [tiny_backbone.name, str(tiny_shards.root), json.dumps(trainings), str(kill_at)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run(
        [sys.executable, "-c", _KILLED, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_killed_training_goes_on_to_the_same_parameters(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, killed: Path, tmp_path: Path, kind: str
) -> None:
    """Dropout's random state goes on too."""
    settings = to_be_killed(kind)
    undisturbed, _ = train(tiny_backbone, tiny_shards, tmp_path / "undisturbed", settings)
    resumed, result = train(tiny_backbone, tiny_shards, killed / kind, settings)
    assert result.resumed_from_step == STEPS_PER_EPOCH + 3
    assert largest_difference(undisturbed, resumed) <= 1e-6


def test_a_training_that_ends_in_an_evaluation_goes_on_with_it(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint falls on the end of each epoch, where the evaluation is, too."""
    settings = train_settings(epochs=2, saves_per_epoch=1)
    _, undisturbed = train(tiny_backbone, tiny_shards, tmp_path / "undisturbed", settings)
    assert len(logged(undisturbed, "eval_average_precision")) == 2

    def ended(*_: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "_measure", ended)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_backbone, tiny_shards, tmp_path / "ended", settings)
    _, resumed = train(tiny_backbone, tiny_shards, tmp_path / "ended", settings)
    assert logged(resumed, "eval_average_precision") == pytest.approx(logged(undisturbed, "eval_average_precision"))


def test_what_sees_the_pictures_has_its_lessons_once_and_not_when_a_training_goes_on_from_another(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, taught = train_settings(epochs=1), []
    monkeypatch.setattr(training, "teach", lambda *_: taught.append(True))
    for begun in (True, False):
        model, _, batches = network(tiny_backbone, tiny_shards, settings)
        monkeypatch.setattr(type(model.family), "lessons", 1)
        fit(model, batches, settings, tmp_path / str(begun), begun=begun, quiet=True)
        assert len(taught) == (not begun)
    fit(model, batches, settings, tmp_path / "False", quiet=True)
    assert len(taught) == 1, "nor when it is resumed"


def test_a_finished_training_is_not_trained_again(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    settings = train_settings(epochs=1)
    first, _ = train(tiny_backbone, tiny_shards, tmp_path, settings)
    again, result = train(tiny_backbone, tiny_shards, tmp_path, settings)
    assert result.resumed_from_step == STEPS_PER_EPOCH
    assert largest_difference(first, again) == 0


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    assert last_whole_checkpoint(tmp_path) is None
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"cut'), (12, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_a_checkpoint_holds_what_is_trained_and_no_backbone(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    settings = train_settings(epochs=1, lora=LoraSettings(rank=2, alpha=4), train_projector=False)
    kept, _ = train(tiny_backbone, tiny_shards, tmp_path, settings)
    saved = load_file(tmp_path / f"checkpoint-{STEPS_PER_EPOCH}" / "model.safetensors")
    assert saved.keys() == kept.keys()
    assert all("lora_" in name or "trainable_tokens" in name or "head" in name for name in saved)
    state = json.loads((tmp_path / f"checkpoint-{STEPS_PER_EPOCH}" / "trainer_state.json").read_text())
    assert state["global_step"] == STEPS_PER_EPOCH


def test_an_optimizer_step_without_any_label_has_a_loss_of_zero(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    """And not of 0 / 0: every eighth post of train has no final label, and stands alone in its batch here."""
    settings = train_settings(epochs=1, batch=1, micro_batch=1, variant="vanilla")
    trained, _ = train(tiny_backbone, tiny_shards, tmp_path, settings)
    assert all(torch.isfinite(value).all() for value in trained.values())


def test_a_second_training_of_the_same_leaves_the_first_ones_tower_states(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is truncated under a reader reads as zeros."""

    def always(cache: tower_cache.TowerCache, sample: np.ndarray, states: Tensor, *_: float) -> float:
        cache[sample] = states
        return 1.0

    def cut(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(tower_cache, "_saved", always)
    settings = train_settings()
    model, _, first = network(tiny_backbone, tiny_shards, settings)
    _, _, second = network(tiny_backbone, tiny_shards, settings)
    numbers, _ = first.images(first.rows(TRAIN, labelled=False))
    with training._tower_cache(model, first, settings, tmp_path):
        assert first.tower_cache is not None
        before = first.tower_cache[numbers].clone()
        monkeypatch.setattr(os, "getpid", lambda: 1)  # as another process, which has just begun its file
        monkeypatch.setattr(tower_cache.TowerCache, "take", cut)
        with pytest.raises(InterruptedError), training._tower_cache(model, second, settings, tmp_path):
            pass
        assert before.abs().sum() > 0
        assert torch.equal(first.tower_cache[numbers], before)


def test_a_training_that_diverges_ends_in_one_message(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    settings = train_settings(learning_rate=1e12)
    model, _, batches = network(tiny_backbone, tiny_shards, settings)
    with pytest.raises(DataError, match=r"the training diverged: after epoch 1 .* lower fine_tune\.learning_rate"):
        fit(model, batches, settings, tmp_path, quiet=True)
