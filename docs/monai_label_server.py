"""MONAI Label's command, with a guard before its server.

    python docs/monai_label_server.py start_server --app APP --studies STUDIES ...

The guard answers programs and pages of this machine only: the Host must be this machine, the one that --host names or
one of MORPHZOO_LABEL_HOSTS (names with commas between them); an Origin must be the server's own, or one of
MONAI_LABEL_CORS_ORIGINS. MONAI Label writes what it is asked into a configuration in which a text can be code, so the
guard refuses such texts in any request, and settings of a training that are no numbers.

Where there is no GPU, the command also does without torchvision's binary part, which pip's wheel has for CUDA only.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Server = Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]

HERE = {"localhost", "127.0.0.1", "::1"}
_NUMBERS = {"max_epochs": (1, 100_000), "val_split": (-1, 0.9), "gpus": (0, 1000)}
_SWITCHES = ("pretrained", "multi_gpu", "force_multi_gpu", "enqueue")


def refusal_of_sender(headers: Mapping[str, str], hosts: set[str], origins: set[str]) -> str | None:
    """Why a request is not answered, if its sender is a page of elsewhere; names of headers in lower case."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if urlsplit(f"//{host}").hostname not in hosts:
        return f"Host {host!r} is not this server: start it with --host, or name it in MORPHZOO_LABEL_HOSTS"
    if origin is not None and urlsplit(origin).netloc != host and not {origin, "*"} & origins:
        return f"Origin {origin!r} is not this server: name it in MONAI_LABEL_CORS_ORIGINS"
    if origin is None and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return "the request comes from a page of another server"
    return None


def refusal_of_data(data: object) -> str | None:
    """Why a request is not answered, if a text or a key in it could be code for MONAI's parser."""
    for text in _texts(data):
        if text.startswith(("$", "@", "%")):
            return f"a value cannot begin with $, @ or %: {text[:60]!r}"
        if text in ("_target_", "_disabled_", "_mode_", "_requires_"):
            return f"a value cannot be a component of a configuration: {text!r}"
    return None


def refusal_of_training(data: object) -> str | None:
    """Why a training is not started, if a setting is of another kind than MONAI Label's."""
    if not isinstance(data, dict):
        return "expected an object with the settings of a training"
    for name, (least, most) in _NUMBERS.items():
        value = data.get(name, least)
        if name == "gpus" and isinstance(value, str) and re.fullmatch(r"all|\d+(,\d+)*", value):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            return f"{name}: expected a number from {least} to {most}, got {value!r}"
    if data.get("max_epochs", 1) != int(data.get("max_epochs", 1)):
        return f"max_epochs: expected a whole number, got {data['max_epochs']!r}"
    for name in _SWITCHES:
        if not isinstance(data.get(name, True), bool):
            return f"{name}: expected true or false, got {data[name]!r}"
    if data.get("run_id") not in (None, "", "run"):
        return f"run_id: expected 'run', got {data['run_id']!r}"
    files = data.get("model_filename", "model.pt")
    for file in files if isinstance(files, list) else [files]:
        if not isinstance(file, str) or not re.fullmatch(r"\w[\w.-]*", file):
            return f"model_filename: expected the name of a file in the bundle's models, got {file!r}"
    tracking = data.get("tracking", "None")
    if not {*(tracking if isinstance(tracking, list) else [str(tracking)])} <= {"None", "none", "", "mlflow"}:
        return f"tracking: expected 'mlflow' or 'None', got {tracking!r}"
    return None


def _texts(data: object) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from (str(key), *_texts(value))
    elif isinstance(data, list):
        for value in data:
            yield from _texts(value)


class Guard:
    """The server behind it, for requests that are not refused."""

    def __init__(self, server: Server, hosts: set[str], origins: set[str]) -> None:
        self.server, self.hosts, self.origins = server, hosts, origins

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.server(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reason = refusal_of_sender(headers, self.hosts, self.origins)
        if reason is not None or scope["type"] != "http":
            await _answer(send, 403, reason or "there are no web sockets here")
            return
        kind, messages = headers.get("content-type", ""), []
        if scope["method"] in ("POST", "PUT", "PATCH"):
            while not messages or messages[-1].get("more_body"):
                messages.append(await receive())
            try:
                reason = await self._refusal(scope, kind, messages)
            except (ValueError, RecursionError) as error:
                reason = f"the request cannot be read: {error}"
            if reason is not None:
                await _answer(send, 400, reason)
                return
        await self.server(scope, _replay(messages, receive), send)

    async def _refusal(self, scope: Mapping[str, Any], kind: str, messages: list[dict[str, Any]]) -> str | None:
        """Why a request is not answered, if what it brings is not plain data of the right kind."""
        path = scope["path"].strip("/").split("/")[0]
        if kind.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
            from starlette.requests import Request

            async with Request(scope, _replay(messages, None)).form() as form:
                data = [json.loads(text) if text.strip() else {} for text in form.values() if isinstance(text, str)]
        else:
            body = b"".join(message.get("body", b"") for message in messages)
            is_json = path in ("train", "batch_infer", "scoring", "activelearning") or "json" in kind
            data = [json.loads(body)] if is_json and body else []
        if path == "train":
            data = data or [{}]
        found = [refusal_of_data(data), *(refusal_of_training(item) for item in data if path == "train")]
        return next(filter(None, found), None)


def _replay(messages: list[dict[str, Any]], receive: Receive | None) -> Receive:
    left = iter(messages)

    async def again() -> dict[str, Any]:
        message = next(left, None)
        if message is None:
            return {"type": "http.disconnect"} if receive is None else await receive()
        return message

    return again


async def _answer(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def __getattr__(name: str) -> Any:
    """`app`, the guarded server, once MONAI Label has its settings."""
    if name != "app":
        raise AttributeError(name)
    from monailabel.app import app
    from monailabel.config import settings

    words = " ".join(sys.argv[1:])
    named = re.findall(r"(?:^| )(?:-i|--host)[ =](\S+)", words) + os.environ.get("MORPHZOO_LABEL_HOSTS", "").split(",")
    hosts = HERE | {host.strip().lower() for host in named} - {"", "0.0.0.0", "::"}
    origins = {str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS or []}
    return Guard(app, hosts, origins)


def main() -> None:
    import torch

    if not torch.cuda.is_available():
        # The two operators that torchvision's Python part expects its binary to have defined. No bundle here uses them.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

    from monailabel.main import Main

    if sys.argv[1:2] == ["start_server"]:
        sys.argv += ["--uvicorn_app", "monai_label_server:app"]
    Main().run()


if __name__ == "__main__":
    main()
