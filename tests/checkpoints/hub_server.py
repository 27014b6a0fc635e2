"""A stand-in for the Hugging Face Hub: as much of its HTTP interface as one upload and one download use.

Files are kept in memory, each commit is a dict of all files. Bound to 127.0.0.1, small files only.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

LIMIT = 1 << 24


class Hub:
    """The repositories: name -> revision -> commit, and commit -> path -> contents."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.unknown: list[str] = []

    def commit(self, name: str, branch: str, files: dict[str, bytes]) -> str:
        """Put a branch at a new commit of exactly these files; returns its name."""
        body = json.dumps([name, branch, len(self.commits)]).encode()
        sha = hashlib.sha1(body).hexdigest()
        self.commits[sha] = files
        self.branches.setdefault(name, {})[branch] = sha
        return sha

    def find(self, name: str, revision: str) -> str | None:
        """The commit of a branch or the commit itself."""
        return self.branches.get(name, {}).get(revision, revision if revision in self.commits else None)


@contextmanager
def serve() -> Iterator[tuple[Hub, str]]:
    """A running hub and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|refs)(?:/(.+))?)?", path):
            self._about(match[1], match[2], match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._unknown()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        assert size < LIMIT
        body = self.rfile.read(size)
        path = unquote(urlparse(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            if name not in self.hub.branches:
                self.hub.commit(name, "main", {})
            self._json({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif match := re.fullmatch(r"/api/models/(.+)/branch/(.+)", path):
            self.hub.commit(match[1], match[2], dict(self.hub.commits[self.hub.branches[match[1]]["main"]]))
            self._json({})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            self._commit(match[1], match[2], body)
        else:
            self._unknown()

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        files = dict(self.hub.commits[self.hub.branches[name][branch]])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del files[entry["value"]["path"]]
        sha = self.hub.commit(name, branch, files)
        self._json({"commitOid": sha, "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{sha}"})

    def _about(self, name: str, what: str | None, revision: str) -> None:
        sha = self.hub.find(name, revision)
        if name not in self.hub.branches:
            self._error(404, "RepoNotFound")
        elif sha is None:
            self._error(404, "RevisionNotFound")
        elif what == "tree":
            files = self.hub.commits[sha].items()
            self._json([{"type": "file", "path": p, "size": len(c), "oid": _etag(c)} for p, c in files])
        else:
            siblings = [{"rfilename": path} for path in self.hub.commits[sha]]
            self._json({"id": name, "modelId": name, "sha": sha, "private": False, "tags": [], "siblings": siblings})

    def _file(self, name: str, revision: str, path: str) -> None:
        sha = self.hub.find(name, revision)
        if name not in self.hub.branches:
            self._error(404, "RepoNotFound")
        elif sha is None:
            self._error(404, "RevisionNotFound")
        elif path not in self.hub.commits[sha]:
            self._error(404, "EntryNotFound")
        else:
            contents = self.hub.commits[sha][path]
            self._send(200, contents, {"ETag": f'"{_etag(contents)}"', "X-Repo-Commit": sha})

    def _unknown(self) -> None:
        self.hub.unknown.append(f"{self.command} {self.path}")
        self._error(404, "EntryNotFound")

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, code: int, name: str) -> None:
        self._send(code, b"{}", {"X-Error-Code": name, "X-Error-Message": name})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(contents: bytes) -> str:
    return hashlib.sha1(contents).hexdigest()
