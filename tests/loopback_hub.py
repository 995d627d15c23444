"""
A Hub on 127.0.0.1 that keeps repos in memory, takes commits, and remembers what it was asked for.

Large files are kept, as on the Hub, under their sha256: with `LoopbackHub(store=True)` at a second address, to which
the first sends on with a signature that can expire.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml


LARGE = (".faiss", ".jsonl", ".npy", ".parquet")


@dataclass(frozen=True)
class Commit:
    sha: str
    files: dict[str, bytes]
    message: str = ""


@dataclass
class Repo:
    """`revisions` finds a commit by its id, and by the branches and tags that point to it."""

    private: bool = False
    revisions: dict[str, Commit] = field(default_factory=dict)
    history: list[Commit] = field(default_factory=list)

    def add(self, files, message="", revision="main"):
        sha = hashlib.sha1(repr((len(self.history), sorted(files.items()))).encode()).hexdigest()
        commit = Commit(sha, files, message)
        self.history.append(commit)
        self.revisions |= {revision: commit, sha: commit}
        return sha


@dataclass
class Request:
    method: str
    path: str
    token: str | None
    query: str
    range: str | None
    at_store: bool
    num_bytes: int = 0  # of the answer's body


@dataclass
class Fault:
    """
    What happens to the next `times` requests of a method whose path matches the pattern.

    By default the answer is `status`. With `cut` it is the right one, but its connection ends after that number of
    bytes of the body; `reset` resets the connection, and `hold` keeps it until the client is gone. With `content` the
    body is this; with 206, too, it is sent whole, whatever range was asked for.
    """

    method: str
    pattern: str
    status: int = 500
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    reset: bool = False
    hold: bool = False
    content: bytes | None = None


class LoopbackHub:
    """
    A context manager; `url` is its address.

    The Hugging Face libraries read `HF_ENDPOINT` when they are imported: start a separate process with
    `environment()`; in this process `attach` puts the address where huggingface_hub looks it up.
    """

    def __init__(self, store=False):
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.tokens: set[str] = {"hf_of_mine"}
        self.lock = threading.Lock()
        self.holding = threading.Event()  # that an answer is held
        self.meeting: threading.Barrier | None = None  # of the requests that are to be under way together
        self.signature = 1
        self.ranges = True  # whether parts of files can be asked for
        self.closed = False
        self._servers = [Server(self)] + ([Server(self)] if store else [])

    @property
    def url(self):
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def store_url(self):
        return f"http://127.0.0.1:{self._servers[-1].server_port}"

    @property
    def has_store(self):
        return len(self._servers) == 2

    def environment(self):
        """What a process needs in `os.environ`, beside no `HF_HUB_OFFLINE`, to ask this Hub."""
        names = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
        # evaluate counts downloads at another address
        return {"HF_ENDPOINT": self.url, "HF_UPDATE_DOWNLOAD_COUNTS": "0"} | dict.fromkeys(names, "1")

    def attach(self, monkeypatch, home):
        """Let huggingface_hub in this process ask this Hub, without a saved token, with its cache in a folder."""
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)

    def commit(self, repo_id, folder, revision="main", kind="datasets"):
        """Serve the files of a folder as a revision of a repo, made if it is new; returns the commit's id."""
        folder = Path(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.repos.setdefault(f"{kind}/{repo_id}", Repo()).add(files, revision=revision)

    def files(self, repo_id, revision="main"):
        """The files of a data set, by name."""
        return self.repos[f"datasets/{repo_id}"].revisions[revision].files

    def paths(self, method):
        """The paths of the requests of one method, in the order in which they came."""
        return [request.path for request in self.requests if request.method == method]

    def order(self, method, pattern, **fault):
        """Order a `Fault`."""
        self.faults.append(Fault(method, pattern, **fault))

    def expire(self):
        """Let the store refuse every address that was given out up to now."""
        self.signature += 1

    def blob_url(self, content_or_sha, path):
        """The address of a large file, good until `expire`."""
        sha = content_or_sha if isinstance(content_or_sha, str) else hashlib.sha256(content_or_sha).hexdigest()
        return f"{self.store_url}/blobs/{sha}/{quote(path)}?Expires=3600&Signature={self.signature}"

    def __enter__(self):
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Be gone, also for clients with an open connection."""
        self.closed = True
        for server in self._servers:
            server.shutdown()
            server.server_close()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def handle_request(self):
        self.hub, url = self.server.hub, urlsplit(self.path)
        self.fault = None
        if self.hub.closed:
            return self.hang_up()
        path, at_store = unquote(url.path), self.server is not self.hub._servers[0]
        # read in any case, or it would be taken for the next request
        self.body = self.read_body()
        headers = self.headers
        token, span = headers.get("Authorization"), headers.get("Range")
        self.request_seen = Request(self.command, path, token, url.query, span, at_store)
        with self.hub.lock:
            self.hub.requests.append(self.request_seen)
            self.fault = self.take_fault(path)
        if self.hub.meeting is not None:
            self.hub.meeting.wait(timeout=20)
        if self.fault is not None and self.fault.cut is None and self.fault.content is None:
            return self.fail(self.fault.status, "Ordered", "as the test ordered", self.fault.headers)
        for methods, pattern, answer in ROUTES:
            if self.command in methods and (match := re.fullmatch(pattern, path)):
                return self.route(answer, **match.groupdict())
        self.fail(404, "NotFound", f"No route for {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def take_fault(self, path):
        for fault in self.hub.faults:
            if fault.times > 0 and fault.method == self.command and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None

    def route(self, answer, kind=None, repo=None, revision=None, **groups):
        """Find repo and commit of a request, and whether it may be answered."""
        if kind is None:
            return answer(self, **groups)
        found, allowed = self.hub.repos.get(f"{kind}/{repo}"), self.may_write()
        if found is None:
            return self.fail(404, "RepoNotFound", "Repository not found")
        if not allowed and (found.private or self.command == "POST" and answer is not Handler.paths_info):
            return self.fail(401, "RepoNotFound" if found.private else "", "Invalid username or password.")
        if answer is Handler.create_branch:
            return answer(self, found, **groups)
        revision = revision or "main"
        if revision not in found.revisions:
            return self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if answer is Handler.make_commit:
            return answer(self, found, found.revisions[revision], f"{kind}/{repo}", revision)
        return answer(self, found.revisions[revision], repo=repo, **groups)

    def may_write(self):
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") in self.hub.tokens

    # --- read ---

    def repo_info(self, commit, repo):
        siblings = [{"rfilename": path} for path in commit.files]
        self.send_json({"id": repo, "sha": commit.sha, "private": False, "tags": [], "siblings": siblings})

    def tree(self, commit, repo, folder=None):
        start = f"{folder}/" if folder else ""
        names = [path for path in commit.files if path.startswith(start)]
        if folder and not names:
            return self.fail(404, "EntryNotFound", f"{folder} does not exist")
        depth = len(PurePosixPath(start).parts) + 1
        if parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true":
            depth = None
        # folders too, and of what lies deeper only them
        paths = [PurePosixPath(name).parts[:depth] for name in names]
        listed = dict.fromkeys("/".join(parts[:end]) for parts in paths for end in range(1, len(parts) + 1))
        self.send_json([entry(commit, name) for name in listed if name.startswith(start)])

    def paths_info(self, commit, repo):
        asked = parse_qs(self.body.decode()).get("paths", [])
        there = [name for name in asked if any(f"{path}/".startswith(f"{name}/") for path in commit.files)]
        self.send_json([entry(commit, name) for name in there])

    def resolve(self, commit, repo, path):
        if path not in commit.files:
            return self.fail(404, "EntryNotFound", f"{path} not found")
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{object_id(path, content)}"'}
        if not (self.hub.has_store and path.endswith(LARGE)):
            return self.send_content(content, headers)
        self.hub.blobs[hashlib.sha256(content).hexdigest()] = content
        location = self.hub.blob_url(content, path)
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"], "Location": location}
        self.send(302, b"Found", headers)

    def blob(self, sha, path):
        if self.has_expired():
            return self.fail(403, "", "Request has expired")
        self.send_content(self.hub.blobs[sha], {"ETag": f'"{sha}"'})

    def has_expired(self):
        return parse_qs(urlsplit(self.path).query).get("Signature") != [str(self.hub.signature)]

    def send_content(self, content, headers):
        if self.fault is not None and self.fault.content is not None:
            content = self.fault.content
            if self.fault.status == 206:
                return self.send(206, content, headers)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None or not self.hub.ranges:
            return self.send(200, content, headers)
        first, last = int(match[1]), int(match[2] or len(content) - 1)
        last = min(last, len(content) - 1)
        if first > last:
            return self.fail(416, "", "Requested range not satisfiable")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send(206, content[first : last + 1], headers)

    # --- write ---

    def create_repo(self):
        asked = json.loads(self.body)
        if not self.may_write():
            return self.fail(401, "", "Invalid username or password.")
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{asked['type']}s/{name}"}
        if f"{asked['type']}s/{name}" in self.hub.repos:
            return self.send_json({"error": f"You already created this {asked['type']} repo", **url}, status=409)
        repo = self.hub.repos[f"{asked['type']}s/{name}"] = Repo(asked.get("visibility") == "private")
        repo.add({".gitattributes": b"*.npy filter=lfs\n"}, "initial commit")
        self.send_json(url)

    def create_branch(self, repo, branch):
        if branch in repo.revisions:
            return self.fail(409, "", f"Reference already exists: {branch}")
        repo.revisions[branch] = repo.revisions["main"]
        self.send_json({})

    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            valid = match is not None and type(yaml.safe_load(match[1])) is dict
        except yaml.YAMLError:
            valid = False
        errors = [] if valid else [{"message": "the front matter is no mapping"}]
        self.send_json({"errors": errors, "warnings": []}, status=200 if valid else 400)

    def preupload(self, commit, repo):
        asked = json.loads(self.body)["files"]
        self.send_json({"files": [upload_mode(commit, file["path"]) for file in asked]})

    def upload_batch(self):
        if not self.may_write():
            return self.fail(401, "", "Invalid username or password.")
        objects = [{"oid": each["oid"], "size": each["size"]} for each in json.loads(self.body)["objects"]]
        for each in objects:
            if each["oid"] not in self.hub.blobs:  # what is there already needs no action
                each["actions"] = {"upload": {"href": self.hub.blob_url(each["oid"], "upload")}}
        self.send_json({"transfer": "basic", "objects": objects})

    def upload(self, sha, path):
        if self.has_expired() or hashlib.sha256(self.body).hexdigest() != sha:
            return self.fail(403, "", "expired, or other bytes than those announced")
        self.hub.blobs[sha] = self.body
        self.send(200, b"", {})

    def make_commit(self, repo, commit, name, revision):
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        files = dict(commit.files)
        for operation in operations:
            key, value = operation["key"], operation["value"]
            path = value["path"]
            if key == "file":
                files[path] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in self.hub.blobs:
                files[path] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile" and path in files:
                del files[path]
            else:
                return self.fail(400, "", f"{key} of {path}: there is no such file")
        sha = repo.add(files, header["value"]["summary"], revision)
        self.send_json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    # --- answers ---

    def send_json(self, value, status=200):
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def fail(self, status, code, message, headers=None):
        headers = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self.send(status, json.dumps({"error": message}).encode(), headers)

    def send(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        cut = None if self.fault is None else self.fault.cut
        if self.command != "HEAD":
            self.request_seen.num_bytes = len(body[:cut])
            self.wfile.write(body[:cut])
        if cut is not None:
            self.hang_up()

    def hang_up(self):
        fault = self.fault or Fault("", "")
        self.close_connection = True
        if fault.hold:
            self.hub.holding.set()
            self.rfile.read(1)
        elif fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments):
        """Stay silent: tests read `LoopbackHub.requests`."""


# Methods, a pattern, and what answers: with a commit where the pattern names a repo, and its other groups by name.
REPO = r"(?P<kind>datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
READ = ("GET", "HEAD")
ROUTES = [
    (READ, rf"/api/{REPO}", Handler.repo_info),
    (READ, rf"/api/{REPO}/revision/{REVISION}", Handler.repo_info),
    (READ, rf"/api/{REPO}/tree/{REVISION}(/(?P<folder>.+))?", Handler.tree),
    (["POST"], rf"/api/{REPO}/paths-info/{REVISION}", Handler.paths_info),
    (READ, rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
    (READ, r"/blobs/(?P<sha>[0-9a-f]+)/(?P<path>.+)", Handler.blob),
    (["POST"], "/api/repos/create", Handler.create_repo),
    (["POST"], rf"/api/{REPO}/branch/(?P<branch>[^/]+)", Handler.create_branch),
    (["POST"], "/api/validate-yaml", Handler.validate_yaml),
    (["POST"], rf"/api/{REPO}/preupload/{REVISION}", Handler.preupload),
    (["POST"], r"/datasets/[^/]+/[^/]+\.git/info/lfs/objects/batch", Handler.upload_batch),
    (["PUT"], r"/blobs/(?P<sha>[0-9a-f]+)/(?P<path>.+)", Handler.upload),
    (["POST"], rf"/api/{REPO}/commit/{REVISION}", Handler.make_commit),
]


def object_id(path, content):
    """The id of a file: for a large one its sha256, for another that of its git blob."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(commit, name):
    """A file or folder in a listing."""
    if name not in commit.files:
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()}
    content = commit.files[name]
    found = {"type": "file", "path": name, "size": len(content), "oid": object_id("", content)}
    if name.endswith(LARGE):
        found["lfs"] = {"oid": object_id(name, content), "size": len(content), "pointerSize": 130}
    return found


def upload_mode(commit, path):
    mode = {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
    return mode | ({"oid": object_id(path, commit.files[path])} if path in commit.files else {})
