"""The command that serves the adapted model over HTTP."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tttnn.cli.generate import load_generator
from tttnn.errors import InputError
from tttnn.evaluation import ModelArguments
from tttnn.helptext import Parser
from tttnn.methods import METHODS


if TYPE_CHECKING:
    from tttnn.adaptation import Method
    from tttnn.generation import TestTimeGenerator


DESCRIPTION = (
    "Serve a model that is adapted to each request, with the endpoints of OpenAI's API: /v1/completions, "
    "/v1/chat/completions and /v1/models, and /health and /metrics beside them. Requests are answered one after "
    "another; with LoRA and --batch-documents, those that wait take their steps together. It listens on this machine "
    "only, unless --host says otherwise."
)
KEY = "TTTNN_API_KEY"
PER_REQUEST = ("prefix", "query", "ttt", "context", "context+ttt")  # which need nothing that is loaded for them
SHUTDOWN = 30  # seconds that requests get to end


@dataclass(kw_only=True)
class ServeArguments(ModelArguments):
    """What `tttnn serve` serves, and where."""

    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 for all networks."})
    port: int = field(default=8000, metadata={"help": "Port to listen on."})
    api_key: str | None = field(
        default=None,
        metadata={
            "help": f"What clients must send. Better in the environment, as {KEY}: other users of the machine see a "
            "command line."
        },
    )
    served_model_name: str | None = field(
        default=None, metadata={"help": "What requests call the model. Default: what --model says."}
    )
    max_tokens: int = field(default=1024, metadata={"help": "Most new tokens that a request may ask for."})
    max_body_bytes: int = field(default=1 << 20, metadata={"help": "Most bytes of a request."})
    max_waiting: int = field(default=32, metadata={"help": "Requests that may wait; more are refused."})
    timeout: float = field(default=600.0, metadata={"help": "Seconds until a request is given up."})
    max_neighbors: int = field(default=50, metadata={"help": "Most neighbors that a request may ask for."})
    cache_bytes: int = field(default=1 << 31, metadata={"help": "Most bytes of adaptations that are kept."})
    max_length: int = field(default=1024, metadata={"help": "Tokens in a training chunk."})
    seed: int = field(default=42, metadata={"help": "Seed of the steps."})
    bf16: bool = field(default=False, metadata={"help": "Mixed precision with bfloat16."})
    use_cpu: bool = field(default=False, metadata={"help": "Run on the CPU even if there is a GPU."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port < 1 << 16:
            raise InputError(f"`port` is {self.port}. Pass 0 to 65535; 0 takes a free one.")
        for name in ("max_waiting", "max_neighbors", "cache_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}. Pass at least 1.")


def add_serve(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn serve` to the list of commands; its options depend on the method, and have another parser."""
    commands.add_parser("serve", help="serve the adapted model, with OpenAI's API")


def serve(argv: Sequence[str]) -> None:
    """Run `tttnn serve` with the words after it."""
    from tttnn.evaluation import parse_evaluation

    evaluation = parse_evaluation(ServeArguments, argv, prog="tttnn serve", description=DESCRIPTION)
    try:
        import uvicorn

        from tttnn.generation import Engine, Limits, create_app
    except ImportError as error:
        raise ImportError(f"A server needs {error.name}. Install it: pip install 'tttnn[serve]'") from error

    inputs = evaluation.inputs
    limits = Limits(inputs.max_tokens, inputs.max_body_bytes, seconds=inputs.timeout)
    evaluation.args.disable_tqdm = True
    generator = load_generator(evaluation, inputs.cache_bytes)
    engine = Engine(generator, _methods(generator), inputs.max_neighbors, inputs.max_waiting)
    key = inputs.api_key or os.environ.get(KEY) or None
    if inputs.host not in ("127.0.0.1", "localhost", "::1") and key is None:
        print(
            f"Everybody who reaches {inputs.host} may use this server: there is no API key ({KEY}).", file=sys.stderr
        )
    app = create_app(engine, inputs.served_model_name or inputs.model, limits, key)
    uvicorn.run(app, host=inputs.host, port=inputs.port, log_level="info", timeout_graceful_shutdown=SHUTDOWN)


def _methods(generator: "TestTimeGenerator") -> "dict[str, Method]":
    """Make the methods that a request may ask for, of the model as it was made."""
    trainer = generator.trainer
    methods = {}
    for name in PER_REQUEST:
        kind = METHODS[name]
        if kind.retrieves and trainer.retriever is None:
            continue
        takes_part = "trainable" in kind.own_options
        methods[name] = kind(trainable=trainer.method.trainable) if takes_part else kind()
    return methods
