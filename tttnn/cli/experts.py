"""The command that trains experts on an index, ahead of time."""

import argparse

from tttnn.helptext import Parser


def add_train_experts(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn train-experts`."""
    parser = commands.add_parser(
        "train-experts",
        help="train adapters on the parts of an index, ahead of time",
        description="Divide an index into parts by its vectors, and train a LoRA adapter on each. `tttnn evaluate "
        "--method experts --experts FOLDER` merges the nearest of each document. An interrupted run goes on when it "
        "is started again. Processes that share the folder take an expert each.",
    )
    parser.set_defaults(run=_train_experts)
    parser.add_argument("index", metavar="INDEX", help="Hub id or folder of an index")
    parser.add_argument("--model", required=True, help="Hub id or folder of a causal language model")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the experts")
    parser.add_argument("--experts", type=int, default=16, help="parts of the index")
    parser.add_argument("--lora-rank", type=int, default=16, help="rank of each adapter; alpha is twice that")
    parser.add_argument("--max-rows", type=int, default=512, help="rows of a part that are trained on")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a row that are trained on")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="it falls linearly to 0")
    parser.add_argument("--batch-size", type=int, default=4, help="rows in a step")
    parser.add_argument("--seed", type=int, default=42, help="seed of the parts, the rows and the adapters")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the model's weights"
    )
    parser.add_argument("--bf16", action="store_true", help="mixed precision with bfloat16")
    parser.add_argument("--use-cpu", action="store_true", help="run on the CPU even if there is a GPU")
    parser.add_argument("--model-revision", help="branch, tag or commit of the model")
    parser.add_argument("--index-revision", help="branch, tag or commit of the index")
    parser.add_argument("--trust-index", action="store_true", help="open a --factory index that was built elsewhere")


def _train_experts(arguments: argparse.Namespace) -> None:
    from tttnn.evaluation import load_model
    from tttnn.methods import ExpertTrainingArguments, train_experts
    from tttnn.retrieval import NeighborRetriever

    names = ("lora_rank", "max_rows", "max_length", "learning_rate", "batch_size", "seed", "bf16", "use_cpu")
    options = ExpertTrainingArguments(arguments.experts, **{name: getattr(arguments, name) for name in names})
    # no query is embedded, so that the embedder is not loaded
    retriever = NeighborRetriever.from_pretrained(
        arguments.index, revision=arguments.index_revision, trust_index=arguments.trust_index
    )
    model, tokenizer = load_model(arguments.model, arguments.model_revision, arguments.dtype)
    folder = train_experts(model, tokenizer, retriever.index, arguments.output, options)
    print(f"The experts are in {folder}. To use them: tttnn evaluate --method experts --experts {folder} ...")
