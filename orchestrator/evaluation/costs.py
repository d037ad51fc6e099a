"""The cost sheet that a user can edit: every figure with its range, read from TOML; unknown keys are refused."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator.errors import SettingsError
from orchestrator.resources import folder

Option = Literal[
    "prompt only", "retrieval", "adapter", "both", "larger model", "long context", "full fine-tuning"
]  # fmt: skip

OPTIONS: tuple[Option, ...] = get_args(Option)
COSTS_FILE = "costs.toml"
NAIVE = "naive retrieval"  # an accuracy of the sheet, no option: nobody chooses it
_CHEAPER_WHEN_HIGH = {"gpu_prompt_tokens_per_second", "gpu_completion_tokens_per_second", "gpu_use_share"}
_SHARES = {"gpu_use_share", "cached_prompt_share_of_price"}


@dataclass(frozen=True, slots=True)
class Range:
    """A figure that is not known exactly."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True)
class Prices:
    """Every figure of a cost sheet, at one point of its range. What each one is stands in ``prompts/costs.toml``."""

    gpu_hour_usd: float
    engineer_hour_usd: float
    hosted_prompt_usd_per_million_tokens: float
    hosted_completion_usd_per_million_tokens: float
    large_prompt_usd_per_million_tokens: float
    large_completion_usd_per_million_tokens: float
    cached_prompt_share_of_price: float
    embedding_usd_per_million_tokens: float
    database_usd_per_month: float
    lora_run_usd: float
    lora_runs_to_production: float
    full_run_usd: float
    training_examples_hours: float
    retraining_hours: float
    retrainings_per_month: float
    gpu_prompt_tokens_per_second: float
    gpu_completion_tokens_per_second: float
    gpu_use_share: float
    gpus_at_least: float
    full_gpus_at_least: float
    full_gpu_times: float
    retrieval_build_usd: float
    retrieval_upkeep_hours_per_month: float
    prompt_build_hours: float
    prompt_upkeep_hours_per_month: float
    adapter_upkeep_hours_per_month: float
    change_by_hand_hours: float
    few_shot_tokens: float
    long_context_tokens: float
    prompt_weeks: float
    retrieval_weeks: float
    adapter_weeks: float
    full_weeks: float


@dataclass(frozen=True, slots=True)
class CostSheet:
    """Prices when every figure is at its low, likely and high end, and the accuracy that is expected of each option."""

    low: Prices
    likely: Prices
    high: Prices
    accuracy_documents: Mapping[str, Range]
    accuracy_task: Mapping[str, Range]

    def range(self, name: str) -> Range:
        """The range of one figure."""
        return Range(*(getattr(prices, name) for prices in (self.low, self.likely, self.high)))

    @property
    def cheap(self) -> Prices:
        """Every figure at the end that makes things cheap."""
        return replace(self.low, **{name: getattr(self.high, name) for name in _CHEAPER_WHEN_HIGH})

    @property
    def dear(self) -> Prices:
        """Every figure at the end that makes things dear."""
        return replace(self.high, **{name: getattr(self.low, name) for name in _CHEAPER_WHEN_HIGH})


def load_costs(path: Path | None = None, prompts_dir: Path | None = None) -> CostSheet:
    """The shipped sheet, with the figures of ``path`` (or of ``costs.toml`` in the prompts folder) in place of its own.

    Raises SettingsError that names file and key.
    """
    table = _read(folder("prompts") / COSTS_FILE)
    own = path or (prompts_dir / COSTS_FILE if prompts_dir and (prompts_dir / COSTS_FILE).is_file() else None)
    return parse_costs(table, *([(str(own), _read(own))] if own else []))


def parse_costs(shipped: Mapping[str, Any], *more: tuple[str, Mapping[str, Any]]) -> CostSheet:
    """A sheet from parsed TOML; each of ``more`` (a name, a table) goes over what stands before it. Raises SettingsError."""
    names = {field.name for field in fields(Prices)}
    tables = ("accuracy_documents", "accuracy_task")
    figures: dict[str, Range] = {}
    accuracy: dict[str, dict[str, Range]] = {name: {} for name in tables}
    for where, table in ((COSTS_FILE, shipped), *more):
        _refuse_unknown(where, table, names | set(tables))
        figures |= {name: _figure(where, name, value) for name, value in table.items() if name in names}
        for each in tables:
            rows = table.get(each, {})
            if not isinstance(rows, Mapping):
                raise SettingsError(f"{where}: {each} must be a table of options")
            _refuse_unknown(f"{where}, [{each}]", rows, {*OPTIONS, NAIVE})
            accuracy[each] |= {name: _figure(where, name, value, is_share=True) for name, value in rows.items()}
    missing = (names - figures.keys()) | {f"{t}.{o}" for t in tables for o in {*OPTIONS, NAIVE} - accuracy[t].keys()}
    if missing:
        raise SettingsError(f"{COSTS_FILE} lacks {', '.join(sorted(missing))}; install the package again")
    low, likely, high = (
        Prices(**{name: getattr(figures[name], end) for name in names}) for end in ("low", "likely", "high")
    )
    return CostSheet(low, likely, high, *(accuracy[each] for each in tables))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}. Give a cost sheet with --costs") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {error}") from error


def _refuse_unknown(where: str, table: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(table.keys() - known):
        raise SettingsError(f"{where}: unknown keys {unknown}. Known: {', '.join(sorted(known))}")


def _figure(where: str, name: str, value: Any, *, is_share: bool = False) -> Range:
    parts = value if isinstance(value, dict) else {"low": value, "likely": value, "high": value}
    ends = [parts.get(end) for end in ("low", "likely", "high")]
    numbers = [float(end) for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    if set(parts) != {"low", "likely", "high"} or len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise SettingsError(f"{where}: {name} must be a number or {{ low = , likely = , high = }}, not {value!r}")
    if not 0 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise SettingsError(f"{where}: {name} needs 0 <= low <= likely <= high, not {numbers}")
    if (is_share or name in _SHARES) and numbers[2] > 1:
        raise SettingsError(f"{where}: {name} is a share from 0 to 1, not {numbers[2]:g}")
    if name in _CHEAPER_WHEN_HIGH and numbers[0] == 0:
        raise SettingsError(f"{where}: {name} must be above 0")
    return Range(*numbers)
