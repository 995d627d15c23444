"""The plan of an index that several processes build: where each shard begins in the corpus."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from tttnn.documents import Corpus, Place, RowPlace
from tttnn.embedding import Embedder
from tttnn.errors import InputError
from tttnn.files import json_form
from tttnn.index.build.from_documents import IndexSettings
from tttnn.index.build.passages import split_into_passages
from tttnn.index.build.unfinished import NO_DOCUMENT, different_settings
from tttnn.index.build.workspace import PLAN, WORK, intact
from tttnn.index.manifest import EmbedderDescription, Manifest, Recall, ShardEntry, Storage


# With passages, the place of each of so many documents is known; from there on they are cut.
PLACED_DOCUMENTS = 256


class Start(NamedTuple):
    """Where a shard begins: a document of the corpus, and the rows of it and of later ones that belong before."""

    place: Place
    skip: int


@dataclass(frozen=True)
class Plan:
    """What all processes that build an index agree on."""

    settings: dict[str, Any]  # those that `check` compares
    corpus: dict[str, Any]
    sources: list[str]
    shard_size: int
    num_rows: int
    starts: list[Start]

    @property
    def num_shards(self) -> int:
        """Shards of the whole index."""
        return len(self.starts)

    @property
    def build_settings(self) -> dict[str, Any]:
        """What an `UnfinishedIndex` of these shards depends on."""
        return {name: self.settings[name] for name in ("passage_tokens", "shard_size", "embedder")}

    def rows_of(self, number: int) -> int:
        """Rows of a shard; only the last may be smaller."""
        return min(self.shard_size, self.num_rows - number * self.shard_size)

    def check(self, folder: Path, corpus: Corpus, embedder: Embedder, settings: IndexSettings) -> None:
        """Make sure that a call has the corpus and the settings of the plan."""
        if different := different_settings(self.settings, _settings(embedder, settings)):
            raise InputError(
                f"'{folder}' is being built with other settings ({', '.join(different)}). Give every call the same "
                "ones, or remove it."
            )
        now = corpus.describe()
        if different := [name for name, value in self.corpus.items() if now[name] != value]:
            raise InputError(
                f"'{folder}' is being built of another corpus ({', '.join(different)} differ). Give every call the "
                "same one, or remove it."
            )

    def manifest(self, shards: Sequence[ShardEntry], storage: Storage, recall: Recall | None) -> Manifest:
        """Describe the finished index."""
        made_by = EmbedderDescription.from_json(self.settings["embedder"])
        return Manifest.of(shards, made_by, storage, self.settings["passage_tokens"], self.sources, recall)

    def to_json(self) -> dict[str, Any]:
        """Give the content of the file."""
        return {**asdict(self), "starts": [[place.source, *place.row, skip] for place, skip in self.starts]}


def make_plan(
    corpus: Corpus,
    embedder: Embedder,
    settings: IndexSettings,
    shard_size: int,
    sources: Sequence[str],
    *,
    show_progress_bar: bool,
) -> Plan:
    """Find out where shards begin: by counting documents or, with passages, by cutting all of them."""
    tokens, starts = settings.passage_tokens, list[Start]()
    if tokens is None:
        places, num_rows = corpus.places(shard_size)
        starts = [Start(place, 0) for place in places]
    else:
        places, num_documents = corpus.places(PLACED_DOCUMENTS)
        documents = islice(corpus.read_from(places[0]), num_documents) if places else iter(())
        num_rows = document = first_row = 0
        passages = split_into_passages(documents, embedder, tokens)
        for row in tqdm(passages, desc="Cutting", unit="row", disable=not show_progress_bar):
            if row.metadata["passage"] == 0:
                if document % PLACED_DOCUMENTS == 0:
                    first_row = num_rows
                document += 1
            if num_rows % shard_size == 0:
                starts.append(Start(places[(document - 1) // PLACED_DOCUMENTS], num_rows - first_row))
            num_rows += 1
    if not starts:
        raise InputError(NO_DOCUMENT)
    return Plan(_settings(embedder, settings), corpus.describe(), [*sources], shard_size, num_rows, starts)


def read_plan(folder: Path) -> Plan:
    """Read the plan of the build in a folder."""
    path = folder / WORK / PLAN
    if not path.is_file():
        raise FileNotFoundError(
            f"'{folder}' holds no index that is built by shards. Build them: `tttnn build-index CORPUS --output "
            f"{folder} --shards :`."
        )
    with intact(folder):
        content = json.loads(path.read_bytes())
        starts = [
            Start(Place(source, RowPlace(file, row, byte)), skip)
            for source, file, row, byte, skip in content["starts"]
        ]
        return Plan(**{**content, "starts": starts})


def _settings(embedder: Embedder, settings: IndexSettings) -> dict[str, Any]:
    return json_form({**asdict(settings), "embedder": embedder.describe()})
