"""The card of an index, field by field, and the page of the metric's Space."""

import ast
import copy
import importlib.util
import math
import re
import shutil
import sys
import types
from pathlib import Path

import evaluate
import pytest
from huggingface_hub import DatasetCard, SpaceCard

from tttnn.index.hub.card import GENERATED, index_card
from tttnn.index.manifest import SHARD_FILES, Manifest, read_manifest


ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "hub_cards" / "index"
SPACE = ROOT / "hub_cards" / "bits_per_byte"
METRIC = ROOT / "tttnn" / "metrics" / "bits_per_byte" / "bits_per_byte.py"


def files_of(number, sizes):
    names = [name.format(number) for name in SHARD_FILES]
    return {name: {"bytes": size, "sha256": "0" * 64} for name, size in zip(names, sizes, strict=True)}


MANIFEST = {
    "library_versions": {"tttnn": "0.1.0"},
    "faiss_version": "1.15.1",
    "sources": ["wikipedia.jsonl.zst", "user/texts"],
    "embedder": {
        "name": "sentence-transformers/all-MiniLM-L6-v2",
        "revision": "8b3219a",
        "pooling": ["mean"],
        "normalized": True,
        "max_seq_length": 256,
        "dimension": 384,
        "query_prompt": "query: ",
        "document_prompt": "",
        "probe": [1.0] * 384,
    },
    "metric": "squared_l2",
    "passage_tokens": None,
    "storage": {"preset": "ivf", "factory": "IVF1024,Flat", "search": {"nprobe": 32}, "shard_size": 100_000},
    "recall": {"top_k": 20, "recall": 0.9625, "target": 0.95, "num_queries": 200, "num_rows": 150_000},
    "num_documents": 150_000,
    "num_rows": 150_000,
    "corpus_digest": "c" * 64,
    "shards": [
        {"rows": 100_000, "documents": 100_000, "files": files_of(0, [154_000_000, 80_000_000, 800_128, 30_000_000])},
        {"rows": 50_000, "documents": 50_000, "files": files_of(1, [77_000_000, 40_000_000, 400_136, 15_000_000])},
    ],
}


def manifest_with(num_rows=150_000, **entries):
    content = copy.deepcopy(MANIFEST) | {"num_rows": num_rows, "num_documents": min(num_rows, 150_000)} | entries
    if num_rows != 150_000:  # in one shard
        counts = {"rows": num_rows, "documents": content["num_documents"]}
        content["shards"] = [{**counts, "files": files_of(0, [1, 1, 1, 1])}]
    return Manifest.from_json(content)


def table_of(card):
    rows = re.findall(r"^\| ([a-z][^|]*) \| (.*) \|$", card, re.MULTILINE)
    return dict(rows)


@pytest.fixture(scope="module")
def card():
    return index_card(manifest_with(), "user/wiki-index", "cc-by-sa-4.0")


# --- front matter ---


def test_the_front_matter_says_what_the_hub_sorts_by(card):
    data = DatasetCard(card).data.to_dict()
    assert data == {
        "license": "cc-by-sa-4.0",
        "size_categories": ["100K<n<1M"],
        "task_categories": ["text-retrieval"],
        "pretty_name": "Index wiki-index",
        "tags": ["tttnn", "faiss", "nearest-neighbors", "test-time-training"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    }


def test_the_front_matter_begins_the_card(card):
    assert card.startswith("---\n")
    assert card.split("\n---\n")[1].startswith(GENERATED)


def test_a_licence_that_nobody_gave_is_unknown():
    assert DatasetCard(index_card(manifest_with(), "user/wiki-index")).data.license == "unknown"


@pytest.mark.parametrize("name", ["user/yes", "user/1e3", "user/a.b-c_d", "user/null"])
def test_a_name_that_yaml_would_take_for_something_else_stays_a_string(name):
    data = DatasetCard(index_card(manifest_with(), name)).data
    assert data.pretty_name == f"Index {name.removeprefix('user/')}"


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9999, "1K<n<10K"),
        (10_000, "10K<n<100K"),
        (999_999, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
        (210_607_728, "100M<n<1B"),
        (9_999_999_999, "1B<n<10B"),
    ],
)
def test_the_size_is_that_of_the_rows(rows, size):
    assert DatasetCard(index_card(manifest_with(num_rows=rows), "user/index")).data.size_categories == [size]


# --- text ---


def test_the_table_says_what_the_index_is(card):
    assert table_of(card) == {
        "embedder": "`sentence-transformers/all-MiniLM-L6-v2` at `8b3219a`",
        "tokens read of a text": "256",
        "dimension": "384",
        "prompts": "query 'query: ', document ''",
        "distance": "squared L2",
        "storage": "`ivf` (Faiss: `IVF1024,Flat`)",
        "recall": "0.963 of the 20 nearest, over 200 queries, against an exact search of 150,000 rows; wanted: 0.95",
        "rows": "150,000",
        "shards": "2",
        "vectors": "231.0 MB",  # 154 + 77
        "all files": "397.2 MB",  # and 80 + 40 + 30 + 15 of texts, and 1.2 of offsets
        "corpus digest": f"`{'c' * 64}`",
    }


def test_the_card_says_what_was_indexed(card):
    assert "of 150,000 documents of `wikipedia.jsonl.zst`, `user/texts`." in card


def test_an_index_of_nobody_knows_what_names_no_source():
    assert "of 150,000 documents.\n" in index_card(manifest_with(sources=[]), "user/index")


def test_passages_are_told_from_documents():
    card = index_card(manifest_with(num_rows=1_234_567, passage_tokens=128), "user/index")
    assert "of 1,234,567 passages of 150,000 documents, of at most 128 tokens each of `wikipedia" in card


def test_an_exact_index_says_so():
    storage = {"preset": "flat", "factory": "Flat", "search": {}, "shard_size": 100_000}
    table = table_of(index_card(manifest_with(recall=None, storage=storage), "user/index"))
    assert table["recall"] == "exact: every neighbor is found"


def test_a_recall_that_was_not_reached_is_told():
    recall = MANIFEST["recall"] | {"recall": 0.9}
    table = table_of(index_card(manifest_with(recall=recall), "user/index"))
    assert table["recall"].endswith("wanted: 0.95, **which is not reached**")


def test_an_embedder_without_revision_or_limit():
    embedder = MANIFEST["embedder"] | {"revision": None, "max_seq_length": None}
    table = table_of(index_card(manifest_with(embedder=embedder), "user/index"))
    assert table["embedder"] == "`sentence-transformers/all-MiniLM-L6-v2`"
    assert table["tokens read of a text"] == "all"


def test_a_local_embedder_is_named_without_the_folders_above_it_and_is_to_be_passed():
    embedder = MANIFEST["embedder"] | {"name": "/home/ann/models/minilm", "revision": None}
    card = index_card(manifest_with(embedder=embedder), "user/index")
    assert "ann" not in card
    assert table_of(card)["embedder"] == "`minilm`, a folder that is not on the Hub"
    assert 'from_pretrained("user/index", embedder="path/to/minilm")' in card


def test_a_bar_in_a_prompt_does_not_end_its_cell():
    embedder = MANIFEST["embedder"] | {"query_prompt": "find | "}
    card = index_card(manifest_with(embedder=embedder), "user/index")
    assert r"| prompts | query 'find \| ', document '' |" in card.splitlines()


def test_the_card_says_how_to_open_it_and_how_to_cite(card):
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert 'NeighborRetriever.from_pretrained("user/wiki-index")' in example
    ast.parse(example)
    assert 'load_dataset("user/wiki-index")' in card
    assert "@inproceedings{hardt2024testtime," in card


# --- the example beside the code ---


def test_the_example_card_is_what_its_manifest_gives():
    manifest = read_manifest(EXAMPLE)
    assert (EXAMPLE / "README.md").read_text(encoding="utf-8") == index_card(
        manifest, "user/pubmed-central-index", "cc-by-4.0"
    )


def test_the_example_card_is_read_by_the_hub():
    data = DatasetCard.load(EXAMPLE / "README.md").data
    assert (data.license, data.size_categories) == ("cc-by-4.0", ["n<1K"])


def test_the_example_names_no_folder_of_whoever_built_it():
    manifest = read_manifest(EXAMPLE)
    assert not any(Path(name).is_absolute() for name in (manifest.embedder.name, *manifest.sources))


# --- the Space of the metric ---


class Component:
    """A part of a page, which notes what it was made of and what a click on it does."""

    def __init__(self, value=None, **options):
        self.value, self.options = value, options
        PAGE.append(self)

    def click(self, function, inputs, outputs):
        self.clicked = (function, inputs, outputs)


class Table(Component):
    pass


class Button(Component):
    pass


class Text(Component):
    pass


class Blocks:
    launched = False

    def __init__(self, title):
        self.title = title

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def launch(self):
        type(self).launched = True


class PageError(Exception):
    def __init__(self, message, print_exception=True):
        super().__init__(message)


PAGE = []


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The folder of the Space, elsewhere: as it is on the Hub."""
    return shutil.copytree(SPACE, tmp_path_factory.mktemp("space") / "bits_per_byte")


@pytest.fixture(scope="module")
def app(space):
    """The page, made of stand-ins for the parts of gradio, which is not installed."""
    gradio = types.ModuleType("gradio")
    gradio.Blocks, gradio.Markdown, gradio.Button, gradio.Dataframe = Blocks, Text, Button, Table
    gradio.Error = PageError
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gradio", gradio)
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(space.parent / "modules"))
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(space.parent / "metrics"))
        patch.setattr(sys, "path", list(sys.path))
        for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
            patch.delitem(sys.modules, name)
        PAGE.clear()
        spec = importlib.util.spec_from_file_location("space_app", space / "app.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def part(kind):
    (found,) = [component for component in PAGE if type(component) is kind]
    return found


def test_the_folder_of_the_space_is_whole(space):
    assert {path.name for path in space.iterdir()} == {"README.md", "app.py", "requirements.txt", "bits_per_byte.py"}
    assert not any(path.is_symlink() for path in SPACE.iterdir())


def test_the_space_holds_the_metric_of_the_package_to_the_byte():
    """`make space` copies it."""
    assert (SPACE / METRIC.name).read_bytes() == METRIC.read_bytes()


def test_the_space_is_one_of_gradio_in_a_version_that_is_named():
    data = SpaceCard.load(SPACE / "README.md").data
    assert data.sdk == "gradio"
    assert re.fullmatch(r"\d+\.\d+\.\d+", data.sdk_version)


def test_the_space_installs_what_its_files_import(space):
    imported = set()
    for name in ("app.py", "bits_per_byte.py"):
        for node in ast.walk(ast.parse((space / name).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.split(".")[0] for name in names}
    required = {re.split(r"[<>=~]", line)[0] for line in (space / "requirements.txt").read_text().split()}
    # the Hub installs the Space's own kind
    assert required == imported - sys.stdlib_module_names - {"gradio"}


def test_a_click_scores_the_table(app):
    function, inputs, outputs = part(Button).clicked
    assert (function, inputs, outputs) == (app.score, part(Table), app.answer)


def test_the_table_gives_rows_of_numbers_and_texts(app):
    options = part(Table).options
    assert (options["datatype"], options["type"], options["interactive"]) == (["number", "str"], "array", True)
    assert len(options["headers"]) == 2


def test_the_example_of_the_page_is_that_of_the_card(app):
    # 18 nats on 9 bytes: 2 nats a byte, which are 2 / ln 2 bits
    assert app.score(part(Table).value) == (
        "**2.8854 bits per byte**, byte perplexity 7.3891: 18.0000 nats on 9 bytes."
    )


def test_the_page_shows_the_card_without_its_front_matter(app):
    text = [component.value for component in PAGE][-1]
    assert text.lstrip().startswith("# Metric Card for Bits per Byte")
    assert "sdk_version" not in text


def test_the_page_is_not_served_when_it_is_imported(app):
    assert not Blocks.launched


@pytest.mark.parametrize("empty", [[None, None], ["", ""], [math.nan, ""], [None, ""]])
def test_empty_rows_do_not_count(app, empty):
    assert "18.0000 nats on 9 bytes" in app.score([[-12.0, "long"], empty, [-6.0, "café"]])


def test_a_number_typed_as_text_counts(app):
    assert app.score([["-8", "8 bytes!"]]).endswith("8.0000 nats on 8 bytes.")


def test_a_text_of_digits_is_a_text(app):
    assert app.score([[-1.0, 1234]]).endswith("1.0000 nats on 4 bytes.")


def test_a_certain_text_costs_nothing(app):
    assert app.score([[0.0, "abc"]]) == "**0.0000 bits per byte**, byte perplexity 1.0000: 0.0000 nats on 3 bytes."


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[3.5, "a loss"]], "log-likelihood of row 0 is 3.5"),
        ([[-1.0, "good"], ["many", "bad"]], "could not convert string to float"),
        ([[None, "no number"]], "could not convert string to float"),
        ([[-1.0, ""]], "hold no bytes"),
        ([[-1.0, "\ud800"]], "lone surrogate"),
        ([], r"\(rows: 0\) hold no bytes"),
        ([[None, ""]], r"\(rows: 0\) hold no bytes"),
    ],
)
def test_what_the_metric_refuses_is_told_on_the_page(app, rows, message):
    with pytest.raises(PageError, match=message):
        app.score(rows)


def test_after_a_refusal_the_next_scores_are_right(app):
    with pytest.raises(PageError):
        app.score([[-1.0, ""]])
    assert "on 8 bytes" in app.score([[-8.0, "8 bytes!"]])


def test_what_somebody_typed_is_shown_as_text_and_not_as_html(app):
    with pytest.raises(PageError) as refused:
        app.score([["<img src=x onerror=alert(1)>", "text"]])
    assert "<img" not in str(refused.value) and "&lt;img" in str(refused.value)
