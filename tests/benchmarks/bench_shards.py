"""
An index built by one process and by several that share its folder, each on a core of its own.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_shards.py --embedder MINILM --documents 3000 --shard_size 250 \
        --cores 0 1

The processes are those of `tttnn build-index --shards :`, started at once. Printed are the seconds of the clock, with
the start of Python and the loading of the embedder, and those of each processor, without what other programs
took. The files are compared.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parts import module_texts


def write_corpus(path: Path, num_documents: int, num_characters: int) -> None:
    """Cut the modules of the standard library into texts of one length, each with its own beginning."""
    texts = module_texts()
    lines = []
    for number in range(num_documents):
        text = texts[number % len(texts)]
        start = number * 37 % (len(text) - num_characters)
        lines.append(json.dumps({"text": text[start : start + num_characters]}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def run(words: list[str], cores: list[int]) -> tuple[float, list[float]]:
    """Run a command on each core at once; give the seconds of the clock, and those of each processor."""
    begin, used = time.perf_counter(), []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-m", "tttnn", *words], env=environment)
        for core in cores
    ]
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        used.append(usage.ru_utime + usage.ru_stime)
    return time.perf_counter() - begin, used


def digests(folder: Path) -> dict[str, str]:
    """Give the checksum of each file of an index."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def main() -> None:
    """Build with one process and with several."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", required=True)
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--characters", type=int, default=300)
    parser.add_argument("--shard_size", type=int, default=250)
    parser.add_argument("--preset", default="ivf")
    parser.add_argument("--cores", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus.jsonl", arguments.documents, arguments.characters)
        made = {}
        for cores in (arguments.cores[:1], arguments.cores):
            output = folder / f"by-{len(cores)}"
            command = ["build-index", str(folder / "corpus.jsonl"), "--output", str(output), "--shards", ":"]
            command += ["--embedder", arguments.embedder, "--shard-size", str(arguments.shard_size)]
            clock, used = run([*command, "--preset", arguments.preset], cores)
            finish, finish_used = run(["build-index", "--finish", str(output)], cores)
            print(f"{len(cores)} processes, shards: {clock:.1f} s, processors {[round(value, 1) for value in used]}")
            print(f"{len(cores)} processes, finish: {finish:.1f} s, {[round(value, 1) for value in finish_used]}")
            made[len(cores)] = digests(output)
        first, second = made.values()
        print("The files are the same." if first == second else "THE FILES DIFFER.")


if __name__ == "__main__":
    main()
