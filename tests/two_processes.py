"""
One launch of two processes for all tests that compare them with one: `torchrun` costs many seconds.

`torchrun --nproc_per_node 2 --max_restarts 1 tests/two_processes.py FOLDER` runs the scenarios of the programs beside
this file. At the end of the first start one process kills itself; the second start resumes that run only.
"""

import os
import subprocess
import sys
from pathlib import Path

import distributed_program
import methods_program
import torch
from transformers import AutoTokenizer


def launch(folder: Path) -> None:
    """Run every scenario on two processes; `FOLDER/tokenizer` is what each of them loads."""
    distributed_program.prepare(folder / "distributed", AutoTokenizer.from_pretrained(folder / "tokenizer"))
    options = ["--standalone", "--nproc_per_node", "2", "--max_restarts", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, __file__, folder],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(folder / "hf_home"),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # gloo would connect to the addresses of the first start
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    shared_tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    if not (root / "distributed" / "killed").exists():
        distributed_program.main(root / "distributed", shared_tokenizer)
        methods_program.main(root / "methods", shared_tokenizer)
        distributed_program.be_killed(root / "distributed", shared_tokenizer)
    distributed_program.resume(root / "distributed", shared_tokenizer)
    torch.distributed.destroy_process_group()
