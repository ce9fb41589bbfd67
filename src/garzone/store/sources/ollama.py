"""Fetches models from registries that speak Ollama's protocol: one manifest, then its blobs, one after the other.

Writes no manifest: a model is only named once all of it is there, which is the catalogue's business.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, Final, cast
from urllib.parse import urlencode, urlsplit

import httpx2

from garzone.core.errors import DigestMismatch, DownloadFailed, ModelNotFound, StoreError
from garzone.core.ports import ProgressCallback
from garzone.store.blobs import Blobs, Partial
from garzone.store.manifest import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Layer, Manifest, parse_manifest
from garzone.store.reference import ModelName
from garzone.store.transfer import BytesProgress, HTTPFailed, Transfer

_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_MAX_LAYERS: Final = 256


class RegistryToken(httpx2.Auth):
    """Answers `401 WWW-Authenticate: Bearer realm=...` by asking that realm for an anonymous token."""

    def __init__(self) -> None:
        self._tokens: dict[str, str] = {}

    # Not `requires_response_body`: that would read whole models into memory.
    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response]:
        """Send the request, with a token if one is known or asked for."""
        host = request.url.netloc.decode()
        if host in self._tokens:
            request.headers["Authorization"] = f"Bearer {self._tokens[host]}"
        response = yield request
        scheme, _, rest = response.headers.get("www-authenticate", "").partition(" ")
        if response.status_code != 401 or scheme.lower() != "bearer":
            return
        asked: dict[str, str] = dict(_CHALLENGE.findall(rest))
        realm = urlsplit(asked.get("realm", ""))
        if realm.scheme != "https" and not (realm.scheme == "http" and is_loopback(realm.hostname or "")):
            return
        query = [("service", asked.get("service", ""))]
        query += [("scope", scope) for scope in asked.get("scope", "").split()]
        answer = yield httpx2.Request("GET", f"{asked['realm']}?{urlencode(query)}")
        answer.read()
        token = _token_in(answer)
        if token:
            self._tokens[host] = token
            request.headers["Authorization"] = f"Bearer {token}"
            yield request


def pull_model(name: ModelName, blobs: Blobs, transfer: Transfer, progress: ProgressCallback) -> Manifest:
    """Fetch a model's manifest and all of its blobs.

    Raises:
        ModelNotFound: the registry does not have it.
        DownloadFailed, DigestMismatch, StoreError: as the names say.
    """
    base = f"{registry_url(name.host)}/v2/{name.namespace}/{name.name}"
    progress("fetching the manifest", 0, 0)
    manifest = _fetch_manifest(name, f"{base}/manifests/{name.tag}", transfer)
    for layer in manifest.blobs:
        pull_blob(layer, f"{base}/blobs/{layer.digest}", blobs, transfer, progress)
    return manifest


def locate_model(name: ModelName, transfer: Transfer) -> tuple[str, int]:
    """Where a model's weights are, and how many bytes they have.

    Raises:
        ModelNotFound, DownloadFailed: as `pull_model`.
    """
    base = f"{registry_url(name.host)}/v2/{name.namespace}/{name.name}"
    weights = _fetch_manifest(name, f"{base}/manifests/{name.tag}", transfer).model
    return f"{base}/blobs/{weights.digest}", weights.size


def pull_blob(layer: Layer, url: str, blobs: Blobs, transfer: Transfer, progress: ProgressCallback) -> None:
    """Fetch one blob, unless it is there.

    Raises:
        DownloadFailed, DigestMismatch, StoreError: as the names say.
    """
    what = f"fetching {layer.digest}"

    def report(done: int, total: int) -> None:
        progress(what, done, total)

    def waiting() -> None:
        progress(f"waiting for another process that is {what}", 0, 0)

    if blobs.has(layer):
        report(layer.size, layer.size)
        return
    with blobs.open_partial(blobs.path(layer.digest).name, waiting=waiting) as partial:
        if blobs.has(layer):  # another process has just finished it
            partial.discard()
            return
        fetch_checked(url, partial, layer, transfer, report)
        blobs.commit(partial, layer.digest)


def fetch_checked(url: str, partial: Partial, layer: Layer, transfer: Transfer, report: BytesProgress) -> None:
    """Complete a partial file, and begin again if what an earlier attempt left was spoilt by a crash of the machine.

    Raises:
        DownloadFailed: it could not be had. That its digest is right is for who commits it to check.
    """
    resumed = partial.path.stat().st_size > 0
    transfer.download_whole(url, partial, size=layer.size, progress=report)
    if resumed and partial.digest != layer.digest:
        transfer.download_whole(url, partial, size=layer.size, progress=report, fresh=True)


def registry_url(host: str) -> str:
    """Where a registry answers: by HTTPS, except on this machine."""
    scheme = "http" if is_loopback(host.rsplit(":", 1)[0]) else "https"
    return f"{scheme}://{host}"


def is_loopback(host: str) -> bool:
    """True for names of this machine."""
    return host in ("localhost", "127.0.0.1", "::1")


def _fetch_manifest(name: ModelName, url: str, transfer: Transfer) -> Manifest:
    try:
        body, _, _ = transfer.get(url, accept=MANIFEST_TYPE, limit=MAX_MANIFEST_BYTES)
    except HTTPFailed as error:
        if error.status == 404:
            raise ModelNotFound(name.short, f"{name.host} does not have it either") from error
        raise
    try:
        manifest = parse_manifest(body)
        _ = manifest.model  # a model without weights is of no use, and better refused before its blobs are fetched
    except StoreError as error:
        raise DownloadFailed(f"{name.host}: the manifest of {name.short} cannot be used: {error}") from error
    if len(manifest.blobs) > _MAX_LAYERS:
        raise DownloadFailed(f"{name.host}: the manifest of {name.short} names {len(manifest.blobs)} blobs")
    sizes = {layer.digest: layer.size for layer in manifest.blobs}
    if any(sizes[layer.digest] != layer.size for layer in manifest.layers):
        raise DigestMismatch(f"{name.host}: the manifest of {name.short} gives one blob two sizes")
    return manifest


def _token_in(response: httpx2.Response) -> str:
    if response.status_code != 200:
        return ""
    try:
        document: object = response.json()
    except ValueError:
        return ""
    fields = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    token = fields.get("token") or fields.get("access_token")
    return token if isinstance(token, str) and token.isprintable() and token.isascii() else ""
