"""The accuracy budget: how far a compiled model may be from the one that was given, on text that nothing was fitted to.

    irx.compile(model, pipeline="default | quantize-weights", budget=irx.Budget(kl=0.02), data=texts)

Every limit is a loss: zero for the model as it was given, larger for worse ones. A pass stays only if no loss of the
whole program behind it is above its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from irx.errors import BudgetError

Metric: TypeAlias = Callable[[Callable[..., Mapping[str, Any]]], float]
"""The user's own measure: a number, lower is better, for a model that is called with the inputs' names as keywords."""

# Figures that a loss is made of: where it starts, and in which direction the figure gets worse.
_LOSSES: Mapping[str, tuple[str, float, float]] = {
    "kl": ("kl", 0.0, 1.0),
    "top1": ("1 - top1", 1.0, -1.0),
    "ppl_ratio": ("ppl_ratio - 1", 1.0, 1.0),
    "cosine": ("1 - cosine", 1.0, -1.0),
}


@dataclass(frozen=True)
class Limit:
    """One limit: the name of the figure, that of the loss, the most that may be lost, and where losses start.

    `sign` is -1 for a figure that gets worse by getting smaller.
    """

    figure: str
    loss: str
    most: float | None = None
    start: float = 0.0
    sign: float = 1.0

    def spent(self, figures: Mapping[str, float]) -> float:
        """The loss that the figures say."""
        return self.sign * (figures[self.figure] - self.start)

    def exceeded(self, spent: float) -> bool:
        """True where more is lost than may be, and for what is no number."""
        return self.most is not None and not spent <= self.most


def loss(figure: str, bound: float | None = None) -> Limit:
    """The loss of a figure by its name in `Budget`, limited by `bound`, which is a value of the figure itself."""
    name, start, sign = _LOSSES.get(figure, (figure, 0.0, 1.0))
    return Limit(figure, name, None if bound is None else sign * (bound - start), start, sign)


@dataclass(frozen=True)
class Budget:
    """What may be lost; every limit given has to hold.

    `kl`: mean KL(original || compiled) of next-token distributions under teacher forcing, in nats, at most.
    `top1`: the share of positions with the same most likely token, at least. `ppl_ratio`: the perplexity over the
    original's, at most. `cosine`: the mean cosine between outputs and the original's, at least. `metric` with `max`: a
    function that gets the model (called with inputs by name, it returns tensors by name) and returns a number of which
    `max` is the most. Raises BudgetError for no limits, a metric without `max`, and values that no figure can have.
    """

    kl: float | None = None
    top1: float | None = None
    ppl_ratio: float | None = None
    cosine: float | None = None
    metric: Metric | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        if (self.metric is None) != (self.max is None):
            raise BudgetError("metric and max go together", fix="irx.Budget(metric=function, max=0.1)")
        if not self.limits():
            raise BudgetError("a budget without limits", fix="irx.Budget(kl=0.05)")
        _require("kl", self.kl, 0.0, None)
        _require("top1", self.top1, 0.0, 1.0)
        _require("ppl_ratio", self.ppl_ratio, 1.0, None)
        _require("cosine", self.cosine, -1.0, 1.0)

    def limits(self) -> tuple[Limit, ...]:
        """The limits that were given."""
        found = [loss(name, getattr(self, name)) for name in _LOSSES if getattr(self, name) is not None]
        own = [Limit(metric_name(self.metric), metric_name(self.metric), self.max)] if self.metric is not None else []
        return (*found, *own)

    def require(self, names: Collection[str]) -> None:
        """Raises BudgetError for a limit on a figure that is not among those that can be measured."""
        for limit in self.limits():
            if limit.figure in _LOSSES and limit.figure not in names:
                what = f"{limit.figure} cannot be measured on this model with these data"
                raise BudgetError(what, fix=f"what can: {', '.join(names)}, or a metric of your own")

    @property
    def exact(self) -> bool:
        """True where the budget allows no change of the function at all."""
        return self.kl == 0 or self.cosine == 1


def metric_name(metric: Metric) -> str:
    """What the ledger calls the user's measure."""
    return str(getattr(metric, "__name__", type(metric).__name__))


def _require(name: str, value: float | None, low: float, high: float | None) -> None:
    if value is None or (value >= low and (high is None or value <= high)):
        return
    bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
    raise BudgetError(f"{name}={value!r} in a budget must be {bounds}")


def check_budget(budget: Any, data: Any) -> None:
    """Raises BudgetError for what is no budget, and for one without data to measure it on."""
    if budget is not None and not isinstance(budget, Budget):
        raise BudgetError(f"budget={budget!r} is no Budget", fix="irx.Budget(kl=0.05)")
    if budget is not None and data is None:
        raise BudgetError("a budget is measured on data, and there are none", fix="pass data= to compile")
