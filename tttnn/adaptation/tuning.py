"""What `tttnn tune` measured on documents of an index: the settings it chose, and what each way to score costs."""

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tttnn.adaptation.options import NeighborStepArguments, RetrievalArguments, ScoringArguments, StepArguments
from tttnn.errors import InputError
from tttnn.files import finite


FORMAT_VERSION = 1
VERSION_FIELD = "tttnn_tuning"


@dataclass(frozen=True)
class CurveRow:
    """
    One way to score a document: what it gains, and what it costs.

    Args:
        method (`str`):
            Name of the method.
        settings (`dict[str, Any]`):
            Fields of `TestTimeTrainingArguments` that it was run with.
        bits_per_byte (`float`):
            Pooled over all documents.
        difference (`float`):
            Bits per byte minus those of the method `prefix`.
        interval (`list[float]`, *optional*):
            Ends of the paired 95 % bootstrap interval of the difference.
        tokens_read (`float`):
            Tokens that the model reads to score a document once, the prompt and neighbors in context included. Mean.
        tokens_trained (`float`):
            Tokens of the training chunks of a document. Mean.
        seconds (`float`, *optional*):
            To retrieve, train and score once. Mean over the documents.
        options (`dict[str, Any]`, *optional*):
            The method's own options, by name.
    """

    method: str
    settings: dict[str, Any]
    bits_per_byte: float
    difference: float
    interval: list[float] | None
    tokens_read: float
    tokens_trained: float
    seconds: float | None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning:
    """
    What was measured on documents of an index, and the settings that were chosen by it.

    Args:
        name (`str`):
            Name of its file.
        model (`str`, *optional*):
            Name of the model.
        index (`str`, *optional*):
            Digest of the index.
        num_documents (`int`):
            Documents it was measured on.
        seed (`int`):
            Seed by which they were drawn.
        versions (`dict[str, str]`):
            Versions of the libraries.
        settings (`dict[str, Any]`):
            The chosen fields of `TestTimeTrainingArguments`: the preset.
        curve (`list[CurveRow]`):
            What was measured, one of them of the method `prefix`.
    """

    name: str
    model: str | None
    index: str | None
    num_documents: int
    seed: int
    versions: dict[str, str]
    settings: dict[str, Any]
    curve: list[CurveRow]

    def to_json(self) -> dict[str, Any]:
        """
        Give the content of its file, which `read_tuning` reads.

        Returns:
            `dict[str, Any]`: JSON-able.
        """
        content = {name: value for name, value in asdict(self).items() if name != "name"}
        return {VERSION_FIELD: FORMAT_VERSION, **finite(content)}

    def check(self, model: str | None, index: str | None) -> None:
        """
        Make sure that it was measured with a model and an index, if both sides name them.

        Args:
            model (`str`, *optional*):
                Name of the model.
            index (`str`, *optional*):
                Digest of the index.

        Raises:
            `ValueError`: If it was measured with another one.
        """
        if self.model and model and not _is_same(self.model, model):
            raise InputError(
                f"'{self.name}' was measured with the model '{self.model}', and the model is '{model}'. Run `tttnn "
                "tune` with this model, or leave the preset out."
            )
        if self.index and index and self.index != index:
            raise InputError(
                f"'{self.name}' was measured on the index {self.index[:12]}, and the index is {index[:12]}. Run "
                "`tttnn tune` with this index, or leave the preset out."
            )

    @property
    def prefix(self) -> CurveRow:
        """The row that the others are compared with."""
        return next(row for row in self.curve if row.method == "prefix")


def _is_same(model: str, other: str) -> bool:
    """Whether two names are of one model: a folder may be named in several ways."""
    return model == other or (Path(model).exists() and Path(other).exists() and Path(model).samefile(other))


def read_tuning(path: str | Path) -> Tuning:
    """
    Read a file that `tttnn tune` wrote.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `Tuning`: its settings and its curve.

    Raises:
        `ValueError`: If there is no such file, or it is damaged, of another version, or has a field that is unknown.
    """
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"There is no file '{path}'. `tttnn tune MODEL INDEX` writes one.") from None
    except ValueError as error:
        raise InputError(f"'{path}' is no JSON ({error}). Run `tttnn tune` again.") from None
    if not isinstance(content, dict) or VERSION_FIELD not in content:
        raise InputError(f"'{path}' is no file of `tttnn tune`: it has no `{VERSION_FIELD}`. Pass one that is.")
    version = content.pop(VERSION_FIELD)
    if version != FORMAT_VERSION:
        raise InputError(
            f"'{path}' has the format version {version!r}, and this version of tttnn reads {FORMAT_VERSION}. Run "
            "`tttnn tune` again."
        )
    _check_fields(path, Tuning, content | {"name": path.name})
    _check_types(path, content, model=(str, type(None)), index=(str, type(None)), num_documents=int, curve=list)
    _check_settings(path, content["settings"])
    rows = [_read_row(path, row) for row in content.pop("curve")]
    if not any(row.method == "prefix" for row in rows):
        raise InputError(f"'{path}' has no row of the method prefix to compare with. Run `tttnn tune` again.")
    return Tuning(name=path.name, curve=rows, **content)


def _read_row(path: Path, row: Any) -> CurveRow:  # noqa: ANN401
    _check_fields(path, CurveRow, row)
    _check_types(path, row, method=str, options=dict)
    _check_settings(path, row["settings"])
    for name in ("bits_per_byte", "tokens_read", "tokens_trained"):
        value = row[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(
                f"'{path}' is damaged: `{name}` is {value!r} in a row, and must be a number of at least 0. Run `tttnn "
                "tune` again."
            )
    return CurveRow(**row)


def _check_fields(path: Path, kind: type[Tuning] | type[CurveRow], content: Any) -> None:  # noqa: ANN401
    """Refuse content with a field that is unknown, or without one that is needed."""
    if not isinstance(content, dict):
        raise InputError(f"'{path}' is damaged: {content!r:.80} is no set of fields. Run `tttnn tune` again.")
    known = {item.name: item.default is MISSING and item.default_factory is MISSING for item in fields(kind)}
    unknown = [name for name in content if name not in known]
    missing = [name for name, is_needed in known.items() if is_needed and name not in content]
    if unknown or missing:
        what = f"the unknown field `{unknown[0]}`" if unknown else f"no field `{missing[0]}`"
        raise InputError(f"'{path}' has {what}. Run `tttnn tune` again.")


def _check_types(path: Path, content: dict[str, Any], **types: type | tuple[type, ...]) -> None:
    """Refuse a field with a value of another type."""
    for name, kind in types.items():
        if not isinstance(content.get(name, kind() if kind is dict else None), kind):
            raise InputError(f"'{path}' is damaged: `{name}` is {content[name]!r:.80}. Run `tttnn tune` again.")


def _check_settings(path: Path, settings: Any) -> None:  # noqa: ANN401
    """Refuse settings that are no arguments, or have a value that an argument cannot have."""
    groups = (RetrievalArguments, StepArguments, NeighborStepArguments, ScoringArguments)
    names = {group: {item.name for item in fields(group)} for group in groups}
    if not isinstance(settings, dict):
        raise InputError(f"'{path}' is damaged: its settings are {settings!r:.80}. Run `tttnn tune` again.")
    unknown = [name for name in settings if name not in set().union(*names.values())]
    if unknown:
        raise InputError(f"'{path}' has the unknown setting {unknown[0]!r}. Run `tttnn tune` again.")
    for group in groups:
        try:
            group(**{name: value for name, value in settings.items() if name in names[group]})
        except (TypeError, ValueError) as error:
            raise InputError(f"'{path}' has a setting that cannot be: {error} Run `tttnn tune` again.") from None
