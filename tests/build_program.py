"""
What `test_building.py` does to builds: kill each at every one of its steps, start it again, and tell what it left.

`python tests/build_program.py FOLDER` writes `FOLDER/result.json`. Each start is a separate process, forked from one
that has imported all.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

import tttnn.index.build.blocks
from tttnn import Document, Embedder
from tttnn.documents import Corpus
from tttnn.embedding import PROBE
from tttnn.index.build.by_shards import build_shards, finish_index
from tttnn.index.build.from_documents import IndexSettings, add_documents, build_index
from tttnn.index.build.tttlm import import_tttlm_index


SHARD_SIZE = 40
BLOCK_DOCUMENTS = 25
NUM_DOCUMENTS = 100  # three shards, of which the last is not full
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class WordEmbedder(Embedder):
    """Adds up a vector of each word, so that half a text lies near the whole; notes the documents it embeds."""

    def __init__(self, dimension: int = 32, wait: Callable[[], None] | None = None) -> None:
        self.name, self.revision, self.model = f"words of {dimension}", None, ()
        self.document_prompt = self.query_prompt = ""
        self.size, self.wait = dimension, wait
        self.documents: list[str] = []
        self._vectors: dict[str, np.ndarray] = {}

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.size

    @property
    def max_seq_length(self) -> None:
        """All words are read."""
        return None

    def encode_document(
        self, texts: Sequence[str], batch_size: int | None = None, first_row: int = 0, progress: Any = None
    ) -> np.ndarray:
        """Note what is embedded, but for the probe."""
        texts = list(texts)
        if texts != [PROBE]:
            self.documents += texts
            if self.wait is not None:
                self.wait()
        return self.encode_query(texts)

    def encode_query(self, texts: Sequence[str], batch_size: int | None = None) -> np.ndarray:
        """Add up the vectors of the words."""
        return np.stack([sum(map(self._vector, text.split()), np.zeros(self.size, np.float32)) for text in texts])

    def _vector(self, word: str) -> np.ndarray:
        if word not in self._vectors:
            drawn = np.random.default_rng(zlib.crc32(word.encode())).normal(size=self.size)
            self._vectors[word] = drawn.astype(np.float32)
        return self._vectors[word]


def make_documents(number: int, seed: int = 0) -> list[Document]:
    """Draw texts of ten words, of a few topics."""
    draw = random.Random(seed)
    documents = []
    for row in range(number):
        topic = draw.randrange(8)
        words = [f"w{topic}-{draw.randrange(12)}" for _ in range(10)]
        documents.append(Document(f"{seed}/{row}", " ".join(words), {"topic": topic}))
    return documents


class Steps:
    """Notes each step that changes a file under a folder, and kills the process before one of them."""

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        self.folder, self.kill_at, self.names = folder, kill_at, list[str]()
        self._write_index = faiss.write_index
        faiss.write_index = self._write_half
        sys.addaudithook(self._hook)

    def add(self, name: str) -> None:
        """Note a step, and end here if it is the one."""
        self.names.append(name)
        if len(self.names) - 1 == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _write_half(self, index: Any, place: Any, *rest: Any) -> None:
        self._write_index(index, place, *rest)
        if isinstance(place, str):  # Faiss itself writes to memory by the same function
            if len(self.names) == self.kill_at:
                os.truncate(place, os.path.getsize(place) // 2)
            self.add(f"write {Path(place).name}")

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ("os.remove", "os.rmdir") or (
            event in ("os.rename", "os.mkdir")
            or event == "open"
            and isinstance(args[0], str)
            and args[2] & WRITING
            and args[0].startswith(str(self.folder))
        ):
            self.add(f"{event.removeprefix('os.')} {os.path.basename(os.fspath(args[0]))}")


def forked(action: Callable[[], Any], result: Path) -> Any:
    """Run an action in a separate process; `None` if it was killed."""
    process = os.fork()
    if process == 0:
        try:
            result.write_text(json.dumps(action()))
            os._exit(0)
        except BaseException as error:
            result.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
            os._exit(1)
    status = os.waitpid(process, 0)[1]
    assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGKILL
    return None if os.WIFSIGNALED(status) else json.loads(result.read_text())


def files_of(folder: Path) -> dict[str, str]:
    """Give the checksum of each file, and the folders that are empty."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "empty"
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def start(action: Callable[[Path, Embedder], Any], folder: Path, kill_at: int | None = None) -> Any:
    """Start an action on `folder/index`, and tell what it did and left; `None` if it was killed."""

    def run() -> dict[str, Any]:
        steps = Steps(folder, kill_at)
        embedder = WordEmbedder(wait=lambda: steps.add("embed"))
        value = action(folder / "index", embedder)
        return {"value": value, "steps": steps.names, "embedded": embedder.documents}

    found = forked(run, folder.with_name(folder.name + ".json"))
    return found if found is None else {**found, "files": files_of(folder)}


def kill_everywhere(
    name: str, action: Callable[[Path, Embedder], Any], folder: Path, given: Path | None = None, every: int = 1
) -> Any:
    """Do an action whole, and then again for its steps, killed there and started again."""

    def place(number: str) -> Path:
        path = folder / f"{name}-{number}"
        if given is None:
            path.mkdir()
        else:
            shutil.copytree(given, path)
        return path

    whole = start(action, place("whole"))
    last, killed = len(whole["steps"]) - 1, {}
    for step in sorted({*range(0, last, every), last}):
        path = place(str(step))
        assert start(action, path, kill_at=step) is None
        killed[step] = start(action, path)
        shutil.rmtree(path)
    return {"whole": whole, "killed": killed}


def two_at_once(folder: Path) -> Any:
    """Start a build, and another into the same folder while it embeds."""
    began, go_on = os.pipe(), os.pipe()
    folder.mkdir()

    def wait() -> None:
        os.write(began[1], b".")
        os.read(go_on[0], 1)

    def build(embedder: Embedder) -> Any:
        return build_index(make_documents(3), embedder, folder / "index")

    process = os.fork()
    if process == 0:
        build(WordEmbedder(wait=wait))
        os._exit(0)
    os.close(began[1])  # else nobody's end would be waited for
    assert os.read(began[0], 1), "the first build ended before it embedded"
    second = forked(lambda: build(WordEmbedder()), folder / "second.json")
    os.write(go_on[1], b".")
    first = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return {"first": first, "second": second, "third": forked(lambda: build(WordEmbedder()), folder / "third.json")}


def write_corpus(path: Path, documents: Sequence[Document]) -> Corpus:
    """Write documents as lines of JSON, to be read from any of them on."""
    rows = [{"id": document.id, "text": document.text, **document.metadata} for document in documents]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Corpus(path)


def publish(folder: Path) -> tuple[list[Path], list[Path]]:
    """Write two files of vectors and two of texts, as the method's authors published them."""
    folder.mkdir()
    documents, indexes, texts = make_documents(2 * SHARD_SIZE), [], []
    for number in range(2):
        rows = documents[number * SHARD_SIZE : (number + 1) * SHARD_SIZE]
        index = faiss.IndexFlatL2(32)
        index.add(WordEmbedder().encode_query([row.text for row in rows]))
        indexes.append(folder / f"{number:02}.jsonl.index")
        texts.append(folder / f"{number:02}.jsonl")
        faiss.write_index(index, str(indexes[-1]))
        texts[-1].write_text("".join(json.dumps({"text": row.text, "meta": row.metadata}) + "\n" for row in rows))
    return indexes, texts


def main(folder: Path) -> None:
    """Kill every kind of build at each of its steps."""
    tttnn.index.build.blocks.BLOCK_DOCUMENTS = BLOCK_DOCUMENTS
    corpus = write_corpus(folder / "corpus.jsonl", make_documents(NUM_DOCUMENTS))
    documents, more = [*corpus], make_documents(NUM_DOCUMENTS - 10, seed=1)
    published = publish(folder / "published")
    result = {"two at once": two_at_once(folder / "two")}
    for preset, every in (("flat", 3), ("scale", 1)):  # what flat does, scale does and more
        settings = IndexSettings(preset, SHARD_SIZE)

        def build(path: Path, embedder: Embedder, settings: IndexSettings = settings) -> bool:
            return build_index(documents, embedder, path, settings)

        result[f"build {preset}"] = kill_everywhere(preset, build, folder, every=every)

        def build_by_shards(path: Path, embedder: Embedder, settings: IndexSettings = settings) -> bool:
            build_shards(corpus, embedder, path, settings)
            return finish_index(path, embedder)

        result[f"shards {preset}"] = kill_everywhere(f"shards-{preset}", build_by_shards, folder, every=3 * every)
        given = folder / f"{preset}-whole"
        result[f"add {preset}"] = kill_everywhere(
            f"add-{preset}", lambda path, embedder: add_documents(more, embedder, path), folder, given, every
        )
    result["import"] = kill_everywhere("import", lambda path, embedder: import_tttlm_index(*published, path), folder)
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
