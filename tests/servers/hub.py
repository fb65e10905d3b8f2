"As much of the Hugging Face hub's protocol as `datasets.load_dataset` needs, over the files of one folder, with faults on demand."

import hashlib
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "91c6572c454088bf71b679ad90aa8dffcd0d5868"


class HubServer:
    "Serves `folder` as the data set `name` at `COMMIT`; `fault` is '', 'gated', 'gone', 'busy' or 'broken'."

    def __init__(self, folder, name, fault=""):
        self.folder, self.name, self.fault, self.asked = folder, name, fault, []

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def entries(self, inside="", recursive=True):
        "What lies in a folder of the repository, as the hub lists it."
        folder = self.folder / inside
        found = sorted(folder.rglob("*") if recursive else folder.glob("*")) if folder.is_dir() else []
        return [
            {"type": "directory" if path.is_dir() else "file", "path": path.relative_to(self.folder).as_posix(), "size": path.stat().st_size, "oid": "0" * 40}
            for path in found
        ]


class Handler(BaseHTTPRequestHandler):
    def __init__(self, hub, *args):
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        self.answer(set(wanted))

    def answer(self, wanted=None):
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, self.path, self.headers.get("authorization")))
        fault = {
            "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this dataset is restricted."}),
            "gone": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
            "broken": (500, {}),
        }.get(hub.fault)
        if fault:
            return self.reply(fault[0], b'{"error": "no"}', fault[1])
        at = f"/api/datasets/{hub.name}"
        if path == f"{at}/paths-info/{COMMIT}":
            return self.reply(200, json.dumps([row for row in hub.entries() if row["path"] in wanted]).encode())
        if path.startswith(f"{at}/tree/{COMMIT}"):
            inside = path.removeprefix(f"{at}/tree/{COMMIT}").strip("/")
            return self.reply(200, json.dumps(hub.entries(inside, "recursive=true" in self.path.lower())).encode())
        if path in (at, f"{at}/revision/{COMMIT}"):
            about = {"id": hub.name, "sha": COMMIT, "private": False, "disabled": False, "gated": False, "downloads": 0, "likes": 0, "tags": [],
                     "siblings": [{"rfilename": row["path"]} for row in hub.entries() if row["type"] == "file"]}
            return self.reply(200, json.dumps(about).encode())
        prefix = f"/datasets/{hub.name}/resolve/{COMMIT}/"
        file = hub.folder / path.removeprefix(prefix)
        if path.startswith(prefix) and file.is_file():
            content = file.read_bytes()
            return self.reply(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        self.reply(404, b'{"error": "Entry not found"}', {"X-Error-Code": "EntryNotFound" if path.startswith(prefix) else "RevisionNotFound"})

    def reply(self, status, content, headers=None):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
