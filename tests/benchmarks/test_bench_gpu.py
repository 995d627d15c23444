"""The benchmark for a GPU, with tiny shapes on the CPU: its code runs, and what it compares does the same work."""

import re
import sys

import bench_gpu
import pytest
import torch


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
