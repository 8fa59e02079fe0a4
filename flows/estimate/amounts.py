"""Numbers that are known exactly or between two bounds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """A number between `low` and `high`."""

    low: float = 0.0
    high: float = 0.0

    @classmethod
    def exactly(cls, value: float) -> "Range":
        """Returns a number that is known."""
        return cls(value, value)

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def scale(self, factor: float) -> "Range":
        """Returns both bounds multiplied by `factor`."""
        return Range(self.low * factor, self.high * factor)

    def times(self, other: "Range") -> "Range":
        """Returns the product of two numbers that are not negative."""
        return Range(self.low * other.low, self.high * other.high)

    def over(self, other: "Range") -> "Range":
        """Returns the quotient of two numbers that are not negative."""
        return Range(self.low / other.high, self.high / other.low)

    def __str__(self) -> str:
        if format_quantity(self.low) == format_quantity(self.high):
            return format_quantity(self.high)
        return f"{format_quantity(self.low)}-{format_quantity(self.high)}"


_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def format_quantity(value: float) -> str:
    """Returns a number of answers or tokens in at most five characters; below 10,000 every digit."""
    if value < 10_000:
        return f"{value:.0f}"
    size, unit = next((size, unit) for size, unit in _UNITS if value >= 0.9995 * size)
    return f"{value / size:.3g}{unit}"


def format_volume(value: float) -> str:
    """Returns bytes as GB or MB of 1e9 and 1e6 bytes."""
    if value >= 0.9995e9:
        return f"{value / 1e9:.1f} GB" if value < 99.95e9 else f"{value / 1e9:,.0f} GB"
    return f"{value / 1e6:.1f} MB" if value < 99.95e6 else f"{value / 1e6:.0f} MB"


def format_hours(hours: Range) -> str:
    """Returns a time as a range, in the unit of the larger bound, or each in its own if they are far apart."""
    (low, unit), (high, other) = _choose_unit(hours.low, hours.high), _choose_unit(hours.high, hours.high)
    if other == unit:
        return f"{high} {unit}" if low == high else f"{low}-{high} {unit}"
    return f"{low} {unit}-{high} {other}"


_TIMES = ((48.0, 24.0, "d"), (1.5, 1.0, "h"), (1.5 / 60, 1 / 60, "min"))


def _choose_unit(hours: float, largest: float) -> tuple[str, str]:
    """Returns a number with its unit: that of `largest`, unless too little of it would be left."""
    for at_least, size, unit in _TIMES:
        if largest >= at_least and hours >= 0.095 * size:
            return _format_short(hours / size), unit
    return _format_short(hours * 3600), "s"


def _format_short(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def format_flops(value: Range) -> str:
    """Returns operations as powers of ten."""
    low, high = f"{value.low:.1e}".replace("e+", "e"), f"{value.high:.1e}".replace("e+", "e")
    return high if low == high else f"{low} to {high}"
