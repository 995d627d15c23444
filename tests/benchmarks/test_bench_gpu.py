"""The benchmark for a GPU, with tiny shapes on the CPU: its code runs, and what it compares does the same work."""

import re
import sys

import bench_gpu
import pytest
import torch

from tttnn.adaptation.batched import DocumentBatches


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *words])
    bench_gpu.main()


def test_the_benchmark_for_a_gpu_runs_with_tiny_shapes_on_a_cpu(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "--device", "cpu", "--tiny", "--output_dir", str(tmp_path))
    output = capsys.readouterr().out
    tables = [part for part in output.split("\n\n") if "documents a minute" in part]
    assert len(tables) == 4  # two models in two precisions
    for table in tables:
        ways = [line.split(" | ")[0].strip("| ") for line in table.splitlines()[3:]]
        assert ways == ["official loop", "preset tttlm", "default", "LoRA, 1 at once", "LoRA, 2 at once"]
        # the loop shares no code with the preset
        difference = float(re.search(r"differ by (\S+)", table)[1])
        assert difference < (1e-5 if "float32" in table else 1e-3)
    assert "These are no figures of a GPU." in output


def test_the_benchmark_for_a_gpu_ends_with_a_sentence_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="There is no CUDA device here"):
        run(monkeypatch)


def test_the_benchmark_for_a_gpu_gives_no_figures_of_a_cpu(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, "--device", "cpu")
    assert exit.value.code == 2
    assert "only tests this script" in capsys.readouterr().err


def test_the_benchmark_for_a_gpu_names_what_runs_out_of_memory(monkeypatch, capsys, tmp_path):
    measure, train_group = bench_gpu.Bench.measure, DocumentBatches._train_group

    def measure_ours(bench, way):
        if way == bench_gpu.OFFICIAL:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(bench, way)

    def train_one(batches, plans):
        if len(plans) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train_group(batches, plans)

    monkeypatch.setattr(bench_gpu.Bench, "measure", measure_ours)
    monkeypatch.setattr(DocumentBatches, "_train_group", train_one)
    words = ["--models", "gpt2", "--precisions", "float32", "--rows", "--output_dir", str(tmp_path)]
    run(monkeypatch, "--device", "cpu", "--tiny", *words)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    ways = [row.split(" | ")[0].strip("| ") for row in rows[1:6]]
    assert ways[3:] == ["LoRA, 1 at once", "LoRA, 2 at once (halved: out of memory)"]
    assert rows[1] == "| official loop | out of memory | | | |"
    assert all("| – |" in row for row in rows[2:6])  # no ratio to what did not run
