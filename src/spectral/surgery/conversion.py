"""Replace a network's decimations by anti-aliasing layers, and take them out again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spectral.errors import SpectralError, suggest
from spectral.layers import LAYERS, STRIDED, Builder
from spectral.network.inputs import Example
from spectral.operators import find_plain_operator
from spectral.processes.surroundings import kept_surroundings
from spectral.sites import Site, check_hookable
from spectral.surgery.attachment import PerChannels, Unit, attach, detach, is_attached
from spectral.surgery.choice import PLACEMENTS, Choice, Where, choose_units
from spectral.surgery.functions import INDEXING
from spectral.surgery.images import LOW_PASSES
from spectral.surgery.observation import Observation, observe, observe_sites
from spectral.surgery.remedies import ACTIVATIONS, BORDERS, Remedies, check_remedies, look_out, remedy
from spectral.surgery.report import ConversionReport, ConversionRow, Cost, find_report, keep_report
from spectral.surgery.trial import Trial
from spectral.tracing.copying import copy_model
from spectral.tracing.standin import choose_inputs
from spectral.tracing.tracker import drop_plain_forwards

# Every layer that can stand for a stride; "strided" leaves the network what it was.
METHODS: dict[str, Builder] = {"strided": STRIDED, **LAYERS}


def convert(
    model: nn.Module,
    method: str | None,
    where: Where = None,
    placement: str = "auto",
    example: Example | None = None,
    inplace: bool = False,
    *,
    activations: str | None = None,
    padding: str | None = None,
    upsampling: str | None = None,
    **options: Any,
) -> nn.Module:
    """Replace decimations by an anti-aliasing layer behind the dense map; trained weights are kept.

    Each chosen site gives its dense map instead of every s-th sample of it, and the layer decimates. Output
    sizes stay as they are. `conversion_report` tells what was replaced and why the rest wasn't; `revert`
    undoes it all.

    Names of weights stay too, and those of a layer follow its site (``layer2.0.conv2.antialias.kernel``): a
    state dict loads into any network that was converted in the same way, and the original's loads with
    ``strict=False``. Convolutions and pools keep their class and get stride 1, their layer as a child, and a
    hook, which runs it or enters it as owed until the activation has run. Operators that a module calls as
    functions (slices, pools, convolutions padded by the size of their input) are told by their place in its
    code and replaced while it runs, and so are those of modules whose stride other code reads, as padding
    that is made for it; around that `torch.compile` breaks its graph. A block that holds both an operator and
    its activation gets a subclass of its class, of the same name: each call ends in an error that names the
    site if a layer is still owed. So a copied, compiled, exported, fused or wrapped network computes the
    same, or says which layer it has lost.

    What was converted is verified before it is returned: in a pass each layer runs exactly as often as its
    operator did, and no other map changes its size.

    Args:
        model: any module that `find_sites` can trace.
        method: a name in ``METHODS``: ``"blurpool"``, ``"flc"``, …; ``"strided"`` decimates plainly, so the
            network computes what it did, at the cost of a converted one. None leaves decimations as they are,
            where ``activations``, ``padding`` or ``upsampling`` is given.
        where: None for all sites that can be replaced (if there are none, the copy stays as the model was and
            the report says why); a kind (``"conv"``, ``"max_pool"``, ``"avg_pool"``,
            ``"slice"``); names or patterns (``"layer?.0.*"``), one or several; or a function of a `Site`.
            Patch embeddings are replaced only if a name, pattern or function chooses them.
        placement: ``"auto"`` as published: behind the activation where nothing but norms and the activation
            use a convolution's dense map; before a pointwise convolution that has none (the two commute, and
            it costs less there); directly behind the operator otherwise. ``"behind"``: always that.
        example: as for `find_sites`; by default of the size the model was trained for, where it is known.
        inplace: change the model itself instead of a copy.
        activations: ``"alias-free"`` evaluates everything nonlinear that acts on each place of a map alone,
            as modules or functions, on a lattice twice as fine (`spectral.layers.AliasFreeActivation`);
            ``"alias-free-4"`` on one four times as fine, where whole-pixel shifts of a network whose strides
            come to 4 in total do no harm at all; ``"alias-free-filtered"`` with short filters;
            ``"alias-free-polynomial"`` with a polynomial of degree 3 in each activation's place, which no
            shift harms; its coefficients stay (a `spectral.layers.PolynomialActivation` trains its own),
            so train the network around it. None leaves them, or what was done before.
        padding: ``"circular"``, ``"replicate"`` or ``"reflect"`` instead of zeros, for convolutions and pools
            that are modules and for layers; ``"partial"`` leaves zeros, and a window that reaches over them
            counts as much more as it has less of the map. None leaves it, or what was done before.
        upsampling: ``"ideal"`` or ``"binomial"``: a low-pass at the old Nyquist frequency behind every place
            where a lattice gets finer (`find_upsampling`). None leaves them, or what was done before.
        options: of the layer, as `spectral.layers.make_pool` takes them: ``kernel_size``, ``padding_mode``,
            ``wavelet``, ``compat`` … Weights of its own, as LPS has, are drawn from the state that torch's
            generator has, which stays as it is: the same call gives the same weights.

    Returns:
        The converted model.

    Raises:
        SpectralError: if the method, an option, the placement or a name is unknown, the model has no sites or
            nothing of what ``where`` chooses can be replaced, the site is replaced already, or the model
            can't be traced or copied. The model is as before then.

    Source:
        R. Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019, for the placement.

    Example:
        >>> import torch
        >>> from spectral.surgery import conversion_report
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2))
        >>> smooth = convert(net, "blurpool", example=32)
        >>> smooth(torch.zeros(1, 3, 32, 32)).shape == net(torch.zeros(1, 3, 32, 32)).shape
        True
        >>> [(row.site, row.placement) for row in conversion_report(smooth).rows]
        [('0', 'behind 1'), ('2', 'behind')]
    """
    with kept_surroundings():  # some layers draw weights of their own
        recipe = Recipe(method, where, placement, options)
        return _convert(model, recipe, example, inplace, Remedies(activations, padding, upsampling))


def _convert(
    model: nn.Module, recipe: Recipe, example: Example | None, inplace: bool, remedies: Remedies
) -> nn.Module:
    check_hookable(model)
    if any(is_lazy(x) for x in (*model.parameters(), *model.buffers())):
        raise SpectralError(
            f"convert: {type(model).__name__} has layers that get their shape from their first input; run it "
            f"once, then convert it"
        )
    check_remedies(remedies.activations, remedies.padding, remedies.upsampling)
    _check_choice("placement", recipe.placement, PLACEMENTS)
    if recipe.method is not None:
        _check_choice("method", recipe.method, METHODS)
        METHODS[recipe.method](8, 2, **recipe.options)  # refuses options before anything else is done
    elif remedies == Remedies():
        raise SpectralError(
            "convert: nothing is asked for; give a method, activations=, padding= or upsampling="
        )
    elif recipe.where is not None or recipe.options:
        raise SpectralError(
            "convert: where and options are of a layer for decimations; give a method as well"
        )
    if find_report(model) is None and is_attached(model):
        raise SpectralError(
            "convert: part of the model was converted on its own, or as part of another; revert that first"
        )
    example = _default_example(model) if example is None else example
    work = model if inplace else _copy(model)
    drop_plain_forwards(work)
    earlier = find_report(work)
    kept = {u: work.get_submodule(u.layer_path) for u in earlier.units} if earlier is not None else {}
    detach(work)
    before = earlier.remedies if earlier is not None else Remedies()
    asked = Remedies(
        remedies.activations or before.activations, remedies.padding or before.padding,
        remedies.upsampling or before.upsampling,
    )  # fmt: skip
    try:
        outlook = look_out(work, asked, example)
        report = _replace_sites(work, recipe, example, earlier, kept)
        if outlook is not None:
            report.remedies = remedy(work, outlook, asked)
    except BaseException:
        detach(work)
        earlier_outlook = look_out(work, before, example)
        attach(work, kept)
        if earlier_outlook is not None:
            remedy(work, earlier_outlook, before)
        raise
    keep_report(work, report)
    return work


def convert_alike(model: nn.Module, report: ConversionReport, example: Example | None = None) -> nn.Module:
    """Convert another copy of a network in the same way.

    Args:
        model: as the network was before, such as ``load_model(report.source)``.
        report: of the conversion.
        example: as for `convert`; by default of the shape at which the report was made. A network of several
            inputs needs it: a report knows the first image's shape.

    Raises:
        SpectralError: if the model lacks one of the sites.

    Example:
        >>> from spectral.surgery import conversion_report
        >>> report = conversion_report(convert(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), "flc", example=32))
        >>> convert_alike(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), report)[0].stride
        (1, 1)
    """
    if example is None:  # channels and extents: of signals and volumes these are no size of an image
        example = report.example if len(report.example) == 3 else torch.zeros(1, *report.example)
    for step in report.steps:
        model = convert(model, **step, example=example)
    return model


def check_methods(methods: Iterable[str], where: str = "") -> None:
    """Make sure that layers have names of `METHODS`.

    Args:
        methods: their names.
        where: what messages begin with.

    Raises:
        SpectralError: naming the first that is none.
    """
    for method in methods:
        if method not in METHODS:
            near = suggest(method, METHODS) or f"; choose one of {', '.join(METHODS)}"
            raise SpectralError(f"{where}no layer is called {method!r}{near}")


def read_change(name: str) -> dict[str, Any]:
    """Return the arguments of `convert` that one name stands for: of a layer, an activation or a border.

    A low-pass behind finer lattices is called ``up-ideal`` or ``up-binomial``.

    Example:
        >>> read_change("flc"), read_change("circular")
        ({'method': 'flc'}, {'method': None, 'padding': 'circular'})
    """
    for argument, names in (("activations", ACTIVATIONS), ("padding", BORDERS)):
        if name in names:
            return {"method": None, argument: name}
    if name.removeprefix("up-") in LOW_PASSES and name.startswith("up-"):
        return {"method": None, "upsampling": name.removeprefix("up-")}
    return {"method": name}


def revert(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Take all layers of a converted model out again; weights stay what they are now, trained or not.

    Args:
        model: what `convert` returned, or a copy of it.
        inplace: change the model itself instead of a copy.

    Returns:
        The original network.

    Raises:
        SpectralError: if the model isn't a converted one.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
        >>> revert(convert(net, "blurpool", example=32))
        Sequential(
          (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(2, 2))
        )
    """
    if find_report(model) is None:
        raise SpectralError(
            f"revert: {type(model).__name__} has not been converted; pass what convert returned"
        )
    work = model if inplace else _copy(model)
    detach(work)
    keep_report(work, None)
    return work


@dataclass(frozen=True)
class Recipe:
    """What was asked for: the layer's name and options, and where it goes."""

    method: str | None
    where: Where
    placement: str
    options: dict[str, Any]


def _replace_sites(
    model: nn.Module,
    recipe: Recipe,
    example: Example,
    earlier: ConversionReport | None,
    kept: dict[Unit, nn.Module],
) -> ConversionReport:
    before, sites = observe_sites(model, example)
    inputs = choose_inputs(model, example)
    trial = Trial(model, sites, inputs, kept, before)
    parameters = _count_parameters(model)
    taken = [name for unit in kept for name in unit.sites]
    training = None
    if recipe.placement == "auto" and recipe.method:
        with suppress(SpectralError):  # some networks can't be trained on such inputs, or not at all
            training = observe(model, inputs, training=True)
    choice = (
        choose_units(model, before, sites, recipe.where, recipe.placement, taken, training)
        if recipe.method
        else Choice({}, {site.name: "not chosen" for site in sites})
    )
    made = {unit: _make_layer(model, recipe, unit, channels) for unit, channels in choice.units.items()}
    layers, refused = trial.run(made)
    reasons = {**choice.reasons, **{name: why for unit, why in refused.items() for name in unit.sites}}
    # Where nothing was asked for by name, a network without convertible sites stays as it is, and the report
    # says why: a survey over many networks shouldn't stop at a ViT.
    asked_for = recipe.where is not None or kept or not sites
    if recipe.method and layers.keys() == kept.keys() and asked_for:
        raise SpectralError(_explain_nothing(model, sites, reasons, bool(kept)))
    rows = {row.site: row for row in (earlier.rows if earlier is not None else ()) if row.replaced}
    for unit in layers.keys() - kept.keys():
        rows |= {name: _describe_layer(unit, layers[unit], recipe) for name in unit.sites}
    for site in sites:
        row = rows.get(site.name) or ConversionRow("", "", (), False, reasons.get(site.name))
        runs = next((trial.count_runs(unit) for unit in layers if site.name in unit.sites), None)
        rows[site.name] = replace(row, site=site.name, op=site.op, stride=site.stride, runs=runs)
    info = getattr(model, "spectral_info", None)  # what load_model recorded
    return ConversionReport(
        rows=tuple(rows[site.name] for site in sites),
        example=tuple(inputs.image.shape[1:]),
        cost=Cost((parameters, _count_parameters(model)), (trial.before.macs, trial.after.macs)),
        source=info.name if info is not None else None,
        units=tuple(layers),
        idle=_find_idle(model, before),
    )


def _find_idle(model: nn.Module, before: Observation) -> dict[str, str]:
    """Find the modules that are nothing but an operator with a stride and didn't run."""
    ran = {id(model.get_submodule(call.path)) for call in before.calls}
    idle = {}
    for name, module in model.named_modules():
        stride = getattr(module, "stride", None)
        steps = (stride,) if isinstance(stride, int) else stride if isinstance(stride, tuple) else ()
        if find_plain_operator(module) is not None and id(module) not in ran and max(steps, default=1) > 1:
            idle[name] = "×".join(map(str, steps))
    return idle


def _describe_layer(unit: Unit, layer: nn.Module, recipe: Recipe) -> ConversionRow:
    placed = unit.placement
    if unit.point is not None:
        inside = f"the activation in the forward of {unit.point.path or 'the model'}"
        placed = f"behind {unit.point.path if unit.point.function is None else inside}"
    described = " ".join(repr(layer).split())
    return ConversionRow(
        "", "", (), True, None, recipe.method, recipe.placement, placed, described, dict(recipe.options)
    )  # fmt: skip


def _make_layer(model: nn.Module, recipe: Recipe, unit: Unit, channels: Sequence[int]) -> nn.Module:
    stride = unit.lattice[1][-unit.axes :]
    options = recipe.options
    if recipe.method == "strided" and unit.signature[0] == INDEXING:
        # A slice stays a view: what is written to its source later shows in it.
        options = {"copy": False, **options}
    build = METHODS[str(recipe.method)]
    with torch.device("cpu"):  # torch's default device can be one without values
        made = {str(count): build(count, stride, unit.axes, **options) for count in channels}
    layer = PerChannels(made, unit.axes) if len(made) > 1 else made[str(channels[0])]
    owner = model.get_submodule(unit.path)
    tensor = next((p for m in (owner, model) for p in m.parameters() if p.is_floating_point()), None)
    if tensor is not None:
        layer.to(tensor.device, tensor.dtype)
    return layer.train(owner.training)


def _explain_nothing(
    model: nn.Module, sites: Sequence[Site], reasons: Mapping[str, str], converted: bool
) -> str:
    name = type(model).__name__
    if converted:
        return f"convert: {name} is converted already; call revert first, or choose other sites with where"
    if not sites:
        return f"convert: {name} has no site where resolution drops"
    first = next(s.name for s in sites if reasons.get(s.name) != "not chosen")
    return f"convert: nothing can be replaced in {name}; {first!r}: {reasons[first]}"


def _check_choice(what: str, value: object, options: Iterable[str]) -> None:
    names = list(options)
    if value not in names:
        near = suggest(str(value), names) or f"; choose one of {', '.join(names)}"
        raise SpectralError(f"convert: no {what} is called {value!r}{near}")


def _default_example(model: nn.Module) -> Example:
    info = getattr(model, "spectral_info", None)  # what load_model recorded
    if info is not None:
        known = info.preprocessing  # one mean may be for all channels
        return (len(known.mean), *known.size) if len(known.mean) > 1 else known.size
    config = getattr(model, "pretrained_cfg", None) or {}
    if config.get("input_size"):
        return tuple(config["input_size"])
    raise SpectralError(
        f"convert: {type(model).__name__} doesn't say what size of images it takes; pass example=, a size "
        f"or a batch"
    )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy_model(model)
    except SpectralError as error:
        raise SpectralError(f"{error}; pass inplace=True to change the model itself") from error


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
