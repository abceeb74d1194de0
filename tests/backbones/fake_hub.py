"""A hub of our own on this machine: what a download needs of huggingface.co, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 39 + "1"


@contextmanager
def serve_hub(
    repositories: dict[str, Path], refused: dict[str, tuple[int, str]]
) -> Iterator[tuple[str, list[str]]]:
    """Yields the address of a hub, and the list of the files that it has given out so far.

    Args:
        repositories: hub id -> folder that holds its files, at the branch "main".
        refused: hub id -> status and error code that is all that the hub says of it.
    """
    given: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            file = re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", path)
            info = re.fullmatch(
                r"/api/models/(?P<repo>[^/]+/[^/]+)(/(revision|tree)/(?P<revision>[^/]+))?", path
            )
            match = file or info
            if match is None or match["repo"] not in {*repositories, *refused}:
                return self.refuse(404, "RepoNotFound")
            if match["repo"] in refused:
                return self.refuse(*refused[match["repo"]])
            if match["revision"] not in ("main", COMMIT, None):
                return self.refuse(404, "RevisionNotFound")
            root = repositories[match["repo"]]
            if info is not None:
                names = sorted(str(each.relative_to(root)) for each in root.rglob("*") if each.is_file())
                listing: object = {
                    "id": match["repo"],
                    "sha": COMMIT,
                    "siblings": [{"rfilename": name} for name in names],
                }
                if "/tree/" in path:
                    sizes = {name: (root / name).stat().st_size for name in names}
                    listing = [
                        {"type": "file", "path": name, "size": size, "oid": name}
                        for name, size in sizes.items()
                    ]
                return self.send(json.dumps(listing).encode(), "application/json", body=body)
            target = root / match["name"]
            if not target.is_file():
                return self.refuse(404, "EntryNotFound")
            if body:
                given.append(match["name"])
            return self.send(target.read_bytes(), "application/octet-stream", body=body)

        def send(self, content: bytes, kind: str, *, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", given
    finally:
        server.shutdown()
        server.server_close()
