"""Records of Weights & Biases read back by its own `leet inspect`, and a server that takes them on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def record_of(run: Path) -> Path:
    """The only record below the folder of a run."""
    (record,) = (run / "wandb").glob("offline-run-*")
    return record


def _inspect(record: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(record)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=dict(os.environ))
    return answer.stdout


def summary(record: Path) -> dict[str, Any]:
    """State, configuration and last values of a record."""
    found: dict[str, Any] = json.loads(_inspect(record, "--summary"))
    return found


def entries(record: Path, kind: str) -> list[dict[str, Any]]:
    """All entries of one kind, such as history or artifact, in order."""
    found = [json.loads(line) for line in _inspect(record).splitlines()]
    return [entry[kind] for entry in found if entry["type"] == kind]


class Server(ThreadingHTTPServer):
    """As much of a W&B server as an upload needs.

    Attributes:
        asked: Name and variables of every query, in order.
        artifacts: (name, digest) -> id: what was logged once is known, as the real server does it.
        files: Paths that were uploaded.
        history: Run id -> rows that were uploaded, each in the place that it was sent for.
        refuses: What uploads of rows are answered, where that is not 200.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.artifacts: dict[tuple[str, str], str] = {}
        self.files: list[str] = []
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.refuses: int | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        """Answer nothing any more."""
        self.shutdown()
        self.server_close()

    def variables(self, name: str) -> list[dict[str, Any]]:
        """Variables of the queries of one name."""
        return [given.get("input", given) for asked, given in self.asked if asked == name]

    def answer(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((name, given))
        project = {"id": "P", "name": "foundation", "entity": {"id": "E", "name": "me"}}
        upload = {"uploadUrl": f"{self.url}/upload/", "uploadHeaders": []}
        given = given.get("input", given)
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": self._begun(given["name"])}}
        if name == "UpsertBucket":
            rows = self.history.setdefault(given["name"], [])
            bucket = {"id": "R", "name": given["name"], "displayName": "r", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(rows)}, "inserted": True}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "CreateArtifact":
            key = given["artifactCollectionName"], given["digest"]
            state = "COMMITTED" if key in self.artifacts else "PENDING"
            made = self.artifacts.setdefault(key, f"A{len(self.artifacts)}")
            return {"createArtifact": {"artifact": {"id": made, "state": state, "artifactSequence": {}}}}
        if name == "CreateArtifactManifest":
            return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": {"id": "F", **upload}}}}
        if name == "CreateArtifactFiles":
            nodes = [
                {
                    "storagePath": "s",
                    "uploadUrl": upload["uploadUrl"] + file["name"],
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": file["artifactID"]},
                }
                for file in given["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": upload["uploadUrl"] + file} for file in given["files"]]
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
        key_of = {"CommitArtifact": "commitArtifact", "UseArtifact": "useArtifact"}
        return {key_of[name]: {"artifact": {"id": given["artifactID"], "digest": "d"}}} if name in key_of else {}

    def _begun(self, name: str) -> dict[str, Any] | None:
        """What is there of a run that is gone on with."""
        rows = self.history.get(name)
        if rows is None:
            return None
        counts = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
        told = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]"}
        told |= {"config": "{}", "summaryMetrics": "{}", "wandbConfig": '{"t": 1}'}
        return {"id": "R", "name": name, "displayName": "r", "tags": [], **counts, **told}

    def stream(self, name: str, files: dict[str, Any]) -> None:
        """Take rows of a run."""
        rows = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        first, content = rows["offset"], [json.loads(row) for row in rows["content"]]
        self.history.setdefault(name, [])[first : first + len(content)] = content


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def _reply(self, content: Any, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self.server.files.append(self.path.removeprefix("/upload/"))
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/file_stream"):
            if self.server.refuses:
                return self._reply({}, self.server.refuses)
            self.server.stream(self.path.split("/")[-2], json.loads(body).get("files") or {})
        if self.path != "/graphql":
            return self._reply({"limits": {}})
        query = json.loads(body)
        self._reply({"data": self.server.answer(query["operationName"], query.get("variables") or {})})


@contextmanager
def server() -> Iterator[Server]:
    """A server that runs while the body does."""
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join()
