"""Laws as tests: the docstring of a test is the law, the marker adds the usual cause of a breach."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import pytest
import torch

from rlinf.testing.support import Support

T = TypeVar("T", bound=Callable[..., None])


class Declares(Protocol):
    """A class of tests that declares what the plugin does not support."""

    supports: Mapping[str, Support]


class LawBroken(AssertionError):
    """A law does not hold; the text says which, by how much, and what usually causes it."""


class Deviation(AssertionError):
    """What was found instead of what the law says; `law` makes a LawBroken of it."""


def law(*, cause: str, needs: Iterable[str] = ()) -> Callable[[T], T]:
    """Mark a test method. Its docstring is the law.

    cause: what usually breaks it. needs: capabilities without which the test is skipped, if they are declared
    missing (`supports`); a NotImplementedError of an undeclared one becomes a failure that says how to
    declare it.
    """
    needs = tuple(needs)

    def decorate(test: T) -> T:
        text = inspect.cleandoc(test.__doc__ or "").replace("\n", " ")

        @functools.wraps(test)
        def run(self: Declares, *args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            for capability in needs:
                if capability in self.supports:
                    pytest.skip(f"supports[{capability!r}] = no: {self.supports[capability].reason}")
            try:
                test(self, *args, **kwargs)
            except Deviation as deviation:
                found, where = str(deviation), deviation.__traceback__
            except NotImplementedError as error:
                where = error.__traceback__
                hint = " or ".join(f"supports = {{{name!r}: Support.no('why')}}" for name in needs)
                found = f"{error}. " + (f"If that is on purpose, declare {hint}" if hint else "")
            else:
                return
            message = f"{test.__name__}\n  law: {text}\n  found: {found}\n  usual cause: {cause}"
            raise LawBroken(message).with_traceback(where) from None

        return run  # type: ignore[return-value]

    return decorate


def broken(found: str) -> NoReturn:
    """Say what was found instead of what the law of the running test says."""
    __tracebackhide__ = True
    raise Deviation(found)


def require(holds: bool, found: str) -> None:
    """`broken(found)` unless `holds`."""
    __tracebackhide__ = True
    if not holds:
        broken(found)


def difference(one: Any, other: Any) -> float:
    """Largest absolute difference of two tensors of one shape; NaN and infinities equal themselves."""
    a = torch.as_tensor(one).detach().double()
    b = torch.as_tensor(other).detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, torch.zeros(()).double(), (a - b).abs())
    return float(torch.where(gap.isnan(), torch.inf, gap).max()) if gap.numel() else 0.0


def require_close(what: str, got: Any, expected: Any, atol: float) -> None:
    """`broken` with the largest difference, and where it is, unless the tensors agree within `atol`."""
    __tracebackhide__ = True
    got, expected = torch.as_tensor(got).detach(), torch.as_tensor(expected).detach()
    if got.shape != expected.shape:
        broken(f"{what}: shape {list(got.shape)} instead of {list(expected.shape)}")
    gap = difference(got, expected)
    if gap > atol:
        off = (got.double() - expected.double()).abs().nan_to_num(torch.inf)
        where = [int(i) for i in np.unravel_index(int(off.argmax()), tuple(off.shape))]
        broken(f"{what} differ by up to {gap:.3g} (at {where}); the tolerance is {atol:.3g}")


def require_tensor(what: str, value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """`broken` unless `value` is a finite tensor of this dtype and shape."""
    __tracebackhide__ = True
    if not isinstance(value, torch.Tensor):
        broken(f"{what}: {type(value).__name__} instead of a tensor")
    if tuple(value.shape) != shape or value.dtype != dtype:
        broken(f"{what}: {value.dtype} {list(value.shape)} instead of {dtype} {list(shape)}")
    bad = int((~torch.isfinite(value)).sum())
    require(not bad, f"{what}: {bad} of {value.numel()} entries are NaN or infinite")


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
