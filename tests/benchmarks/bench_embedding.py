"""
Embedding a corpus window by window against the plain way, in turns.

    python tests/benchmarks/bench_embedding.py --corpus my_corpus.jsonl.zst --embedder MINILM --num_documents 512

The plain way is that of the method's authors: batches of 16 texts in the order of the input, padded to the longest,
the masked mean of the last hidden state. Prints the ratio of seconds (plain to ours: 2 is twice as fast), median and
spread, and the largest difference between the vectors.
"""

import argparse
from statistics import median
from time import perf_counter

import numpy as np
import torch

from tttnn import Document, Embedder, read_documents
from tttnn.unfinished import embedded_windows


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
    """Time both ways in each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--embedder", required=True)
    parser.add_argument("--num_documents", type=int, default=512, help="of each source")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    embedder = Embedder(arguments.embedder, device="cpu")
    rows: list[Document] = []
    for source in arguments.corpus:
        rows += read_documents(source, limit=arguments.num_documents)
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    texts = [row.text or " " for row in rows]
    ratios, difference = [], 0.0
    for _ in range(arguments.rounds):
        start = perf_counter()
        expected = plain(embedder, texts)
        middle = perf_counter()
        vectors = np.concatenate([found for _, found in embedded_windows(rows, embedder, arguments.batch_size)])
        ratios.append((middle - start) / (perf_counter() - middle))
        difference = max(difference, float(np.abs(vectors - expected).max()))
        print(f"plain {middle - start:.1f} s, ours {perf_counter() - middle:.1f} s", flush=True)
    print(
        f"{len(texts)} texts of {np.median([len(text) for text in texts]):.0f} characters (median), "
        f"{torch.get_num_threads()} threads: ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"largest difference {difference:.1e}"
    )


if __name__ == "__main__":
    main()
