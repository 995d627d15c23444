"""Blobs on disk by key: bounded, shared, and of no consequence when the disk fails."""

import logging
import sqlite3

import pytest

from tttnn.retrieval.store import Store


LARGE = 10**9


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "folder" / "store.sqlite", LARGE)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by one nanosecond an access."""
    times = iter(range(10**6))
    monkeypatch.setattr("time.time_ns", lambda: next(times))


def connections_with(monkeypatch, pragma):
    """Let every connection begin with a pragma."""
    connect = sqlite3.connect

    def connect_with(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.execute(f"PRAGMA {pragma}")
        return connection

    monkeypatch.setattr("sqlite3.connect", connect_with)


def test_what_was_put_is_there_for_another_process(store):
    store.put({b"a": (3, b"\0\xff"), b"b": (0, b"")})
    assert Store(store.path, LARGE).get([b"a", b"b", b"c"]) == {b"a": (3, b"\0\xff"), b"b": (0, b"")}


def test_a_smaller_entry_that_is_put_later_does_not_replace_a_larger_one(store):
    store.put({b"a": (6, b"six")})
    store.put({b"a": (2, b"two")})
    assert store.get([b"a"]) == {b"a": (6, b"six")}
    store.put({b"a": (7, b"seven")})
    assert store.get([b"a"]) == {b"a": (7, b"seven")}


def test_a_file_stays_within_its_size(tmp_path):
    store = Store(tmp_path / "store.sqlite", 200_000)
    for number in range(500):
        store.put({b"%d" % number: (1, bytes(2000))})
    assert 100_000 < store.path.stat().st_size < 210_000
    assert b"499" in store.get([b"499"])


def test_the_entries_that_were_used_least_recently_go(tmp_path, clock):
    store = Store(tmp_path / "store.sqlite", 200_000)
    store.put({b"first": (1, b"first"), b"second": (1, b"second")})
    for number in range(200):
        store.put({b"%d" % number: (1, bytes(2000))})
        store.get([b"first"])
    assert store.get([b"first", b"second", b"0", b"199"]).keys() == {b"first", b"199"}


def test_one_entry_larger_than_the_file_is_not_kept(tmp_path):
    store = Store(tmp_path / "store.sqlite", 50_000)
    store.put({b"a": (1, bytes(100_000))})
    assert store.get([b"a"]) == {}


def test_a_file_that_is_no_store_is_set_aside_with_a_warning(store, caplog):
    store.path.parent.mkdir()
    store.path.write_bytes(b"not a database" * 100)
    assert store.get([b"a"]) == {}
    assert "store.sqlite' is damaged (file is not a database). It is moved to '" in caplog.text
    store.put({b"a": (1, b"one")})
    assert store.get([b"a"]) == {b"a": (1, b"one")}
    assert (store.path.parent / "store.sqlite.damaged").read_bytes() == b"not a database" * 100


@pytest.mark.parametrize("change", ["content = x'00'", "size = 2", "size = 'a'", "content = NULL", "checksum = 0"])
def test_a_damaged_entry_is_not_given(store, change):
    store.put({b"a": (1, b"one")})
    with sqlite3.connect(store.path) as connection:
        connection.execute(f"UPDATE entries SET {change}")
    connection.close()
    assert store.get([b"a"]) == {}


def test_a_damaged_entry_is_mended_when_it_is_put_again(store):
    store.put({b"a": (1, b"one")})
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE entries SET content = x'00'")
    connection.close()
    store.put({b"a": (1, b"one")})
    assert store.get([b"a"]) == {b"a": (1, b"one")}


def test_the_entry_of_another_key_is_not_given(store):
    store.put({b"a": (1, b"one")})
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE entries SET key = ?", [b"b"])
    connection.close()
    assert store.get([b"b"]) == {}


def test_a_file_that_can_only_be_read_is_read(store, monkeypatch):
    store.put({b"a": (1, b"one")})
    connections_with(monkeypatch, "query_only = 1")
    store.put({b"b": (1, b"two")})
    assert store.get([b"a", b"b"]) == {b"a": (1, b"one")}


def test_on_a_full_disk_what_is_there_is_read_and_nothing_is_kept(store, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    store.put({b"a": (1, b"one")})
    connections_with(monkeypatch, "max_page_count = 5")
    store.put({b"b": (1, bytes(100_000))})
    assert "cannot be used: database or disk is full" in caplog.text
    assert store.get([b"a", b"b"]) == {b"a": (1, b"one")}


def test_a_file_that_another_process_holds_too_long_is_passed_over(store, monkeypatch):
    store.put({b"a": (1, b"one")})
    monkeypatch.setattr("tttnn.retrieval.store.LOCK_SECONDS", 0)
    holder = sqlite3.connect(store.path)
    holder.execute("BEGIN EXCLUSIVE")
    store.put({b"b": (1, b"two")})
    assert store.get([b"a"]) == {}
    holder.close()
    assert store.get([b"a", b"b"]) == {b"a": (1, b"one")}


def test_a_file_that_is_deleted_meanwhile_is_made_again(store):
    store.put({b"a": (1, b"one")})
    store.path.unlink()
    assert store.get([b"a"]) == {}
    store.put({b"b": (1, b"two")})
    assert store.get([b"b"]) == {b"b": (1, b"two")}
