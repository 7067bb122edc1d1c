"""docs/backbones.md: the example there is a whole family, and no other file is touched for it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from steps.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "backbones.md"
#: Its answers against the plain class, one post at a time, with the package `model` that has the new file.
COMPARE = """
import json, sys
from pathlib import Path
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration
from model.backbones import family_of, names
from model.data import FRAMES, TEXT_IDS
from model.settings import BackboneSettings, LoraSettings
from tests.support.families import TEXT, tokenizer_of
from tests.support.tiny import SEQUENCE, TASK, network, train_settings, write_posts

folder = Path(sys.argv[1])
torch.manual_seed(0)
assert "internvl" in names()
tokenizer = tokenizer_of(("<IMG_CONTEXT>", "<img>", "</img>", "<pad>"))
vocabulary = tokenizer.get_vocab()
tower = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 4}
config = InternVLConfig(vision_config=tower, image_token_id=vocabulary["<IMG_CONTEXT>"],
                        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **TEXT})
whole = InternVLForConditionalGeneration(config)
with torch.no_grad():
    for parameter in whole.parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter if parameter.ndim == 1 else 0))
whole.save_pretrained(folder / "internvl")
tokenizer.save_pretrained(folder / "internvl")
backbone = BackboneSettings(name=str(folder / "internvl"))
shards = write_posts(folder / "shards", backbone, train=6, val=2, test=2)
settings = train_settings(variant="vanilla", lora=LoraSettings(rank=2, alpha=4))
model, prompt, batches = network(backbone, shards, settings)
mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
rows = [3, 0]
found = model.eval()(**batches(rows)).final_B
for row, answer in zip(rows, found):
    post = shards.posts.iloc[row]
    frame = [vocabulary["<img>"], *[vocabulary["<IMG_CONTEXT>"]] * 16, vocabulary["</img>"]]
    ids = frame * len(post[FRAMES]) + [*post[TEXT_IDS], *tokenizer.encode(TASK.final.ask + "\\n")]
    pixels = ((torch.from_numpy(shards.images(post[FRAMES])) / 255 - mean) / std).permute(0, 3, 1, 2)
    state = model.base(input_ids=torch.tensor([ids]), pixel_values=pixels).last_hidden_state[0, -1]
    assert (model.final_head(state)[0] - answer).abs() <= 1e-5, (row, answer)
assert (found[0] - found[1]).abs() > 1e-2
model.train()(**batches(rows)).loss_sum.backward()
"""


def test_the_example_of_the_page_is_a_family_without_a_change_of_another_file(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    assert blocks[0].count("\n") < 150
    shutil.copytree(REPOSITORY / "model", tmp_path / "model", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "model" / "backbones" / "internvl.py").write_text(blocks[0], encoding="utf-8")
    code = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(REPOSITORY)!r}]\n{COMPARE}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_families_stay_below_150_lines() -> None:
    found = {path.name: len(path.read_text().splitlines()) for path in (REPOSITORY / "model/backbones").glob("*.py")}
    assert len(found) >= 5
    assert max(found.values()) < 150
