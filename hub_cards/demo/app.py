"""The page of `tttnn demo` as a Space: a small model and an index of the Hub."""

import os

from transformers import AutoModelForCausalLM, AutoTokenizer

from tttnn import NeighborRetriever, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.generation import make_demo


MODEL = os.environ.get("MODEL", "HuggingFaceTB/SmolLM2-135M")
INDEX = os.environ.get("INDEX", "user/my-index")

trainer = TestTimeTrainer(
    model=AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"),
    args=TestTimeTrainingArguments(
        num_neighbors=5,
        max_length=128,
        learning_rate=1e-4,
        mix="both",
        save_tokens=True,
        score_every_neighbor=True,
        disable_tqdm=True,
    ),
    retriever=NeighborRetriever.from_pretrained(INDEX),
    processing_class=AutoTokenizer.from_pretrained(MODEL),
)
demo = make_demo(trainer)

if __name__ == "__main__":
    demo.launch()
