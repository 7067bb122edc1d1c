"""bespokelabs-curator's side: asks for the posts' answers, and prints what came of it as JSON.

.agentps/peers/curator/bin/python -m benchmarks.peers.curator_worker URL POSTS FOLDER RETRIES
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import tiktoken
from bespokelabs import curator

from benchmarks.peers.meter import Meter

# curator estimates tokens by a table that tiktoken would download; one of single bytes stands in
BYTES = tiktoken.Encoding(
    "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([value]): value for value in range(256)}, special_tokens={}
)
tiktoken.get_encoding = tiktoken.encoding_for_model = lambda *_: BYTES
NUMBERS = re.compile(r"\d+(,\d+){4}")


class Annotator(curator.LLM):
    """The prompt of AgentPS; an answer is five numbers within the album."""

    def prompt(self, post: dict[str, Any]) -> tuple[Any, ...]:
        images = [curator.types.Image(url=path, detail="low") for path in post["images"]]
        return (post["prompt"], *images)

    def parse(self, post: dict[str, Any], response: str) -> dict[str, Any]:
        if not NUMBERS.fullmatch(response) or max(map(int, response.split(","))) > len(post["images"]):
            raise ValueError(f"no five numbers within the album: {response!r}")
        return {"post_id": post["post_id"], "answer": response}


def main() -> None:
    url, posts, folder, _ = sys.argv[1:]
    rows = json.loads(Path(posts).read_text(encoding="utf-8"))
    meter = Meter()
    annotator = Annotator(
        model_name="gpt-4o",
        backend="openai",
        generation_params={"temperature": 0, "max_tokens": 50},
        backend_params={
            "base_url": url,
            "max_concurrent_requests": 64,
            "max_requests_per_minute": 1_000_000,
            "max_tokens_per_minute": 10_000_000_000,
            "require_all_responses": False,
        },
    )
    answered = len(annotator(rows, working_dir=folder).dataset)
    sys.stdout.write("\n" + json.dumps({"answered": answered} | meter.per(1)) + "\n")


if __name__ == "__main__":
    main()
