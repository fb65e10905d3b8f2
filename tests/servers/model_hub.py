"The Hugging Face hub's protocol on a loopback address, as far as models need it: files, hashes, ranges, gates, tokens and whoami."

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: What each token may do. Any other one is unknown to the hub, as an expired one is.
TOKENS = {
    "hf_reads_all": {"name": "ann", "auth": {"accessToken": {"role": "read"}}},
    "hf_not_accepted": {"name": "bob", "auth": {"accessToken": {"role": "read"}}},
    "hf_without_scope": {"name": "cy", "auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"global": [], "scoped": []}}}},
    "hf_fine_grained": {"name": "di", "auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"canReadGatedRepos": True}}}},
}


def git_blob(content):
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


@dataclass
class HubState:
    "Repositories by name; each maps a revision to the folder of its files."

    repos: dict = field(default_factory=dict)  # name -> {revision: folder}
    gated: set = field(default_factory=set)
    asked: list = field(default_factory=list)  # (method, path, authorization, range)
    cut: dict = field(default_factory=dict)  # file name -> number of bytes after which the connection breaks, once
    wrong: dict = field(default_factory=dict)  # file name -> how many times other bytes are sent
    status: int = 0  # answer everything with this

    def add(self, name, folder, revision="a" * 40, gated=False):
        self.repos.setdefault(name, {})[revision] = Path(folder)
        if gated:
            self.gated.add(name)

    def folder(self, name, revision):
        revisions = self.repos.get(name, {})
        commit = next(iter(revisions), None) if revision == "main" else revision
        return commit, revisions.get(commit)


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def reply(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **{key.replace("_", "-"): value for key, value in headers.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, code="", message=""):
        self.reply(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        self.state.asked.append((self.command, self.path, token, self.headers.get("range")))
        if self.state.status:
            return self.refuse(self.state.status, message="no")
        if token and token not in TOKENS:
            return self.refuse(401, message="Invalid credentials in Authorization header")
        if self.path.startswith("/api/whoami-v2"):
            return self.reply(200, json.dumps(TOKENS[token]).encode()) if token else self.refuse(401, message="Invalid username or password.")
        tree = re.match(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)", self.path)
        api = tree or re.match(r"/api/models/([^/]+/[^/?]+)(?:/revision/([^/?]+))?", self.path)
        resolve = re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path)
        found = api or resolve
        if not found or found[1] not in self.state.repos:
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        commit, folder = self.state.folder(found[1], found[2] or "main")
        if folder is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        if resolve and found[1] in self.state.gated and (problem := self.gate(token)):
            return self.refuse(*problem)
        if tree:
            rows = [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": git_blob(path.read_bytes())} for path in sorted(folder.iterdir())]
            return self.reply(200, json.dumps(rows).encode(), Content_Type="application/json")
        return self.info(found[1], commit, folder) if api else self.file(commit, folder / resolve[3])

    def gate(self, token):
        if token is None:
            return 401, "GatedRepo", "Access to this model is restricted. You must have access to it and be authenticated to access it. Please log in."
        if token == "hf_without_scope":
            return 403, "", "Please enable access to public gated repositories in your fine-grained token settings to view this repository."
        if token == "hf_not_accepted":
            return 403, "GatedRepo", "Access to this model is restricted and you are not in the authorized list. Visit its page to ask for access."
        return None

    def info(self, name, commit, folder):
        siblings = []
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            entry = {"rfilename": path.name, "size": len(content), "blobId": git_blob(content)}
            if path.suffix in (".safetensors", ".bin"):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        about = {"id": name, "sha": commit, "siblings": siblings, "private": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        self.reply(200, json.dumps(about).encode(), Content_Type="application/json")

    def file(self, commit, path):
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        if self.command == "GET" and self.state.wrong.get(path.name, 0) > 0:
            self.state.wrong[path.name] -= 1
            content = bytes(len(content))
        begin = int(re.match(r"bytes=(\d+)-", self.headers.get("range") or "bytes=0-")[1])
        headers = {"ETag": etag, "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if begin:
            return self.reply(206, content[begin:], Content_Range=f"bytes {begin}-{len(content) - 1}/{len(content)}", **headers)
        if self.command == "GET" and path.name in self.state.cut:
            kept = self.state.cut.pop(path.name)
            self.send_response(200)
            for name, value in {**headers, "Content_Length": str(len(content))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content[:kept])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.shutdown(2)
        self.reply(200, content, **headers)


class ModelHub:
    "A running hub: `url`, and `state` to fill and to look at."

    def __enter__(self):
        self.state = HubState()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: HubHandler(self.state, *args))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
