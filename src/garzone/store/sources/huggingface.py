"""Fetches one GGUF file of a Hugging Face repository, over plain HTTPS.

Does not list repositories, and knows no tokens: only what is public.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from garzone.core.errors import ModelNotFound
from garzone.core.ports import ProgressCallback
from garzone.store.blobs import Blobs
from garzone.store.manifest import MODEL, Layer
from garzone.store.reference import HuggingFaceReference
from garzone.store.transfer import HTTPFailed, Transfer

DEFAULT_ENDPOINT: Final = "https://huggingface.co"


def pull_file(
    reference: HuggingFaceReference,
    blobs: Blobs,
    transfer: Transfer,
    progress: ProgressCallback,
    *,
    endpoint: str = DEFAULT_ENDPOINT,
) -> Layer:
    """Fetch the file. Returns the layer of the weights.

    Its digest is computed, not checked: plain HTTPS gives none. A broken GGUF is found when its header is read.

    Raises:
        ModelNotFound: no such public repository or file.
        DownloadFailed, StoreError: as the names say.
    """
    name = f"hf:{reference.owner}/{reference.repository}:{reference.file}"
    url = f"{endpoint}/{reference.owner}/{reference.repository}/resolve/main/{quote(reference.file)}"
    key = f"hf-{reference.local_name.namespace}-{reference.local_name.name}-{reference.local_name.tag}"

    def waiting() -> None:
        progress(f"waiting for another process that fetches {reference.file}", 0, 0)

    with blobs.open_partial(key, waiting=waiting) as partial:
        try:
            transfer.download(
                url, partial, progress=lambda done, total: progress(f"fetching {reference.file}", done, total)
            )
        except HTTPFailed as error:
            if error.status in (401, 404):  # 401: what they say of repositories that do not exist
                partial.discard()
                raise ModelNotFound(name, "there is no such public file on Hugging Face") from error
            raise
        layer = blobs.commit(partial)
    return Layer(MODEL, layer.digest, layer.size)
