"""
The main job in some minutes on two CPU cores: index a corpus, adapt a model to each test document, report.

    python examples/quickstart.py

The corpus is the standard library of the Python that runs this script, cut into passages. Some modules are held out as
test documents. The embedder is all-MiniLM-L6-v2 and the model is SmolLM2-135M-Instruct (dequantized from Q4_1). Both
come from Python packages. `--corpus FOLDER`, `--model` and `--embedder` take any texts and any Hub models instead.
"""

import argparse
import random
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from packaged_models import minilm, smollm2
from transformers import AutoModelForCausalLM, AutoTokenizer

from tttnn import Document, NeighborRetriever, TestTimeTrainer, TestTimeTrainingArguments, read_documents
from tttnn.helptext import dashed
from tttnn.report import document_table, plot_curve


def standard_library() -> Iterator[Document]:
    """Read the standard library's top-level modules, one document each, without those above 30 kB, to save time."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(path for path in folder.glob("*.py") if path.stat().st_size <= 30_000):
        yield Document(path.name, path.read_text(encoding="utf-8"), {"source": path.name})


def passages(document: Document, size: int) -> list[Document]:
    """Cut a document into passages: at the first blank line after `size` characters, or after twice as many."""
    texts = [""]
    for line in document.text.splitlines(keepends=True):
        if len(texts[-1]) > 2 * size or (len(texts[-1]) > size and not line.strip()):
            texts.append("")
        texts[-1] += line
    source = document.metadata.get("source", document.id)
    return [Document(f"{document.id}#{number}", text, {"source": source}) for number, text in enumerate(texts)]


def main() -> None:
    """Index, adapt, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="folder of text files (default: the standard library)")
    parser.add_argument("--model", help="Hub id or folder of a causal language model (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--embedder", help="Hub id or folder of a sentence embedder (default: all-MiniLM-L6-v2)")
    parser.add_argument("--num-documents", type=int, default=8, help="documents held out (default: %(default)s)")
    parser.add_argument("--num-neighbors", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--passage-size", type=int, default=900, help="characters in a passage (default: %(default)s)")
    parser.add_argument("--output-dir", default="runs/quickstart", help="default: %(default)s")
    arguments = parser.parse_args(dashed(sys.argv[1:]))
    output_dir = Path(arguments.output_dir)

    # 1. A corpus, and held-out documents of which it has no part.
    documents = list(read_documents(arguments.corpus) if arguments.corpus else standard_library())
    by_document = [passages(document, arguments.passage_size) for document in documents]
    candidates = [members for members in by_document if len(members) >= 3]
    held_out = random.Random(0).sample(candidates, min(arguments.num_documents, len(candidates)))
    test = [members[1] for members in held_out]  # the second passage: the first is often a license
    corpus = [passage for members in by_document if members not in held_out for passage in members]
    names = ", ".join(document.id for document in test)
    print(f"{len(corpus)} passages to index; {len(test)} held-out documents: {names}")

    # 2. Index it, keep the index, open it again.
    folder = output_dir / "index"
    if (folder / "tttnn_index.json").exists():
        shutil.rmtree(folder)  # an earlier run may have held out other documents
    embedder = arguments.embedder or minilm()
    NeighborRetriever.from_documents(corpus, embedder, show_progress_bar=True).save_pretrained(folder)
    retriever = NeighborRetriever.from_pretrained(folder)

    # 3. Adapt the model to each test document, score it before and after, restore it.
    name = arguments.model or smollm2()
    trainer = TestTimeTrainer(
        model=AutoModelForCausalLM.from_pretrained(name, dtype="float32"),
        args=TestTimeTrainingArguments(
            output_dir=str(output_dir),
            num_neighbors=arguments.num_neighbors,
            max_length=256,
            learning_rate=1e-4,
            mix="both",  # the neighbors' n-grams, and the model before, which takes over where training harms
            score_every_neighbor=True,
        ),
        retriever=retriever,
        processing_class=AutoTokenizer.from_pretrained(name),
        eval_dataset=test,
    )
    metrics = trainer.evaluate()

    # 4. Report.
    print(document_table(trainer.records, trainer.args.prompt))
    print({phase: round(metrics[f"eval_seconds_{phase}"], 1) for phase in ("retrieve", "train", "score")}, "seconds")
    model_name = arguments.model or "SmolLM2-135M-Instruct (dequantized from Q4_1)"
    print("Picture:", plot_curve(trainer.records, output_dir / "curve.png", title=model_name))


if __name__ == "__main__":
    main()
