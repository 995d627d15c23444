"""
Embedding a corpus block by block against the plain way, in turns.

    python tests/benchmarks/bench_embedding.py --corpus my_corpus.jsonl.zst --embedder MINILM [--max_seq_length 512]

The plain way is that of the method's authors: batches of 16 texts in the order of the input, padded to the longest,
the masked mean of the last hidden state. Prints the ratio of seconds (plain to ours: 2 is twice as fast), median and
spread, for each size of our batches, and the largest difference between the vectors.
"""

import argparse
import os
from statistics import median
from time import perf_counter

import numpy as np
import torch

from tttnn import Document, Embedder, read_documents
from tttnn.index.build.blocks import embedded_blocks


def plain(embedder: Embedder, texts: list[str]) -> np.ndarray:
    """Embed texts in batches of 16, as they come."""
    tokenizer, model = embedder.model.tokenizer, embedder.model.transformers_model
    normalized, found = embedder.describe()["normalized"], []
    for first in range(0, len(texts), 16):
        batch = tokenizer(
            texts[first : first + 16],
            padding=True,
            truncation=True,
            max_length=embedder.max_seq_length,
            return_tensors="pt",
        )
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        vectors = (hidden * mask).sum(1) / mask.sum(1)
        found.append(torch.nn.functional.normalize(vectors, dim=1) if normalized else vectors)
    return torch.cat(found).numpy()


def main() -> None:
    """Time all ways in each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--embedder", required=True)
    parser.add_argument("--max_seq_length", type=int, help="tokens that are read (default: the embedder's own)")
    parser.add_argument("--num_documents", type=int, default=512, help="of each source")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8], help="ours; each is timed")
    parser.add_argument("--processes", type=int, default=1, help="ours; the plain way has one")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    embedder = Embedder(arguments.embedder, None, arguments.max_seq_length, ["cpu"] * arguments.processes)
    rows: list[Document] = []
    for source in arguments.corpus:
        rows += read_documents(source, limit=arguments.num_documents)
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    texts = [row.text or " " for row in rows]
    os.environ["OMP_NUM_THREADS"] = str(max(torch.get_num_threads() // arguments.processes, 1))
    embedder.encode_document(texts[:64], batch_size=8)  # starts the processes, whose threads share the cores
    ratios: dict[int, list[float]] = {size: [] for size in arguments.batch_sizes}
    difference = 0.0
    for _ in range(arguments.rounds):
        start = perf_counter()
        expected = plain(embedder, texts)
        plain_seconds = perf_counter() - start
        for size, of_size in ratios.items():
            start = perf_counter()
            vectors = np.concatenate([found for _, found in embedded_blocks(rows, embedder, size)])
            seconds = perf_counter() - start
            of_size.append(plain_seconds / seconds)
            difference = max(difference, float(np.abs(vectors - expected).max()))
            print(f"plain {plain_seconds:.1f} s, ours in batches of {size} {seconds:.1f} s", flush=True)
    read = np.array([len(found) for found in embedder.model.tokenizer(texts, truncation=True)["input_ids"]])
    print(
        f"{len(texts)} texts, {read.mean():.0f} tokens of each read (mean), {(read == read.max()).mean():.0%} "
        f"fill {read.max()}; {torch.get_num_threads()} threads, {arguments.processes} processes; largest difference "
        f"{difference:.1e}"
    )
    for size, found in ratios.items():
        print(f"batches of {size}: ratio {median(found):.2f} ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
