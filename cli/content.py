"""`triggerx content`: scripts given to a coordinator by file and had by CID, each checked on this side too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import trio
import typer

from consensus.cid import Cid, cid_of, matches
from consensus.errors import Failed, Misconfigured, Transient

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 1024 * 1024
"""Of a script."""
_TIMEOUT_S = 30.0
_ANSWER_BYTES = 64 * 1024

app = typer.Typer(no_args_is_help=True, help="Scripts by their content address.")

Api = Annotated[str, typer.Option("--api", help="URL of the coordinator's API.")]


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="The script, at most 1 MiB.")],
    api: Annotated[str | None, typer.Option("--api", help="URL of the coordinator's API.", show_default=False)] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with an API key of it.", show_default=False)] = None,
    only_hash: Annotated[bool, typer.Option("--only-hash", help="Print the CID, and upload nothing.")] = False,
) -> None:
    """Upload a script and print its URL, as a job names it in dynamic_arguments_script_url."""
    data = _read(file)
    cid = str(cid_of(data))
    if only_hash:
        typer.echo(cid)
        return
    if api is None or api_key_file is None:
        raise Misconfigured("--api", "give the coordinator's URL and --api-key-file, or --only-hash")
    said = trio.run(upload, api, _key(api_key_file), data)
    if said != cid:
        raise Failed("CONTENT_MISMATCH", f"the coordinator names the script {said[:64]!r}, and not {cid}")
    typer.echo(f"ipfs://{cid}")


@app.command()
def get(
    cid: Annotated[str, typer.Argument(help="The CID, or ipfs://CID.")],
    api: Api,
    output: Annotated[Path | None, typer.Option(help="File to write; unset, standard output.", show_default=False)] = None,
) -> None:
    """Print the file with this CID, if the coordinator has it and its bytes are the right ones."""
    data = trio.run(download, api, str(Cid.parse(cid.removeprefix("ipfs://"))))
    if output is None:
        sys.stdout.buffer.write(data)
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise Misconfigured("--output", f"cannot write {output}: {error.strerror}") from None


async def upload(api: str, api_key: str, data: bytes, transport: httpx.AsyncBaseTransport | None = None) -> str:
    """The CID that the coordinator at `api` gives the file. `transport` is httpx's own unless told.

    Raises `Misconfigured` for a key it refuses, `Failed` (`CONTENT_REFUSED`) with its words, `Transient` when it does not answer.
    """
    headers = {"X-API-KEY": api_key, "Content-Type": "application/octet-stream"}
    status, body = await _ask("POST", f"{api.rstrip('/')}/api/content", _ANSWER_BYTES, transport, headers=headers, content=data)
    if status in (401, 403):
        raise Misconfigured("--api-key-file", "the coordinator does not know this API key")
    if status != 201:
        raise Failed("CONTENT_REFUSED", f"the coordinator answers {status}: {body[:200].decode(errors='replace')}")
    import msgspec

    try:
        return str(msgspec.json.decode(body, type=dict[str, Any])["cid"])
    except (msgspec.DecodeError, KeyError, UnicodeDecodeError):
        raise Failed("CONTENT_REFUSED", "the coordinator answers without a CID") from None


async def download(api: str, cid: str, transport: httpx.AsyncBaseTransport | None = None) -> bytes:
    """The file, whose bytes are those of the CID. Raises `Failed` CONTENT_MISMATCH or CONTENT_TOO_LARGE, `Transient` when it is
    not there, or nobody answers."""
    status, body = await _ask("GET", f"{api.rstrip('/')}/ipfs/{cid}", MAX_BYTES, transport)
    if status != 200:
        raise Transient("CONTENT_NOT_FOUND", f"the coordinator answers {status} for {cid}")
    if not matches(cid, body):
        raise Failed("CONTENT_MISMATCH", f"the coordinator sends other bytes for {cid}")
    return body


async def _ask(
    method: str, url: str, max_bytes: int, transport: httpx.AsyncBaseTransport | None, **request: Any
) -> tuple[int, bytes]:
    import httpx  # here: the other commands need it not

    body = b""
    try:
        async with (
            httpx.AsyncClient(timeout=_TIMEOUT_S, transport=transport) as client,
            client.stream(method, url, **request) as answer,
        ):
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > max_bytes:
                    raise Failed("CONTENT_TOO_LARGE", f"the coordinator answers with more than {max_bytes} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Transient("COORDINATOR_UNREACHABLE", f"--api does not answer: {error!r}") from None
    return answer.status_code, body


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise Misconfigured("FILE", f"cannot read {file}: {error.strerror}") from None
    if not 0 < len(data) <= MAX_BYTES:
        raise Misconfigured("FILE", f"{file} has {'no' if not data else 'too many'} bytes: a script has 1 to {MAX_BYTES}")
    return data


def _key(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured("--api-key-file", f"cannot read {file}: {error}") from None
