"""A user's own metric: a function of targets and scores, `module:function`, used as objective and named with its code.

An objective `mymetrics:score` becomes `mymetrics:score#1f2e3d4c5b6a`, where the part behind `#` is the start of the
SHA-256 of the module's file: every fingerprint that holds the objective changes with the code. Such a name in a bundle
is text, and nothing is imported for it.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermstack.errors import ConfigError
from dermstack.user_code import USER_ERRORS, import_user_module

if TYPE_CHECKING:  # numpy is imported where a metric is called: a `stack` with nothing to do only asks for its name
    from numpy.typing import ArrayLike, NDArray

_GIVEN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
NAMED = re.compile(_GIVEN.pattern + r"#[0-9a-f]{12}")
NAME_PATTERN = rf"^{NAMED.pattern}$"
_PROBE_ROWS, _PROBE_POSITIVES = 60, 15
_PATHS: list[str] = []  # the folder that was added to Python's path
_IMPORTED: set[str] = set()  # modules that were imported for a metric
_TOLERANCE = 1e-9  # relative, between two values of one metric


def is_own_metric(objective: str) -> bool:
    """Whether an objective is a user's function with the hash of its code."""
    return NAMED.fullmatch(objective) is not None


def is_import_path(objective: str) -> bool:
    """Whether an objective is written as `module:function`, with or without a hash."""
    return _GIVEN.fullmatch(objective.partition("#")[0]) is not None


def own_metric(given: str, folder: Path, *, may_take_groups: bool) -> str:
    """Returns the name with its hash of a function that is written as `module:function`; its module lies in ``folder``.

    Runs the module's code with the rights of the user, and tries the function on generated rows. Raises ConfigError
    for a module or function that is not there, for one that fails, returns no finite number or another one for the same
    rows, is not higher for better scores, or depends on more than the order of scores; and, unless
    ``may_take_groups``, for one that takes groups, as a blend has none where it searches weights.
    """
    name = given.partition("#")[0]
    _prefer(folder, name)
    made = f"{name}#{_code_hash(name)[:12]}"
    _function.cache_clear()
    function, takes_groups = _function(made)
    if takes_groups and not may_take_groups:
        raise ConfigError(
            f"objective {name}: it takes groups, which a blend has not where it searches weights: write it as a "
            f"function of targets and scores, or use it with `dermstack compare --objective {name}`"
        )
    _try(partial(_called, name, function, takes_groups), name)
    return made


def _prefer(folder: Path, name: str) -> None:
    """Makes the module be imported again from ``folder``, if it lies there; workers that start later inherit the path.

    Workers that are there already, as in a notebook, have the old path and perhaps the old module: they are ended.
    Raises ConfigError where a loaded module of another place has its name.
    """
    if "joblib" in sys.modules:
        from image_models.processes import end_workers

        end_workers()
    for path in _PATHS:
        sys.path.remove(path)
    _PATHS[:] = [] if str(folder) in sys.path else [str(folder)]
    sys.path.extend(_PATHS)  # last, so that no file there takes the place of an installed module
    module = name.partition(":")[0]
    if (known := sys.modules.get(module)) is not None:
        if module not in _IMPORTED:
            raise ConfigError(
                f"objective {name}: a module {module} is loaded from {getattr(known, '__file__', 'Python itself')}: "
                "give yours another name"
            )
        del sys.modules[module]  # its file may have changed, or another folder be meant
    _IMPORTED.add(module)


def own_value(objective: str, positive: ArrayLike, s: ArrayLike, groups: ArrayLike | None = None) -> float:
    """Returns the metric of scores (n,) for targets (n,), in groups (n,) if the function takes them."""
    function, takes_groups = _function(objective)
    if takes_groups and groups is None:
        raise ConfigError(f"objective {own_label(objective)}: it takes groups, and there are none here")
    return _called(own_label(objective), function, takes_groups, positive, s, groups)


def own_label(objective: str) -> str:
    """Returns the name as the user wrote it."""
    return objective.partition("#")[0]


def _code_hash(name: str) -> str:
    module = _module(name)
    path = Path(str(getattr(module, "__file__", None) or ""))
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"objective {name}: its module has no .py file, so a change cannot be noticed: use one")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@lru_cache
def _function(objective: str) -> tuple[Callable[..., Any], bool]:
    """Returns the function and whether it takes groups; raises ConfigError where its code is not that of the name."""
    name = own_label(objective)
    module, function_name = _module(name), name.partition(":")[2]
    if not _code_hash(name).startswith(objective.partition("#")[2]):
        raise ConfigError(f"objective {name}: its code has changed since the command began: run the command again")
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"objective {name}: {getattr(module, '__file__', name)} has no function {function_name!r}: define it"
        )
    try:
        parameters = len(inspect.signature(function).parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"objective {name}: it is no plain Python function: write one") from error
    if parameters not in (2, 3):
        raise ConfigError(
            f"objective {name}: it takes {parameters} arguments: write it as {function_name}(targets, scores) or "
            f"{function_name}(targets, scores, groups)"
        )
    return function, parameters == 3


def _module(name: str) -> Any:
    module = name.partition(":")[0]
    try:
        return import_user_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"objective {name}: there is no module {error.name!r}: put {module.replace('.', '/')}.py beside the config"
        ) from error
    except USER_ERRORS as error:
        raise ConfigError(f"objective {name}: {module} cannot be imported ({_told(error)}): correct it") from error


def _called(
    name: str,
    function: Callable[..., Any],
    takes_groups: bool,
    positive: ArrayLike,
    s: ArrayLike,
    groups: ArrayLike | None = None,
) -> float:
    import numpy as np

    given: list[NDArray[Any]] = [np.array(positive, np.int8), np.array(s, np.float64)]  # copies: it may change them
    if takes_groups:
        given.append(np.array(groups))
    try:
        value = function(*given)
    except USER_ERRORS as error:
        raise ConfigError(
            f"objective {name}: it failed on {len(given[0]):,} rows, {int(given[0].sum()):,} of them positive "
            f"({_told(error)}): correct it; it must work for any rows of both classes"
        ) from error
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not np.isfinite(value):
        raise ConfigError(
            f"objective {name}: it returned {value!r:.60}: return a finite number, higher for better scores"
        )
    return float(value)


def _try(value_of: Callable[..., float], name: str) -> None:
    """Raises ConfigError where the metric is nonsense on generated rows."""
    import numpy as np

    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([1, 0], [_PROBE_POSITIVES, _PROBE_ROWS - _PROBE_POSITIVES]))
    groups = np.arange(_PROBE_ROWS) // 3
    some = 0.5 + 0.1 * y + 0.1 * rng.standard_normal(_PROBE_ROWS)
    best, worst = (value_of(y, 0.5 + sign * (0.3 * y + 0.001 * some), groups) for sign in (1, -1))
    if not best > worst:
        raise ConfigError(
            f"objective {name}: scores that order all rows rightly have {best:g}, the inverse ones {worst:g}: return a "
            "number that is higher for better scores, such as the negative of a loss"
        )
    first, again, transformed = (value_of(y, scores, groups) for scores in (some, some, np.exp(3 * some)))
    if not np.isclose(first, again, rtol=_TOLERANCE, atol=0):
        raise ConfigError(
            f"objective {name}: the same rows have {first:g} and then {again:g}: it must not draw random numbers or "
            "remember earlier calls"
        )
    if not np.isclose(first, transformed, rtol=_TOLERANCE, atol=1e-12):
        raise ConfigError(
            f"objective {name}: scores in the same order on another scale have {transformed:g} instead of {first:g}: "
            "use their order only, as the scores of a blend are ranks and sums of any scale"
        )


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
