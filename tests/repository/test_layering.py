"""Who may import whom. Imports inside functions count: a lazy import from a higher layer is one all the same."""

import pytest

from tests.repository.tree import CODE_FOLDERS, MAPPED, SOURCE_FOLDERS, files, imports, module_name, shown

# A module may import what stands in an earlier row, and its own package. Members of one row are siblings.
LAYERS = (
    {"errors"},
    {"ir", "cache"},
    {"ledger", "budget"},
    {"ops", "target"},
    {"analysis"},
    {"rewrite"},
    {"runtime"},
    {"tuning"},
    {"pipeline"},
    {"passes", "backends", "frontends"},
    {"api"},
    {"dynamo", "bench"},
    {"cli"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Heavy packages, and the only places that may import them.
HEAVY = {
    "torch": (
        "irx.api",
        "irx.dynamo",
        "irx.bench",
        "irx.runtime",
        "irx.analysis.quality",
        "irx.frontends",
        "irx.backends",
    ),
    "transformers": ("irx.frontends", "irx.bench"),
    "gguf": ("irx.frontends",),
    "tvm": ("irx.backends.tvm", "irx.backends.tvm_cuda"),
    "triton": ("irx.backends.triton",),
    "torch_mlir": ("irx.backends.mlir",),
    "sympy": ("irx.ir.dims",),
    "networkx": ("irx.analysis.structure",),
}


def package(module: str) -> str:
    """`irx.ir.graph` belongs to `ir`, `irx` itself to nothing."""
    return module.split(".")[1] if "." in module else ""


def inside(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def complaint(module: str, imported: str) -> str | None:
    """Why `module` must not import `imported`; None where it may."""
    top = imported.partition(".")[0]
    if top in HEAVY and not inside(module, HEAVY[top]):
        return f"{top} may only be imported in {', '.join(HEAVY[top])}"
    own, other = package(module), package(imported)
    if top != "irx" or other not in RANK or own == other:
        return None
    if own and RANK[other] >= RANK[own]:
        return f"{own} lies below {other} or beside it"
    return None


def test_modules_import_only_from_below() -> None:
    found = [(path, line, name) for path in files(*SOURCE_FOLDERS) for line, name in imports(path)]
    reasons = [(path, line, name, complaint(module_name(path), name)) for path, line, name in found]
    assert [f"{shown(path)}:{line}: imports {name}: {why}" for path, line, name, why in reasons if why] == []


def test_every_package_has_a_layer() -> None:
    packages = {package(module_name(path)) for path in files(*SOURCE_FOLDERS)} - {""}
    assert packages <= RANK.keys(), "give the new package a row in LAYERS"


def test_mapped_folders_are_imported_by_their_full_name() -> None:
    found = [(path, line, name) for path in files(*CODE_FOLDERS) for line, name in imports(path)]
    bare = [f"{shown(path)}:{line}: {name}" for path, line, name in found if name.partition(".")[0] in MAPPED]
    assert bare == [], "a bare import loads a second copy of every registry"


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("irx.ir.graph", "irx.ops"),
        ("irx.runtime.session", "irx.pipeline"),
        ("irx.tuning.search", "irx.pipeline.base"),
        ("irx.passes.fuse.fuse_norm", "irx.backends.torch"),
        ("irx.backends.torch", "irx.frontends"),
        ("irx.api", "irx.cli"),
        ("irx.passes.fuse.fuse_norm", "torch"),
        ("irx.ir.types", "sympy"),
        ("irx.backends.torch", "triton.language"),
        ("irx.analysis.blocks", "torch.nn"),
    ],
)
def test_forbidden_imports_are_noticed(module: str, imported: str) -> None:
    assert complaint(module, imported)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("irx.ir.graph", "irx.ir.types"),
        ("irx.pipeline.base", "irx.tuning"),
        ("irx.passes.fuse.fuse_norm", "irx.passes.fuse.sites"),
        ("irx.cli.compile", "irx.api"),
        ("irx.analysis.quality", "torch"),
        ("irx.ir.dims", "sympy"),
        ("irx", "irx.api"),
    ],
)
def test_allowed_imports_pass(module: str, imported: str) -> None:
    assert complaint(module, imported) is None
