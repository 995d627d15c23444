"""`tttnn serve`: what it serves, where it listens, and what is refused."""

import pytest
import uvicorn
from commands import run_main
from starlette.testclient import TestClient


@pytest.fixture
def serve(model_folder, index_folder, embedder_folder, monkeypatch):
    """Run `tttnn serve` on tiny parts, with a client in the place of the network; gives status, app and address."""
    seen = {}

    def run(app, **options):
        seen.update(app=app, **options)

    monkeypatch.setattr(uvicorn, "run", run)

    def serve(*words, method=("--num-neighbors", 2, "--max-length", 32)):
        parts = ["--model", model_folder, "--index", index_folder, "--embedder", embedder_folder, *method]
        return run_main("serve", *parts, "--use-cpu", *words), seen

    return serve


def test_it_listens_on_this_machine_and_serves_the_model(serve):
    status, seen = serve("--served-model-name", "tiny", "--max-tokens", 5)
    assert (status, seen["host"], seen["port"]) == (0, "127.0.0.1", 8000)
    with TestClient(seen["app"]) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        body = {"model": "tiny", "prompt": "The captain", "max_tokens": 4}
        answer = client.post("/v1/completions", json=body).json()
        assert len(answer["tttnn"]["neighbors"]) == 2
        assert client.post("/v1/completions", json=body | {"max_tokens": 6}).status_code == 400
        read = client.post("/v1/completions", json=body | {"tttnn": {"method": "context"}}).json()
        assert read["tttnn"]["seconds"]["train"] == 0


def test_another_network_without_a_key_is_warned_of(serve, capsys, monkeypatch):
    serve("--host", "0.0.0.0")
    assert "there is no API key" in capsys.readouterr().err
    monkeypatch.setenv("TTTNN_API_KEY", "secret")
    _, seen = serve("--host", "0.0.0.0")
    assert "there is no API key" not in capsys.readouterr().err
    with TestClient(seen["app"]) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_an_adapter_is_trained_for_each_request(serve):
    _, seen = serve(method=("--num-neighbors", 2, "--max-length", 32, "--trainable", "lora", "--lora-rank", 2))
    with TestClient(seen["app"]) as client:
        (model,) = client.get("/v1/models").json()["data"]
        body = {"model": model["id"], "prompt": "The captain", "max_tokens": 4, "tttnn": {"method": "context+ttt"}}
        assert client.post("/v1/completions", json=body).json()["tttnn"]["is_adapted"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "`port` is 70000. Pass 0 to 65535"),
        (["--max-waiting", "0"], "`max_waiting` is 0. Pass at least 1"),
        (["--max-tokens", "0"], "`max_tokens` is 0. Pass more than 0"),
        (["--timeout", "inf"], "`seconds` is inf"),
        (["--index-fraction", "0.5"], "`--index-fraction` is for evaluations"),
    ],
)
def test_what_cannot_be_is_refused(serve, words, message, capsys):
    assert serve(*words)[0] == 1
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(serve, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert serve()[0] == 1
    assert "pip install 'tttnn[serve]'" in capsys.readouterr().err
