"""
Load a server on loopback with thousands of requests of a tiny model, of which some go away at random times.

    python tests/benchmarks/bench_serve.py --requests 3000 --clients 16
    python tests/benchmarks/bench_serve.py --requests 3000 --clients 16 --batch-documents 8

With `--batch-documents` LoRA is trained, and requests that wait take their steps together.

It says how many requests were answered, refused and left; whether any that stayed got no answer; and whether the
weights are, to the bit, what they were.
"""

import argparse
import asyncio
import hashlib
import random
import socket
import tempfile
import threading
import time
from collections import Counter

import httpx
import parts
import torch
import uvicorn

from tttnn import Neighbor, TestTimeGenerator, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.generation import Engine, create_app
from tttnn.methods import TrainableArguments, make_trainable


class FirstLines:
    """A retriever that gives beginnings of the standard library's modules."""

    def __init__(self) -> None:
        self.texts = parts.module_texts()

    def retrieve(self, texts: list[str], top_k: int) -> list[list[Neighbor]]:
        """Give neighbors that depend on the query."""
        shift = int.from_bytes(hashlib.sha256("".join(texts).encode()).digest()[:4])
        rows = [(shift + place) % len(self.texts) for place in range(top_k)]
        return [[Neighbor(row, self.texts[row][:400], float(place)) for place, row in enumerate(rows)] for _ in texts]


def make_server(batch_documents: int | None) -> tuple[TestTimeTrainer, uvicorn.Server, socket.socket]:
    """Make a server of a tiny model on a free port."""
    model, tokenizer = parts.tiny_parts()
    if batch_documents is not None:
        model = make_trainable(model, TrainableArguments("lora", lora_rank=4), seed=0)
    args = TestTimeTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_neighbors=3,
        max_length=64,
        learning_rate=1e-3,
        batch_documents=batch_documents or 1,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = TestTimeTrainer(model, args, FirstLines(), processing_class=tokenizer)  # type: ignore[arg-type]
    engine = Engine(TestTimeGenerator(trainer), {}, max_neighbors=10, max_waiting=64)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    return trainer, uvicorn.Server(uvicorn.Config(create_app(engine, "tiny"), log_level="error")), listening


async def load(url: str, requests: int, clients: int) -> Counter[str]:
    """Send the requests; a third of them leave after a random time, or in the middle of their stream."""
    chance, outcomes, numbers = random.Random(0), Counter[str](), iter(range(requests))

    async def one(client: httpx.AsyncClient, number: int) -> None:
        leaves, streams = chance.random() < 1 / 3, chance.random() < 1 / 2
        body = {"model": "tiny", "prompt": f"def f{number}(", "max_tokens": 16, "stream": streams}
        timeout = chance.expovariate(5) if leaves else 120
        try:
            async with client.stream("POST", "/v1/completions", json=body, timeout=timeout) as answer:
                content = ""
                async for piece in answer.aiter_text():
                    content += piece
                    if leaves and chance.random() < 0.2:
                        outcomes["left in the middle"] += 1
                        return
            is_whole = content.endswith("data: [DONE]\n\n") if streams else '"finish_reason"' in content
            outcomes["answered" if answer.status_code == 200 and is_whole else f"status {answer.status_code}"] += 1
        except httpx.TimeoutException:
            outcomes["left" if leaves else "without an answer"] += 1

    async def work() -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            for number in numbers:
                await one(client, number)

    await asyncio.gather(*(work() for _ in range(clients)))
    return outcomes


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--batch-documents", type=int, help="with LoRA; by default all parameters, one by one")
    arguments = parser.parse_args()
    trainer, server, listening = make_server(arguments.batch_documents)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    start = time.perf_counter()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    outcomes = asyncio.run(load(url, arguments.requests, arguments.clients))
    seconds = time.perf_counter() - start
    last = httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "def f(", "max_tokens": 4}, timeout=60)
    server.should_exit = True
    thread.join()
    same = all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    print(f"{arguments.requests} requests of {arguments.clients} clients in {seconds:.0f} s: {dict(outcomes)}")
    print(f"one more afterwards: status {last.status_code}; weights as before, to the bit: {same}")


if __name__ == "__main__":
    main()
