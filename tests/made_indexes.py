"""Indexes of vectors made on the spot, and damage to those on disk."""

import json

import faiss
import numpy as np

from tttnn import Document
from tttnn.index.manifest import MANIFEST
from tttnn.index.search import DocumentIndex
from tttnn.index.shard import Shard
from tttnn.index.texts import TextList


OPENED_FILES = ["index/shard-00001.faiss", "texts/shard-00001.jsonl", "texts/shard-00001.offsets.npy"]


def description(dimension, **changes):
    """What an index remembers of an embedder that there is not."""
    return {
        "name": "none",
        "revision": None,
        "pooling": [],
        "normalized": False,
        "max_seq_length": None,
        "dimension": dimension,
        "query_prompt": "",
        "document_prompt": "",
        "probe": None,
    } | changes


def make_index(vectors, num_shards=1, documents=None):
    """Exact shards of nearly equal size in memory; by default row 3 is the document "id 3" of the text "text 3"."""
    documents = documents or [Document(f"id {row}", f"text {row}") for row in range(len(vectors))]
    shards, start = [], 0
    for part in np.array_split(vectors, num_shards):
        flat = faiss.IndexFlatL2(vectors.shape[1])
        flat.add(part)
        shards.append(Shard(flat, TextList(documents[start : start + len(part)]), start))
        start += len(part)
    return DocumentIndex(shards, description(vectors.shape[1]), "digest")


def whole_numbers(rng, shape):
    """Small whole numbers, whose distances are exact in any order of summation and often equal."""
    return rng.integers(-1, 2, shape).astype(np.float32)


def index_of_ten():
    """Three shards of 4, 3 and 3 documents."""
    return make_index(whole_numbers(np.random.default_rng(0), (10, 8)), num_shards=3)


def flip(path, position):
    """Change one bit of one byte, in place."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def change_manifest(folder, **entries):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
