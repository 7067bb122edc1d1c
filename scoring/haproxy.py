"""What HAProxy is started by, a script of its own: mends the configuration that Ray Serve wrote, and becomes HAProxy.

Ray (2.60) binds its pages for statistics to every address of the machine, and gives a client all the time that it wants
for the head of a request; neither has an option. And who comes when all places are taken is refused by HAProxy: the
process that scores would need a part of its core for it. And HAProxy outlives a service that is killed, and keeps its
port, so that the service cannot be started again.
"""

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

#: Seconds that the head of a request may take.
HEAD = 10
#: linux/prctl.h: a signal for a process whose parent has ended, also after `exec`.
_PR_SET_PDEATHSIG = 1
BUSY = json.dumps({"detail": "busy: all places are taken: send it again after the seconds of Retry-After"})


def places_of(queue_posts: int) -> int:
    """Requests that HAProxy lets through at one time.

    With all places taken, a post waits for as long as they take on average, and some wait 1.4 times as long
    (docs/service.md). A third is left free, so that nearly all that were let in are answered within the time that the
    queue takes. Requests of several posts may fill it.
    """
    return max(1, queue_posts * 2 // 3)


def mended(config: str, folder: Path, port: int, backend: str, places: int) -> str:
    """
    Args:
        port: of the service, which may be open on every address.
        folder: gets the sockets of the pages for statistics.
        backend: of the application; a configuration that does not have it yet refuses nobody.
        places: requests that may be read or wait.
    """
    config = re.sub(rf"^(\s*bind )\*?:(?!{port}$)(\d+)$", rf"\g<1>unix@{folder}/\g<2>.sock", config, flags=re.MULTILINE)
    config = re.sub(
        r"^(\s*)timeout client .*$", rf"\g<0>\n\g<1>timeout http-request {HEAD}s", config, count=1, flags=re.MULTILINE
    )
    if not re.search(rf"^backend {re.escape(backend)}$", config, flags=re.MULTILINE):
        return config
    said = BUSY.replace('"', r"\"").replace(" ", r"\ ")
    refuse = (
        # Ray need not watch whether a client leaves: its post is scored before that is seen
        "    http-request set-header x-request-disconnect-disabled ?1\n"
        "    option http-buffer-request\n"  # a client that sends slowly takes no place before it has sent a buffer
        f"    http-request return status 429 content-type application/json hdr Retry-After 1 string {said} "
        f"if METH_POST {{ be_conn({backend}) ge {places} }}"
    )
    return config.replace("\nfrontend http_frontend\n", f"\nfrontend http_frontend\n{refuse}\n", 1)


def main(folder: str, port: str, backend: str, places: str, binary: str, *arguments: str) -> None:
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        config = mended(path.read_text(encoding="utf-8"), Path(folder), int(port), backend, int(places))
        path.write_text(config, encoding="utf-8")
    if sys.platform == "linux":  # the parent, Ray's manager of HAProxy, ends with the service
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
