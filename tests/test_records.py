"""Records of documents: what they pool to, and what older journals lack."""

import json

from tttnn.records import DocumentRecord, summarize


def make_record(**fields):
    return DocumentRecord(0, "0" * 16, "d", {}, 10, 2, nll=[2.0, 1.0], **fields)


def test_documents_with_neighbors_of_their_own_are_counted():
    records = [make_record(own_neighbors=[3, 4]), make_record(), make_record(own_neighbors=[7])]
    assert summarize(records)["num_with_own_neighbors"] == 2


def test_a_line_of_an_older_journal_has_no_neighbors_of_the_document_itself():
    row = json.loads(make_record(own_neighbors=[3]).to_json())
    assert DocumentRecord.from_json(json.dumps(row)).own_neighbors == [3]
    del row["own_neighbors"]
    assert DocumentRecord.from_json(json.dumps(row)).own_neighbors == []
