"""A small Hugging Face Hub on this machine: repositories with commits, branches and tags, large files, private ones.

It answers what huggingface_hub 1 and 2, Transformers and Datasets ask when they push and load: set `HF_ENDPOINT` to
its `url` in a process of its own, since they read that once, and `HF_HUB_DISABLE_XET=1`.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".onnx", ".bin", ".png", ".jpg")
TOKEN = "hf_of_someone"
USER = "someone"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    kind: str  # model or dataset
    name: str
    private: bool = False
    refs: dict[str, list[Commit]] = field(default_factory=dict)  # commits of each branch, oldest first

    def __post_init__(self) -> None:
        self.refs["main"] = []
        self.commit("main", "initial commit", {})

    def commit(self, branch: str, title: str, files: dict[str, bytes]) -> Commit:
        """Add a commit whose files are exactly these."""
        commits = self.refs[branch]
        parent = commits[-1].oid if commits else ""
        oid = hashlib.sha1(f"{self.name} {parent} {title} {sorted(files)}".encode()).hexdigest()
        commits.append(Commit(oid, title, files))
        return commits[-1]

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or an id names."""
        if revision in self.refs:
            return self.refs[revision][-1]
        commits = (commit for commits in self.refs.values() for commit in commits)
        return next((commit for commit in commits if commit.oid == revision), None)

    @property
    def head(self) -> Commit:
        return self.refs["main"][-1]


class HubServer:
    """A Hub on a free port of the loopback interface, from entering the context to leaving it.

    Attributes:
        url: for `HF_ENDPOINT`.
        repositories: by kind ("model", "dataset") and name; tests may look into them and change them.
        requests: method and path of everything that was asked.
        cut_off: parts of paths: the next request with a body to each of them loses its connection half-way through.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.cut_off: list[str] = []
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repository(self, name: str, kind: str = "model") -> Repository:
        """A repository by its name, such as "someone/captioner"."""
        return self.repositories[kind, name]

    def add(self, name: str, files: dict[str, bytes], kind: str = "model", private: bool = False) -> Repository:
        """Make a repository with files."""
        repository = self.repositories[kind, name] = Repository(kind, name, private)
        repository.commit("main", "files", files)
        return repository


class HubError(Exception):
    """What is answered in place of a result."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.server_state.requests.append((self.command, path))
        query = {key: value[0] for key, value in parse_qs(address.query).items()}
        body = self._body(path)
        if body is None:
            self.close_connection = True
            return
        try:
            for method, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    answer(self, body, query, *match.groups())
                    return
            raise HubError(404, "", f"this server knows no {self.command} {path}")
        except HubError as error:
            self._send(error.status, json.dumps({"error": str(error)}).encode(), error.headers)

    def _body(self, path: str) -> bytes | None:
        """The body of the request, or None where the connection is to be lost on the way."""
        length = int(self.headers.get("Content-Length") or 0)
        cut_off = next((part for part in self.server_state.cut_off if part in path and length), None)
        if cut_off is not None:
            self.server_state.cut_off.remove(cut_off)
            self.rfile.read(length // 2)
            return None
        if self.headers.get("Transfer-Encoding") == "chunked":
            raise NotImplementedError(f"{path}: this server reads no chunks")
        return self.rfile.read(length)

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, answer: Any) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    # Who asks, and for what.

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        return USER if token else None

    def _repository(self, kind: str, name: str, write: bool = False) -> Repository:
        repository = self.server_state.repositories.get((kind, name))
        if repository is None or (repository.private and self._user() is None):
            raise HubError(401 if self._user() is None else 404, "RepoNotFound", "Repository not found")
        if write and self._user() is None:
            raise HubError(401, "", "Invalid username or password.")
        return repository

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # What is answered.

    def cut_off(self, body: bytes, query: dict[str, str]) -> None:
        """For tests in other processes: the next request whose path has this part will lose its connection."""
        self.server_state.cut_off.append(query["path"])
        self._send(200)

    def whoami(self, body: bytes, query: dict[str, str]) -> None:
        if self._user() is None:
            raise HubError(401, "", "Invalid username or password.")
        self._json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self, body: bytes, query: dict[str, str]) -> None:
        if self._user() is None:
            raise HubError(401, "", "Invalid username or password.")
        wish = json.loads(body)
        kind, name = wish.get("type") or "model", f"{wish.get('organization') or USER}/{wish['name']}"
        url = f"{self.server_state.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.server_state.repositories:
            content = json.dumps({"error": "You already created this repo", "url": url}).encode()
            self._send(409, content, {"X-Error-Message": "You already created this repo"})
            return
        private = wish.get("private") or wish.get("visibility") == "private"
        self.server_state.repositories[kind, name] = Repository(kind, name, bool(private))
        self._json({"url": url, "name": name, "id": name})

    def validate_yaml(self, body: bytes, query: dict[str, str]) -> None:
        import yaml

        wish = json.loads(body)
        head = wish["content"].split("---\n")[1] if wish["content"].startswith("---\n") else ""
        errors = check_card(yaml.safe_load(head) or {})
        content = json.dumps({"errors": [{"message": error} for error in errors], "warnings": []}).encode()
        self._send(400 if errors else 200, content, {"Content-Type": "application/json"})

    def preupload(self, body: bytes, query: dict[str, str], kind: str, name: str, revision: str) -> None:
        self._commit(self._repository(kind, name, write=True), revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def large_file_batch(self, body: bytes, query: dict[str, str], prefix: str | None, name: str) -> None:
        self._repository("dataset" if prefix else "model", name, write=True)
        objects: list[dict[str, Any]] = []
        for wish in json.loads(body)["objects"]:
            answer = {"oid": wish["oid"], "size": wish["size"]}
            if wish["oid"] not in self.server_state.large_files:
                answer["actions"] = {"upload": {"href": f"{self.server_state.url}/large-files/{wish['oid']}"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def put_large_file(self, body: bytes, query: dict[str, str], oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "", "the content is not of this digest")
        self.server_state.large_files[oid] = body
        self._send(200)

    def add_commit(self, body: bytes, query: dict[str, str], kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name, write=True)
        files = dict(self._commit(repository, revision).files)
        title = ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server_state.large_files:
                    raise HubError(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = self.server_state.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise HubError(400, "", f"this server knows no {line['key']}")
        commit = repository.commit(revision, title, files)
        url = f"{self.server_state.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        self._json({"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"})

    def add_ref(self, body: bytes, query: dict[str, str], kind: str, name: str, what: str, label: str) -> None:
        repository = self._repository(kind, name, write=True)
        if what == "tag":  # the address has what is tagged, the body how
            commit, label = self._commit(repository, label), json.loads(body)["tag"]
        else:
            commit = self._commit(repository, (json.loads(body or b"{}") or {}).get("startingPoint") or "main")
        if label in repository.refs:
            raise HubError(409, "", f"Reference already exists: {label}")
        repository.refs[label] = [commit]
        self._send(200)

    def info(self, body: bytes, query: dict[str, str], kind: str, name: str, revision: str | None = None) -> None:
        repository = self._repository(kind, name)
        commit = self._commit(repository, revision or "main")
        self._json(
            {
                "id": name,
                "sha": commit.oid,
                "private": repository.private,
                "tags": [],
                "downloads": 0,
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def list_refs(self, body: bytes, query: dict[str, str], kind: str, name: str) -> None:
        refs = self._repository(kind, name).refs
        branches = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": c[-1].oid} for r, c in refs.items()]
        self._json({"branches": branches, "tags": [], "converts": []})

    def tree(
        self, body: bytes, query: dict[str, str], kind: str, name: str, revision: str, folder: str | None
    ) -> None:
        commit = self._commit(self._repository(kind, name), revision)
        prefix = f"{folder.strip('/')}/" if folder else ""
        recursive = query.get("recursive", "").lower() in ("true", "1")
        below = {path: content for path, content in commit.files.items() if path.startswith(prefix)}
        if prefix and not below:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist on {revision!r}")
        entries: dict[str, dict[str, Any]] = {}
        for path, content in sorted(below.items()):
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                inner = prefix + "/".join(parts[:depth])
                entries[inner] = {"type": "directory", "path": inner, "oid": _git_digest(inner.encode()), "size": 0}
            if recursive or len(parts) == 1:
                entries[path] = _entry(path, content)
        self._json(list(entries.values()))

    def paths_info(self, body: bytes, query: dict[str, str], kind: str, name: str, revision: str) -> None:
        commit = self._commit(self._repository(kind, name), revision)
        if "json" in self.headers.get("Content-Type", ""):
            wish = json.loads(body)["paths"]
        else:
            wish = parse_qs(body.decode())["paths"]
        found = []
        for path in wish:
            if path in commit.files:
                found.append(_entry(path, commit.files[path]))
            elif any(file.startswith(f"{path}/") for file in commit.files):
                found.append({"type": "directory", "path": path, "oid": _git_digest(path.encode()), "size": 0})
        self._json(found)

    def resolve(
        self, body: bytes, query: dict[str, str], prefix: str | None, name: str, revision: str, path: str
    ) -> None:
        commit = self._commit(self._repository("dataset" if prefix else "model", name), revision)
        if path not in commit.files:
            raise HubError(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit.oid})
        content = commit.files[path]
        large = path.endswith(LARGE)
        headers = {
            "X-Repo-Commit": commit.oid,
            "ETag": f'"{hashlib.sha256(content).hexdigest() if large else _git_digest(content)}"',
            "Accept-Ranges": "bytes",
        }
        if large:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        wish = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wish:
            first, last = int(wish[1]), min(int(wish[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(206, content[first : last + 1], headers)
        else:
            self._send(200, content, headers)


def _git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_digest(content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "bsd-3-clause", "openrail", "other", "unknown")


def check_card(card: dict[str, Any]) -> list[str]:
    """What the Hub's documentation says of the head of a model card, as far as captioners use it; the faults."""
    errors = []
    for name, kind in (("tags", list), ("datasets", list), ("metrics", list), ("library_name", str)):
        if name in card and not isinstance(card[name], kind):
            errors.append(f'"{name}" must be of type {kind.__name__}')
    if card.get("license") not in (None, *LICENSES):
        errors.append(f'"license" must be one of {", ".join(LICENSES)}')
    for name in ("base_model", "datasets"):
        for value in [card[name]] if isinstance(card.get(name), str) else card.get(name) or []:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
                errors.append(f'"{name}": {value!r} is no id of the Hub')
    for model in card.get("model-index", []):
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            errors.append('"model-index" must have name and results')
            continue
        for result in model["results"]:
            for part, names in (("task", ["type"]), ("dataset", ["type", "name"])):
                if any(not isinstance(result.get(part, {}).get(name), str) for name in names):
                    errors.append(f'"model-index": a result needs {part}.{" and ".join(names)}')
            if not result.get("metrics"):
                errors.append('"model-index": a result needs metrics')
            for metric in result.get("metrics", []):
                if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), int | float):
                    errors.append('"model-index": a metric needs type and value')
    return errors


_NAME = r"([\w.-]+/[\w.-]+)"
_API = rf"/api/(model|dataset)s/{_NAME}"
ROUTES = [
    ("GET", "/tests/cut-off", _Handler.cut_off),
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"{_API}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/(datasets/)?{_NAME}\.git/info/lfs/objects/batch", _Handler.large_file_batch),
    ("PUT", "/large-files/([0-9a-f]{64})", _Handler.put_large_file),
    ("POST", rf"{_API}/commit/(.+)", _Handler.add_commit),
    ("POST", rf"{_API}/(branch|tag)/(.+)", _Handler.add_ref),
    ("POST", rf"{_API}/paths-info/([^/]+)", _Handler.paths_info),
    ("GET", rf"{_API}/refs", _Handler.list_refs),
    ("GET", rf"{_API}/tree/([^/]+)(/.*)?", _Handler.tree),
    ("GET", rf"{_API}/revision/(.+)", _Handler.info),
    ("GET", _API, _Handler.info),
    ("GET HEAD", rf"/(datasets/)?{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
