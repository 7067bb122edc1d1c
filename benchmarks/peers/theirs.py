"""ms-swift's side: trains and scores the posts in one form, and prints CPU and wall seconds per post as JSON.

.agentps/peers/swift/bin/python -m benchmarks.peers.theirs FOLDER FORM
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from swift import InferRequest, TransformersEngine, sft_main
from swift.callbacks.mapping import callbacks_map
from transformers import TrainerCallback

from benchmarks.peers.meter import LastEpoch, Meter

#: Form -> template, prompts per post, micro-batch. The shipped template cannot mix albums of one and of several images.
FORMS = {
    "multi-label, album template": ("album", False, 4),
    "multi-label, shipped template": ("llava_onevision_hf", False, 1),
    "one answer per prompt, album template": ("album", True, 4),
}


def rows(posts: list[dict[str, Any]], task: dict[str, Any], one_answer: bool) -> list[dict[str, Any]]:
    """One prompt per post, its label the indices of the answers "yes"; or one per answer, its label that class."""
    asks = {q["id"]: q["ask"] for q in task["questions"]} | {"label": task["final"]["ask"]}
    found = []
    for post in posts:
        text = f"{post['title']}\n{post['text']}\n"
        for wanted in [[name] for name in asks] if one_answer else [list(asks)]:
            content = text + "".join(f"{asks[name]}\n" for name in wanted)
            yes = [index for index, name in enumerate(wanted) if post[name]]
            message = {"role": "user", "content": content}
            label: Any = len(yes) if one_answer else yes
            found.append({"messages": [message], "images": post["images"], "label": label})
    return found


class Callback(LastEpoch, TrainerCallback):
    pass


def main() -> None:
    folder, form = Path(sys.argv[1]), sys.argv[2]
    template, one_answer, micro_batch = FORMS[form]
    posts = json.loads((folder / "posts.json").read_text(encoding="utf-8"))
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    train, warm_up = ([post for post in posts if post["split"] == split] for split in ("train", "val"))
    answers = len(task["questions"]) + 1
    labels, problem = (2, "single_label_classification") if one_answer else (answers, "multi_label_classification")
    meter = Callback(len(train))
    callbacks_map["meter"] = lambda *_: meter
    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "train.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(train, task, one_answer)), encoding="utf-8")
        options = {
            "model": folder / "backbone",
            "task_type": "seq_cls",
            "num_labels": labels,
            "problem_type": problem,
            "external_plugins": Path(__file__).with_name("swift_plugin.py"),
            "template": template,
            "dataset": data,
            "tuner_type": "lora",
            "lora_rank": 32,
            "lora_alpha": 64,
            "lora_dropout": 0,
            "freeze_vit": "true",
            "freeze_aligner": "true",
            "torch_dtype": "float32",
            "attn_impl": "sdpa",
            "gradient_checkpointing": "false",
            "vit_gradient_checkpointing": "false",
            "per_device_train_batch_size": micro_batch,
            "gradient_accumulation_steps": 4 * (answers if one_answer else 1) // micro_batch,
            "num_train_epochs": 2,
            "learning_rate": 1e-4,
            "weight_decay": 0,
            "max_grad_norm": 1.0,
            "dataloader_num_workers": 0,
            "split_dataset_ratio": 0,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "callbacks": "meter",
            "output_dir": f"{work}/out",
        }
        sft_main([str(word) for name, value in options.items() for word in (f"--{name}", value)])
    engine = TransformersEngine(
        str(folder / "backbone"),
        task_type="seq_cls",
        num_labels=labels,
        problem_type=problem,
        torch_dtype=torch.float32,
        attn_impl="sdpa",
        template_type=template,
        max_batch_size=micro_batch,
    )
    for part in (warm_up, train):  # the second counts
        requests = [
            InferRequest(messages=row["messages"], images=row["images"]) for row in rows(part, task, one_answer)
        ]
        clock = Meter()
        engine.infer(requests, use_tqdm=False)
        scoring = clock.per(len(part))
    sys.stdout.write(json.dumps({"training": meter.found, "scoring": scoring}) + "\n")


if __name__ == "__main__":
    main()
