"""A Hugging Face Hub on 127.0.0.1, so that the real client is tested without a network, faults included.

    with LoopbackHub() as hub:
        commit = hub.add_repo("org/name", files={"model.safetensors": b"..."})
        hub.fail("resolve/*/model.safetensors", cut_after=1000)
        with hub.client(tmp_path / "home"):  # in this process
            hf_hub_download("org/name", "model.safetensors", revision=commit)
        subprocess.run([...], env=hub.environment(tmp_path / "home"))  # in another

Models only. Large files lie on a second origin, as the real ones do, to which no token may go. Xet is never offered:
without an ``X-Xet-Hash`` header every client downloads the plain way, and without a ``xet`` transfer those up to the
first 1.x upload so. Later ones upload through Xet without asking the server, unless ``HF_HUB_DISABLE_XET`` is set, as
``environment`` and ``client`` do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import runpy
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.onnx", "*.npz", "*.zip", "*.gz")  # as .gitattributes
LARGE_BYTES = 10_000_000  # larger files go to LFS whatever their name
TIMEOUT_S = 1  # of the client's reads: the least that its variables can say
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str  # decoded, without the query
    query: dict[str, str]
    cdn: bool  # whether it was asked of the origin that holds the large files
    range: str | None
    authorization: str | None
    user_agent: str | None


@dataclass
class Fault:
    """What goes wrong: one of the first three, or any of the others together."""

    pattern: str
    times: int
    method: str | None
    status: int | None = None  # answer so, having read the request; nothing is done
    hang: float | None = None  # seconds without an answer, then the connection is closed
    lose_answer: bool = False  # do what is asked, then cut the connection instead of answering
    cut_after: int | None = None  # cut the connection after so many bytes of an answer's content, or of an upload's
    slow: float = 0  # seconds before each block of an answer's content, or of an upload's
    block: int = 16384  # bytes
    wrong_bytes: bool = False  # other content of the same length
    truncate_to: int | None = None  # so many bytes as if they were all (``cut_after`` announces the whole length)
    reset: bool = False  # cut by a reset instead of an orderly end
    headers: dict[str, str] = field(default_factory=dict)  # sent with status: {"X-Error-Code": "GatedRepo"}

    def stage(self, method: str) -> str:
        if self.status is not None or self.hang is not None:
            return "request"
        if self.lose_answer:
            return "answer"
        return "upload" if method in ("PUT", "POST") else "content"


@dataclass(eq=False)
class Answer(Exception):
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _json(data: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **headers})


def _refusal(status: int, message: str, code: str = "", **headers: str) -> Answer:
    coded = {"X-Error-Code": code} if code else {}
    return _json({"error": message}, status, **{"X-Error-Message": message, **coded, **headers})


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, f"*/{pattern.lstrip('/')}")


def _is_large(path: str, size: int) -> bool:
    return size > LARGE_BYTES or any(fnmatchcase(path, pattern) for pattern in LARGE)


class File:
    def __init__(self, path: str, content: bytes) -> None:
        self.path, self.content, self.size = path, content, len(content)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.large = _is_large(path, self.size)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        self.blob = pointer.encode() if self.large else content  # what git holds
        self.oid = hashlib.sha1(b"blob %d\0" % len(self.blob) + self.blob).hexdigest()

    def entry(self) -> dict[str, Any]:
        """As it is listed: in the repository's record under other names than by ``tree`` and ``paths-info``."""
        large = {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": len(self.blob)}
        names = {"path": self.path, "rfilename": self.path, "oid": self.oid, "blobId": self.oid}
        return {"type": "file", "size": self.size, **names, **({"lfs": large} if self.large else {})}


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    files: dict[str, File]


@dataclass
class Repo:
    id: str
    private: bool = False
    gated: bool = False
    members: set[str] | None = None  # who sees it if it is private and passes if it is gated; None: all users
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise _refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[commit]

    def commit(self, files: dict[str, File], branch: str) -> str:
        parent = self.branches.get(branch)
        state = (self.id, parent, len(self.commits), sorted((path, file.oid) for path, file in files.items()))
        name = hashlib.sha1(repr(state).encode()).hexdigest()
        self.commits[name] = Commit(name, parent, files)
        self.branches[branch] = name
        return name

    def info(self, revision: str) -> dict[str, Any]:
        commit = self.at(revision)
        state = {"private": self.private, "gated": "auto" if self.gated else False, "disabled": False}
        counts = {"downloads": 0, "likes": 0, "tags": [], "lastModified": DATE, "createdAt": DATE}
        siblings = [file.entry() for file in commit.files.values()]
        return {"id": self.id, "modelId": self.id, "sha": commit.id, **state, **counts, "siblings": siblings}


class LoopbackHub:
    """Serves within a ``with``, and leaves no thread behind."""

    def __init__(self) -> None:
        self.tokens: dict[str, str] = {}  # token -> user
        self.read_only: set[str] = set()  # users whose tokens may not write
        self.requests: list[Request] = []  # in the order of arrival
        self._repos: dict[str, Repo] = {}
        self._renamed: dict[str, str] = {}
        self._large: dict[str, bytes] = {}  # sha256 -> content
        self._faults: list[Fault] = []
        self._mistakes: list[Exception] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._servers = [_Server(self, cdn) for cdn in (False, True)]
        hosts = ("127.0.0.1", "localhost")  # some clients (1.33, 2.0) tell origins apart by the name, not by the port
        urls = [f"http://{host}:{server.server_address[1]}" for host, server in zip(hosts, self._servers, strict=True)]
        self.url, self.cdn_url = urls

    def __enter__(self) -> LoopbackHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closing.set()  # ends what hangs or is slow
        for server in self._servers:
            server.stop()
        if self._mistakes and kind is None:
            raise self._mistakes[0]  # of this file: a fault is no exception here

    # For the test.

    def add_repo(self, repo: str, *, files: dict[str, bytes] | None = None, **access: Any) -> str:
        """Make a repository with one commit, whose id is returned; access: private, gated, members (see ``Repo``)."""
        with self._lock:
            self._repos[repo] = Repo(repo, **access)
            return self.commit(repo, files or {})

    def commit(self, repo: str, files: dict[str, bytes], *, branch: str = "main") -> str:
        """Add or replace files on a branch (a new one starts empty); returns the commit's id."""
        with self._lock:
            here = self._repos[repo]
            tree = dict(here.at(branch).files) if branch in here.branches else {}
            tree |= {path: File(path, content) for path, content in files.items()}
            self._large |= {file.sha256: file.content for file in tree.values() if file.large}
            return here.commit(tree, branch)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        with self._lock:
            return {path: file.content for path, file in self._repos[repo].at(revision).files.items()}

    def history(self, repo: str, revision: str = "main") -> list[str]:
        """Commits from the newest to the first."""
        with self._lock:
            commits = [self._repos[repo].at(revision)]
            while commits[-1].parent:
                commits.append(self._repos[repo].at(commits[-1].parent))
            return [commit.id for commit in commits]

    def refs(self, repo: str) -> dict[str, str]:
        """Branches and tags, and their commits."""
        with self._lock:
            return {**self._repos[repo].branches, **self._repos[repo].tags}

    def rename(self, repo: str, to: str) -> None:
        with self._lock:
            self._repos[to] = replace(self._repos.pop(repo), id=to)
            self._renamed[repo] = to

    def asked(self, method: str | None = None, pattern: str = "*") -> list[Request]:
        """Requests so far, by method and pattern (as in ``fail``)."""
        return [r for r in list(self.requests) if method in (None, r.method) and _matches(r.path, pattern)]

    def fail(self, pattern: str, *, times: int = 1, method: str | None = None, **fault: Any) -> None:
        """Let the next requests go wrong (see ``Fault``) whose path ends in pattern (``*`` crosses slashes too).

        Faults given for the same requests are used up one after the other.
        """
        with self._lock:
            self._faults.append(Fault(pattern, times, method, **fault))

    def mend(self) -> None:
        """Forget the faults that are left."""
        with self._lock:
            self._faults.clear()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The whole environment for a process whose client shall use this Hub, with ``HF_HOME`` at ``home``."""
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
        ours |= {f"HF_HUB_DISABLE_{name}": "1" for name in ("XET", "TELEMETRY", "PROGRESS_BARS")}
        ours |= {f"HF_HUB_{name}_TIMEOUT": str(TIMEOUT_S) for name in ("ETAG", "DOWNLOAD")}
        ours |= {"HF_TOKEN": token} if token else {}
        others = re.compile(r"HF_.*|HUGGING.*|TRANSFORMERS_OFFLINE|.*_proxy", re.IGNORECASE)
        return {key: value for key, value in os.environ.items() if not others.fullmatch(key)} | ours

    @contextmanager
    def client(self, home: Path, token: str | None = None) -> Iterator[None]:
        """``huggingface_hub`` of this process uses this Hub, retries at once, and forgets both at the end.

        For clients from 1.0 on: older ones copy the endpoint at import, so they need a process of their own.
        """
        import huggingface_hub
        from huggingface_hub import constants, file_download, hf_api, utils
        from huggingface_hub.utils import _http

        impatient = SimpleNamespace(time=time.time, sleep=lambda seconds: time.sleep(min(seconds, 0.01)))
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, self.environment(home, token), clear=True))
            anew = runpy.run_path(constants.__file__)  # the constants as another process would read them
            settings = {key: value for key, value in anew.items() if re.fullmatch(r"[A-Z][A-Z_]*", key)}
            stack.enter_context(mock.patch.multiple(constants, **settings))
            stack.enter_context(mock.patch.object(hf_api.api, "endpoint", self.url))  # what huggingface_hub.whoami uses
            stack.enter_context(mock.patch.object(file_download, "_ETAG_RETRY_TIMEOUT", TIMEOUT_S, create=True))
            stack.enter_context(mock.patch.object(file_download, "time", impatient))
            stack.enter_context(mock.patch.object(_http, "time", impatient))
            if not utils.are_progress_bars_disabled():
                utils.disable_progress_bars()
                stack.callback(utils.enable_progress_bars)
            huggingface_hub.close_session()
            stack.callback(huggingface_hub.close_session)
            yield

    # For the servers.

    def _claim(self, request: Request, stage: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                wanted = fault.method in (None, request.method) and fault.stage(request.method) == stage
                if wanted and _matches(request.path, fault.pattern):
                    fault.times -= 1
                    self._faults = [other for other in self._faults if other.times > 0]
                    return fault
        return None

    def _user(self, request: Request, *, writes: bool = False, needed: bool = False) -> str | None:
        user = self.tokens.get((request.authorization or "").removeprefix("Bearer "))
        if request.authorization and user is None:
            raise _refusal(401, "Invalid credentials in Authorization header")
        if user is None and (writes or needed):
            raise _refusal(401, "Invalid username or password.")
        if writes and user in self.read_only:
            raise _refusal(403, "You don't have the rights to write here with this token")
        return user

    def _repo(self, request: Request, name: str, *, content: bool = False) -> Repo:
        user = self._user(request)
        if name in self._renamed:
            query = "&".join(f"{key}={quote(value)}" for key, value in request.query.items())
            location = quote(request.path.replace(name, self._renamed[name], 1)) + f"?{query}"
            raise Answer(307, headers={"Location": location})
        repo = self._repos.get(name)
        member = repo is not None and user is not None and (repo.members is None or user in repo.members)
        if repo is None or (repo.private and not member):
            # The real Hub sends no code with the 401, but the client does without it only where the address is https.
            message = "Repository not found" if user else "Invalid username or password."
            raise _refusal(404 if user else 401, message, "RepoNotFound")
        if content and repo.gated and not member:
            raise _refusal(403 if user else 401, f"Access to model {name} is restricted.", "GatedRepo")
        return repo

    def _answer(self, request: Request, raw_path: str, body: bytes) -> Answer:
        parts = [unquote(part) for part in raw_path.strip("/").split("/")]
        with self._lock:
            match request.method, parts:
                case _ if request.cdn:
                    return self._store(request, parts, body)
                case "HEAD" | "GET", [org, name, "resolve", revision, *path]:
                    return self._resolve(request, f"{org}/{name}", revision, "/".join(path))
                case "POST", [org, name, "info", "lfs", "objects", "batch"]:
                    return self._batch(request, f"{org}/{name.removesuffix('.git')}", json.loads(body))
                case "POST", [_, _, "lfs", "verify"]:
                    asked = json.loads(body)
                    held = len(self._large.get(asked["oid"], b"")) == asked["size"]
                    return _json({}) if held else _refusal(404, "no such object of that size")
                case "POST", ["api", "repos", "create"]:
                    return self._create(request, json.loads(body))
                case "POST", ["api", "validate-yaml"]:
                    return _validate_card(json.loads(body)["content"])
                case "GET", ["api", "whoami-v2"]:
                    return _json({"type": "user", "name": self._user(request, needed=True), "orgs": []})
                case "GET", ["api", "models", org, name, *route]:
                    return self._read(self._repo(request, f"{org}/{name}"), route)
                case "POST", ["api", "models", org, name, "paths-info", revision]:
                    files = self._repo(request, f"{org}/{name}").at(revision).files
                    return _json([files[path].entry() for path in parse_qs(body.decode())["paths"] if path in files])
                case "POST", ["api", "models", org, name, *route]:
                    self._user(request, writes=True)
                    lines = [json.loads(line) for line in body.splitlines() if line.strip()]
                    return self._write(self._repo(request, f"{org}/{name}"), route, lines)
        return _refusal(404, f"this Hub does not know {request.method} {request.path}")

    def _resolve(self, request: Request, name: str, revision: str, path: str) -> Answer:
        commit = self._repo(request, name, content=True).at(revision)
        known = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        file = commit.files.get(path)
        if file is None:
            return _refusal(404, "Entry not found", "EntryNotFound", **known)
        if not file.large:
            return _ranged(file.content, request.range, {**known, "ETag": f'"{file.oid}"'})
        # The same path on the other origin, so that one pattern of ``fail`` finds a file wherever it lies.
        location = f"{self.cdn_url}/{name}/resolve/{commit.id}/{quote(path)}?sha256={file.sha256}"
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size), "Location": location}
        return Answer(302, b"Found", {**known, **linked})

    def _store(self, request: Request, parts: list[str], body: bytes) -> Answer:
        match request.method, parts:
            case "HEAD" | "GET", [_, _, "resolve", *path] if request.query.get("sha256") in self._large:
                oid = request.query["sha256"]
                named = {"Content-Disposition": f'inline; filename="{path[-1]}";', "Accept-Ranges": "bytes"}
                return _ranged(self._large[oid], request.range, {**named, "ETag": f'"{oid[:32]}"'})
            case "PUT", [_, _, "lfs", oid]:
                if (hashlib.sha256(body).hexdigest(), str(len(body))) != (oid, request.query["size"]):
                    return _refusal(400, "what was put has not the announced sha256 and size")
                self._large[oid] = body
                return Answer()
        return _refusal(403, "not signed")

    def _batch(self, request: Request, name: str, asked: dict[str, Any]) -> Answer:
        self._user(request, writes=True)
        self._repo(request, name)
        objects = asked["objects"]
        for item in objects:
            if item["oid"] not in self._large:
                put = {"href": f"{self.cdn_url}/{name}/lfs/{item['oid']}?size={item['size']}"}
                item["actions"] = {"upload": put, "verify": {"href": f"{self.url}/{name}/lfs/verify"}}
        return _json({"transfer": "basic", "objects": objects})  # neither "multipart" nor "xet"

    def _create(self, request: Request, asked: dict[str, Any]) -> Answer:
        name = f"{self._user(request, writes=True)}/{asked['name']}"
        if asked.get("organization"):
            name = f"{asked['organization']}/{asked['name']}"
        if name in self._repos:
            return _json({"error": "You already created this model repo", "url": f"{self.url}/{name}"}, 409)
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"  # before 2.0, and since
        self.add_repo(name, private=private, files={".gitattributes": attributes.encode()})
        return _json({"url": f"{self.url}/{name}", "name": name})

    def _read(self, repo: Repo, route: list[str]) -> Answer:
        match route:
            case []:
                return _json(repo.info("main"))
            case ["revision", revision]:
                return _json(repo.info(revision))
            case ["tree", revision]:  # files at any depth, no folders: what ``recursive`` asks, less what nobody reads
                return _json([file.entry() for file in repo.at(revision).files.values()])
        return _refusal(404, f"this Hub has no {'/'.join(route)}")

    def _write(self, repo: Repo, route: list[str], lines: list[dict[str, Any]]) -> Answer:
        match route:
            case ["preupload", revision]:
                files = repo.at(revision).files
                return _json({"files": [_upload_mode(file, files.get(file["path"])) for file in lines[0]["files"]]})
            case ["commit", branch]:
                return self._commit(repo, branch, lines[0]["value"].get("parentCommit"), lines[1:])
            case ["branch", name]:
                refs, revision = repo.branches, lines[0].get("startingPoint") or "main"
            case ["tag", revision]:
                refs, name = repo.tags, lines[0]["tag"]
            case _:
                return _refusal(404, f"this Hub has no {'/'.join(route)}")
        if name in refs:
            return _refusal(409, f"Reference {name} exists already")
        refs[name] = repo.at(revision).id
        return _json({})

    def _commit(self, repo: Repo, branch: str, parent: str | None, lines: list[dict[str, Any]]) -> Answer:
        """All of it or nothing: the files are put together first, then the branch is moved."""
        if branch not in repo.branches:
            return _refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if parent not in (None, repo.branches[branch]):
            return _refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.at(branch).files)
        for line in lines:
            value, path = line["value"], line["value"]["path"]
            match line["key"]:
                case "file":
                    files[path] = File(path, base64.b64decode(value["content"]))
                case "lfsFile" if value["oid"] in self._large:
                    files[path] = File(path, self._large[value["oid"]])
                case "deletedFile" if path in files:
                    del files[path]
                case "deletedFolder":
                    files = {name: file for name, file in files.items() if not name.startswith(path.rstrip("/") + "/")}
                case key:
                    return _refusal(400, f"{key} {path}: no such object")
        commit = repo.commit(files, branch)
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{repo.id}/commit/{commit}"})


def _ranged(content: bytes, wanted: str | None, headers: dict[str, str]) -> Answer:
    """The content, or the part that the ``Range`` header names (RFC 9110, 14.1.2: one range)."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if not found or found[0] == "bytes=-":
        return Answer(200, content, headers)
    start, end = found.groups()
    first = int(start) if start else max(len(content) - int(end), 0)
    last = min(int(end), len(content) - 1) if start and end else len(content) - 1
    if first > last:
        return Answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
    return Answer(206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"})


def _upload_mode(asked: dict[str, Any], present: File | None) -> dict[str, Any]:
    mode = "lfs" if _is_large(asked["path"], asked["size"]) else "regular"
    oid = None if present is None else present.sha256 if present.large else present.oid
    return {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def _validate_card(text: str) -> Answer:
    """The two complaints that a hand-written model card meets first."""
    head = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    licence = re.search(r"^license: *(.*)$", head[1], re.MULTILINE) if head else None
    if licence and not re.fullmatch(r"[a-z0-9.-]+", licence[1]):
        return _json({"errors": [{"message": f'"license" must be an identifier, not {licence[1]!r}'}]}, 400)
    return _json(
        {"errors": [], "warnings": [] if head else [{"message": "empty or missing yaml metadata in repo card"}]}
    )


class _Cut(Exception):
    """The connection is to end here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        hub, split = self.server.hub, urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        sent = [self.headers.get(name) for name in ("Range", "Authorization", "User-Agent")]
        request = Request(self.command, unquote(split.path), query, self.server.cdn, *sent)
        hub.requests.append(request)
        try:
            self._reply(request, split.path)
        except (_Cut, OSError):  # a fault, or the client went away
            self.close_connection = True
        except Exception as mistake:
            hub._mistakes.append(mistake)
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    def _reply(self, request: Request, raw_path: str) -> None:
        hub = self.server.hub
        length = int(self.headers.get("Content-Length") or 0)
        body = b"".join(map(self._receive, self._blocks(length, hub._claim(request, "upload"))))
        fault = hub._claim(request, "request")
        if fault and fault.hang is not None:
            hub._closing.wait(fault.hang)
            raise _Cut
        try:
            if fault and fault.status is not None:
                raise _refusal(fault.status, "a fault", **fault.headers)
            answer = hub._answer(request, raw_path, body)
        except Answer as refusal:
            answer = refusal
        if fault := hub._claim(request, "answer"):
            self._cut(fault)
        fault = hub._claim(request, "content") if request.method == "GET" and answer.status < 300 else None
        content = answer.body if fault is None else answer.body[: fault.truncate_to]
        if fault and fault.wrong_bytes:
            content = bytes(byte ^ 0xFF for byte in content)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method != "HEAD":
            start = 0
            for size in self._blocks(len(content), fault):
                self.wfile.write(content[start : start + size])
                start += size

    def _blocks(self, length: int, fault: Fault | None) -> Iterator[int]:
        """Sizes in which to move so many bytes: as slow as the fault says, until it cuts the connection."""
        end = length if fault is None or fault.cut_after is None else min(fault.cut_after, length)
        step = fault.block if fault and fault.slow else 1 << 20
        for start in range(0, end, step):
            if fault and fault.slow and self.server.hub._closing.wait(fault.slow):
                raise _Cut
            yield min(step, end - start)
        if fault and end < length:
            self._cut(fault)

    def _receive(self, size: int) -> bytes:
        block = self.rfile.read(size)
        if len(block) < size:
            raise _Cut
        return block

    def _cut(self, fault: Fault) -> None:
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.resets.add(self.connection)
        raise _Cut


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub, cdn: bool) -> None:
        self.hub, self.cdn = hub, cdn
        self.open: set[socket.socket] = set()
        self.resets: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's would ask for the machine's name

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        if request in self.resets:
            self.resets.discard(request)
            request.close()  # an orderly shutdown would come before the reset
        else:
            super().shutdown_request(request)

    def stop(self) -> None:
        self.shutdown()
        for connection in list(self.open):  # kept by clients for a next request, for which its thread waits
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the client dropped; the handler keeps its own mistakes."""
