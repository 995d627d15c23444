"""
The model type `tttnn` of lm-evaluation-harness: test-time training on the neighbors of each question.

Import it, and the harness knows `--model tttnn`; `tttnn lm-eval` does so. The harness has no plug-ins.
"""

import inspect
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from tttnn.adaptation import Episode, TestTimeTrainer, run_settings, tokenizer_digest, weights_digest
from tttnn.errors import InputError, StateError
from tttnn.evaluation.loading import load_trainer
from tttnn.evaluation.options import ModelArguments
from tttnn.evaluation.parsing import parse_evaluation
from tttnn.methods import METHODS, Context
from tttnn.records import digest
from tttnn.selection import NEAR_COPY_OVERLAP, overlap


try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM

    from tttnn.evaluation.lm_eval_requests import by_context, by_document, halves, hash_of, text_of
except ImportError as error:
    raise ImportError(
        "lm-evaluation-harness is not installed: pip install 'tttnn[lm-eval]'"
        if (error.name or "").split(".")[0] == "lm_eval"
        else f"lm-evaluation-harness cannot be imported: {error}"
    ) from error

logger = logging.get_logger(__name__)

ROLLING = ("prefix", "document", "none")
# under which a cache of the harness has the digest of the settings, and the items that were noted
CACHE_KEY, NOTES_KEY = "tttnn", "tttnn notes"
# what transformers' `from_pretrained` takes beside the arguments of `HFLM`
LOADING = {"attn_implementation", "load_in_4bit", "load_in_8bit"}
# options of the harness's model on which no answer depends
NO_ANSWER = {"device", "batch_size", "max_batch_size", "parallelize", "device_map", "offload_folder"}
NO_ANSWER |= {"max_memory_per_gpu", "max_cpu_memory", "gpus"}


@dataclass(kw_only=True)
class LmEvalArguments(ModelArguments):
    """What `--model_args` say beside the options of a method."""

    rolling: str = field(
        default="prefix",
        metadata={
            "help": "The query of a rolling text: prefix: its first half, scored before the model adapts to it; "
            "document: all of it, the paper's protocol; none: nothing, and nothing is adapted."
        },
    )
    neighbor_length: int | None = field(
        default=None,
        metadata={"help": "Tokens in a training chunk. In the harness, max_length is the model's context."},
    )
    max_length: int = field(default=1024, metadata={"help": "The same; neighbor_length sets it."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rolling not in ROLLING:
            raise InputError(f"`rolling` is {self.rolling!r}. Pass one of {', '.join(ROLLING)}.")


@register_model("tttnn")
class TestTimeLM(HFLM):
    """
    `HFLM` of lm-evaluation-harness, adapted to each question: `--model tttnn`.

    All requests of a document share one adaptation. Its query is their context: what the model is asked, never the
    choices of an answer. Where contexts differ between the choices of a document, it is the beginning that they
    share. A request without a context is answered by the model as it is. Half of a rolling text is scored before the
    model adapts to it, the other half after.

    With `method=none` every answer is that of `HFLM`.

    Args:
        pretrained (`str` or `PreTrainedModel`):
            As in `HFLM`.
        options (*optional*):
            Arguments of `HFLM`, with `dtype="float32"` as default; and the options of `tttnn generate` with
            underscores, such as `index`, `method`, `num_neighbors` and `learning_rate`. `neighbor_length` stands for
            `--max-length`, because `max_length` is an argument of `HFLM`; `rolling` is `"prefix"`, `"document"` or
            `"none"`.

    Raises:
        `ValueError`: If an option is out of range or belongs to no method, or the method only changes scores.
        `RuntimeError`: If several processes run.

    Example:

    ```text
    import lm_eval

    from tttnn.evaluation import TestTimeLM

    model = TestTimeLM("gpt2", index="my-index", method="ttt", num_neighbors=10, learning_rate=1e-4)
    results = lm_eval.simple_evaluate(model, tasks=["lambada_openai"], limit=10)
    ```
    """

    __test__ = False  # pytest would collect it because of its name

    def __init__(self, pretrained: str | PreTrainedModel, **options: Any) -> None:  # noqa: ANN401
        if options.get("method") not in ("none", "prefix") and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise StateError(
                "Several processes run, and near-copies would be counted in one of them only. Start one process; to "
                "use several GPUs, start one for each task, with CUDA_VISIBLE_DEVICES."
            )
        known = {*inspect.signature(HFLM.__init__).parameters} | LOADING
        ours = {name: value for name, value in options.items() if name not in known}
        options = {"dtype": "float32"} | {name: value for name, value in options.items() if name in known}
        super().__init__(pretrained, **options)
        defaults = {name: item.default for name, item in inspect.signature(HFLM.__init__).parameters.items()}
        self._loaded = {
            name: str(value)
            for name, value in options.items()
            if name not in NO_ANSWER and (name not in defaults or value != defaults[name])
        }
        self.trainer: TestTimeTrainer | None = None
        self.settings: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        # by task: hashes of items with near-copies among their neighbors, and of those answered without some shards
        self.near_copies: defaultdict[str, set[str]] = defaultdict(set)
        self.partial: defaultdict[str, set[str]] = defaultdict(set)
        self._episode: Episode | None = None
        self._room: int | None = None
        name = pretrained if isinstance(pretrained, str) else pretrained.config._name_or_path
        try:
            evaluation = parse_evaluation(LmEvalArguments, _words(name, ours, self.device), prog="--model_args")
        except SystemExit as error:  # of argparse, which has said why
            raise InputError("An option of `--model_args` cannot be read. The line above says which.") from error
        method, args, self.rolling = evaluation.method, evaluation.args, evaluation.inputs.rolling
        if not (method.retrieves or method.trains or method.starts or evaluation.budget):
            return
        self._check(evaluation.budget.methods if evaluation.budget else [method.name], args.mix)
        self.trainer = load_trainer(evaluation, self.model, self.tokenizer)
        with self.trainer.episodes():
            self.settings = run_settings(self.trainer)
        self._model = self.trainer.model  # with adapters, it is wrapped
        self._model.eval()
        if self.trainer.args.bf16 and not options.get("mixed_precision_dtype"):
            self.mixed_precision_dtype: torch.dtype | None = torch.bfloat16
        if self.trainer.args.device != self.model.device:
            raise InputError(
                f"The model is on {self.model.device}, and steps are taken on {self.trainer.args.device}. Choose a "
                "GPU with CUDA_VISIBLE_DEVICES, and pass --device cuda or --device cpu."
            )

    def _check(self, methods: Sequence[str], mix: str) -> None:
        """Refuse what the harness cannot score."""
        if self.backend != "causal":
            raise InputError(f"The model is {self.backend}. Test-time training is for causal language models.")
        scores_only = [name for name in methods if not METHODS[name].generates]
        if scores_only or mix != "none":
            what = f"`mix` is {mix!r}" if mix != "none" else f"`method` is {scores_only[0]!r}"
            raise InputError(
                f"{what}, which changes scores and not the model; lm-evaluation-harness reads the model's own "
                "predictions. Choose a method that changes the model, such as ttt, and mix=none."
            )

    def set_cache_hook(self, cache_hook: Any) -> None:  # noqa: ANN401
        """
        Take the harness's cache of answers, if it is one of the same settings.

        Args:
            cache_hook (`CacheHook`):
                Of the harness; it calls this.

        Raises:
            `ValueError`: If the cache has answers of other settings, or of another model type.
        """
        kept, current = cache_hook.dbdict, self.settings_digest()
        if kept is not None:
            before = kept.get(CACHE_KEY)
            if before is None and len(kept) and self.trainer is not None or before not in (None, current):
                raise InputError(
                    "The cache of `--use_cache` has answers of another model or of other settings. The harness tells "
                    "answers apart by their question alone. Choose another path."
                )
            kept[CACHE_KEY] = current
            for noted, found in zip((self.near_copies, self.partial), kept.get(NOTES_KEY, ({}, {})), strict=True):
                for task, hashes in found.items():
                    noted[task] |= hashes
        super().set_cache_hook(cache_hook)

    def settings_digest(self) -> str:
        """
        Name all that answers depend on.

        Returns:
            `str`: a digest.
        """
        settings = {"rolling": self.rolling, **self.settings} if self.trainer else {}
        model = [str(self.pretrained), weights_digest(self.model), tokenizer_digest(self.tokenizer), self.max_length]
        # with what a cache keeps: one without notes would lose near-copies
        return digest(repr((NOTES_KEY, model, sorted(self._loaded.items()), sorted(settings.items(), key=str))))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """
        Score continuations of contexts, those of a document with one adaptation.

        Args:
            requests (`list[Instance]`):
                Of the harness.
            disable_tqdm (`bool`, *optional*, defaults to `False`):
                Show no bar.

        Returns:
            `list[tuple[float, bool]]`: log-likelihoods in nats, and whether greedy decoding would give them.

        Raises:
            `ValueError`: If a document's contexts differ and there is a cache of answers.
        """
        if self.trainer is None:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        groups = by_document(requests)
        self._check_cached(groups, requests)
        answers: dict[int, Any] = {}
        for query, places in _shown(groups, disable_tqdm):
            part = [requests[place] for place in places]
            pairs = [self._encode_pair(*request.args) if request.args[0] else ([0], []) for request in part]
            room = self.max_length + 1 - max(len(context) + len(continuation) for context, continuation in pairs)
            with self._adapted(query, part, room):
                answers |= dict(zip(places, super().loglikelihood(part, disable_tqdm=True), strict=True))
        return [answers[place] for place in range(len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """
        Generate after contexts, each with its adaptation.

        Args:
            requests (`list[Instance]`):
                Of the harness.
            disable_tqdm (`bool`, *optional*, defaults to `False`):
                Show no bar.

        Returns:
            `list[str]`: texts.
        """
        if self.trainer is None:
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        answers: dict[int, str] = {}
        for query, places in _shown(by_context(requests), disable_tqdm):
            part = [requests[place] for place in places]
            with self._adapted(query, part, None):
                answers |= dict(zip(places, super().generate_until(part, disable_tqdm=True), strict=True))
        return [answers[place] for place in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """
        Score whole texts in the harness's windows, the first half of each before the model adapts to it.

        Args:
            requests (`list[Instance]`):
                Of the harness.
            disable_tqdm (`bool`, *optional*, defaults to `False`):
                Show no bar.

        Returns:
            `list[float]`: log-likelihoods in nats.

        Raises:
            `ValueError`: If the method reads its neighbors: the windows of a rolling text leave no room for them.
        """
        if self.trainer is None or self.rolling == "none":
            with self.trainer.unadapted() if self.trainer else nullcontext():
                return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        if isinstance(self.trainer.method, Context):
            raise InputError(
                f"The method '{self.trainer.method.name}' reads its neighbors, and the windows of a rolling text fill "
                "the model's context. Choose ttt; `tttnn evaluate --method context` scores whole texts."
            )
        answers = []
        for request in tqdm(requests, desc="Adapting", disable=disable_tqdm):
            answers.append(self._roll(request))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answers[-1])
        return answers

    def _roll(self, request: Instance) -> float:
        """Score a text in two parts."""
        (text,) = request.args
        token_ids = self.tok_encode(text)
        number = len(token_ids) // 2 if self.rolling == "prefix" else 0
        query = self.tok_decode(token_ids[:number]) if number else text if self.rolling == "document" else ""
        before, after = halves(token_ids, number, self.prefix_token_id, self.max_length)
        total = 0.0
        assert self.trainer is not None
        if before:
            with self.trainer.unadapted():
                total += self._sum_of(before)
        with self._adapted(query, [request], None, scored=self.tok_decode(token_ids[number:])):
            if after:
                total += self._sum_of(after)
        return total

    def _sum_of(self, windows: list[Any]) -> float:
        """
        Add up the log-likelihoods of windows.

        The harness reads windows of the same tokens once, and takes the logits of the first for all: in a text that
        repeats itself, where windows overlap, they predict other tokens of these.
        """
        cached, self.logits_cache = self.logits_cache, False  # type: ignore[has-type]
        try:
            return float(sum(value for value, _ in self._loglikelihood_tokens(windows, disable_tqdm=True)))
        finally:
            self.logits_cache = cached

    def get_model_info(self) -> dict[str, Any]:
        """
        Say what the harness writes into its results beside its own facts.

        Returns:
            `dict[str, Any]`: those of `HFLM`, and `tttnn`: the settings, how many queries were adapted to, seconds by
            phase, and by task the hashes (`doc_hash` of a sample) of items with near-copies among their neighbors and
            of those that were answered without some shards of the index.
        """
        info = super().get_model_info()
        if self.trainer is None:
            return info
        own = {
            "rolling": self.rolling,
            "settings": self.settings,
            "counts": dict(self.counts),
            "seconds": dict(self.seconds),
            "near_copies": {name: sorted(hashes) for name, hashes in self.near_copies.items()},
            "partial": {name: sorted(hashes) for name, hashes in self.partial.items()},
        }
        return {**info, "tttnn": own}

    @contextmanager
    def _adapted(
        self, query: str, requests: list[Instance], room: int | None, scored: str | None = None
    ) -> Iterator[None]:
        """Have the model adapted to a query inside; as it is, if the query is empty."""
        trainer = self.trainer
        assert trainer is not None
        if not query.strip():
            self.counts["without_query"] += 1
            with trainer.unadapted():
                yield
            return
        with trainer.adapted_episode(query) as episode:
            self._note(episode, requests, scored)
            self._episode, self._room = episode, room
            try:
                yield
            finally:
                self._episode = None
        if not (episode.changed or isinstance(trainer.method, Context) and episode.neighbors):
            self.counts["untrained"] += 1
            logger.warning_once("Some questions found no neighbor to train on. The results count them as untrained.")
        if episode.record.missing_shards:
            logger.warning_once("Some questions were answered without shards that are missing. The results name them.")
        self.counts["adapted"] += episode.changed
        for phase in ("retrieve", "train"):
            self.seconds[phase] += episode.record.seconds[phase]

    def _note(self, episode: Episode, requests: list[Instance], scored: str | None) -> None:
        """Note items with near-copies, and those without some shards, before a cache has an answer to them."""
        found = False
        for request in requests:
            task, item = str(request.task_name), scored or text_of(request)
            if any(overlap(neighbor.text, item) >= NEAR_COPY_OVERLAP for neighbor in episode.neighbors):
                self.near_copies[task].add(hash_of(request.doc))
                found = True
            if episode.record.missing_shards:
                self.partial[task].add(hash_of(request.doc))
                found = True
        if found and self.cache_hook.dbdict is not None:
            self.cache_hook.dbdict[NOTES_KEY] = dict(self.near_copies), dict(self.partial)

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:  # noqa: ANN401
        """Put what the method reads before each context."""
        if self._episode is not None and self._room is not None:
            episode, room = self._episode, self._room
            requests = [
                (pair, [*episode.lay_before(context, room), *context], continuation)
                for pair, context, continuation in requests
            ]
        return super()._loglikelihood_tokens(requests, **options)

    def _model_generate(
        self,
        context: torch.Tensor,
        max_length: int,
        stop: list[str],
        **options: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Put what the method reads before the prompt; give the prompt and what follows it."""
        if self._episode is None:
            return super()._model_generate(context, max_length, stop, **options)
        before = self._episode.lay_before(context[0].tolist(), max(self.max_length - max_length, 0))
        laid = torch.tensor(before, dtype=context.dtype, device=context.device).expand(len(context), -1)
        mask = options.pop("attention_mask", torch.ones_like(context))
        options["attention_mask"] = torch.cat([torch.ones_like(laid), mask], dim=1)
        whole = torch.cat([laid, context], dim=1)
        return super()._model_generate(whole, max_length + len(before), stop, **options)[:, len(before) :]

    def _check_cached(self, groups: dict[str, tuple[str, list[int]]], requests: list[Instance]) -> None:
        """Refuse a cache where an answer depends on more than its own question."""
        if self.cache_hook.dbdict is None:
            return
        for query, places in groups.values():
            if any(requests[place].args[0] != query for place in places):
                raise InputError(
                    f"The contexts of a document of the task {requests[places[0]].task_name} differ between its "
                    "choices, which share one adaptation. The harness tells answers apart by their own context "
                    "alone, so leave out `--use_cache`."
                )


def _words(name: str, options: dict[str, Any], device: torch.device) -> list[str]:
    """Write options as the words of a command line, which one parser reads."""
    options = {"model": name or "model", "disable_tqdm": True, **options}  # there is a bar of the items
    if "neighbor_length" in options:
        options["max_length"] = options.pop("neighbor_length")
    if torch.device(device).type == "cpu":
        options["use_cpu"] = True
    words = []
    for name, value in options.items():
        if isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def _shown(groups: dict[str, tuple[str, list[int]]], is_hidden: bool) -> Iterator[tuple[str, list[int]]]:
    """Give the groups, with a bar."""
    yield from tqdm(groups.values(), desc="Adapting", disable=is_hidden)
