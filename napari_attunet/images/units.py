"""Units of length and time as the formats spell them."""

from __future__ import annotations

__all__ = ["SECONDS", "UNITS", "factor_between", "unit_name"]

#: Length units by the names of OME-Zarr: metres, OME-XML's symbol, other spellings.
UNITS: dict[str, tuple[float, str, tuple[str, ...]]] = {
    "picometer": (1e-12, "pm", ()),
    "angstrom": (1e-10, "Å", ("å",)),
    "nanometer": (1e-9, "nm", ("nanometre", "nanometers")),
    "micrometer": (
        1e-6,
        "µm",
        ("μm", "um", "micron", "microns", "micrometre", r"\u00b5m"),
    ),
    "millimeter": (1e-3, "mm", ("millimetre",)),
    "centimeter": (1e-2, "cm", ("centimetre",)),
    "inch": (0.0254, "in", ("inches",)),
    "meter": (1.0, "m", ("metre",)),
}

#: Seconds in a unit of time.
SECONDS: dict[str, float] = {
    "ms": 1e-3,
    "millisecond": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
}


def unit_name(text: object) -> str | None:
    """Return the OME-Zarr name of a unit of length however it is spelt."""
    spelt = str(text).strip().lower()
    for name, (_, symbol, others) in UNITS.items():
        if spelt in (name, symbol.lower(), *others):
            return name
    return None


def factor_between(unit: object, wanted: str) -> float:
    """Return what turns lengths of a unit into the wanted one; 0 where nothing does."""
    name = unit_name(unit)
    if name is None or wanted == "pixel":
        return 1.0 if unit == wanted else 0.0
    return 1.0 if name == wanted else UNITS[name][0] / UNITS[wanted][0]
