"""
Neighbors by two embedders: how many they share, and how many are of the query's own kind.

    python tests/benchmarks/bench_neighbors.py --corpus corpus.jsonl --queries queries.jsonl --field task \
        --embedders MINILM runs/embedder/embedder --max_seq_length 128

`--field` names a field of the documents, such as their domain. Search is exact; the interval is a 95 % bootstrap over
queries.
"""

import argparse

import numpy as np

from tttnn import Document, Embedder, read_documents
from tttnn.index.build.from_documents import index_in_memory


TOP_K = 20


def neighbors(documents: list[Document], queries: list[Document], name: str, max_seq_length: int) -> np.ndarray:
    """Give the rows of the nearest documents of each query."""
    embedder = Embedder(name, max_seq_length=max_seq_length, device="cpu")
    index = index_in_memory(documents, embedder, batch_size=8)
    found = index.search(embedder.encode_query([query.text for query in queries]), TOP_K)
    return np.array([[row for _, row in pairs] for pairs in found])


def main() -> None:
    """Compare two embedders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--field", required=True)
    parser.add_argument("--embedders", nargs=2, required=True)
    parser.add_argument("--max_seq_length", type=int, required=True)
    arguments = parser.parse_args()
    documents, queries = list(read_documents(arguments.corpus)), list(read_documents(arguments.queries))
    kinds, own = (np.array([row.metadata[arguments.field] for row in rows]) for rows in (documents, queries))
    found = [neighbors(documents, queries, name, arguments.max_seq_length) for name in arguments.embedders]
    shares = [(kinds[rows] == own[:, None]).mean(axis=1) for rows in found]
    for name, share in zip(arguments.embedders, shares, strict=True):
        each = ", ".join(f"{kind} {share[own == kind].mean():.2f}" for kind in dict.fromkeys(own.tolist()))
        print(f"{name}: {share.mean():.3f} of the {TOP_K} nearest are of the query's own {arguments.field} ({each})")
    draws = np.random.default_rng(0).integers(len(queries), size=(10_000, len(queries)))
    low, high = np.quantile((shares[1] - shares[0])[draws].mean(axis=1), (0.025, 0.975))
    print(f"difference {(shares[1] - shares[0]).mean():+.3f} ({low:+.3f} to {high:+.3f})")
    overlaps = np.array(
        [len({*first} & {*second}) / TOP_K for first, second in zip(*map(np.ndarray.tolist, found), strict=True)]
    )
    print(f"shared neighbors: {overlaps.mean():.3f} (least {overlaps.min():.2f}, most {overlaps.max():.2f})")


if __name__ == "__main__":
    main()
