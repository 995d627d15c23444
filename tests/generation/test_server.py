"""The OpenAI-compatible server: real clients on loopback, limits, cancelled requests, weights as before."""

import asyncio
import copy
import json
import random
import re
import socket
import threading
import time
from dataclasses import replace

import httpx
import openai
import pytest
import torch
import uvicorn
from conftest import TEXTS

from tttnn import TestTimeGenerator, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.generation import Engine, Limits, Prompt, create_app
from tttnn.generation.engine import Job, JobCancelledError, JobTimeoutError, Settings, TextPieces
from tttnn.methods import Context, Prefix, TestTimeTraining, TrainableArguments, make_trainable


TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
KEY = "secret"
SERVER = Settings()  # of the server itself


class Served:
    """A server in a thread, on a free port."""

    def __init__(self, generator, limits=None, api_key=None, max_waiting=8):
        self.model = generator.trainer.model
        self.generator = generator
        methods = {"ttt": TestTimeTraining(), "context": Context(), "prefix": Prefix()}
        self.engine = Engine(generator, methods, max_neighbors=6, max_waiting=max_waiting)
        app = create_app(self.engine, "tiny", limits, api_key)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def post(self, path, content, **options):
        body = {"model": "tiny", "max_tokens": 4, "temperature": 0, **content}
        return httpx.post(self.url + path, json=body, timeout=30, **options)

    def complete(self, **content):
        return self.post("/v1/completions", {"prompt": "The captain", **content})

    def close(self):
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


@pytest.fixture(scope="module")
def make_generator(tiny_models, tokenizer, retriever, tmp_path_factory):
    """Each with a model and a cache to itself."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE

    def make():
        args = TestTimeTrainingArguments(
            output_dir=str(tmp_path_factory.mktemp("run")),
            num_neighbors=3,
            max_length=32,
            learning_rate=0.01,
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = TestTimeTrainer(copy.deepcopy(tiny_models["gpt2"]), args, retriever, processing_class=tokenizer)
        return TestTimeGenerator(trainer)

    return make


@pytest.fixture(scope="module")
def served(make_generator):
    server = Served(make_generator())
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def unchanged(served):
    before = copy.deepcopy(served.model.state_dict())
    yield
    assert all(torch.equal(tensor, before[name]) for name, tensor in served.model.state_dict().items())


def directly(make_generator, prompt, **options):
    return make_generator()(prompt, max_new_tokens=4, do_sample=False, **options)


def test_a_completion_is_what_the_generator_gives(client, make_generator, unchanged):
    answer = client.completions.create(model="tiny", prompt="The captain", max_tokens=4, temperature=0)
    expected = directly(make_generator, "The captain")
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 4
    assert answer.usage.prompt_tokens == expected.num_prompt_tokens
    extension = answer.model_extra["tttnn"]
    assert [item["id"] for item in extension["neighbors"]] == [item.id for item in expected.neighbors]
    assert set(extension["seconds"]) == {"retrieve", "train", "generate", "total"}
    assert extension["is_adapted"]


def test_a_chat_is_what_the_generator_gives(client, make_generator, unchanged):
    messages = [{"role": "user", "content": "the white whale"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4, temperature=0)
    assert answer.choices[0].message.content == directly(make_generator, messages).text


def test_streams_are_the_whole_answer_in_pieces(client, unchanged):
    whole = client.completions.create(model="tiny", prompt="The captain", max_tokens=8, temperature=0)
    pieces = [*client.completions.create(model="tiny", prompt="The captain", max_tokens=8, temperature=0, stream=True)]
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert [piece.choices[0].finish_reason for piece in pieces][-1] == "length"
    assert pieces[-1].model_extra["tttnn"]["is_adapted"]
    messages = [{"role": "user", "content": "the white whale"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
    *pieces, usage = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert usage.usage == whole.usage


def test_a_request_chooses_how_it_is_adapted_to(client, make_generator, unchanged):
    def text(**options):
        answer = client.completions.create(
            model="tiny", prompt="The captain", max_tokens=4, temperature=0, extra_body={"tttnn": options}
        )
        return answer.choices[0].text, answer.model_extra["tttnn"]

    base = directly(make_generator, "The captain", adapts=False).text
    assert text(adapts=False)[0] == base
    assert text(method="prefix")[0] == base
    assert len(text(num_neighbors=2)[1]["neighbors"]) == 2
    read = text(method="context", num_neighbors=2)
    assert read[1]["is_adapted"]
    assert read[1]["seconds"]["train"] == 0
    other = text(query="def load(path):")[1]["neighbors"]
    assert other != text()[1]["neighbors"]
    assert text()[1]["is_reused"], "the cache serves all requests"


def test_stops_end_the_text_and_are_not_part_of_it(served, unchanged):
    text = served.complete(max_tokens=12).json()["choices"][0]["text"]
    stop = text[3:6]
    expected = text[: text.index(stop)]
    whole = served.complete(max_tokens=12, stop=[stop, "never"]).json()["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == (expected, "stop")
    stream = served.complete(max_tokens=12, stop=[stop, "never"], stream=True).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == expected
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("stop", "pieces"), [(["bc"], ["a"]), (["xyz"], ["ab", "cd"]), ([], ["ab", "cd"])])
def test_pieces_hold_back_what_may_be_an_end(tokenizer, stop, pieces):
    handed_on = []
    streamer = TextPieces(tokenizer, stop, handed_on.append)
    for number, text in enumerate(["ab", "cd", ""]):
        streamer.on_finalized_text(text, stream_end=number == 2)
    assert "".join(handed_on) == "".join(pieces)
    assert streamer.is_at_end == (stop == ["bc"])


def test_several_prompts_and_samples_have_a_choice_each(served, unchanged):
    answer = served.complete(prompt=["The captain", "The crew"]).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert len(answer["tttnn"]) == 2
    answer = served.complete(n=3, temperature=1.0, seed=5).json()
    assert len({choice["text"] for choice in answer["choices"]}) > 1
    again = served.complete(n=3, temperature=1.0, seed=5).json()
    assert [choice["text"] for choice in again["choices"]] == [choice["text"] for choice in answer["choices"]]


def test_texts_are_scored_by_the_model_as_it_is(served, tokenizer, unchanged):
    token_ids = tokenizer("The captain and the crew")["input_ids"]
    answer = served.complete(prompt=token_ids, echo=True, logprobs=1, max_tokens=1).json()
    logprobs = answer["choices"][0]["logprobs"]
    with torch.no_grad():
        expected = served.model(torch.tensor([token_ids])).logits[0].log_softmax(-1)
    for place in range(1, len(token_ids)):
        assert logprobs["token_logprobs"][place] == pytest.approx(
            float(expected[place - 1, token_ids[place]]), abs=1e-5
        )
        assert [*logprobs["top_logprobs"][place].values()][0] == pytest.approx(
            float(expected[place - 1].max()), abs=1e-5
        )
    assert logprobs["token_logprobs"][0] is None
    assert len(logprobs["tokens"]) == len(token_ids) + 1
    assert not answer["tttnn"]["is_adapted"]


BAD = [
    ({"model": "other"}, 400, "`model` is 'other'. This server has 'tiny'"),
    ({"prompt": ""}, 400, "The prompt is empty"),
    ({"prompt": []}, 400, "There is no prompt"),
    ({"prompt": [10**6]}, 400, "not in the vocabulary"),
    ({"prompt": ["x"] * 33}, 400, "Pass at most 32"),
    ({"prompt": " ".join(TEXTS)}, 400, "and the model reads 64"),
    ({"prompt": {"a": 1}}, 400, "prompt"),
    ({"max_tokens": 5000}, 400, "`max_tokens` is 5000. Pass at most 1024"),
    ({"max_tokens": 0}, 400, "new tokens|tokens would|cannot be"),
    ({"max_tokens": -1}, 400, "max_tokens"),
    ({"temperature": 3}, 400, "temperature"),
    ({"temperature": 1e-320}, 400, "`temperature` is 1e-320. Pass 0.0001 to"),
    ({"seed": -1}, 400, "seed"),
    ({"seed": 2**40}, 400, "seed"),
    ({"prompt": [0]}, 400, "The prompt has no text, and its neighbors are found by it"),
    ({"n": 2, "temperature": 0}, 400, "all texts would be the same"),
    ({"n": 2, "temperature": 1, "stream": True}, 400, "`n` is more than 1"),
    ({"stop": [""]}, 400, "empty text"),
    ({"suffix": "x"}, 400, "`suffix` is not supported"),
    ({"logit_bias": {"5": 1}}, 400, "`logit_bias` is not supported"),
    ({"frequency_penalty": 0.5}, 400, "`frequency_penalty` is not supported"),
    ({"logprobs": 1}, 400, "supported together only"),
    ({"echo": True, "logprobs": 1, "max_tokens": 5}, 400, "`max_tokens` 0 or 1"),
    ({"echo": True, "logprobs": 1, "max_tokens": 1, "tttnn": {"adapts": True}}, 400, "scores a text by the model as"),
    ({"tttnn": {"method": "magic"}}, 400, "`method` is 'magic'. This server has context, prefix, ttt"),
    ({"tttnn": {"num_neighbors": 7}}, 400, "This server takes 1 to 6"),
    ({"tttnn": {"num_neighbours": 2}}, 400, "num_neighbours"),
    ({"tttnn": {"learning_rate": 5}}, 400, "learning_rate"),
]


@pytest.mark.parametrize(("content", "status", "message"), BAD)
def test_what_cannot_be_is_refused(served, unchanged, content, status, message):
    answer = served.complete(**content)
    assert answer.status_code == status
    assert re.search(message, answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "must be a text or a list of messages|There is no prompt"),
        ([{"role": "system", "content": "x"}], "no message of the user"),
    ],
)
def test_a_chat_that_cannot_be_is_refused(served, unchanged, messages, message):
    answer = served.post("/v1/chat/completions", {"messages": messages})
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"]["message"])


def test_tokens_are_continued_as_they_are(served, tokenizer, unchanged):
    """Also where the tokenizer would put a special token before their text once more."""
    text, token_ids = "The captain", [0, *tokenizer("The captain")["input_ids"]]
    answer = served.complete(prompt=token_ids).json()
    assert answer["usage"]["prompt_tokens"] == len(token_ids)
    expected = served.generator(Prompt(text, token_ids), max_new_tokens=4, do_sample=False)
    assert answer["choices"][0]["text"] == expected.text
    assert expected.num_prompt_tokens == len(token_ids)


def test_neutral_fields_of_clients_are_no_error(served):
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "user": "me",
        "best_of": 1,
        "suffix": None,
    }
    assert served.complete(**neutral).status_code == 200


def test_a_body_that_is_no_json_is_refused(served):
    answer = httpx.post(f"{served.url}/v1/completions", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "cannot be read" in answer.json()["error"]["message"]
    assert httpx.get(f"{served.url}/v2").status_code == 404
    assert httpx.get(f"{served.url}/v1/completions").json()["error"]["code"] == 405


def test_models_health_and_metrics(served, client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    served.complete()
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"
    text = httpx.get(f"{served.url}/metrics").text
    assert 'tttnn_requests_total{path="/v1/completions",status="200"}' in text
    assert 'tttnn_tokens_total{kind="new"}' in text
    assert 'tttnn_phase_seconds_bucket{le="+Inf",phase="train"}' in text


def test_a_key_a_size_a_queue_and_a_time_are_limits(make_generator):
    server = Served(make_generator(), Limits(max_body_bytes=300, seconds=2.0), KEY, max_waiting=1)
    try:
        headers = {"Authorization": f"Bearer {KEY}"}
        assert server.complete().status_code == 401
        assert (
            server.post("/v1/completions", {"prompt": "x"}, headers={"Authorization": "Bearer x"}).status_code == 401
        )
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.post("/v1/completions", {"prompt": "x"}, headers=headers).status_code == 200
        large = server.post("/v1/completions", {"prompt": "x" * 300}, headers=headers)
        assert large.status_code == 413
        assert "more than 300 bytes" in large.json()["error"]["message"]
        # one that is being answered and one that waits leave no room
        release = threading.Event()
        outcomes = []
        for _ in range(2):
            server.engine.submit(Job(lambda job: release.wait(10), lambda *outcome: outcomes.append(outcome), 10.0))
            time.sleep(0.1)
        busy = server.post("/v1/completions", {"prompt": "x"}, headers=headers)
        assert busy.status_code == 429
        assert "1 requests are waiting" in busy.json()["error"]["message"]
        assert busy.headers["retry-after"]
        release.set()
        while len(outcomes) < 2:
            time.sleep(0.01)
        late = Job(lambda job: job.check(), lambda *outcome: outcomes.append(outcome), 0.0)
        server.engine.submit(late)
        while len(outcomes) < 3:
            time.sleep(0.01)
        assert isinstance(outcomes[2][1], JobTimeoutError)
    finally:
        server.close()


class Waiting:
    """An engine whose thread is held at a request, so that others wait, until it is let go."""

    def __init__(self, generator, methods=None):
        self.engine = Engine(generator, methods or {}, max_neighbors=6, max_waiting=8)
        self.answers, self._go, held = {}, threading.Event(), threading.Event()

        def hold(job):
            held.set()
            self._go.wait(10)

        self.engine.submit(Job(hold, lambda *outcome: None, 10.0))
        assert held.wait(10)

    def ask(self, generator, prompt, settings=SERVER, seconds=10.0):
        def work(job):
            return generator(prompt, max_new_tokens=4, do_sample=False, seed=0)

        done = lambda *outcome: self.answers.setdefault(prompt, outcome)  # noqa: E731
        job = Job(work, done, seconds, settings, lambda: [prompt])
        self.engine.submit(job)
        return job

    def finish(self):
        self._go.set()
        while self.engine.num_waiting:
            time.sleep(0.01)
        self.engine.close()
        return self.answers


@pytest.fixture
def make_batching(make_generator, monkeypatch):
    """A generator that trains LoRA, and a list of the prompts that were learned at once."""

    def make(batch_documents=3):
        base = make_generator().trainer
        model = make_trainable(base.model, TrainableArguments("lora", lora_rank=4), seed=5)
        args = replace(base.args, batch_documents=batch_documents)
        trainer = TestTimeTrainer(model, args, base.retriever, processing_class=base.processing_class)
        learned, learn = [], trainer.learn_ahead

        def learn_ahead(texts, cache):
            learned.append(list(texts))
            learn(texts, cache)

        monkeypatch.setattr(trainer, "learn_ahead", learn_ahead)
        return TestTimeGenerator(trainer), learned

    return make


def test_requests_that_wait_take_their_steps_together(make_batching):
    generator, learned = make_batching()
    before = copy.deepcopy(generator.trainer.model.state_dict())
    waiting = Waiting(generator)
    prompts = ["The captain saw", "import json", "The crew was", "the white whale"]
    waiting.ask(generator, prompts[0])
    waiting.ask(generator, "as it is", settings=None)
    waiting.ask(generator, "otherwise", settings=Settings(num_neighbors=1))
    waiting.ask(generator, "gone").cancel()
    for prompt in prompts[1:]:
        waiting.ask(generator, prompt)
    answers = waiting.finish()
    assert learned == [[], prompts[:3]], "at the start nothing, then three at once; the last was alone"
    alone, _ = make_batching(1)
    for prompt in prompts:
        generation, error = answers[prompt]
        assert error is None
        assert generation.text == alone(prompt, max_new_tokens=4, do_sample=False, seed=0).text
        assert not generation.is_reused
    assert isinstance(answers["gone"][1], JobCancelledError)
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.trainer.model.state_dict().items())


def test_a_request_that_cannot_be_adapted_to_fails_alone(make_batching, monkeypatch):
    generator, learned = make_batching()
    retrieve = generator.trainer.retriever.retrieve

    def fail(texts, *args):
        if "import json" in texts:
            raise ConnectionError("the Hub does not answer")
        return retrieve(texts, *args)

    monkeypatch.setattr(generator.trainer.retriever, "retrieve", fail)
    waiting = Waiting(generator)
    for prompt in ("The captain saw", "import json", "The crew was"):
        waiting.ask(generator, prompt)
    answers = waiting.finish()
    assert learned == [[], ["The captain saw", "import json", "The crew was"]]
    assert [error is None for _, error in answers.values()] == [True, False, True]
    assert isinstance(answers["import json"][1], ConnectionError)


def test_steps_taken_together_stop_when_nobody_waits_for_any(make_batching, monkeypatch):
    generator, _ = make_batching()
    waiting, steps, jobs = Waiting(generator), [], []
    stop = waiting.engine.stops_between_steps.on_step_end

    def step(*args, **options):
        steps.append(len(jobs))
        for job in jobs[: len(steps)]:  # one after the first step, both after the second
            job.cancel()
        stop(*args, **options)

    monkeypatch.setattr(waiting.engine.stops_between_steps, "on_step_end", step)
    jobs += [waiting.ask(generator, prompt) for prompt in ("The captain saw", "The crew was")]
    answers = waiting.finish()
    assert len(steps) == 2, "of three"
    assert [type(error) for _, error in answers.values()] == [JobCancelledError] * 2


def test_an_error_that_nobody_foresaw_is_an_answer_and_the_next_request_is_served(served, monkeypatch, unchanged):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("inside")

    with monkeypatch.context() as patch:
        patch.setattr(served.model, "generate", fail)
        answer = served.complete()
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.json()["error"]["message"]
    assert "inside" not in answer.text, "the log has the rest"
    assert served.complete().status_code == 200


def test_a_retriever_that_fails_is_a_503(served, monkeypatch, unchanged):
    def fail(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(served.generator.trainer.retriever, "retrieve", fail)
    answer = served.complete(prompt="something else")
    assert answer.status_code == 503
    assert "no route" in answer.json()["error"]["message"]


def test_clients_that_go_away_at_any_time_lose_nothing_and_change_nothing(served, unchanged):
    """A short form of tests/benchmarks/bench_serve.py."""
    chance = random.Random(0)
    finished = []

    async def request(client, number):
        body = {"model": "tiny", "prompt": TEXTS[number % 10][:20], "max_tokens": 16, "temperature": 0}
        leaves = number % 3 == 0
        try:
            if number % 2:
                answer = await client.post(
                    "/v1/completions", json=body, timeout=chance.random() / 20 if leaves else 60
                )
                finished.append((number, answer.json()["choices"][0]["text"]))
            else:
                async with client.stream(
                    "POST", "/v1/completions", json=body | {"stream": True}, timeout=60
                ) as answer:
                    async for line in answer.aiter_lines():
                        if leaves and chance.random() < 0.5:
                            return
                        if line == "data: [DONE]":
                            finished.append((number, None))
        except httpx.TimeoutException:
            assert leaves

    async def load():
        async with httpx.AsyncClient(base_url=served.url) as client:
            for first in range(0, 48, 6):
                await asyncio.gather(*(request(client, number) for number in range(first, first + 6)))

    asyncio.run(load())
    stayed = {number for number in range(48) if number % 3}
    assert stayed <= {number for number, _ in finished}
    texts = {}
    for number, text in finished:
        if text is not None:
            assert texts.setdefault(number % 10, text) == text, "the same prompt has the same answer"
    assert served.complete().status_code == 200
