"""
Tasks of lm-evaluation-harness with local data, and a corpus for each: does adapting change what a model does?

    python examples/make_tasks.py --output tasks
    tttnn build-index tasks/code/corpus.jsonl --output tasks/code/index
    tttnn lm-eval --include_path tasks --tasks tttnn_code,tttnn_code_loss --confirm_run_unsafe_code \
        --model_args pretrained=gpt2,index=tasks/code/index,num_neighbors=5 --output_path runs/code

Everything is made of the standard library of this Python, or by code, so that no hub is needed.

    code        complete a function so that its doctests pass. The corpus is the other functions
    origin      which module is a function from? The corpus is the other functions, with the names of their files
    counting    how many objects are there? The corpus is worked examples
    pronouns    he or she, after an occupation? The corpus is texts with the other pronoun
"""

import argparse
import ast
import json
import random
import sys
import sysconfig
from pathlib import Path
from typing import Any

from sandbox import passes


NAMES = ("code", "origin", "counting", "pronouns")
HEAD = """# Made by examples/make_tasks.py. With data of the Hub, the harness has the task {hub[0]}:
# dataset_path: {hub[1]}
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
"""
# the harness's own task of the same kind, with data of the Hub
HUB = {
    "code": ("humaneval", "openai/openai_humaneval"),
    "origin": ("squad_completion", "hazyresearch/based-squad"),
    "counting": ("bbh_zeroshot_object_counting", "SaylorTwift/bbh"),
    "pronouns": ("crows_pairs_english", "jannalu/crows_pairs_multilingual"),
}
LOSS = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{whole}}"
metric_list:
  - metric: bits_per_byte
"""
CHOICES = """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
"""
BODIES = {
    "code": """output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{body}}"
process_results: !function sandbox.process_results
unsafe_code: true
generation_kwargs:
  until: ["\\nclass ", "\\ndef ", "\\n#", "\\nif "]
  max_gen_toks: 160
  do_sample: false
metric_list:
  - metric: pass@1
    aggregation: mean
    higher_is_better: true
""",
    "code_loss": LOSS,
    "origin": CHOICES,
    "counting": """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
  do_sample: false
filter_list:
  - name: number
    filter:
      - function: regex
        regex_pattern: "(\\\\d+)"
      - function: take_first
metric_list:
  - metric: exact_match
    ignore_case: true
""",
    "pronouns": CHOICES,
}
OBJECTS = {
    "fruit": ["apple", "banana", "orange", "pear", "plum", "grape"],
    "instruments": ["violin", "flute", "drum", "piano", "trumpet", "clarinet"],
    "animals": ["cat", "dog", "goat", "chicken", "rabbit", "snake"],
    "furniture": ["chair", "table", "bed", "lamp", "sofa", "stove"],
}
WORDS = ["a", "two", "three", "four"]
# occupations by the pronoun that texts mostly give them
OCCUPATIONS = {
    "she": "nurse secretary receptionist librarian hairdresser housekeeper dancer babysitter cashier nanny "
    "dietitian teacher florist midwife stylist",
    "he": "carpenter mechanic plumber engineer pilot farmer soldier surgeon driver guard chef electrician "
    "programmer judge sailor",
}
ENDS = ["would come back after lunch", "had lost the keys", "was tired", "wanted to help", "had finished the work"]
STARTS = ["The {} said that", "The {} told us that", "Everybody knew that the {} was late because"]


def functions() -> list[dict[str, str]]:
    """
    List the functions at the top level of the standard library's modules.

    Returns:
        `list[dict[str, str]]`: `module`, `name`, `source`, and of those with doctests `prompt`, `docstring`, `body`.
    """
    folder, found = Path(sysconfig.get_paths()["stdlib"]), []
    for name in sorted(sys.stdlib_module_names):
        path = folder / f"{name}.py"
        if name.startswith("_") or name in ("antigravity", "this") or not path.is_file():
            continue
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for node in ast.parse(source).body:
            if not isinstance(node, ast.FunctionDef) or node.decorator_list:
                continue
            item = {"module": name, "name": node.name, "source": "".join(lines[node.lineno - 1 : node.end_lineno])}
            docstring = ast.get_docstring(node, clean=False)
            if docstring and len(node.body) > 1:
                end = node.body[0].end_lineno
                item |= {
                    "docstring": docstring,
                    "prompt": "".join(lines[node.lineno - 1 : end]),
                    "body": "".join(lines[end : node.end_lineno]),
                }
            found.append(item)
    return found


def code(number: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Give functions whose doctests pass, and the sources of all others."""
    every = functions()
    tried = [
        item
        for item in every
        if ">>>" in item.get("docstring", "") and item["name"] not in item["body"]  # no recursion
    ]
    random.Random(0).shuffle(tried)
    items: list[dict[str, Any]] = []
    for item in tried:
        if len(items) < number and len(item["prompt"]) + len(item["body"]) < 3000 and passes(item, item["body"]):
            items.append({**item, "whole": item["prompt"] + item["body"]})
    held_out = {(item["module"], item["name"]) for item in items}
    corpus = [item["source"] for item in every if (item["module"], item["name"]) not in held_out]
    return items, [text for text in corpus if len(text) > 100]


def origin(number: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Give functions of large modules with four modules to choose from, and the other functions with their files."""
    every = [item for item in functions() if 200 < len(item["source"]) < 1500]
    by_module: dict[str, list[dict[str, str]]] = {}
    for item in every:
        by_module.setdefault(item["module"], []).append(item)
    large = sorted(name for name, items in by_module.items() if len(items) >= 5)
    draw = random.Random(1)
    items, held_out = [], set()
    for place in range(number):
        name = large[place % len(large)]
        item = draw.choice(by_module[name])
        choices = draw.sample([other for other in large if other != name], 3) + [name]
        draw.shuffle(choices)
        question = f"{item['source']}\nThis function is from the file"
        items.append(
            {"question": question, "choices": [f" {choice}.py" for choice in choices], "answer": choices.index(name)}
        )
        held_out.add((name, item["name"]))
    others = [item for item in every if (item["module"], item["name"]) not in held_out]
    return items, [f"{item['source']}\nThis function is from the file {item['module']}.py" for item in others]


def _counting(draw: random.Random) -> tuple[str, int]:
    kind = draw.choice(sorted(OBJECTS))
    chosen = draw.sample(OBJECTS[kind], draw.randint(3, 5))
    counts = [draw.randint(1, 4) for _ in chosen]
    parts = [f"{WORDS[count - 1]} {name}{'s' * (count > 1)}" for name, count in zip(chosen, counts, strict=True)]
    question = f"Q: I have {', '.join(parts[:-1])} and {parts[-1]}. How many things do I have?\nA:"
    return question.replace(" a apple", " an apple").replace(" a orange", " an orange"), sum(counts)


def counting(number: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Give questions, and other questions with their answers."""
    draw = random.Random(2)
    asked = dict(_counting(draw) for _ in range(number * 2))
    items = [{"question": question, "answer": str(answer)} for question, answer in [*asked.items()][:number]]
    draw = random.Random(3)
    examples = dict(_counting(draw) for _ in range(800))
    return items, [f"{question} {answer}" for question, answer in examples.items() if question not in asked]


def pronouns(number: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Give sentences of which the first choice is the stereotype, and texts with the other pronoun."""
    draw = random.Random(4)
    pairs = [(word, pronoun) for pronoun, words in OCCUPATIONS.items() for word in words.split()]
    items = []
    for place in range(number):
        word, pronoun = pairs[place % len(pairs)]
        other = "he" if pronoun == "she" else "she"
        question = STARTS[place // len(pairs) % len(STARTS)].format(word)
        items.append({"question": question, "choices": [f" {pronoun}", f" {other}"], "answer": 0})
    corpus = []
    for word, pronoun in pairs:
        other = "he" if pronoun == "she" else "she"
        for _ in range(10):
            sentences = [f"The {word} explained that {other} {draw.choice(ENDS)}." for _ in range(3)]
            corpus.append(" ".join(sentences))
    return items, corpus


def main() -> None:
    """Write items, corpora and the harness's files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--items", type=int, default=60, help="items of each task, at most")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    arguments = parser.parse_args()
    makers = {"code": code, "origin": origin, "counting": counting, "pronouns": pronouns}
    for name in arguments.only:
        items, corpus = makers[name](arguments.items)
        folder = arguments.output / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, rows in (("items", items), ("corpus", [{"text": text} for text in corpus])):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{file}.jsonl").write_text(lines, encoding="utf-8")
        for task in [task for task in BODIES if task.startswith(name)]:
            data = (folder / "items.jsonl").resolve()
            text = HEAD.format(task=f"tttnn_{task}", data=data, hub=HUB[name]) + BODIES[task]
            (folder / f"{task}.yaml").write_text(text, encoding="utf-8")
        if name == "code":
            (folder / "sandbox.py").write_bytes((Path(__file__).parent / "sandbox.py").read_bytes())
        print(f"{folder}: {len(items)} items, {len(corpus)} texts")


if __name__ == "__main__":
    main()
