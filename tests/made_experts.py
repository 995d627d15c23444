"""A folder of experts with random adapters, as `tttnn train-experts` writes it, for tests that need no training."""

import copy

import numpy as np
import torch
from safetensors.numpy import save_file

from tttnn.adaptation import TrainableArguments, make_trainable
from tttnn.files import sha256_of, write_json
from tttnn.methods.expert_files import (
    ADAPTER,
    CENTERS,
    FORMAT_VERSION,
    MANIFEST,
    adapter_parameters,
    digest_of_weights,
)


def made_experts(folder, model, index, dimension, number=3, rank=2):
    """Write experts of a model for an index of this digest; the model is not changed."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    save_file({"centers": np.eye(number, dimension, dtype=np.float32)}, folder / CENTERS)
    names = [CENTERS]
    for expert in range(number):
        adapted = make_trainable(copy.deepcopy(model), TrainableArguments("lora", lora_rank=rank))
        for _, value in adapter_parameters(adapted):
            value.data = torch.randn(value.shape, generator=generator) / 4
        adapted.save_pretrained(folder / f"expert-{expert:05d}")
        names.append(f"expert-{expert:05d}/{ADAPTER}")
    files = {name: sha256_of(folder / name) for name in names}
    content = {"num_experts": number, "lora_rank": rank, "model": "tiny", "weights": digest_of_weights(model)}
    write_json(folder / MANIFEST, {"tttnn_experts": FORMAT_VERSION, **content, "index": index, "files": files})
    return folder
