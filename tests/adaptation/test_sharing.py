"""Positions that processes share: each is given once, in order, until there is none or one process ends all."""

import pytest
import torch

from tttnn import Document
from tttnn.adaptation.sharing import SharedPositions, share


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_two_that_share_positions_take_each_one_once_and_in_order(process_group):
    first, second = SharedPositions(5, "a list"), SharedPositions(5, "a list")
    one, other = iter(first), iter(second)
    assert [next(one), next(other), next(other), next(one), next(other)] == [0, 1, 2, 3, 4]
    assert [*one, *other] == []
    assert (first.taken, second.taken) == ([0, 3], [1, 2, 4])


def test_lists_of_other_names_are_not_shared(process_group):
    assert [*SharedPositions(2, "a list")] == [*SharedPositions(2, "another list")] == [0, 1]


def test_after_one_closes_nobody_takes_another(process_group):
    first, second = SharedPositions(5, "a list"), SharedPositions(5, "a list")
    assert next(iter(first)) == 0
    second.close()
    assert [*first] == [*second] == []


def test_without_a_process_group_one_takes_all():
    positions = SharedPositions(3)
    assert [*positions] == positions.taken == [0, 1, 2]


@pytest.mark.parametrize(
    ("of_the_other", "message"),
    [
        (["a"], "process 0 has 2, and process 1 has 1. Give every process the same documents"),
        (["a", "c"], "process 0 has 2, and process 1 has 2 others. Give every process the same documents"),
        (["b", "a"], "process 0 has 2, and process 1 has 2 others."),
    ],
)
def test_processes_with_different_documents_are_refused(monkeypatch, of_the_other, message):
    documents = {rank: [Document("", text) for text in texts] for rank, texts in ((0, ["a", "b"]), (1, of_the_other))}
    sent = []
    monkeypatch.setattr("tttnn.adaptation.sharing.gather_object", lambda rows: sent.extend(rows) or [*sent])
    assert share(documents[0], {}, 2).number == 2
    with pytest.raises(ValueError, match=message):
        share(documents[1], {}, 2)


def test_processes_with_different_settings_are_refused(monkeypatch):
    """For example if another command was given on another node."""
    documents, sent = [Document("", "a")], []
    monkeypatch.setattr("tttnn.adaptation.sharing.gather_object", lambda rows: sent.extend(rows) or [*sent])
    share(documents, {"seed": 1, "learning_rate": 2e-5, "order": ("near", "far")}, 2)
    share(documents, {"seed": 1, "learning_rate": 2e-5, "order": ["near", "far"]}, 2)
    message = r"`learning_rate` is 2e-05 in process 0 and 0.001 in process 2 \(different: learning_rate\)"
    with pytest.raises(ValueError, match=message):
        share(documents, {"seed": 1, "learning_rate": 1e-3, "order": ["near", "far"]}, 2)


def test_processes_with_the_same_documents_count_under_one_name(monkeypatch):
    documents, sent = [Document("", "a")], []
    monkeypatch.setattr("tttnn.adaptation.sharing.gather_object", lambda rows: sent.extend(rows) or [*sent])
    first, second = share(documents, {}, 2), share(documents, {}, 2)
    assert first.name == second.name is not None
    sent.clear()
    assert share(documents, {}, 2).name != first.name  # the next evaluation of the same documents
