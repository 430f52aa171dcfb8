"""What a user says a pipeline's stages cost: four numbers for all ranks, or a file of every stage's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from penstock.config import ConfigError, UserError
from penstock.parallel.pipeline.schedule import Costs

#: Forward, input gradient and weight gradient of one rank's share of a micro-batch, and the transfer of a hop.
Share = tuple[float, float, float, float]
PARTS = ("forward", "input_grad", "weight_grad", "transfer")


def parse_costs(text: str) -> Share:
    """The times 'F,I,W,transfer' of a rank's share; transfer may be left out. Raises `ConfigError` for anything else."""
    words = text.split(",")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ConfigError(f"--costs {text} is not numbers; give forward, input gradient, weight gradient and transfer, like 1,1.2,0.8,0.05") from None
    if len(numbers) == 3:
        numbers.append(0.0)
    if len(numbers) != 4:
        raise ConfigError(f"--costs {text} has {len(words)} numbers; give forward, input gradient, weight gradient and transfer, like 1,1.2,0.8,0.05")
    _check_numbers("--costs", numbers)
    if sum(numbers[:3]) <= 0:
        raise ConfigError(f"--costs {text} takes no time at all; give at least one of forward, input gradient and weight gradient a time")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def read_costs(path: Path, ranks: int) -> Costs:
    """Every stage's costs from a JSON file of the lists `forward`, `input_grad`, `weight_grad`, `transfer` (one less) and perhaps `memory`.

    Raises `UserError` for a file that cannot be read, `ConfigError` for lists that do not fit each other or the ranks.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the costs {path}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    unknown = set(data) - {*PARTS, "memory"} if isinstance(data, dict) else {"no object"}
    if unknown:
        raise ConfigError(f"{path} has {', '.join(sorted(unknown))}; give the lists {', '.join(PARTS)} and perhaps memory")
    stages = len(data.get("forward", []))
    if not stages or stages % ranks:
        raise ConfigError(f"{path} gives forward for {stages} stages, which is no multiple of {ranks} ranks")
    lists = {"transfer": [0.0] * (stages - 1), "memory": [ranks / stages] * stages, **data}
    for name in (*PARTS, "memory"):
        wanted = stages - (name == "transfer")
        if len(lists.get(name, [])) != wanted:
            raise ConfigError(f"{path} gives {name} {len(lists.get(name, []))} times for {stages} stages; give {wanted}")
        _check_numbers(f"{path}: {name}", lists[name])
    return Costs(*(tuple(map(float, lists[name])) for name in (*PARTS, "memory")))


def _check_numbers(where: str, numbers: list[Any]) -> None:
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number) or number < 0:
            raise ConfigError(f"{where} has {number}, which is no time; give numbers of 0 or more")
