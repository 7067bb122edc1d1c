"""Write the commands of a Markdown file as one bash script: `readme_commands.py README.md > commands.sh`.

The commands are the blocks fenced with ```sh, in order. They share one shell, as they do for a reader
who types them, and the first that fails ends the script. Other fences (```console, ```yaml, ...) are
for what does not end, needs a key, or is output.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

# A fence may be indented (inside a list); its text then is, too, by the same spaces.
_BLOCK = re.compile(r"^(?P<indent> *)```sh\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def script(markdown: str, name: str) -> str:
    """The script of all ```sh blocks; each is announced by `name`, its line and its text.

    Raises:
        ValueError: there is no such block, so that nothing would be checked.
    """
    lines = ["set -euo pipefail"]
    for block in _BLOCK.finditer(markdown):
        text = re.sub(f"^{block['indent']}", "", block["text"], flags=re.MULTILINE).rstrip()
        line = markdown.count("\n", 0, block.start("text")) + 1
        lines += [f"printf '%s\\n' {shlex.quote(f'=== {name}:{line}')} {shlex.quote(text)}", text]
    if len(lines) == 1:
        raise ValueError(f"{name}: no block fenced with ```sh")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    sys.stdout.write(script(path.read_text(encoding="utf-8"), path.name))
