"""Files, folders and data sets of the Hub: which documents they give, by which ids, and what is skipped."""

import json
import os
import shutil

import datasets
import pytest

from tttnn import read_documents


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(documents):
    return [document.text for document in documents]


def ids(documents):
    return [document.id for document in documents]


# --- folders ---


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "corpus"
    for name in ("b/c", ".git", "b/__pycache__", "b/.hidden"):
        (root / name).mkdir(parents=True)
    (root / "b" / "c" / "deep.txt").write_text("deep")
    (root / "z.md").write_text("last")
    (root / "a.txt").write_text("first")
    (root / "empty.txt").touch()
    write_lines(root / "b" / "rows.jsonl", {"text": "row one"}, {"text": "row two", "id": "named"})
    (root / "b" / "latin.txt").write_bytes(b"caf\xe9")
    (root / "b" / "picture.png").write_bytes(bytes(range(256)))
    for hidden in (".git/config", ".env", "b/.hidden/x.txt", "b/__pycache__/m.txt"):
        (root / hidden).write_text("hidden")
    (root / "gone.txt").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe")
    return root


def test_a_folder_is_read_by_path_without_what_is_hidden_or_no_text(folder):
    assert [(document.id, document.text) for document in read_documents(folder)] == [
        ("a.txt", "first"),
        ("b/c/deep.txt", "deep"),
        ("b/rows.jsonl:1", "row one"),
        ("named", "row two"),
        ("z.md", "last"),
    ]


def test_what_is_skipped_is_counted_and_named_once_for_each_reason(folder, caplog):
    list(read_documents(folder))
    assert caplog.messages == [
        "Skipped 2 files (not UTF-8 text): b/latin.txt, b/picture.png",
        "Skipped 1 file (empty): empty.txt",
        "Skipped 2 files (a broken link, or not a regular file): gone.txt, pipe",
    ]


def test_a_warning_names_five_files_at_most(tmp_path, caplog):
    for number in range(7):
        (tmp_path / f"{number}.txt").touch()
    assert list(read_documents(tmp_path)) == []
    assert caplog.messages == ["Skipped 7 files (empty): 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ..."]


def test_what_is_skipped_is_not_named_if_the_documents_are_only_counted(folder, caplog):
    assert sum(1 for _ in read_documents(folder, quiet=True)) == sum(1 for _ in read_documents(folder)) > 0
    assert len(caplog.messages) == 3
    assert [*read_documents(folder, include_files=["no such file"], quiet=True)] == []
    assert len(caplog.messages) == 3


def test_what_was_skipped_before_the_limit_is_named_too(folder, caplog):
    list(read_documents(folder, limit=3))
    assert caplog.messages == ["Skipped 2 files (not UTF-8 text): b/latin.txt, b/picture.png"]


@pytest.mark.parametrize(
    "data", [b"text of an archive\0\0\0", "UTF-16".encode("utf-16-le"), b"caf\xe9", b"\x1f\x8b\x08"]
)
def test_binary_files_of_a_folder_are_skipped_and_a_single_one_is_an_error_or_its_text(tmp_path, data, caplog):
    (tmp_path / "a.bin").write_bytes(data)
    assert list(read_documents(tmp_path)) == []
    assert caplog.messages == ["Skipped 1 file (not UTF-8 text): a.bin"]


def test_a_single_file_that_is_not_utf_8_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a\.txt' is not UTF-8 text"):
        list(read_documents(tmp_path / "a.txt"))


def test_json_files_without_rows_are_skipped_in_a_folder_and_an_error_by_themselves(tmp_path, caplog):
    (tmp_path / "package.json").write_text('{"name": "x", "files": ["dist"]}')
    (tmp_path / "settings.json").write_text('{// comments\n"a": 1}')
    (tmp_path / "z.txt").write_text("x")
    assert ids(read_documents(tmp_path)) == ["z.txt"]
    assert caplog.messages == ["Skipped 2 files (JSON without rows): package.json, settings.json"]
    with pytest.raises(
        ValueError, match=r"package.json has neither the column `text` nor .* keys are \['files', 'name'"
    ):
        list(read_documents(tmp_path / "package.json"))
    with pytest.raises(ValueError, match="settings.json is not JSON"):
        list(read_documents(tmp_path / "settings.json"))


def test_a_linked_folder_is_read_under_the_name_of_its_link(tmp_path):
    for name in ("corpus/a.txt", "elsewhere/deep/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "elsewhere")
    assert ids(read_documents(tmp_path / "corpus")) == ["a.txt", "link/deep/b.txt"]


def test_links_to_folders_that_are_read_anyway_are_followed_no_second_time(tmp_path, caplog):
    for name in ("corpus/a/x.txt", "elsewhere/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x")
    corpus = tmp_path / "corpus"
    (corpus / "a" / "up").symlink_to(corpus)  # a cycle
    (corpus / "0").symlink_to(corpus / "a")  # sorted before the folder itself
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    (corpus / "one").symlink_to(tmp_path / "elsewhere")
    (corpus / "two").symlink_to(tmp_path / "elsewhere")
    (corpus / "whole").symlink_to(tmp_path)  # holds both
    assert ids(read_documents(corpus)) == ["a/x.txt", "one/b.txt"]
    (message,) = caplog.messages
    assert message == (
        "Skipped 6 files (a link to a folder that is read under another name): 0, a/up, one/back, two, "
        "whole/corpus, ..."
    )


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"include_files": ["*.md"]}, ["docs/deep/c.md", "docs/b.md", "a.md"]),
        ({"include_files": ["**/*.md"]}, ["docs/deep/c.md", "docs/b.md", "a.md"]),
        ({"include_files": ["docs/**/*.md"]}, ["docs/deep/c.md", "docs/b.md"]),
        ({"include_files": ["docs/*"]}, ["docs/deep/c.md", "docs/b.md", "docs/b.txt"]),
        ({"include_files": ["docs/"]}, ["docs/deep/c.md", "docs/b.md", "docs/b.txt"]),
        ({"include_files": ["a.md", "*.txt"]}, ["docs/b.txt", "a.md"]),
        ({"exclude_files": ["*.md"]}, ["docs/b.txt"]),
        ({"exclude_files": ["docs"]}, ["a.md"]),
        ({"exclude_files": ["*/deep/*", "a.*"]}, ["docs/b.md", "docs/b.txt"]),
        ({"include_files": ["*.md"], "exclude_files": ["docs/deep"]}, ["docs/b.md", "a.md"]),
    ],
    ids=str,
)
def test_patterns_choose_the_files_of_a_folder(tmp_path, patterns, expected):
    for name in ("a.md", "docs/b.md", "docs/b.txt", "docs/deep/c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert sorted(ids(read_documents(tmp_path, **patterns))) == sorted(expected)


def test_patterns_that_leave_no_file_are_warned_of(folder, caplog):
    assert list(read_documents(folder, include_files=["*.rst"])) == []
    assert f"The patterns leave no file of '{folder}'." in caplog.messages


def test_patterns_need_a_folder_and_a_list(folder):
    with pytest.raises(ValueError, match="choose files of a folder, and no source is a folder"):
        read_documents(folder / "a.txt", include_files=["*.txt"])
    with pytest.raises(TypeError, match=r"the string '\*.py' was given. Pass a list"):
        read_documents(folder, exclude_files="*.py")


# --- saved data sets ---


@pytest.fixture
def saved(tmp_path):
    datasets.Dataset.from_dict({"text": ["x", "y"], "n": [1, 2]}).save_to_disk(tmp_path / "corpus" / "saved")
    return tmp_path / "corpus" / "saved"


def test_a_saved_data_set_is_read_by_its_rows(saved):
    expected = [("saved:1", "x", {"n": 1, "source": "saved"}), ("saved:2", "y", {"n": 2, "source": "saved"})]
    assert [(d.id, d.text, d.metadata) for d in read_documents(saved)] == expected


def test_a_saved_data_set_inside_of_a_folder_is_read_in_its_place(saved):
    (saved.parent / "a.txt").write_text("first")
    (saved.parent / "z.txt").write_text("last")
    assert ids(read_documents(saved.parent)) == ["a.txt", "saved:1", "saved:2", "z.txt"]


def test_of_a_saved_data_set_with_splits_one_is_read(tmp_path):
    rows = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(rows).save_to_disk(tmp_path / "saved")
    found = read_documents(tmp_path / "saved", split="test")
    assert [(d.id, d.text) for d in found] == [("saved/test:1", "test")]
    with pytest.raises(ValueError, match=r"has no split 'dev', but \['test', 'train'\]"):
        list(read_documents(tmp_path / "saved", split="dev"))


def test_the_source_of_a_document_is_its_file(folder):
    sources = [document.metadata["source"] for document in read_documents(folder)]
    assert sources == ["a.txt", "b/c/deep.txt", "b/rows.jsonl", "b/rows.jsonl", "z.md"]


def test_a_file_whose_name_is_no_text_is_an_error_that_names_it(tmp_path):
    # bytes of a name that are not UTF-8 become lone surrogates, which no text store can keep
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("x")
    with pytest.raises(ValueError, match=r"caf.*lone surrogate U\+DCE9|lone surrogate U\+DCE9.*caf"):
        list(read_documents(tmp_path))


def test_a_folder_inside_of_a_hidden_one_can_be_read(tmp_path):
    root = tmp_path / ".cache" / "corpus"
    root.mkdir(parents=True)
    (root / "a.txt").write_text("x")
    assert ids(read_documents(root)) == ["a.txt"]


def test_ids_are_the_same_in_another_run_and_in_another_place(folder, tmp_path):
    first = ids(read_documents(folder))
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder / "b", moved / "b")
    for name in ("z.md", "empty.txt", "a.txt"):  # written in another order
        shutil.copy(folder / name, moved / name)
    assert ids(read_documents(folder)) == first
    assert ids(read_documents(str(moved) + "/")) == first


def test_another_file_leaves_the_ids_of_the_rest(folder):
    first = ids(read_documents(folder))
    (folder / "aa.txt").write_text("new")
    assert [name for name in ids(read_documents(folder)) if name != "aa.txt"] == first


@pytest.mark.parametrize(("limit", "number"), [(1, 1), (3, 3), (100, 5), (None, 5)])
def test_a_limit_takes_the_first_documents(folder, limit, number):
    everything = list(read_documents(folder))
    assert list(read_documents(folder, limit=limit)) == everything[:number]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_an_error(folder, limit):
    with pytest.raises(ValueError, match=f"limit is {limit} documents"):
        read_documents(folder, limit=limit)


def test_what_lies_behind_the_limit_is_not_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\nnot JSON\n')
    assert texts(read_documents(tmp_path, limit=1)) == ["x"]


def test_an_empty_folder_has_no_documents(tmp_path):
    assert list(read_documents(tmp_path)) == []


# --- sources ---


@pytest.mark.parametrize(
    "source",
    [
        *("nothing", "./user/name", "../name", "~/name", "/user/name", "a/b/c"),
        *("user/a.jsonl", "user/a.parquet", "user/a.JSON", "user/a.csv.gz"),
    ],
)
def test_a_path_where_nothing_lies_is_an_error_that_names_it(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file or folder at '{source}'"):
        read_documents(source)


def test_a_path_object_is_never_an_id_of_the_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_documents(tmp_path.relative_to(tmp_path.parent) / "name")


def test_several_sources_are_read_one_after_another(tmp_path):
    for name in ("b/one.txt", "a/two.txt", "c/three.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"text": "x"}')
    found = read_documents([tmp_path / "b/one.txt", str(tmp_path / "a"), tmp_path / "c/three.jsonl"])
    assert [name.split("/")[-1] for name in ids(found)] == ["one.txt", "two.txt", "three.jsonl:1"]


def test_files_of_one_name_in_several_folders_get_ids_of_their_own(tmp_path):
    for name in ("a/test.jsonl", "b/test.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"text": "x"}')
    assert ids(read_documents([tmp_path / "a/test.jsonl", tmp_path / "b/test.jsonl"])) == [
        "a/test.jsonl:1",
        "b/test.jsonl:1",
    ]


def test_folders_with_files_of_one_name_give_ids_of_their_own(tmp_path):
    for name in ("a/test.txt", "b/test.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    assert len(set(ids(read_documents([tmp_path / "a", tmp_path / "b"])))) == 2


def test_ids_do_not_depend_on_how_many_sources_are_read(tmp_path):
    for name in ("a/one.jsonl", "b/two.jsonl", "c/deep/three.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text('{"text": "x"}')
    sources = [tmp_path / "a/one.jsonl", tmp_path / "b/two.jsonl", tmp_path / "c"]
    alone = [name for source in sources for name in ids(read_documents(source))]
    assert alone == ["one.jsonl:1", "two.jsonl:1", "deep/three.txt"]
    assert ids(read_documents(sources)) == alone


def test_only_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("a/test.txt", "a/one.txt", "b/test.txt", "b/two.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = ids(read_documents([tmp_path / "a", tmp_path / "b"]))
    assert found == ["one.txt", "a/test.txt", "b/test.txt", "two.txt"]


def test_a_name_that_tells_a_file_apart_is_nobody_elses(tmp_path):
    for name in ("a/x.txt", "b/x.txt", "a/b/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = ids(read_documents([tmp_path / "a", tmp_path / "b"]))
    assert found == ["a/b/x.txt", "a/x.txt", "b/x.txt"]


def test_a_source_that_is_given_twice_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for sources in (["a.txt", folder / "a.txt"], ["user/name", "user/name"]):
        with pytest.raises(ValueError, match="A source is given twice"):
            read_documents(sources)


def test_a_link_to_a_file_elsewhere_is_read_under_its_own_name(tmp_path):
    # the Hub cache holds links to files that are named by their hash
    (tmp_path / "blob").write_text('{"text": "x"}')
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "train.jsonl").symlink_to(tmp_path / "blob")
    assert ids(read_documents(tmp_path / "snapshot" / "train.jsonl")) == ["train.jsonl:1"]
    assert ids(read_documents(tmp_path / "snapshot")) == ["train.jsonl:1"]


def test_an_empty_source_is_an_error_and_not_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises((FileNotFoundError, ValueError)):
        read_documents("")


def test_the_home_folder_may_be_written_as_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert ids(read_documents("~/corpus", limit=1)) == ["a.txt"]


def test_an_id_of_the_hub_is_streamed_at_its_split_and_revision(tmp_path, monkeypatch):
    calls = []

    def load_dataset(*arguments, **named):
        calls.append((arguments, named))
        return datasets.Dataset.from_dict({"text": ["x", "y"]}).to_iterable_dataset()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    found = read_documents("user/name", split="test", revision="v1", token="hf_mine")
    assert [(document.id, document.text) for document in found] == [
        ("user/name/test 0", "x"),
        ("user/name/test 1", "y"),
    ]
    assert calls == [
        (("user/name",), {"split": "test", "revision": "v1", "token": "hf_mine", "streaming": True}),
    ]


def test_a_configuration_of_the_hub_is_read_and_stands_in_its_ids(tmp_path, monkeypatch):
    names = []

    def load_dataset(path, name, **named):
        names.append(name)
        return datasets.Dataset.from_dict({"text": ["x"]}).to_iterable_dataset()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert ids(read_documents("user/name", dataset_config="en")) == ["user/name/en/train 0"]
    assert names == ["en"]


def test_a_configuration_needs_a_data_set_of_the_hub(folder):
    with pytest.raises(ValueError, match="every source is a path"):
        read_documents(folder, dataset_config="en")
