"""A Hub on 127.0.0.1 that serves dataset repos from memory and remembers what it was asked for."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Commit:
    sha: str
    files: dict[str, bytes]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None


class LoopbackHub(ThreadingHTTPServer):
    """A context manager. huggingface_hub reads `HF_ENDPOINT` when it is imported: ask from a process of its own."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, Commit]] = {}
        self.requests: list[Request] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self):
        """What a process needs in `os.environ`, beside no `HF_HUB_OFFLINE`, to ask this Hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def commit(self, repo_id, folder, revision="main"):
        """Serve the files of a folder as a revision of a repo, made if it is new; returns the commit's id."""
        folder = Path(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        sha = hashlib.sha1(repr((repo_id, sorted(files.items()))).encode()).hexdigest()
        # a commit is found by its id and by the branch or tag that points to it
        self.repos.setdefault(repo_id, {}).update({revision: Commit(sha, files), sha: Commit(sha, files)})
        return sha

    def paths(self, method):
        """The paths of the requests of one method, in the order in which they came."""
        return [request.path for request in self.requests if request.method == method]

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        self.server.requests.append(Request(self.command, path, token))
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, path):
                commits = self.server.repos.get(match["repo"])
                if commits is None:
                    return self.fail(404, "RepoNotFound", "Repository not found")
                if match["revision"] not in commits:
                    return self.fail(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
                return answer(self, commits[match["revision"]], **match.groupdict())
        self.fail(404, "NotFound", f"No route for {path}")

    do_HEAD = do_GET

    def repo_info(self, commit, repo, revision):
        siblings = [{"rfilename": path} for path in commit.files]
        self.send_json({"id": repo, "sha": commit.sha, "private": False, "tags": [], "siblings": siblings})

    def tree(self, commit, repo, revision):
        entries = [("file", path, len(content), git_blob_id(content)) for path, content in commit.files.items()]
        self.send_json([dict(zip(("type", "path", "size", "oid"), entry, strict=True)) for entry in entries])

    def resolve(self, commit, repo, revision, path):
        if path not in commit.files:
            return self.fail(404, "EntryNotFound", f"{path} not found")
        content = commit.files[path]
        self.send(200, content, {"ETag": f'"{git_blob_id(content)}"', "X-Repo-Commit": commit.sha})

    def send_json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def fail(self, status, code, message):
        self.send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def send(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Stay silent: tests read `LoopbackHub.requests`."""


# Each pattern names a repo and a revision; the method gets the commit and the other groups by name.
REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    (rf"/api/datasets/{REPO}/revision/(?P<revision>[^/]+)", Handler.repo_info),
    (rf"/api/datasets/{REPO}/tree/(?P<revision>[^/]+)", Handler.tree),
    (rf"/datasets/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]


def git_blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
