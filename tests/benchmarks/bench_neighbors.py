"""
Neighbors in two indexes of one corpus: how many they share, and how many are of the query's own kind.

    tttnn build-index corpus.jsonl --embedder MINILM --output runs/by-minilm
    tttnn build-index corpus.jsonl --embedder runs/embedder/embedder --output runs/by-another
    python tests/benchmarks/bench_neighbors.py --indexes runs/by-minilm runs/by-another --queries queries.jsonl \
        --field task

`--field` names a field of the documents,
such as their domain. The interval is a 95 % bootstrap over queries.
"""

import argparse
import time

import numpy as np

from tttnn import Document, NeighborRetriever, read_documents
from tttnn.index import open_index


def neighbors(folder: str, queries: list[str], top_k: int) -> tuple[list[list[int]], list[Document], float]:
    """Give rows and documents of the nearest documents of each query, and the seconds a query takes."""
    retriever = NeighborRetriever.from_pretrained(folder)
    retriever.retrieve(queries[:1], top_k)  # loads the embedder
    begin = time.perf_counter()
    rows = [[neighbor.id for neighbor in retriever.retrieve([query], top_k)[0]] for query in queries]
    seconds = (time.perf_counter() - begin) / len(queries)
    return rows, open_index(folder).documents([row for found in rows for row in found]), seconds


def main() -> None:
    """Compare two indexes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--indexes", nargs=2, required=True, metavar="FOLDER")
    parser.add_argument("--queries", nargs="+", required=True, help="files of documents")
    parser.add_argument("--limit", type=int, help="queries of each file, the first ones")
    parser.add_argument("--field", required=True)
    parser.add_argument("--top_k", type=int, default=20)
    arguments = parser.parse_args()
    queries = [row for path in arguments.queries for row in list(read_documents(path))[: arguments.limit]]
    own = np.array([row.metadata[arguments.field] for row in queries])
    texts = [row.text for row in queries]
    rows, shares = [], []
    for folder in arguments.indexes:
        found, documents, seconds = neighbors(folder, texts, arguments.top_k)
        kinds = np.array([row.metadata[arguments.field] for row in documents]).reshape(len(queries), -1)
        share = (kinds == own[:, None]).mean(axis=1)
        each = ", ".join(f"{kind} {share[own == kind].mean():.2f}" for kind in dict.fromkeys(own.tolist()))
        print(f"{folder}: {seconds:.4f} s a query. {share.mean():.3f} of the neighbors are of its own kind ({each})")
        rows.append(found)
        shares.append(share)
    draws = np.random.default_rng(0).integers(len(queries), size=(10_000, len(queries)))
    low, high = np.quantile((shares[1] - shares[0])[draws].mean(axis=1), (0.025, 0.975))
    print(f"difference {(shares[1] - shares[0]).mean():+.3f} ({low:+.3f} to {high:+.3f})")
    overlaps = np.array([len({*first} & {*second}) / arguments.top_k for first, second in zip(*rows, strict=True)])
    print(f"shared neighbors: {overlaps.mean():.3f} (least {overlaps.min():.2f}, most {overlaps.max():.2f})")


if __name__ == "__main__":
    main()
