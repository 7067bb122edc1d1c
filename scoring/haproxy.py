"""What HAProxy is started by, a script of its own: mends the configuration that Ray Serve wrote, and becomes HAProxy.

Ray (2.60) binds its pages for statistics to every address of the machine, and gives a client all the time that it wants
for the head of a request; neither has an option. And who comes when all places are taken is refused by HAProxy: the
process that scores would need a part of its core for it.
"""

import json
import os
import re
import sys
from pathlib import Path

#: Seconds that the head of a request may take.
HEAD = 10
BUSY = json.dumps({"detail": "busy: all places are taken: send it again after the seconds of Retry-After"})


def mended(config: str, backend: str, places: int) -> str:
    """
    Args:
        backend: of the application; a configuration that does not have it yet refuses nobody.
        places: requests that may be read or wait.
    """
    config = re.sub(r"^(\s*bind )\*?:", r"\g<1>127.0.0.1:", config, flags=re.MULTILINE)
    config = re.sub(
        r"^(\s*)timeout client .*$", rf"\g<0>\n\g<1>timeout http-request {HEAD}s", config, count=1, flags=re.MULTILINE
    )
    if not re.search(rf"^backend {re.escape(backend)}$", config, flags=re.MULTILINE):
        return config
    said = BUSY.replace('"', r"\"").replace(" ", r"\ ")
    refuse = (
        "    option http-buffer-request\n"  # a client that sends slowly takes no place before it has sent a buffer
        f"    http-request return status 429 content-type application/json hdr Retry-After 1 string {said} "
        f"if METH_POST {{ be_conn({backend}) ge {places} }}"
    )
    return config.replace("\nfrontend http_frontend\n", f"\nfrontend http_frontend\n{refuse}\n", 1)


def main(backend: str, places: str, binary: str, *arguments: str) -> None:
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        path.write_text(mended(path.read_text(encoding="utf-8"), backend, int(places)), encoding="utf-8")
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
