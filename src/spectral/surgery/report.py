"""What was converted, what wasn't and why, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from spectral.errors import SpectralError
from spectral.latency import measure_latency
from spectral.sites import Site
from spectral.surgery.attachment import Unit
from spectral.surgery.remedies import Remedies
from spectral.table.display import align, to_html

if TYPE_CHECKING:
    import pandas as pd

_ATTRIBUTE = "spectral_conversion"


@dataclass(frozen=True)
class ConversionRow:
    """What became of one site of the original network.

    Attributes:
        site: its name, as `find_sites` gives it.
        op: its kind.
        stride: its decimation factor.
        replaced: whether a layer stands in its place.
        reason: why not, else None.
        method: the layer's name in ``METHODS``.
        asked: the placement that was asked for.
        placement: where the layer is: before or behind the operator, or behind which activation.
        layer: what it is.
        options: of the layer, as they were given.
        runs: how often the layer ran in a pass of the converted network: exactly as often as its operator did
            in one of the original, else it would not have been replaced. More than once where several sites
            share it.
    """

    site: str
    op: str
    stride: tuple[int, ...]
    replaced: bool
    reason: str | None = None
    method: str | None = None
    asked: str | None = None
    placement: str | None = None
    layer: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    runs: int | None = None


@dataclass(frozen=True)
class Cost:
    """Parameters, arithmetic and time of a network, before and after.

    Attributes:
        parameters: their number.
        macs: multiply–accumulate operations of convolutions and matrix products for one image of the
            example's size. Layers that filter in the frequency domain are matrix products and so are
            counted; comparisons, means over windows and pointwise functions are not, in either network.
        seconds: median time of a batch, None unless measured.
    """

    parameters: tuple[int, int]
    macs: tuple[int, int]
    seconds: tuple[float, float] | None = None


@dataclass
class ConversionReport:
    """The account of a conversion: a row per site, and what the network costs.

    Attributes:
        rows: one per site of the original network, in the order in which they run.
        example: shape of the image at which the sites were found, without the batch.
        cost: before and after.
        source: what `load_model` was asked for, None for a model from elsewhere.
        units: how each layer is attached; not part of the dictionary.
        remedies: what was done to activations and borders.
        idle: modules that decimate and didn't run on the example, with their strides: branches that a flag or
            training switches on. They stay as they are.
    """

    rows: tuple[ConversionRow, ...]
    example: tuple[int, ...]
    cost: Cost
    source: str | None = None
    units: tuple[Unit, ...] = field(default=(), repr=False, compare=False)
    remedies: Remedies = field(default_factory=Remedies)
    idle: dict[str, str] = field(default_factory=dict)

    @property
    def replaced(self) -> list[ConversionRow]:
        """Rows of the sites that were replaced."""
        return [row for row in self.rows if row.replaced]

    @property
    def changes(self) -> bool:
        """Whether anything of the network was altered: a decimation, an activation or a border."""
        return bool(self.replaced or self.remedies.altered)

    @property
    def obstacle(self) -> str:
        """The first place that was to be altered and couldn't be, with the reason."""
        left = [(row.site, row.reason) for row in self.rows if not row.replaced]
        name, reason = next(iter([*self.remedies.left, *left]), ("it", "nothing of that kind is in it"))
        return f"{name!r}: {reason}"

    @property
    def method(self) -> str:
        """Name of the layer; of all, joined by ``+``, where there are several."""
        return "+".join(dict.fromkeys(str(row.method) for row in self.replaced))

    @property
    def placement(self) -> str:
        """The placement that was asked for; all of them, joined by ``+``, where there are several."""
        return "+".join(dict.fromkeys(str(row.asked) for row in self.replaced))

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The arguments of the calls of `convert` that make this network from the original one."""
        steps: list[dict[str, Any]] = []
        for row in self.replaced:
            asked = {**row.options, "method": row.method, "placement": row.asked}
            step = next((s for s in steps if {**s, "where": None} == {**asked, "where": None}), None)
            if step is None:
                steps.append({**asked, "where": [row.site]})
            else:
                step["where"].append(row.site)
        if steps:
            steps[-1] |= self.remedies.options
        elif self.remedies.options:
            steps = [{"method": None, **self.remedies.options}]
        return steps

    def measure_latency(
        self, original: nn.Module, converted: nn.Module, batch: Tensor, repeats: int = 10
    ) -> Cost:
        """Time the converted network against the original one, and keep the medians in ``cost``.

        Args:
            original: the network as it was, which `revert` gives.
            converted: as it is.
            batch: what to time them with, on the network's device.
            repeats: rounds, in which the two take turns.

        Units:
            Seconds per batch.
        """
        networks = {"before": original, "after": converted}
        times = measure_latency(networks, dict.fromkeys(networks, batch), repeats)
        self.cost = replace(self.cost, seconds=(median(times["before"]), median(times["after"])))
        return self.cost

    def to_frame(self) -> pd.DataFrame:
        """Return a row per site as a table."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, enough to make the network again from the original one.

        `convert_alike` does; its ``steps`` are arguments of `convert`.
        """
        return {
            "source": self.source,
            "steps": self.steps,
            "example": list(self.example),
            "cost": asdict(self.cost),
            "rows": [asdict(row) for row in self.rows],
            "remedies": asdict(self.remedies),
            "idle": dict(self.idle),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ConversionReport:
        """Read what `to_dict` gave, also after a way through JSON.

        Raises:
            SpectralError: if it is something else.
        """
        try:
            rows = tuple(ConversionRow(**{**row, "stride": tuple(row["stride"])}) for row in content["rows"])
            parameters, macs, seconds = (content["cost"][key] for key in ("parameters", "macs", "seconds"))
            cost = Cost(tuple(parameters), tuple(macs), seconds and tuple(seconds))
            remedies = Remedies.from_dict(content.get("remedies") or {})
            idle = dict(content.get("idle") or {})
            found = cls(rows, tuple(content["example"]), cost, content["source"], (), remedies, idle)
            found._require_types()
            return found
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpectralError(
                f"ConversionReport: expected what to_dict gives, got something else ({error!r}); write the "
                f"report of a converted model again"
            ) from error

    def _require_types(self) -> None:
        """Check what a conversion is made again by, where it comes from a file.

        Raises:
            TypeError: if something is of another kind.
        """
        if not all(type(n) is int and n > 0 for n in self.example):
            raise TypeError(f"an example of {self.example}")
        if not all(isinstance(asked, str) for asked in self.remedies.options.values()):
            raise TypeError(f"remedies {self.remedies.options}")
        for row in self.rows:
            if not (
                isinstance(row.site, str) and isinstance(row.replaced, bool) and isinstance(row.options, dict)
            ):
                raise TypeError(f"a row of {row.site!r}, {row.replaced!r} and {row.options!r}")

    def __str__(self) -> str:
        return "\n".join([self._headline(), *align(self._table()), *self._facts()])

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        return to_html(self._table(), [self._headline()], self._facts())

    def _headline(self) -> str:
        return f"{self.method or 'nothing'}: {len(self.replaced)} of {len(self.rows)} sites replaced"

    def _table(self) -> list[tuple[str, ...]]:
        table: list[tuple[str, ...]] = [("site", "op", "stride", "layer")]
        for row in self.rows:
            what = f"{row.layer}, {row.placement}" if row.replaced else f"kept: {row.reason}"
            table.append((row.site, row.op, "×".join(map(str, row.stride)), what))
        return table

    def _facts(self) -> list[str]:
        """Say what was verified, what else was altered, and what it costs."""
        before, after = self.cost.macs
        sizes = "×".join(map(str, self.example))
        lines = []
        if self.replaced and all(row.runs for row in self.replaced):
            lines.append("verified: in a pass each layer ran exactly as often as its operator did before")
        for what, value in self.remedies.options.items():
            lines.append(f"{what}: {value}")
        if self.remedies.options:
            lines.append(f"altered: {len(self.remedies.altered)} activations, borders and finer lattices")
        lines += [
            f"not seen: {name}, which decimates by {stride}, didn't run on the example and stays as it is"
            for name, stride in self.idle.items()
        ]
        lines += [f"not altered: {name}: {reason}" for name, reason in self.remedies.left]
        lines.append(f"parameters {self.cost.parameters[0]:,} → {self.cost.parameters[1]:,}")
        change = f" (×{after / before:.2f})" if before else ""
        lines.append(f"multiply–accumulates at {sizes} {before:,} → {after:,}{change}")
        if self.cost.seconds is not None:
            old, new = self.cost.seconds
            lines.append(f"time per batch {1e3 * old:.3g} ms → {1e3 * new:.3g} ms (×{new / old:.2f})")
        return lines


def conversion_report(model: nn.Module) -> ConversionReport:
    """Return the account of a converted model.

    Raises:
        SpectralError: if the model isn't a converted one.
    """
    report = find_report(model)
    if report is None:
        raise SpectralError(
            f"conversion_report: {type(model).__name__} has not been converted; pass what convert returned"
        )
    return report


def find_report(model: nn.Module) -> ConversionReport | None:
    """Return the account of a model, None if it wasn't converted."""
    attributes = vars(model)
    report = attributes.get(_ATTRIBUTE) or attributes.get("meta", {}).get(_ATTRIBUTE)
    return report if isinstance(report, ConversionReport) else None


def find_original_names(model: nn.Module, sites: Sequence[Site]) -> dict[str, str]:
    """Return what the sites of a converted network were called before: a layer's site is within its own.

    Example:
        >>> from spectral.sites import find_sites
        >>> from spectral.surgery import convert
        >>> net = convert(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), "flc", example=(3, 16, 16))
        >>> [find_original_names(net, find_sites(net, 16)).get(s.name) for s in find_sites(net, 16)]
        ['0']
    """
    report = find_report(model)
    before = sorted((row.site for row in report.rows), key=len, reverse=True) if report else []
    owners = {s.name: next((o for o in before if f"{s.name}.".startswith(f"{o}.")), None) for s in sites}
    return {name: owner for name, owner in owners.items() if owner is not None}


def keep_report(model: nn.Module, report: ConversionReport | None) -> None:
    """Let a model carry its account, or carry none."""
    attributes = vars(model)
    if isinstance(model, fx.GraphModule):  # what is in here is the one thing of its own that its copies have
        attributes = attributes.setdefault("meta", {})
    attributes.pop(_ATTRIBUTE, None)
    if report is not None:
        attributes[_ATTRIBUTE] = report
