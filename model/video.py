"""Videos from bytes to frames: the one decoder of training and of serving. A frame goes on as an image does.

FFmpeg reads the bytes of strangers here, so it runs in a process of its own (`video_decoder.py`), which is bounded in
CPU time and memory. It decodes one video after the other; where it crashes or is ended, that video is refused, and the
next one gets a new process.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

from .errors import ImageError
from .images import ImageLimits, Source, read_source

#: Of each video, by uniform sampling over its time (paper: "video frame or album image", 16).
FRAMES = 16
#: Raise it where the same video gives other frames than before: ingest keeps frames.
FORM = 2
#: Pictures of a video that are told apart; of these, decoded.
_MOST_PICTURES, _MOST_DECODED = 40_000, 20_000
#: Seconds of CPU for a video; of the clock, on a busy machine.
_CPU_SECONDS, _WALL_SECONDS = 60.0, 600.0
#: Processes that wait for the next video.
_MOST_IDLE = 4
#: By its name it is known that results depend on it, see `steps.caching`.
_DECODER = "model.video_decoder"


def read_video(
    source: Source,
    limits: ImageLimits,
    *,
    root: str | None = None,
    sha256: str | None = None,
    folder: str | None = None,
) -> bytes:
    """The encoded bytes of a video: as `model.images.read_source`, of up to `limits.max_video_bytes`."""
    allowed = replace(limits, max_bytes=limits.max_video_bytes)
    return read_source(source, allowed, root=root, sha256=sha256, folder=folder)


def frames(data: bytes, limits: ImageLimits) -> list[bytes]:
    """`FRAMES` pictures of a video, in order: at equal distances in time, the first and the last one included.

    They are upright by its metadata, in sRGB, and no larger than an annotator reads: JPEG, or PNG of a video in RGB. Of
    a video of fewer pictures some come more than once.

    Raises:
        ImageError: the message is the reason, ready for the rejects table.
    """
    if len(data) > limits.max_video_bytes:
        raise ImageError(f"{len(data):,} bytes; at most {limits.max_video_bytes:,} are read")
    try:
        decoder = _idle.pop()
    except IndexError:
        decoder = _Decoder()
    error, found = decoder.ask(data, limits)
    if len(_idle) < _MOST_IDLE:
        _idle.append(decoder)
    else:
        decoder.end()
    if error is not None:
        raise ImageError(error)
    if (largest := max(map(len, found))) > limits.max_bytes:
        raise ImageError(f"its frames have up to {largest:,} bytes; at most {limits.max_bytes:,} are read")
    return found


class _Decoder:
    """A process of `video_decoder.py`."""

    def __init__(self) -> None:
        file = Path(__file__).with_name(f"{_DECODER.rpartition('.')[2]}.py")
        command = [sys.executable, "-P", str(file)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def ask(self, data: bytes, limits: ImageLimits) -> tuple[str | None, list[bytes]]:
        """Why the video cannot be used, and its frames.

        Raises:
            ImageError: the process did not live through it.
        """
        asked = {
            "bytes": len(data),
            "frames": FRAMES,
            "max_pixels": limits.max_pixels,
            "max_aspect": limits.max_aspect,
            "max_seconds": limits.max_video_seconds,
            "max_frames": _MOST_PICTURES,
            "max_decoded": _MOST_DECODED,
            "cpu_seconds": _CPU_SECONDS,
        }
        patience = Timer(_WALL_SECONDS, self._process.kill)
        patience.start()
        try:
            answer, found = self._exchange(json.dumps(asked).encode() + b"\n" + data)
        except (OSError, EOFError):
            raise ImageError(self._why()) from None
        except BaseException:  # an interrupt: what it would answer is of no video any more
            self.end()
            raise
        finally:
            patience.cancel()
        return answer.get("error"), found

    def _exchange(self, request: bytes) -> tuple[dict[str, Any], list[bytes]]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(request)
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise EOFError
        answer = json.loads(line)
        found = [stdout.read(size) for size in answer.get("sizes", ())]
        if [len(file) for file in found] != answer.get("sizes", []):
            raise EOFError
        return answer, found

    def _why(self) -> str:
        """How the process ended."""
        self.end()
        code = self._process.returncode
        if code == -signal.SIGPROF:
            return f"its decoding took more than {_CPU_SECONDS:g} s of CPU"
        if code == -signal.SIGKILL:
            return f"its decoding took more than {_WALL_SECONDS:g} s, or too much memory, and was ended"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"cut or corrupt: the decoder broke off ({how})"

    def end(self) -> None:
        """It ends where its input does; one that decodes is killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """In a fork: the process is the parent's."""
        self._process.returncode = 0


_idle: list[_Decoder] = []


def _forget() -> None:
    for decoder in _idle:
        decoder.forget()
    _idle.clear()


@atexit.register
def _end() -> None:
    while _idle:
        _idle.pop().end()


os.register_at_fork(after_in_child=_forget)
