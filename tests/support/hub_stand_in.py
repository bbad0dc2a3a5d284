"""A stand-in for the Hugging Face Hub on loopback: the real client talks to it over the Hub's own HTTP routes.

Repositories are made, files go up by preupload, LFS batch and commit, and come down by refs, tree and resolve, with
branches, tokens, private repositories and the check of a card's metadata. Xet is not spoken: set HF_HUB_DISABLE_XET.
Every request is kept, so that a test can look for what must not be there.
"""

import base64
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".pth")


@dataclass
class Repository:
    """Commits by branch, the newest last: `(id, {path: (content, whether it is LFS)})`."""

    kind: str
    private: bool = False
    branches: dict[str, list] = field(default_factory=lambda: {"main": [("0" * 40, {})]})

    def tree(self, revision: str) -> tuple[str, dict] | None:
        """The commit that a branch or a commit id names."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = [commit for branch in self.branches.values() for commit in branch]
        return next((commit for commit in commits if commit[0] == revision), None)


class HubStandIn:
    """The server. `dies_at` names a step (create, preupload, batch, upload, commit): there it drops the connection
    and answers nothing any more, until `revive`. `upload` dies with half of the bytes read. `silent_at` never answers.
    """

    def __init__(self, token: str, dies_at: str | None = None, silent_at: str | None = None):
        self.token, self.dies_at, self.silent_at = token, dies_at, silent_at
        self.dead = False
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: list[str] = []  # ids of the LFS objects that came up
        self.requests: list[tuple[str, str, bytes]] = []
        self.lock = threading.Lock()
        self.finished = threading.Event()
        stand_in = self

        class Handler(_Handler):
            hub = stand_in

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.finished.set()
        self.server.shutdown()
        self.server.server_close()

    def revive(self) -> None:
        """From now on it answers, and dies no more."""
        self.dead, self.dies_at, self.silent_at = False, None, None

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The files of a repository's newest commit."""
        return {path: content for path, (content, _) in self.repositories[kind, repo_id].tree(revision)[1].items()}

    def commits(self, repo_id: str, kind: str = "model", revision: str = "main") -> int:
        """How many commits a branch has, the empty first one apart."""
        return len(self.repositories[kind, repo_id].branches[revision]) - 1

    def environment(self, home) -> dict[str, str]:
        """What the client has to be told: `home` is an empty folder for its cache."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


class _Dead(Exception):
    """The connection is dropped without an answer."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _serve(self) -> None:
        hub = self.hub
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        try:
            if hub.dead:
                raise _Dead
            is_upload = path.startswith("/lfs/")
            if is_upload:
                self._step("upload", half=True)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with hub.lock:
                hub.requests.append((self.command, self.path, body))
            if path == "/api/validate-yaml":
                return self._validate(json.loads(body))
            if is_upload:  # as on the real Hub the address is signed, and no token is sent there
                return self._store(path.removeprefix("/lfs/"), body)
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._answer(401, {"error": "Invalid credentials in Authorization header"})
            self._route(path, body)
        except _Dead:
            self.close_connection = True
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _step(self, name: str, half: bool = False) -> None:
        if self.hub.silent_at == name:
            self.hub.finished.wait(60)
            raise _Dead
        if self.hub.dies_at == name:
            if half:
                self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.hub.dead = True
            raise _Dead

    def _answer(self, status: int, content, headers: dict | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._answer(404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    # Routes -------------------------------------------------------------------------------------------------

    def _route(self, path: str, body: bytes) -> None:
        words = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            return self._answer(200, {"type": "user", "name": "tester", "auth": {"type": "access_token"}})
        if path == "/api/repos/create":
            self._step("create")
            return self._create(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            self._step("batch")
            return self._batch(json.loads(body))
        if words[0] == "api" and len(words) >= 4:
            return self._api(words[1].removesuffix("s"), "/".join(words[2:4]), words[4:], body)
        if "resolve" in words:
            kind, words = ("dataset", words[1:]) if words[0] == "datasets" else ("model", words)
            place = words.index("resolve")
            return self._resolve(kind, "/".join(words[:place]), words[place + 1], "/".join(words[place + 2 :]))
        self._missing("EntryNotFound")

    def _api(self, kind: str, repo_id: str, words: list[str], body: bytes) -> None:
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None:
            return self._missing("RepoNotFound")
        action, rest = (words or ["revision"])[0], words[1:]
        if action == "branch":
            return self._branch(repository, rest[0])
        if action == "refs":
            names = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c[-1][0]} for b, c in
                     repository.branches.items()]  # fmt: skip
            return self._answer(200, {"branches": names, "tags": [], "converts": []})
        tree = repository.tree(rest[0] if rest else "main")
        if tree is None:
            return self._missing("RevisionNotFound")
        if action == "preupload":
            self._step("preupload")
            return self._preupload(tree, json.loads(body))
        if action == "commit":
            self._step("commit")
            return self._commit(kind, repo_id, repository, rest[0], body)
        entries = [_entry(path, content, lfs) for path, (content, lfs) in sorted(tree[1].items())]
        if action == "tree":
            inside = "".join(f"{word}/" for word in rest[1:])
            recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._answer(200, _listed(entries + _folders(entries), inside, recursive))
        if action == "paths-info":
            wanted = json.loads(body).get("paths", []) if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            return self._answer(200, [one for one in entries + _folders(entries) if one["path"] in wanted])
        siblings = [{"rfilename": one["path"], "size": one["size"]} for one in entries]
        info = {"_id": "0", "id": repo_id, "sha": tree[0], "private": repository.private, "siblings": siblings}
        self._answer(200, info | {"tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False})

    def _create(self, wanted: dict) -> None:
        name = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        kind = wanted.get("type") or "model"
        url = f"{self.hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repositories:
            return self._answer(409, {"error": "You already created this model repo", "url": url, "name": name})
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories[kind, name] = Repository(kind, private)
        self._answer(200, {"url": url, "name": name, "id": "0"})

    def _branch(self, repository: Repository, name: str) -> None:
        if name in repository.branches:
            return self._answer(409, {"error": "Reference already exists"})
        repository.branches[name] = [repository.branches["main"][-1]]
        self._answer(201, {})

    def _validate(self, body: dict) -> None:
        """As the Hub: metadata is a YAML mapping, and some keys have a form."""
        errors = []
        try:
            data = yaml.safe_load(body["content"].split("---")[1]) if body["content"].startswith("---") else {}
            for result in [one for index in data.get("model-index", []) for one in index["results"]]:
                if not (result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]):
                    errors.append({"message": "model-index: task.type, dataset.type and dataset.name are needed"})
                if not all("type" in metric and "value" in metric for metric in result["metrics"]):
                    errors.append({"message": "model-index: a metric needs type and value"})
        except Exception as error:
            errors.append({"message": f"metadata cannot be read: {error!r}"})
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, tree, body: dict) -> None:
        files = []
        for one in body["files"]:
            old = tree[1].get(one["path"])
            mode = "lfs" if one["path"].endswith(LFS_SUFFIXES) else "regular"
            entry = {"path": one["path"], "uploadMode": mode, "shouldIgnore": False}
            files.append(entry | ({"oid": _oid(*old)} if old else {}))
        self._answer(200, {"files": files})

    def _batch(self, body: dict) -> None:
        objects = []
        for one in body["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.blobs:
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{one['oid']}", "header": {}}}
            objects.append(answer)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {"error": "content does not match its id"})
        self.hub.blobs[oid] = body
        self.hub.uploads.append(oid)
        self._answer(200, b"")

    def _commit(self, kind: str, repo_id: str, repository: Repository, branch: str, body: bytes) -> None:
        files = dict(repository.branches[branch][-1][1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    return self._answer(400, {"error": f"LFS object of {value['path']} is not there"})
                files[value["path"]] = (self.hub.blobs[value["oid"]], True)
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        number = str(sum(map(len, repository.branches.values())))
        commit = hashlib.sha1(f"{repo_id} {branch} {number}".encode()).hexdigest()
        repository.branches[branch].append((commit, files))
        prefix = "datasets/" if kind == "dataset" else ""
        url = f"{self.hub.endpoint}/{prefix}{repo_id}/commit/{commit}"
        self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get((kind, repo_id))
        tree = repository.tree(revision) if repository else None
        if tree is None:
            return self._missing("RevisionNotFound" if repository else "RepoNotFound")
        if path not in tree[1]:
            return self._missing("EntryNotFound")
        content, lfs = tree[1][path]
        headers = {"X-Repo-Commit": tree[0], "ETag": f'"{_oid(content, lfs)}"'}
        self._answer(200, content, headers | {"Content-Type": "application/octet-stream"})


def _oid(content: bytes, lfs: bool) -> str:
    """The id that git has for a file, or LFS for its content."""
    if lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes, lfs: bool) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(content, lfs)}
    return entry | ({"lfs": {"oid": _oid(content, True), "size": len(content), "pointerSize": 134}} if lfs else {})


def _folders(entries: list[dict]) -> list[dict]:
    """The folders that these files lie in."""
    names = {str(parent) for one in entries for parent in PurePosixPath(one["path"]).parents} - {"."}
    return [
        {"type": "directory", "path": name, "size": 0, "oid": _oid(name.encode(), False)} for name in sorted(names)
    ]


def _listed(entries: list[dict], inside: str, recursive: bool) -> list[dict]:
    """What lies in a folder (`name/`, or empty for the root), in its folders too if `recursive`."""
    below = [one for one in entries if one["path"].startswith(inside)]
    return [one for one in below if recursive or "/" not in one["path"].removeprefix(inside)]


def client_of(hub: HubStandIn, monkeypatch, home) -> None:
    """Point the client inside this process at the stand-in; tests in processes of their own take `environment`."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    for name, value in hub.environment(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    url = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    without_pauses = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", without_pauses)  # between its tries
