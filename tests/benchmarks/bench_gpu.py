"""
Test-time training on a GPU: the official loop against ours, and search by Faiss on the GPU against the CPU.

    python tests/benchmarks/bench_gpu.py [--models gpt2 smollm2] [--lengths 256 1024] [--precisions float32 bf16]
    python tests/benchmarks/bench_gpu.py --device cpu --tiny   # the same code with tiny shapes, to test it

The official loop is the plain PyTorch loop of `tests/reference.py` with the settings of the method's authors: a step
on each chunk of each neighbor, a score after each neighbor, weights restored. It is compared with the preset `tttlm`,
which does the same work; with our default, which scores twice; and with LoRA in batches of documents. Models have the
shapes of GPT-2 and SmolLM2-135M, random weights and no dropout; documents and neighbors are random words of exactly
one chunk. No hub is needed.

In a round each way runs once, in an order that rotates. Before it is timed it gets a fresh copy of the model and runs
on one batch of documents; the other ways leave nothing on the device. A rate's ratio is to the official loop of the
same round. Tokens are those that are trained on; the time includes scoring and restoring. Memory is the peak of what
torch has allocated. bf16 is autocast, with weights in float32; without it torch's defaults hold (no TF32). A way that
runs out of memory is named, and so is a batch that was halved for that reason.
"""

import argparse
import contextlib
import copy
import gc
import logging
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter

import faiss
import numpy as np
import parts
import peft
import torch
import transformers
from reference import Settings, adapted_nll
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
)

from tttnn import TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation import batched
from tttnn.adaptation.internals import is_out_of_memory
from tttnn.methods import METHODS, TrainableArguments, make_trainable


NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
END = {"bos_token_id": 0, "eos_token_id": 0}
CONFIGS = {
    "gpt2": GPT2Config(**NO_DROPOUT, **END),  # the other defaults are those of GPT-2 with 124 M parameters
    "smollm2": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **END,
    ),
}
# by the names that all configurations know, and those that only Llama's uses
TINY = {
    "vocab_size": 200,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
OFFICIAL, PRESET, DEFAULT = "official loop", "preset tttlm", "default"


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose tokens are words, so that a text has as many tokens as words."""
    words = {"<|endoftext|>": 0, **{f"w{number}": number for number in range(1, vocab_size)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def make_episodes(num_documents: int, num_neighbors: int, length: int, vocab_size: int) -> parts.Episodes:
    """Make documents and neighbors of `length` random words each."""
    generator = np.random.default_rng(0)

    def text() -> str:
        return " ".join(f"w{number}" for number in generator.integers(1, vocab_size, size=length))

    return [(text(), [text() for _ in range(num_neighbors)]) for _ in range(num_documents)]


class Halvings(logging.Handler):
    """Counts the batches that were halved because there was no memory for them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a warning."""
        self.count += "no memory" in record.getMessage()


class Bench:
    """What all ways of one model, length and precision have in common."""

    def __init__(self, config: object, length: int, precision: str, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.base = AutoModelForCausalLM.from_config(config)
        self.tokenizer = make_tokenizer(config.vocab_size)
        self.length, self.precision, self.options = length, precision, options
        self.is_cuda = options.device == "cuda"
        count = max(options.documents, *options.batches)
        self.episodes = make_episodes(count, options.neighbors, length, config.vocab_size)

    def synchronize(self) -> None:
        """Wait until the device has done its work."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def official(self, model: PreTrainedModel, episodes: parts.Episodes) -> list[float]:
        """Run the plain loop with the authors' settings."""
        settings = Settings(self.length, learning_rate=2e-5, first_chunks=None, carry_optimizer=True)
        bf16 = torch.autocast(self.options.device, dtype=torch.bfloat16)
        with bf16 if self.precision == "bf16" else contextlib.nullcontext():
            return [curve[-1] for curve in adapted_nll(model, self.tokenizer, episodes, settings)]

    def trainer(self, way: str | int, model: PreTrainedModel) -> TestTimeTrainer:
        """Make a trainer of ours; a number is LoRA with so many documents at once."""
        arguments = {
            "output_dir": str(self.options.output_dir),
            "num_neighbors": self.options.neighbors,
            "query": "document",
            "max_length": self.length,
            "bf16": self.precision == "bf16",
            "use_cpu": not self.is_cuda,
            "disable_tqdm": True,
        }
        method = None
        if way == PRESET:
            args = TestTimeTrainingArguments.from_preset("tttlm", **arguments)
        elif way == DEFAULT:
            args = TestTimeTrainingArguments(**arguments)
        else:
            args = TestTimeTrainingArguments(**arguments, learning_rate=1e-3, batch_documents=way)
            method = METHODS["ttt"](trainable=TrainableArguments("lora"))
            model = make_trainable(model, TrainableArguments("lora"))
        retriever = parts.GivenNeighbors(self.episodes)
        trainer = TestTimeTrainer(model, args, retriever, method=method, processing_class=self.tokenizer)
        trainer.remove_callback(PrinterCallback)  # the tables are enough
        return trainer

    def runner(self, way: str | int) -> Callable[[parts.Episodes], list[float]]:
        """Make a function that runs one way on a fresh copy of the model, and gives the last scores."""
        model = copy.deepcopy(self.base).to(self.options.device)
        if way == OFFICIAL:
            return partial(self.official, model)
        trainer = self.trainer(way, model)

        def run(episodes: parts.Episodes) -> list[float]:
            trainer.evaluate([document for document, _ in episodes])
            return [record.nll[-1] for record in trainer.records]

        return run

    def measure(self, way: str | int) -> dict[str, float]:
        """Time one way."""
        run, size = self.runner(way), way if isinstance(way, int) else 1
        episodes = self.episodes[: max(size, self.options.documents)]
        run(episodes[:size])  # warms up
        self.synchronize()
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        start = perf_counter()
        scores = run(episodes)
        self.synchronize()
        seconds = perf_counter() - start
        return {
            "documents_a_minute": 60 * len(episodes) / seconds,
            "tokens_a_second": len(episodes) * self.options.neighbors * self.length / seconds,
            "peak_mb": torch.cuda.max_memory_allocated() / 1e6 if self.is_cuda else float("nan"),
            "score": scores[0],
        }

    def free(self) -> None:
        """Leave nothing of a way on the device."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()


def spread(values: list[float]) -> str:
    """Write the median of the rounds, and the lowest and the highest."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} – {max(values):.4g})"


def compare(name: str, bench: Bench) -> None:
    """Run rounds of all ways, and print a table."""
    options = bench.options
    ways: list[str | int] = [OFFICIAL, PRESET, DEFAULT, *options.batches]
    results: dict[str | int, list[dict[str, float]]] = {way: [] for way in ways}
    too_large: set[str | int] = set()
    halved: set[str | int] = set()
    halvings = Halvings()
    batched.logger.addHandler(halvings)
    for number in range(options.rounds):
        place = number % len(ways)
        for way in ways[place:] + ways[:place]:
            if way in too_large:
                continue
            try:
                results[way].append(bench.measure(way))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                too_large.add(way)
            bench.free()  # outside of `except`, where the error still holds the tensors
            if halvings.count:
                halved.add(way)
                halvings.count = 0
    batched.logger.removeHandler(halvings)
    difference = "cannot be compared"
    if not too_large & {OFFICIAL, PRESET}:
        scores = [results[way][0]["score"] for way in (OFFICIAL, PRESET)]
        difference = f"differ by {abs(scores[1] / scores[0] - 1):.1e}"
    parameters = sum(parameter.numel() for parameter in bench.base.parameters()) / 1e6
    print(
        f"\n{name}, {parameters:.1f} M parameters, {bench.precision}, chunks of {bench.length} tokens, "
        f"{options.neighbors} neighbors a document, {options.rounds} rounds, {options.documents} documents or a "
        f"batch; the last scores of loop and preset {difference}\n"
        "| | documents a minute | tokens a second | times the official loop | peak memory, MB |\n|---|--:|--:|--:|--:|"
    )
    for way, rows in results.items():
        label = f"LoRA, {way} at once" if isinstance(way, int) else way
        if way in too_large:
            print(f"| {label} | out of memory | | | |", flush=True)
            continue
        rates = [row["documents_a_minute"] for row in rows]
        ratio = "–"
        if OFFICIAL not in too_large:
            bases = [row["documents_a_minute"] for row in results[OFFICIAL]]
            ratio = spread([rate / base for rate, base in zip(rates, bases, strict=True)])
        tokens = [row["tokens_a_second"] for row in rows]
        peak = f"{max(row['peak_mb'] for row in rows):.0f}" if bench.is_cuda else "not measured"
        label += " (halved: out of memory)" if way in halved else ""
        print(f"| {label} | {spread(rates)} | {spread(tokens)} | {ratio} | {peak} |", flush=True)


def compare_search(sizes: list[int], rounds: int) -> None:
    """Search exactly by Faiss on the CPU, and on the GPU where it was built for one."""
    has_gpu = faiss.get_num_gpus() > 0
    if not has_gpu:
        print("\nThis Faiss was not built for a GPU, or sees none: search is timed on the CPU alone.")
    print(f"\nExact search, 384 dimensions, top 20, {faiss.omp_get_max_threads()} threads on the CPU, {rounds} rounds")
    print("| rows | queries | | ms a query | times the CPU |\n|--:|--:|---|--:|--:|")
    for size in sizes:
        vectors = np.random.default_rng(0).normal(size=(size, 384)).astype(np.float32)
        indexes = {"CPU": faiss.IndexFlatL2(384)}
        indexes["CPU"].add(vectors)
        if has_gpu:
            resources = faiss.StandardGpuResources()
            indexes["GPU"] = faiss.index_cpu_to_gpu(resources, 0, indexes["CPU"])
        for batch in (1, 64):
            seconds: dict[str, list[float]] = {name: [] for name in indexes}
            for number in range(rounds + 1):
                for name in list(indexes)[:: 1 if number % 2 else -1]:
                    start = perf_counter()
                    indexes[name].search(vectors[:batch] + 0.01, 20)  # returns when the GPU has answered
                    if number > 0:  # the first round warms up
                        seconds[name].append(perf_counter() - start)
            for name, values in seconds.items():
                ratios = [cpu / own for cpu, own in zip(seconds["CPU"], values, strict=True)]
                milliseconds = [1000 * value / batch for value in values]
                print(f"| {size:,} | {batch} | {name} | {spread(milliseconds)} | {spread(ratios)} |", flush=True)


def describe_machine(device: str) -> None:
    """Print what the figures depend on."""
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"peft {peft.__version__}, faiss {faiss.__version__}, "
        f"float32 matrix products: {torch.get_float32_matmul_precision()}"
    )
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        cards = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
        print(
            f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; name, driver and memory of the cards: {cards}"
        )
    else:
        print(f"On the CPU, {torch.get_num_threads()} threads: a test of this script. These are no figures of a GPU.")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to test this script")
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="of LoRA")
    parser.add_argument("--documents", type=int, default=8, help="for each way; a larger batch has one batch")
    parser.add_argument("--neighbors", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[100_000, 1_000_000], help="of the search; none: skip it"
    )
    parser.add_argument("--output_dir", default="runs/gpu")
    options = parser.parse_args()
    if options.device == "cpu" and not options.tiny:
        parser.error("`--device cpu` only tests this script. Add `--tiny`, or run it on a GPU without `--device`.")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here. Run this on a machine with a GPU, or test it: `--device cpu --tiny`.")
    if options.device == "cuda" and torch.cuda.device_count() > 1:
        sys.exit(f"There are {torch.cuda.device_count()} cards here. Choose one of them: `CUDA_VISIBLE_DEVICES=0`.")
    if options.tiny:
        options.lengths, options.batches, options.rows = [16], [1, 2], [1000] if options.rows else []
        options.documents, options.neighbors, options.rounds = 2, 2, 1
    describe_machine(options.device)
    for name in options.models:
        for length in options.lengths:
            for precision in options.precisions:
                config = copy.deepcopy(CONFIGS[name])
                config.update(TINY if options.tiny else {})
                compare(name, Bench(config, length, precision, options))
    if options.rows:
        compare_search(options.rows, options.rounds)


if __name__ == "__main__":
    main()
