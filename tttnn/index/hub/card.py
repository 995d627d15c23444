"""The card of an index on the Hub, made from its manifest."""

from pathlib import PurePosixPath

from huggingface_hub import DatasetCardData

from tttnn.citation import CITATION
from tttnn.index.manifest import SHARD_FILES, VECTORS, Manifest


CARD = "README.md"
# A card with this line is written again at each push; one without it was written by a person, and is kept.
GENERATED = "<!-- Made from tttnn_index.json. Remove this line to keep what you write here. -->"
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")


def index_card(manifest: Manifest, repo_id: str, license: str = "unknown") -> str:
    """Write the card of an index, Markdown with its YAML front matter, from the manifest."""
    manifest = manifest.public()
    folder = _folder(manifest.embedder.name)
    embedder = f', embedder="path/to/{folder}"' if folder else ""
    rows = f"{manifest.num_documents:,} documents"
    if manifest.passage_tokens is not None:
        rows = f"{manifest.num_rows:,} passages of {rows}, of at most {manifest.passage_tokens} tokens each"
    of = f" of {', '.join(f'`{name}`' for name in manifest.sources)}" if manifest.sources else ""
    return f"""---
{_front_matter(manifest, repo_id, license)}
---
{GENERATED}

# Index {repo_id.split("/")[-1]}

A nearest-neighbor index for `tttnn`, test-time training on nearest neighbors, of {rows}{of}.

## How to use it

```python
from tttnn import NeighborRetriever

retriever = NeighborRetriever.from_pretrained("{repo_id}"{embedder})
for neighbor in retriever.retrieve(["a text"], top_k=3)[0]:
    print(neighbor.distance, neighbor.metadata["id"])
```

`texts="remote"` leaves the texts here and fetches those of the neighbors only; `shards=[0]` fetches one part. The
texts are also a data set: `load_dataset("{repo_id}")`.

## What it holds

{_table(manifest)}

## Licence

The texts are under the licence of their corpus (`{license}`), and their vectors come from the embedder above.

## Citation

```bibtex
{CITATION}
```
"""


def _front_matter(manifest: Manifest, repo_id: str, license: str) -> str:
    # the Hub's names of sizes, each for one digit more
    size = SIZES[min(max(len(str(manifest.num_rows)) - 3, 0), len(SIZES) - 1)]
    data = DatasetCardData(
        pretty_name=f"Index {repo_id.split('/')[-1]}",
        license=license,
        task_categories=["text-retrieval"],
        size_categories=[size],
        tags=["tttnn", "faiss", "nearest-neighbors", "test-time-training"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    )
    return str(data.to_yaml())


def _table(manifest: Manifest) -> str:
    embedder, storage, recall = manifest.embedder, manifest.storage, manifest.recall
    sums = {
        name: sum(shard.files[name.format(number)].bytes for number, shard in enumerate(manifest.shards))
        for name in SHARD_FILES
    }
    found = "exact: every neighbor is found"
    if recall is not None:
        found = (
            f"{recall.recall:.3f} of the {recall.top_k} nearest, over {recall.num_queries} queries, against "
            f"an exact search of {recall.num_rows:,} rows; wanted: {recall.target:.2f}"
        )
        found += "" if recall.recall >= recall.target else ", **which is not reached**"
    folder, revision = _folder(embedder.name), embedder.revision
    named = f"`{folder}`, a folder that is not on the Hub" if folder else f"`{embedder.name}`"
    rows = {
        "embedder": named + (f" at `{revision}`" if revision else ""),
        "tokens read of a text": embedder.max_seq_length or "all",
        "dimension": embedder.dimension,
        "prompts": f"query {embedder.query_prompt!r}, document {embedder.document_prompt!r}",
        "distance": "squared L2",
        "storage": f"`{storage.preset}` (Faiss: `{storage.factory}`)",
        "recall": found,
        "rows": f"{manifest.num_rows:,}",
        "shards": len(manifest.shards),
        "vectors": _megabytes(sums[VECTORS]),
        "all files": _megabytes(sum(sums.values())),
        "corpus digest": f"`{manifest.corpus_digest}`",
    }
    cells = {name: str(value).replace("|", r"\|") for name, value in rows.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells.items())])


def _folder(name: str) -> str | None:
    """Give the name of the folder that the embedder was loaded from, unless it came from the Hub."""
    return PurePosixPath(name).name if name.startswith("./") else None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
