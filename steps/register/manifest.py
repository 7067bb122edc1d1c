"""A version's manifest: the sha256 of each of its files, beside them; its own hash is the version's tag.

A version that was registered before there were manifests has the hashes themselves in a tag.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from model.errors import RegistryError
from model.integrity import sha256_of
from steps.register import cache
from steps.register.stored import CHECKPOINT, FILES, MLMODEL, key_of, one_file

#: The sha256 of the manifest; and, of older versions, the hashes as JSON.
VERSION_MANIFEST, HASHES = "agentps.manifest", "agentps.files"
_FILE_HASHES = TypeAdapter(dict[str, str])


def expected_files(uri: str, tags: Mapping[str, str], version: str) -> dict[str, str]:
    """The sha256 of each file of a version by its path in it; of its checkpoint alone, where it was registered before
    the others were hashed.

    Args:
        uri: where the version's files lie.
        version: its name in errors.

    Raises:
        RegistryError: the tags name no hashes, or the manifest cannot be read.
        CheckpointError: the manifest is another than was registered.
    """
    digest = tags.get(VERSION_MANIFEST)
    if digest is None:
        files = _read(tags.get(HASHES), HASHES, version)
        return files if MLMODEL in files else {f"{CHECKPOINT}/{file}": hash_ for file, hash_ in files.items()}
    known = cache.entry(key_of({FILES: digest})) / FILES  # of a version that is kept the store is not asked
    is_kept = known.is_file() and sha256_of(known) == digest
    content = known.read_bytes() if is_kept else one_file(uri, FILES, digest)
    return {**_read(content, VERSION_MANIFEST, version), FILES: digest}


def _read(content: str | bytes | None, tag: str, version: str) -> dict[str, str]:
    if content is None:
        raise RegistryError(
            f"{version}: no tag {VERSION_MANIFEST} with the hash of its manifest: it was not registered by this "
            "pipeline; move the alias `champion` to a version that was"
        )
    try:
        return _FILE_HASHES.validate_json(content)
    except ValidationError as error:
        raise RegistryError(
            f"{version}: its tag {tag} leads to no mapping of files to hashes ({error.errors()[0]['msg']}): somebody "
            "changed it; register the checkpoint again"
        ) from error
