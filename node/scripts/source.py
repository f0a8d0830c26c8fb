"""Where a script is: the content address that its URL names, and which of the four languages it is in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from consensus.cid import Cid
from consensus.errors import Failed, Invalid
from node.infra.addresses import RefusedUrl, parse_url
from node.sandbox.port import Language

FIELD = "dynamic_arguments_script_url"

_REMEDY = "send ipfs://CID or https://<gateway>/ipfs/CID"
_NAME = r"(?:/(?P<name>[A-Za-z0-9._~%+-]{1,200})?)?"
_URI = re.compile(r"ipfs://(?P<cid>[A-Za-z0-9]{1,128})/?")
_PATH = re.compile(rf"/ipfs/(?P<cid>[A-Za-z0-9]{{1,128}}){_NAME}(?P<query>\?.*)?")
_BARE = re.compile(rf"{_NAME}(?P<query>\?.*)?")
_SUBDOMAIN = re.compile(r"(?P<cid>[a-z0-9]{1,63})\.ipfs\..+")


@dataclass(frozen=True, slots=True)
class Source:
    """The script's CID in its canonical text; the gateway URL that gives its bytes, '' where none is named; and the name that
    a URL carries behind the CID, which says no more than a language."""

    cid: str
    gateway: str = ""
    name: str = ""


def parse_source(url: str) -> Source:
    """What a script's URL means: `ipfs://CID`, `https://host/ipfs/CID`, `https://host/ipfs/CID/name.py`, `https://CID.ipfs.host/`.

    Raises `Invalid` for the field that users send it in.
    """
    if match := _URI.fullmatch(url):
        return Source(_cid(match["cid"]))
    if url.startswith("ipfs://"):
        raise Invalid(FIELD, "has more than a CID: content within a folder has a CID of its own", "send ipfs://CID of the file")
    try:
        target = parse_url(url, "http", "https")
    except RefusedUrl as error:
        raise Invalid(FIELD, str(error), _REMEDY) from None
    match, host = _PATH.fullmatch(target.path), _SUBDOMAIN.fullmatch(target.host)
    if match:
        cid = _cid(match["cid"])
        gateway = f"{target.scheme}://{target.authority}/ipfs/{cid}{match['query'] or ''}"
    elif host and (match := _BARE.fullmatch(target.path)):
        cid = _cid(host["cid"])
        gateway = f"{target.scheme}://{target.authority}/{match['query'] or ''}"
    else:
        raise Invalid(FIELD, "names no content of IPFS", _REMEDY)
    return Source(cid, gateway, match["name"] or "")


def language_of(source: Source, posted: str) -> Language:
    """The language that the job was posted with, or else the one of the file's name. Raises `Failed` SCRIPT_INVALID."""
    said = posted or (source.name.rpartition(".")[2].lower() if "." in source.name else "")
    try:
        return Language(said)
    except ValueError:
        known = ", ".join(Language)
        problem = f"its language {said[:16]!r} is none of {known}" if said else f"nothing says its language: one of {known}"
        raise Failed("SCRIPT_INVALID", problem) from None


def _cid(text: str) -> str:
    try:
        return str(Cid.parse(text))
    except Failed:
        raise Invalid(
            FIELD, f"{text[:64]!r} is no CID of a file", "send version 0, or version 1 in base32 with raw or dag-pb"
        ) from None
