"""The Hub: nothing goes out without a token, and what does is the folder, whole, in a private repository."""

import base64
import http.server
import json
import sys
import threading

import pytest

from w2v_jax.core.cli import UserError
from w2v_jax.interop import hub


def test_without_the_package_nothing_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'w2v-jax\[hub\]'"):
        hub.check_push("me/model")


# With the library itself, and a server on this machine


class FakeHub(http.server.BaseHTTPRequestHandler):
    """What the library asks of the Hub for one commit of files that are no Git LFS. `received` keeps it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.received.append((self.path, self.headers.get("Authorization"), body))
        host = f"http://{self.headers['Host']}"
        if self.server.refuses:
            return self.answer({"error": "You may not write here"}, 403)
        if self.path == "/api/repos/create":
            return self.answer({"url": f"{host}/me/model", "name": "me/model"})
        if self.path == "/api/models/me/model/preupload/main":
            files = [file["path"] for file in json.loads(body)["files"]]
            regular = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self.answer({"files": regular})
        if self.path == "/api/models/me/model/commit/main":
            return self.answer({"commitUrl": f"{host}/me/model/commit/{40 * 'a'}", "commitOid": 40 * "a"})
        return self.answer({})

    def do_GET(self):
        self.answer({"error": "Repository not found"}, 404)

    def answer(self, content, code=200):
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    library, constants = (pytest.importorskip(name) for name in ("huggingface_hub", "huggingface_hub.constants"))
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    served.received, served.refuses = [], False
    threading.Thread(target=served.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{served.server_address[1]}"
    # HF_ENDPOINT is read when the library is imported, by whichever test does that first
    api = library.HfApi(endpoint=address)
    monkeypatch.setattr(library, "create_repo", api.create_repo)
    monkeypatch.setattr(library, "upload_folder", api.upload_folder)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield served
    served.shutdown()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "README.md").write_text("# model\n")
    return made


def test_without_a_token_nothing_is_sent(server):
    with pytest.raises(UserError, match="needs a token that may write"):
        hub.check_push("me/model")
    with pytest.raises(UserError, match="must be NAME or ORGANISATION/NAME"):
        hub.check_push("me/my model/of today")
    assert not server.received


def test_the_folder_is_sent_whole_to_a_private_repository(server, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.check_push("me/model")
    assert hub.push_folder(folder, "me/model", message="Converted").endswith("/me/model")
    assert {token for _, token, _ in server.received} == {"Bearer hf_secret"}
    sent = {path: body for path, _, body in server.received}
    made = json.loads(sent["/api/repos/create"])
    assert made.get("private") is True or made.get("visibility") == "private"
    lines = [json.loads(line) for line in sent["/api/models/me/model/commit/main"].splitlines()]
    assert lines[0]["value"]["summary"] == "Converted"
    files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_refusal_says_how_to_try_again(server, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.refuses = True
    with pytest.raises(UserError, match=r"may not write here.* is whole; to try again: `hf upload me/model"):
        hub.push_folder(folder, "me/model", message="Converted")
    assert len(list(folder.iterdir())) == 2
