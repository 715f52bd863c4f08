"""Registers as data: one declaration of a register's fields decodes, composes and prints it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self, overload


class Bits:
    """A field of a `Register`: bits `first` to `last`, both included.

    Read from a value it is the field's number; read from the class it is the declaration, with its `mask`.
    """

    __slots__ = ("first", "mask", "name", "width")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.width = last - first + 1
        self.mask = ((1 << self.width) - 1) << first
        self.name = ""

    def __set_name__(self, owner: type[Register], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, value: None, owner: type[Register]) -> Self: ...
    @overload
    def __get__(self, value: Register, owner: type[Register]) -> int: ...
    def __get__(self, value: Register | None, owner: type[Register]) -> Self | int:
        return self if value is None else (value & self.mask) >> self.first


def bit(number: int) -> Bits:
    """A field of one bit."""
    return Bits(number, number)


class Register(int):
    """An integer whose fields have names: `CR0(0x11).PE`, `CR0.of(PE=1)`, `str(CR0(0x11))`.

    A subclass declares fields, lowest first:

        class CR0(Register):
            PE = bit(0)
            ET = bit(4)
    """

    FIELDS: ClassVar[tuple[Bits, ...]] = ()
    _BY_NAME: ClassVar[Mapping[str, Bits]] = {}

    def __init_subclass__(cls) -> None:
        cls.FIELDS += tuple(field for field in vars(cls).values() if isinstance(field, Bits))
        cls._BY_NAME = {field.name: field for field in cls.FIELDS}

    @classmethod
    def of(cls, **fields: int) -> Self:
        """The value with these fields set and the rest zero. Raises `ValueError` if one does not fit."""
        return cls(0).replace(**fields)

    def replace(self, **fields: int) -> Self:
        """This value with other `fields`. Raises `ValueError` if one does not exist or fit."""
        value = int(self)
        for name, number in fields.items():
            field = self._BY_NAME.get(name)
            if field is None or not 0 <= number < 1 << field.width:
                raise ValueError(f"{type(self).__name__} has no field {name} that holds {number:#x}")
            value = value & ~field.mask | number << field.first
        return type(self)(value)

    def __str__(self) -> str:
        set_fields = ((field, (self & field.mask) >> field.first) for field in self.FIELDS)
        names = [
            field.name if field.width == 1 else f"{field.name}={number:#x}"
            for field, number in set_fields
            if number
        ]
        return f"{int(self):#x} ({' '.join(names)})" if names else f"{int(self):#x}"

    __repr__ = __str__
